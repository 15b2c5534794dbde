"""Benchmark results of a run, from `RUN/metrics.json`, or of result files: values, and differences to the first."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spr.config.public import public_values
from spr.core.errors import InputError, RunError
from spr.evaluation.compare import Entry, Row, directions_of, read_entries, with_first
from spr.evaluation.run_results import damaged, named, read_metrics
from spr.runs.reader import Run

_AT_IOU = re.compile(r"(acc|recall)@(0?\.\d+)")
VERDICTS = {"better": "better", "worse": "worse", "changed": "changed", "same": "no significant difference"}
"""What the report calls the verdicts of `spr.evaluation.compare.Row`."""


@dataclass(frozen=True, slots=True)
class Value:
    """The value of a metric, with its 95 % interval, or the reason why there is none, if the result has one."""

    value: float
    ci95: tuple[float, float] | None = None
    no_ci95: str | None = None

    @property
    def text(self) -> str:
        """The value."""
        return _digits(self.value)

    @property
    def interval(self) -> str:
        """The interval, or why there is none; empty if nothing is known about it."""
        return (
            "–".join(map(_digits, self.ci95)) if self.ci95 else f"no interval: {self.no_ci95}" if self.no_ci95 else ""
        )


@dataclass(frozen=True, slots=True)
class Change:
    """A difference to the first result: its text, what its interval says about it, and that interval.

    ``verdict`` is that of `spr.evaluation.compare.Row`: None if nothing can be said, for which ``interval`` may have
    the reason.
    """

    text: str
    verdict: str | None = None
    interval: str = ""

    @property
    def label(self) -> str:
        """The verdict in words; empty without one."""
        return VERDICTS.get(self.verdict or "", "")

    @property
    def style(self) -> str:
        """The CSS class: only what is better or worse for sure has a colour."""
        return self.verdict if self.verdict in ("better", "worse") else ""


@dataclass(frozen=True, slots=True)
class MetricLine:
    """A metric: its value in each result, and the differences of all but the first to the first one."""

    name: str
    values: list[Value | None]
    changes: list[Change | None]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The results of a benchmark; all lists follow ``columns``, the names of the results, the first the baseline.

    ``lines`` has one entry per metric, ``groups`` the same per group (a dataset, a size of objects). ``curves``: by
    ``acc`` or ``recall``, then by result: IoU thresholds and values. ``problems`` are counts by kind. ``notes`` say
    what makes the metrics doubtful (`spr.evaluation.result.Result`), or why they can't be compared.
    """

    task: str
    columns: list[str]
    n: list[int | None]
    lines: list[MetricLine]
    groups: dict[str, list[MetricLine]]
    curves: dict[str, dict[str, list[tuple[float, Value]]]]
    problems: dict[str, list[Any]]
    protocol: dict[str, Any]
    notes: list[str]


def read_results(run: Run, files: Sequence[Path] = ()) -> list[TaskResult]:
    """The results of each benchmark in the run's metrics, or in result files; empty before the first evaluation.

    Raises:
        RunError: if `RUN/metrics.json` does not have the format that the evaluation writes.
        InputError: if one of the files is not a result.
    """
    path = run.path / "metrics.json"
    if files:
        found = [entry for file in files for entry in read_entries(file)]
        entries = [Entry(e.label, e.label, e.task, e.raw, e.file) for e in found]
    else:
        results = named(read_metrics(run.path)).items()
        entries = [Entry(name, name, task, raw, path) for name, tasks in results for task, raw in tasks.items() if raw]
    by_task: dict[str, list[Entry]] = {}
    for entry in entries:
        by_task.setdefault(entry.task, []).append(entry)
    try:
        return [_task(task, own) for task, own in by_task.items()]
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise damaged(path, error) from None


def _task(name: str, entries: list[Entry]) -> TaskResult:
    labels = [entry.name for entry in entries]
    columns = [f"{label} ({k})" if labels.count(label) > 1 else label for k, label in enumerate(labels, start=1)]
    sides: list[dict[str, Any]] = [entry.raw for entry in entries]
    metrics, groups = ([side.get(key, {}) for side in sides] for key in ("metrics", "groups"))
    # A result may list some of the answers with a problem besides their number.
    problems = [
        {kind: problem["count"] if isinstance(problem, dict) else problem for kind, problem in listed.items()}
        for listed in (side.get("problems", {}) for side in sides)
    ]
    rows, compared = _compared(entries, columns)
    task = sides[-1].get("task") or sides[0].get("task") or name
    return TaskResult(
        task=name,
        columns=columns,
        n=[side.get("n") for side in sides],
        lines=_lines(metrics, rows, directions_of(task)),
        groups={
            group: _lines([side.get(group, {}).get("metrics", {}) for side in groups], [{}] * (len(sides) - 1), {})
            for group in _union(groups)
        },
        curves=_curves(metrics, columns),
        problems={kind: [own.get(kind) for own in problems] for kind in _union(problems)},
        protocol=public_values(next((side["protocol"] for side in reversed(sides) if side.get("protocol")), {})),
        notes=[f"{label}: {note}" for label, side in zip(columns, sides, strict=True) for note in side.get("notes", ())]
        + compared,
    )


def _union(parts: Iterable[dict[str, Any]]) -> dict[str, None]:
    return dict.fromkeys(key for part in parts for key in part)


def _compared(entries: list[Entry], columns: list[str]) -> tuple[list[dict[str, Row]], list[str]]:
    """For each result after the first, its comparison with the first by metric, empty if impossible; and notes."""
    rows: list[dict[str, Row]] = []
    notes: list[str] = []
    for entry, column in zip(entries[1:], columns[1:], strict=True):
        try:
            pair = (columns[0], entries[0].result()), (column, entry.result())
        except (InputError, RunError):
            rows.append({})
            missing = "the values per item (.items.parquet) of one of them are missing"
            notes.append(f"differences of {columns[0]} and {column} are not tested: {missing}")
            continue
        try:
            (comparison,) = with_first(pair)
        except InputError as error:
            rows.append({})
            notes.append(f"differences are not tested: {error.what}")
            continue
        rows.append({row.metric: row for row in comparison.rows})
        notes += [f"{columns[0]} and {column} have different protocols: {change}" for change in comparison.changes]
        if not comparison.n == comparison.base_n == comparison.other_n:
            notes.append(f"differences of {columns[0]} and {column} are those of the {comparison.n:,} items in both")
    return rows, notes


def _lines(metrics: list[dict[str, Any]], rows: list[dict[str, Row]], signs: dict[str, int]) -> list[MetricLine]:
    """One line per metric; metrics with a direction come first."""
    lines = []
    for name in sorted(_union(metrics), key=lambda name: bool(signs) and name not in signs):
        values = [_value(side.get(name)) for side in metrics]
        changes = [_change(values[0], new, own.get(name)) for new, own in zip(values[1:], rows, strict=True)]
        lines.append(MetricLine(name, values, changes))
    return lines


def _change(old: Value | None, new: Value | None, row: Row | None) -> Change | None:
    if old is None or new is None:
        return None
    d = None if row is None else row.difference
    difference = new.value - old.value if d is None else d.value
    if row is None or d is None:
        return Change(_signed(difference))
    interval = "" if d.ci95 is None else f"{_signed(d.ci95[0])} to {_signed(d.ci95[1])}"
    return Change(_signed(difference), row.verdict, interval or f"no interval: {d.reason}")


def _curves(metrics: list[dict[str, Any]], columns: list[str]) -> dict[str, dict[str, list[tuple[float, Value]]]]:
    """The metrics at several IoU thresholds."""
    curves: dict[str, dict[str, list[tuple[float, Value]]]] = {}
    for column, side in zip(columns, metrics, strict=True):
        for name, entry in side.items():
            at, value = _AT_IOU.fullmatch(name), _value(entry)
            if at and value is not None:
                curves.setdefault(at[1], {}).setdefault(column, []).append((float(at[2]), value))
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


def _signed(value: float) -> str:
    # The typographic minus is as wide as the plus sign.
    return f"{'+' if value > 0 else '−' if value < 0 else '±'}{_digits(abs(value))}"


def _digits(value: float) -> str:
    """About four significant digits: 0.8123, 12.35, 1,234."""
    size = abs(value)
    return f"{value:,.4f}" if size < 2 else f"{value:,.2f}" if size < 1000 else f"{value:,.0f}"
