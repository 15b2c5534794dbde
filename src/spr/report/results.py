"""Benchmark results before and after training, from `RUN/metrics.json`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spr.config.public import public_values
from spr.core import FORMAT_VERSION
from spr.core.documents import read_json
from spr.core.errors import RunError
from spr.evaluation.task import TASKS
from spr.runs.reader import Run

WHEN = ("before", "after")
_AT_IOU = re.compile(r"(acc|recall)@(0?\.\d+)")


@dataclass(frozen=True, slots=True)
class Value:
    """The value of a metric, with its 95 % interval, or the reason why there is none, if the result has one."""

    value: float
    ci95: tuple[float, float] | None = None
    no_ci95: str | None = None

    def __str__(self) -> str:
        shown = "–".join(map(_digits, self.ci95)) if self.ci95 else self.no_ci95 and f"no interval: {self.no_ci95}"
        return _digits(self.value) + (f" ({shown})" if shown else "")


@dataclass(frozen=True, slots=True)
class MetricLine:
    """A metric before and after training.

    ``better`` is None if the metric did not change, or if its task doesn't say which direction is better.
    """

    name: str
    before: Value | None
    after: Value | None
    difference: str
    better: bool | None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The results of a benchmark, before and after training.

    ``lines`` has one entry per metric, ``groups`` the same per group (a dataset, a size of objects). ``curves``: by
    ``acc`` or ``recall``, then ``before`` or ``after``: IoU thresholds and values. ``problems`` are counts by kind.
    ``notes`` say what makes the metrics doubtful (`spr.evaluation.result.Result`).
    """

    task: str
    n: tuple[int | None, int | None]
    lines: list[MetricLine]
    groups: dict[str, list[MetricLine]]
    curves: dict[str, dict[str, list[tuple[float, Value]]]]
    problems: dict[str, tuple[Any, Any]]
    protocol: dict[str, Any]
    notes: list[str]


def read_results(run: Run) -> list[TaskResult]:
    """The results of each benchmark in the run's metrics; empty before the first evaluation.

    Raises:
        RunError: if `RUN/metrics.json` does not have the format that the evaluation writes.
    """
    path = run.path / "metrics.json"
    try:
        raw = read_json(path)
        if not isinstance(raw, dict) or not all(isinstance(raw.get(when, {}), dict) for when in WHEN):
            raise ValueError("not an object with `before` and `after`")
        before, after = (raw.get(when, {}) for when in WHEN)
        version = raw.get("format_version")
        if raw and version != FORMAT_VERSION:
            got, fix = version or "1 (none is given)", "evaluate again with this version of SPR, or move the file away"
            raise RunError(f"{path} has another format version", got=got, expected=FORMAT_VERSION, fix=fix)
        return [_task(name, [before.get(name) or {}, after.get(name) or {}]) for name in before | after]
    except FileNotFoundError:
        return []
    except (OSError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        expected = '{"before": {TASK: RESULT}, "after": {…}} with RESULT as `spr evaluate --out` writes it'
        fix = "evaluate again, or move the file away"
        raise RunError(f"{path} is damaged", got=error, expected=expected, fix=fix) from None


def _task(name: str, sides: list[dict[str, Any]]) -> TaskResult:
    metrics, groups = ([side.get(key, {}) for side in sides] for key in ("metrics", "groups"))
    # A result may list some of the answers with a problem besides their number.
    problems = [
        {kind: problem["count"] if isinstance(problem, dict) else problem for kind, problem in listed.items()}
        for listed in (side.get("problems", {}) for side in sides)
    ]
    task = TASKS.get(sides[1].get("task") or sides[0].get("task") or name)
    signs = dict.fromkeys(task.higher_is_better, 1) | dict.fromkeys(task.lower_is_better, -1) if task else {}
    return TaskResult(
        task=name,
        n=(sides[0].get("n"), sides[1].get("n")),
        lines=_lines(metrics, signs),
        groups={
            group: _lines([side.get(group, {}).get("metrics", {}) for side in groups], signs)
            for group in groups[0] | groups[1]
        },
        curves=_curves(metrics),
        problems={kind: (problems[0].get(kind), problems[1].get(kind)) for kind in problems[0] | problems[1]},
        protocol=public_values(sides[1].get("protocol") or sides[0].get("protocol") or {}),
        notes=[f"{when}: {note}" for when, side in zip(WHEN, sides, strict=True) for note in side.get("notes", ())],
    )


def _lines(metrics: list[dict[str, Any]], signs: Mapping[str, int]) -> list[MetricLine]:
    """One line per metric; ``signs`` has 1 for metrics of which higher values are better, −1 for the opposite."""
    lines = []
    for name in metrics[0] | metrics[1]:
        old, new = (_value(side.get(name)) for side in metrics)
        if old is None or new is None:
            lines.append(MetricLine(name, old, new, "–", None))
            continue
        change = new.value - old.value
        better = change * signs[name] > 0 if change and name in signs else None
        # The typographic minus is as wide as the plus sign.
        sign = "+" if change > 0 else "−" if change < 0 else "±"
        lines.append(MetricLine(name, old, new, f"{sign}{_digits(abs(change))}", better))
    return lines


def _curves(metrics: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, Value]]]]:
    """The metrics at several IoU thresholds."""
    curves: dict[str, dict[str, list[tuple[float, Value]]]] = {}
    for when, side in zip(WHEN, metrics, strict=True):
        for name, entry in side.items():
            at, value = _AT_IOU.fullmatch(name), _value(entry)
            if at and value is not None:
                curves.setdefault(at[1], {}).setdefault(when, []).append((float(at[2]), value))
    for points in (points for sides in curves.values() for points in sides.values()):
        points.sort(key=lambda point: point[0])
    return {kind: sides for kind, sides in curves.items() if any(len(points) > 1 for points in sides.values())}


def _value(entry: Any) -> Value | None:
    number, interval = (entry["value"], entry.get("ci95")) if isinstance(entry, dict) else (entry, None)
    if number is None or not math.isfinite(float(number)):
        return None
    if interval is None or any(bound is None or not math.isfinite(float(bound)) for bound in interval):
        return Value(float(number), None, entry.get("no_ci95") if isinstance(entry, dict) else None)
    return Value(float(number), (float(interval[0]), float(interval[1])))


def _digits(value: float) -> str:
    """About four significant digits: 0.8123, 12.35, 1,234."""
    size = abs(value)
    return f"{value:,.4f}" if size < 2 else f"{value:,.2f}" if size < 1000 else f"{value:,.0f}"
