"""The training's log as curves: `RUN/training/log.jsonl`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spr.report.funnel import read_log

POINTS = 240
"""Points of a curve at most: each is the mean of as many steps as that takes."""
CURVES = (
    "loss",
    "margin",
    "accuracy",
    "chosen_logps",
    "rejected_logps",
    "chosen_rewards",
    "rejected_rewards",
    "grad_norm",
    "learning_rate",
)


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What a training wrote.

    Attributes:
        steps: ``(steps,)``, rising; of a step that was done again after a resume, the last line counts.
        values: By name of the log's field, ``(steps,)`` float64; NaN where a line has no finite number.
        settings: Of its last ``start`` line.
        broken: Lines that could not be read.
        finished: Whether there is an ``end`` line.
    """

    steps: np.ndarray
    values: dict[str, np.ndarray]
    settings: dict[str, Any]
    broken: int
    finished: bool

    def last(self, name: str, share: float = 0.1) -> float | None:
        """The mean of a field over the last tenth of the steps, or None where it has no number there."""
        values = self.values.get(name, np.empty(0))[-max(1, round(len(self.steps) * share)) :]
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else None

    def not_finite(self, name: str) -> int:
        """How many steps have no finite number in a field that others have."""
        values = self.values.get(name, np.empty(0))
        return int((~np.isfinite(values)).sum()) if len(values) else 0


def read_training(run: Path) -> TrainingLog | None:
    """The training's log, or None where no step was logged."""
    events, broken = read_log(run / "training" / "log.jsonl")
    by_step = {event["step"]: event for event in events if event.get("event") == "step" and _is_step(event.get("step"))}
    if not by_step:
        return None
    lines = [by_step[step] for step in sorted(by_step)]
    names = sorted({name for line in lines for name in line} - {"event", "step"})
    values = {name: np.array([_number(line.get(name)) for line in lines]) for name in names}
    settings: dict[str, Any] = next((event for event in reversed(events) if event.get("event") == "start"), {})
    return TrainingLog(
        steps=np.array(sorted(by_step), dtype=np.float64),
        values={name: column for name, column in values.items() if np.isfinite(column).any()},
        settings={key: value for key, value in settings.items() if key != "event"},
        broken=broken,
        finished=any(event.get("event") == "end" for event in events),
    )


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def thin(xs: np.ndarray, ys: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """A curve of at most ``points`` points, each the mean of neighbouring ones; what is not finite is left out.

    >>> thin(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, np.nan, 5]), points=2)
    (array([1.5, 4. ]), array([2., 5.]))
    """
    good = np.isfinite(ys)
    xs, ys = xs[good], ys[good]
    if len(xs) <= points:
        return xs, ys
    groups = np.array_split(np.arange(len(xs)), points)
    return np.array([xs[g].mean() for g in groups]), np.array([ys[g].mean() for g in groups])
