"""Comparing results: differences of metrics on the same items, with confidence intervals and p-values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from spr.core import FORMAT_VERSION
from spr.core.documents import parse_json, read_json
from spr.core.errors import InputError
from spr.core.paths import is_dir, is_file
from spr.core.terminal import count_text
from spr.evaluation.answer_fields import same_image
from spr.evaluation.lines import read_bytes
from spr.evaluation.metrics import Difference, Interval, cluster_numbers, paired_difference
from spr.evaluation.result import NO_INTERVAL, Result, interval_json, read_items, rounded, without_interval
from spr.evaluation.run_results import named
from spr.evaluation.task import TASKS

_MAY_DIFFER = ("model", "predictions", "seed")  # entries of a protocol whose differences are not reported
_SMALLEST_SHOWN = 0.0001  # of p-values
_NO_VALUE = "one of the two has no value"


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of two results on the items that both have, and ``other`` minus ``base``; None without a value.

    ``direction`` is 1 if higher values are better, −1 if lower ones are, and 0 if the task doesn't say. ``reason`` is
    why there is no difference.
    """

    metric: str
    base: float | None
    other: float | None
    difference: Difference | None
    direction: int = 0
    reason: str = _NO_VALUE

    @property
    def verdict(self) -> str | None:
        """``better``, ``worse`` or, without a direction, ``changed``, if the interval excludes 0; otherwise ``same``.

        None if there is no interval to tell.
        """
        d = self.difference
        if d is None or (d.ci95 is None and d.value):
            return None
        if d.ci95 is None or d.ci95[0] <= 0 <= d.ci95[1]:
            return "same"
        return "changed" if not self.direction else "better" if d.value * self.direction > 0 else "worse"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A result compared with the first result of the same task.

    ``base`` and ``other`` are labels. ``n`` items of ``images`` images are in both results, ``base_n`` and ``other_n``
    items in each of them. ``changes`` are the differences between their protocols, as text, and ``notes`` those of the
    two results (`Result.notes`).
    """

    task: str
    base: str
    other: str
    n: int
    images: int
    base_n: int
    other_n: int
    changes: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The comparison as nested dicts, as ``spr compare --out`` writes it."""
        metrics = {}
        for row in self.rows:
            values = {"base": rounded(row.base), "other": rounded(row.other)}
            d = row.difference
            interval = interval_json(Interval(d.ci95, d.reason) if d else Interval(None, row.reason))
            difference, p = (rounded(d.value), rounded(d.p)) if d else (None, None)
            metrics[row.metric] = {**values, "difference": difference, **interval, "p": p}
        head = {"task": self.task, "base": self.base, "other": self.other, "n": self.n, "images": self.images}
        return {**head, "changes": list(self.changes), "notes": list(self.notes), "metrics": metrics}


def is_comparison(path: Path) -> bool:
    """Whether a file is one that `spr compare --out` wrote; raises OSError or ValueError if it is not JSON."""
    keys = {"task", "base", "other", "n", "images", "changes", "metrics"}
    content = read_json(path)
    return isinstance(content, list) and all(
        isinstance(entry, dict) and keys == set(entry) - {"notes"} for entry in content
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """A result as a file has it, under the ``name`` of a run's result or the ``label`` of its file, not yet checked."""

    label: str
    name: str
    task: str
    raw: Any
    file: Path

    def result(self) -> Result:
        """The result with its items; `InputError` if there is no items file."""
        return _result(self.file, self.task, self.raw)


def load_results(path: Path) -> list[tuple[str, Result]]:
    """The labelled result of a file that ``spr evaluate --out`` wrote, or the results of a run's ``metrics.json``.

    Raises `InputError` if it is neither, has another format version, or its items file is missing.
    """
    return [(entry.label, entry.result()) for entry in read_entries(path)]


def read_entries(path: Path) -> list[Entry]:
    """The same without the items."""
    file = path / "metrics.json" if is_dir(path) else path
    expected = "a file that `spr evaluate … --out` wrote, or a run folder with a metrics.json"
    try:
        raw = parse_json(read_bytes(file, expected, "Result"))
    except ValueError as error:
        raise InputError(f"Result {file} is not JSON", got=error, expected=expected) from None
    known = raw if isinstance(raw, dict) else {}
    is_result = isinstance(known.get("task"), str)
    parts = named(known)
    is_run = bool(parts) and all(isinstance(results, dict) for results in parts.values())
    if not is_result and not is_run:
        got = ", ".join(list(raw)[:6]) if isinstance(raw, dict) else type(raw).__name__
        raise InputError(f"{file} is not a result", got=got, expected=expected)
    if raw.get("format_version") != FORMAT_VERSION:
        got, fix = raw.get("format_version", "1 (none is given)"), "evaluate again with this version of SPR"
        raise InputError(f"Result {file} has another format version", got=got, expected=FORMAT_VERSION, fix=fix)
    label = file.parent.name if file.name == "metrics.json" and file.parent.name else file.stem
    if is_result:
        return [Entry(label, label, raw["task"], raw, file)]
    return [
        Entry(f"{label} {name}", name, key, result, file)
        for name, results in parts.items()
        for key, result in results.items()
    ]


def _result(file: Path, key: str, raw: Any) -> Result:
    if not isinstance(raw, dict) or not isinstance(raw.get("items"), str):
        fix = "evaluate again; a file of answers can be given as --predictions"
        expected = "`items`: the path of an .items.parquet file"
        raise InputError(f"Result `{key}` of {file} names no items file", expected=expected, fix=fix)
    items = file.parent / raw["items"]
    if not is_file(items):
        fix = "keep the files that `spr evaluate` writes in one folder"
        raise InputError(f"The items file of {file} is missing", got=f"no {items}", fix=fix)
    notes = raw.get("notes")
    notes = tuple(map(str, notes)) if isinstance(notes, list) else ()
    protocol = raw.get("protocol")
    found = Result(key, protocol if isinstance(protocol, dict) else {}, *read_items(items), notes=notes)
    metrics = raw.get("metrics")
    values = metrics.items() if isinstance(metrics, dict) else ()
    figures = {
        name: entry.get("value") for name, entry in values if name not in found.shares and isinstance(entry, dict)
    }
    return replace(found, figures={n: v for n, v in figures.items() if v is None or isinstance(v, int | float)})


def compare(paths: Sequence[Path]) -> list[Comparison]:
    """Compare every result with the first one of the same task and of the same items, in the order given.

    A path is a result file, or a run folder with results before and after training. A note names the results that have
    no counterpart.

    Raises:
        InputError: if there are no two results of one task, or none that share items: also if the same ids belong to
            different images.
    """
    by_task: dict[str, list[tuple[str, Result]]] = {}
    for path in paths:
        for label, result in load_results(path):
            by_task.setdefault(result.task, []).append((label, result))
    comparisons = []
    for results in by_task.values():
        groups: list[list[tuple[str, Result]]] = []
        for label, result in results:
            group = next((known for known in groups if _share_items(known[0][1], result)), None)
            if group is None:
                groups.append([(label, result)])
            else:
                group.append((label, result))
        if len(groups) == len(results) > 1 and len(by_task) == 1:
            groups = [results]  # an error that says why
        found = [comparison for group in groups for comparison in with_first(group)]
        if found and (alone := [group[0][0] for group in groups if len(group) == 1]):
            note = f"not compared, because no other result has the same items: {', '.join(alone)}"
            found[0] = replace(found[0], notes=(*found[0].notes, note))
        comparisons += found
    if not comparisons:
        got = ", ".join(f"{len(results)} of {task}" for task, results in by_task.items()) or "none"
        raise InputError("There is nothing to compare", got=got, expected="two results of the same task")
    return comparisons


def _share_items(one: Result, other: Result) -> bool:
    images = dict(zip(one.ids, one.images, strict=True))
    common = [(images[name], image) for name, image in zip(other.ids, other.images, strict=True) if name in images]
    return bool(common) and all(same_image(*pair) for pair in common)


def with_first(results: Sequence[tuple[str, Result]]) -> Iterator[Comparison]:
    """Compare labelled results of one task with the first one; raises `InputError` as `compare` does."""
    directions = directions_of(results[0][1].task)
    names = [name for name, _ in results]
    labels = [f"{name} ({k})" if names.count(name) > 1 else name for k, name in enumerate(names, start=1)]
    base = results[0][1]
    position = {name: k for k, name in enumerate(base.ids)}
    for label, (_, other) in zip(labels[1:], results[1:], strict=True):
        common = [(position[name], k) for k, name in enumerate(other.ids) if name in position]
        if not common:
            got, expected = (f"{ids[0]}, …" if ids else "none" for ids in (other.ids, base.ids))
            raise InputError(f"{labels[0]} and {label} share no items", got=got, expected=expected)
        for k, in_other in common:
            if not same_image(base.images[k], other.images[in_other]):
                what = f"{labels[0]} and {label} are results of different items with the same ids"
                got = f"id {base.ids[k]}: {base.images[k]} and {other.images[in_other]}"
                raise InputError(
                    what, got=got, expected="the same image", fix="compare results on the same annotations"
                )
        in_base, in_other = np.array(common).T
        clusters = cluster_numbers([base.images[k] for k in in_base])
        rows = []
        if len(common) == len(base.ids) == len(other.ids):  # a figure is of all items
            for metric, value in base.figures.items():
                if metric in other.figures:
                    direction = directions.get(metric, 0)
                    rows.append(Row(metric, value, other.figures[metric], None, direction, NO_INTERVAL))
        for metric, share in base.shares.items():
            if metric in other.shares:
                one, two = share.take(in_base), other.shares[metric].take(in_other)
                difference = paired_difference(one, two, clusters)
                rows.append(Row(metric, one.value(), two.value(), difference, directions.get(metric, 0)))
        changes = _changes(base.protocol, other.protocol)
        counts = len(common), len(set(clusters.tolist())), len(base.ids), len(other.ids)
        notes = (*(f"{labels[0]}: {note}" for note in base.notes), *(f"{label}: {note}" for note in other.notes))
        yield Comparison(base.task, labels[0], label, *counts, changes, tuple(rows), notes)


def directions_of(task: str) -> dict[str, int]:
    """By metric: 1 if higher values are better, −1 if lower ones are; a metric without a direction is missing."""
    found = TASKS.get(task)
    return {} if found is None else dict.fromkeys(found.higher_is_better, 1) | dict.fromkeys(found.lower_is_better, -1)


def conclude(comparisons: Sequence[Comparison], run: Path | None = None) -> list[str]:
    """What got better, worse or neither, from the intervals alone, and what to do next with a run's adapter."""
    lines = ["Conclusion (95 % intervals of the differences)"]
    for c in comparisons:
        rows: dict[str | None, list[Row]] = {}
        for row in c.rows:
            rows.setdefault(row.verdict, []).append(row)
        lines.append(f"  {c.task}, {c.base} → {c.other}:")
        for verdict, label in _VERDICTS.items():
            if found := rows.get(verdict):
                texts = [row.metric if verdict in ("same", None) else _moved(row) for row in found]
                lines += wrap(", ".join(texts), 96, initial_indent=f"    {label}", subsequent_indent=" " * 26)
    adapters = [] if run is None else [run / "adapter", *sorted(run.glob("trainings/*/adapter"))]
    if run is not None and (adapters := list(filter(is_dir, adapters))):
        verdicts = {row.verdict for c in comparisons for row in c.rows}
        lines.append(f"  Adapter: {', '.join(map(str, adapters))}")
        if "better" not in verdicts:
            images = min(c.images for c in comparisons)
            advice = (
                "no metric got better for sure: train on more pairs, with another learning rate or β, or measure on "
                f"more than {images:,} images (annotations.holdout)"
            )
        elif "worse" in verdicts:
            advice = f"weigh what got worse, in the answers of {run / 'evaluation'}, before you use the adapter"
        else:
            names = [adapter.parent.name for adapter in adapters if adapter.parent != run]
            name = "" if len(names) < len(adapters) else f" --name {names[0] if len(names) == 1 else 'NAME'}"
            advice = f"`spr merge {run}{name} --out FOLDER` makes a whole model of it"
        if "better" in verdicts and len(comparisons) > 1:
            tested = sum(row.verdict is not None for c in comparisons for row in c.rows)
            lines.append(
                f"  Of {tested:,} differences, about 1 in 20 is significant by chance alone: confirm the best result "
                "on other data or with another seed."
            )
        lines.append(f"  Next: {advice}.")
    return lines


_VERDICTS = {
    "better": "better                ",
    "worse": "worse                 ",
    "changed": "changed               ",
    "same": "no significant change ",
    None: "no interval           ",
}


def _moved(row: Row) -> str:
    digits = 4 if max(abs(row.base or 0), abs(row.other or 0)) < 2 else 1
    return f"{row.metric} {row.base:.{digits}f} → {row.other:.{digits}f}"


def _changes(base: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    # An entry that only one of the two has is not a difference: the other may not have recorded it.
    known = [name for name in base if name not in _MAY_DIFFER and None not in (base[name], other.get(name))]
    return tuple(f"{name}: {base[name]} → {other[name]}" for name in known if base[name] != other[name])


def _heads(base: str, other: str) -> tuple[str, str]:
    """Two names in 12 characters each, without the endings that they share, such as ``.description``.

    >>> _heads("base.description", "round-01.description")
    ('base', 'round-01')
    """
    while base != other and base.rpartition(".")[2] == other.rpartition(".")[2] and "." in base and "." in other:
        base, other = base.rpartition(".")[0], other.rpartition(".")[0]
    return base[-12:], other[-12:]


def table(comparison: Comparison) -> list[str]:
    """A comparison as lines of text for the terminal."""
    c = comparison
    lines = [f"{c.task}: {c.base} → {c.other}, {count_text(c.n, 'items')} of {count_text(c.images, 'images')}"]
    if not c.n == c.base_n == c.other_n:
        lines.append(f"  only the items that both have: {c.base} has {c.base_n:,}, {c.other} has {c.other_n:,}")
    lines += [f"  protocols differ: {change}" for change in c.changes]
    lines += [f"  note: {note}" for note in c.notes]
    base, other = _heads(c.base, c.other)
    head = f"{base:>12} {other:>12} {'difference':>12}  {'95 % interval':<20} {'p':>7}"
    width = max([16, *(len(row.metric) for row in c.rows)])
    lines.append(f"  {'':<{width}} {head}")
    for row in c.rows:
        d = row.difference
        cells = [f"{value:.4f}" if value is not None else "–" for value in (row.base, row.other)]
        tail = f"{'–':>12}"
        if d is not None:
            interval = f"[{d.ci95[0]:+.4f}, {d.ci95[1]:+.4f}]" if d.ci95 is not None else "–"
            p = f"{d.p:.4f}" if d.p >= _SMALLEST_SHOWN else f"<{_SMALLEST_SHOWN}"
            tail = f"{d.value:>+12.4f}  {interval:<20} {p:>7}"
        lines.append(f"  {row.metric:<{width}} {cells[0]:>12} {cells[1]:>12} {tail}")
    reasons = {row.metric: row.difference.reason for row in c.rows if row.difference and row.difference.reason}
    return lines + without_interval(reasons)
