"""Benchmark results before and after training, from `RUN/metrics.json`."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spr.core import FORMAT_VERSION
from spr.core.errors import RunError
from spr.runs.reader import Run

WHEN = ("before", "after")
_LOWER_IS_BETTER = {"unmatched_boxes"}
_NO_DIRECTION = {"words", "yes_share"}
_AT_IOU = re.compile(r"(acc|recall)@(0?\.\d+)")


@dataclass(frozen=True, slots=True)
class Value:
    """The value of a metric, with its 95 % interval if the result has one."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        text = _digits(self.value)
        return text if self.low is None or self.high is None else f"{text} ({_digits(self.low)}–{_digits(self.high)})"


@dataclass(frozen=True, slots=True)
class MetricLine:
    """A metric before and after training; ``better`` is None if it has no direction or did not change."""

    name: str
    before: Value | None
    after: Value | None
    difference: str
    better: bool | None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The results of a benchmark.

    Attributes:
        task: Name of the benchmark.
        n: Number of items before and after training.
        lines: One per metric.
        groups: The same per group (a dataset, a size of objects).
        curves: By ``acc`` or ``recall``, then ``before`` or ``after``: IoU thresholds and values.
        problems: Number of problems before and after training, by kind.
        protocol: The settings of the evaluation.
    """

    task: str
    n: tuple[int | None, int | None]
    lines: list[MetricLine]
    groups: dict[str, list[MetricLine]]
    curves: dict[str, dict[str, list[tuple[float, Value]]]]
    problems: dict[str, tuple[Any, Any]]
    protocol: dict[str, Any]


def read_results(run: Run) -> list[TaskResult]:
    """The results of each benchmark in the run's metrics; empty before the first evaluation.

    Raises:
        RunError: if `RUN/metrics.json` does not have the format that the evaluation writes.
    """
    path = run.path / "metrics.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(raw, dict) or not all(isinstance(raw.get(when, {}), dict) for when in WHEN):
        raise _damaged(path, "not an object with `before` and `after`")
    version = raw.get("format_version")
    if raw and version != FORMAT_VERSION:
        got, fix = version or "1 (none is given)", "evaluate again with this version of SPR, or move the file away"
        raise RunError(f"{path} has another format version", got=got, expected=FORMAT_VERSION, fix=fix)
    sides = [raw.get(when, {}) for when in WHEN]
    tasks = list(dict.fromkeys(name for side in sides for name in side))
    try:
        return [_task(name, *(side.get(name) for side in sides)) for name in tasks]
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, got: object) -> RunError:
    expected = '{"before": {TASK: RESULT}, "after": {…}} with RESULT as `spr evaluate --out` writes it'
    return RunError(f"{path} is damaged", got=got, expected=expected, fix="evaluate again, or move the file away")


def _task(name: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> TaskResult:
    sides = [side or {} for side in (before, after)]
    groups = dict.fromkeys(group for side in sides for group in side.get("groups", {}))
    curves: dict[str, dict[str, list[tuple[float, Value]]]] = {}
    for when, side in zip(WHEN, sides, strict=True):
        for metric, entry in side.get("metrics", {}).items():
            at = _AT_IOU.fullmatch(metric)
            value = _value(entry)
            if at and value is not None:
                curves.setdefault(at[1], {}).setdefault(when, []).append((float(at[2]), value))
    found = [{kind: _count(entry) for kind, entry in side.get("problems", {}).items()} for side in sides]
    problems = dict.fromkeys(kind for side in found for kind in side)
    return TaskResult(
        task=name,
        n=(sides[0].get("n"), sides[1].get("n")),
        lines=_lines(*(side.get("metrics", {}) for side in sides)),
        groups={
            group: _lines(*(side.get("groups", {}).get(group, {}).get("metrics", {}) for side in sides))
            for group in groups
        },
        curves={
            kind: {when: sorted(points, key=lambda point: point[0]) for when, points in found.items()}
            for kind, found in curves.items()
            if any(len(points) > 1 for points in found.values())
        },
        problems={kind: (found[0].get(kind), found[1].get(kind)) for kind in problems},
        protocol=sides[1].get("protocol") or sides[0].get("protocol") or {},
    )


def _count(problem: Any) -> Any:
    """The number of answers with a problem; a result may also list some of them."""
    return problem["count"] if isinstance(problem, dict) else problem


def _lines(before: dict[str, Any], after: dict[str, Any]) -> list[MetricLine]:
    lines = []
    for name in dict.fromkeys([*before, *after]):
        old, new = _value(before.get(name)), _value(after.get(name))
        if old is None or new is None:
            lines.append(MetricLine(name, old, new, "–", None))
            continue
        change = new.value - old.value
        better = None if change == 0 or name in _NO_DIRECTION else (change < 0) == (name in _LOWER_IS_BETTER)
        # The typographic minus is as wide as the plus sign.
        sign = "+" if change > 0 else "−" if change < 0 else "±"
        lines.append(MetricLine(name, old, new, f"{sign}{_digits(abs(change))}", better))
    return lines


def _value(entry: Any) -> Value | None:
    if entry is None:
        return None
    number = entry["value"] if isinstance(entry, dict) else entry
    if number is None or not math.isfinite(float(number)):
        return None
    interval = entry.get("ci95") if isinstance(entry, dict) else None
    if interval is None or any(bound is None or not math.isfinite(float(bound)) for bound in interval):
        return Value(float(number))
    return Value(float(number), float(interval[0]), float(interval[1]))


def _digits(value: float) -> str:
    """About four significant digits: 0.8123, 12.35, 1,234."""
    size = abs(value)
    return f"{value:,.4f}" if size < 2 else f"{value:,.2f}" if size < 1000 else f"{value:,.0f}"
