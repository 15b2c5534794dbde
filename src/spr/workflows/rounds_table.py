"""The table of `spr rounds`: its rows, the stop rule, and the table as JSON, CSV and text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from spr.core import FORMAT_VERSION
from spr.evaluation.task import TASKS
from spr.workflows.evaluations import csv_cells, csv_text, measured_text

BASE = "base"
"""The row of the model before the first round."""
Data: TypeAlias = Literal["same", "fresh"]
Stop: TypeAlias = Literal["interval", "value", "never"]
DATA: dict[str, str] = {
    "same": "every round describes the same regions, with new samples",
    "fresh": "every round takes the next annotations.max_images images of the sample",
}
STOPS: dict[str, str] = {
    "interval": "the metric gets worse, and the 95 % interval of its paired difference to the round before excludes 0",
    "value": "the metric gets worse than in the round before",
    "never": "never",
}


@dataclass(slots=True)
class Round:
    """A row of the table: the model before the first round, or after a round.

    ``pipeline`` has the numbers of ``regions``, ``candidates`` and ``pairs``, the mean score of the candidates and the
    mean margin of the pairs' scores. ``training`` has the training's ``pairs``, ``steps``, ``seconds`` and last
    metrics. ``results`` are by evaluation and metric: ``{"value", "ci95"}``. ``to_before`` and ``to_base`` are the
    paired differences to the row before and to the first row, ``{"difference", "ci95", "p"}``.
    """

    name: str
    run: str | None = None
    adapter: str | None = None
    described_by: str | None = None
    pipeline: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    to_before: dict[str, dict[str, Any]] = field(default_factory=dict)
    to_base: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """The rows of the rounds so far, and whether the stop rule ended them.

    ``metric`` is the evaluation and the metric of the stop rule, and ``tasks`` are the evaluations' tasks. ``fell`` is
    the round after which the rule ended the rounds, with ``why`` as a sentence. ``best`` is the row with the
    best value of the metric.
    """

    metric: tuple[str, str]
    stop: Stop
    data: Data = "same"
    tasks: Mapping[str, str] = field(default_factory=dict)
    rows: list[Round] = field(default_factory=list)
    fell: str | None = None
    why: str | None = None
    best: str | None = None


def falls(difference: Mapping[str, Any], direction: int, stop: Stop) -> bool:
    """Whether the stop rule ends the rounds.

    Args:
        difference: ``{"difference", "ci95"}`` to the round before, either of them None if it is not known.
        direction: 1 if higher values are better, −1 if lower ones are.
        stop: The rule.

    >>> falls({"difference": -0.02, "ci95": [-0.05, 0.01]}, 1, "interval")
    False
    >>> falls({"difference": -0.02, "ci95": [-0.03, -0.01]}, 1, "interval")
    True
    """
    value, interval = difference.get("difference"), difference.get("ci95")
    if stop == "never" or value is None:
        return False
    if stop == "value":
        return bool(value * direction < 0)
    return interval is not None and max(bound * direction for bound in interval) < 0


def table_json(outcome: Outcome) -> dict[str, Any]:
    """The content of ``table.json``."""
    rows = [
        {name: getattr(row, name) for name in Round.__slots__ if getattr(row, name) is not None} for row in outcome.rows
    ]
    return {
        "format_version": FORMAT_VERSION,
        "metric": ":".join(outcome.metric),
        "data": outcome.data,
        "stop": outcome.stop,
        "stopped_after": outcome.fell,
        "why": outcome.why,
        "best": outcome.best,
        "rows": rows,
    }


def table_csv(rows: Sequence[Round]) -> str:
    """The table with one column per number."""
    return csv_text(_csv_lines(rows))


def _csv_lines(rows: Sequence[Round]) -> Iterator[dict[str, Any]]:
    for row in rows:
        training = {f"training {name}": value for name, value in row.training.items() if name != "seconds"}
        line: dict[str, Any] = {"name": row.name, **row.pipeline, **training, "adapter": row.adapter}
        for label, metrics in row.results.items():
            for metric, measured in metrics.items():
                head = f"{label} {metric}"
                line |= csv_cells(head, measured["value"], measured["ci95"])
                for what, differences in (("before", row.to_before), ("base", row.to_base)):
                    if (difference := differences.get(label, {}).get(metric)) is not None:
                        line |= csv_cells(f"{head} to {what}", difference["difference"], difference["ci95"])
        yield line


def table(outcome: Outcome) -> list[str]:
    """The table as lines of text: the trainings, then one block per evaluation and metric with a better direction."""
    rows = outcome.rows
    width = max((len(row.name) for row in rows), default=0)
    lines = [f"{'':<{width}}  {'pairs':>8} {'steps':>7} {'loss':>9} {'margin':>9} {'accuracy':>9} {'mean score':>11}"]
    for row in rows[1:]:
        numbers = [f"{row.training.get(name, float('nan')):>9.4f}" for name in ("loss", "margin", "accuracy")]
        score = row.pipeline["mean_score"]
        shown = f"{'–' if score is None else f'{score:.4f}':>11}"
        counts = f"{row.training['pairs']:>8,} {row.training['steps']:>7,}"
        lines.append(f"{row.name:<{width}}  {counts} {' '.join(numbers)} {shown}")
    for label, name in outcome.tasks.items() if rows else ():
        task = TASKS.find(name, "task")
        for metric in (*task.higher_is_better, *task.lower_is_better):
            if any(metric not in row.results[label] for row in rows):
                continue
            better = "lower" if metric in task.lower_is_better else "higher"
            title = f"{label} {metric} ({better} is better)"
            lines += ["", f"{title}; differences to the round before, and to {BASE}; * the interval excludes 0"]
            for row in rows:
                cells = [measured_text(row.results[label][metric])]
                cells += [
                    f"{short_difference(found.get(label, {}).get(metric)):<27}"
                    for found in (row.to_before, row.to_base)
                ]
                lines.append(f"{row.name:<{width}}  {'  '.join(cells)}".rstrip())
    if outcome.best is not None:
        where = next(row.adapter for row in rows if row.name == outcome.best)
        label, metric = outcome.metric
        lines += ["", f"Best {label} {metric}: {outcome.best}" + (f" ({where})" if where else "")]
    return lines


def value_text(row: Round, metric: tuple[str, str]) -> str:
    """The value of an evaluation's metric."""
    value = row.results[metric[0]].get(metric[1], {}).get("value")
    return "–" if value is None else f"{value:.4f}"


def short_difference(difference: Mapping[str, Any] | None) -> str:
    """A difference with its interval, and an asterisk if that excludes 0; empty if there is none."""
    if not difference or difference["difference"] is None:
        return ""
    interval, value = difference["ci95"], f"{difference['difference']:+.4f}"
    if interval is None:
        return value
    return f"{value} [{interval[0]:+.4f}, {interval[1]:+.4f}]{'' if interval[0] <= 0 <= interval[1] else ' *'}"
