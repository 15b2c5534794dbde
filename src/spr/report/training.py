"""The curves of a run's trainings, from their logs `training/log.jsonl`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spr.config.public import public_values
from spr.runs.reader import Run, read_json_lines
from spr.runs.trainings import training_names, training_place

POINTS = 240
"""Maximum number of points of a curve; longer curves show the means of neighbouring steps."""


@dataclass(frozen=True, slots=True)
class TrainingCurves:
    """What a training logged, one column per field.

    ``steps`` is ``(steps,)``, ascending; if a step was repeated after a resume, its last line counts. ``values`` are
    ``(steps,)`` float64, NaN where a line has no finite number. ``settings`` are the fields of the last ``start`` line,
    ``broken`` counts lines that can't be read, and ``finished`` says whether there is an ``end`` line. ``held_out`` has
    the metrics of the evaluations: steps and values, by name.
    """

    steps: np.ndarray
    values: dict[str, np.ndarray]
    settings: dict[str, Any]
    broken: int
    finished: bool
    held_out: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def last(self, name: str, share: float = 0.1) -> float | None:
        """The mean of a field over the last tenth of the steps; None if it has no finite number there."""
        values = self.values.get(name, np.empty(0))[-max(1, round(len(self.steps) * share)) :]
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else None

    def not_finite(self, name: str) -> int:
        """Number of steps without a finite number in a field that other steps have."""
        return int((~np.isfinite(self.values[name])).sum())


def read_trainings(run: Run) -> dict[str | None, TrainingCurves]:
    """The curves of all trainings of a run that have logged a step, by name: None is the default one."""
    read = {name: read_training(run, name) for name in training_names(run.path)}
    return {name: curves for name, curves in read.items() if curves is not None}


def read_training(run: Run, name: str | None = None) -> TrainingCurves | None:
    """A training's curves, or None if no step was logged."""
    events, broken = read_json_lines(training_place(run.path, name) / "training" / "log.jsonl")
    by_step = {event["step"]: event for event in events if event.get("event") == "step" and _is_step(event.get("step"))}
    if not by_step:
        return None
    steps = sorted(by_step)
    names = sorted({name for line in by_step.values() for name in line} - {"event", "step"})
    values = {name: np.array([_number(by_step[step].get(name)) for step in steps]) for name in names}
    settings: dict[str, Any] = next((event for event in reversed(events) if event.get("event") == "start"), {})
    return TrainingCurves(
        steps=np.array(steps, dtype=np.float64),
        values={name: column for name, column in values.items() if np.isfinite(column).any()},
        settings=public_values({key: value for key, value in settings.items() if key not in ("event", "first_step")}),
        broken=broken,
        finished=any(event.get("event") == "end" for event in events),
        held_out=_held_out(events),
    )


def _held_out(events: list[dict[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    by_step = {event["step"]: event for event in events if event.get("event") == "eval" and _is_step(event.get("step"))}
    steps = sorted(by_step)
    names = dict.fromkeys(name for step in steps for name in by_step[step] if name.startswith("eval_"))
    columns = {name: np.array([_number(by_step[step].get(name)) for step in steps]) for name in names}
    xs = np.array(steps, dtype=np.float64)
    return {name.removeprefix("eval_"): (xs, values) for name, values in columns.items() if np.isfinite(values).any()}


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def thin(xs: np.ndarray, ys: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """A curve with at most ``points`` points, each the mean of neighbouring ones; non-finite values are left out.

    >>> thin(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, np.nan, 5]), points=2)
    (array([1.5, 4. ]), array([2., 5.]))
    """
    finite = np.isfinite(ys)
    xs, ys = xs[finite], ys[finite]
    if len(xs) <= points:
        return xs, ys
    groups = np.array_split(np.arange(len(xs)), points)
    return np.array([xs[g].mean() for g in groups]), np.array([ys[g].mean() for g in groups])
