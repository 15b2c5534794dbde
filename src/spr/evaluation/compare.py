"""Runs beside each other: differences of their figures on the same items, with paired bootstrap p-values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spr.core.errors import InputError
from spr.evaluation.metrics import Difference, Share, cluster_numbers, paired_difference
from spr.evaluation.result import read_items, rounded

SAME = ("model", "predictions", "seed")
"""Parts of a protocol in which runs may differ and still compare."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A result from disk.

    Attributes:
        label: What the table calls it.
        key: Where it belongs: its task, or its name in a run's ``metrics.json``.
        protocol: How it was measured.
        ids, images, shares: Its items (`spr.evaluation.result.Result`).
    """

    label: str
    key: str
    protocol: dict[str, Any]
    ids: tuple[str, ...]
    images: tuple[str, ...]
    shares: dict[str, Share]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a run beside that of the first run, both on the items that they share.

    Attributes:
        key: The task.
        metric: The figure's name.
        base, other: The two values; None where there is nothing to divide by.
        difference: Other minus base; None where one is None.
    """

    key: str
    metric: str
    base: float | None
    other: float | None
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run against the first one, in one task.

    Attributes:
        key: The task.
        base, other: Their labels.
        n: Items that both have; ``base_n`` and ``other_n`` are what each has.
        changes: What of the protocol differs, in words.
        rows: The figures.
    """

    key: str
    base: str
    other: str
    n: int
    base_n: int
    other_n: int
    changes: tuple[str, ...]
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """The comparison as nested dicts."""
        metrics = {}
        for row in self.rows:
            d = row.difference
            metrics[row.metric] = {
                "base": rounded(row.base),
                "other": rounded(row.other),
                "difference": None if d is None else rounded(d.value),
                "ci95": None if d is None else [rounded(v) for v in d.ci95],
                "p": None if d is None else rounded(d.p),
            }
        head = {"task": self.key, "base": self.base, "other": self.other, "n": self.n}
        return {**head, "changes": list(self.changes), "metrics": metrics}


def load_measured(path: Path) -> list[Measured]:
    """The results of a file that ``spr evaluate --out`` wrote, or of a run: its ``metrics.json``, before and after.

    Raises:
        InputError: if it is neither, or the file with its items is gone.
    """
    file = path / "metrics.json" if path.is_dir() else path
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else error
        fix = "give what `spr evaluate … --out` wrote, or a run folder that was evaluated"
        raise InputError(f"Result {file} can't be read", got=got, fix=fix) from None
    except ValueError as error:
        raise InputError(
            f"Result {file} is not JSON", got=error, expected="what `spr evaluate … --out` wrote"
        ) from None
    label = file.parent.name if file.name == "metrics.json" and file.parent.name else file.stem
    if isinstance(raw, dict) and isinstance(raw.get("task"), str):
        return [_measured(file, label, raw["task"], raw)]
    if isinstance(raw, dict) and any(isinstance(raw.get(when), dict) for when in ("before", "after")):
        return [
            _measured(file, f"{label} {when}", key, result)
            for when in ("before", "after")
            for key, result in (raw.get(when) or {}).items()
        ]
    got = ", ".join(list(raw)[:6]) if isinstance(raw, dict) else type(raw).__name__
    raise InputError(f"{file} holds no result", got=got, expected="`task` and `metrics`, or `before` and `after`")


def _measured(file: Path, label: str, key: str, raw: Any) -> Measured:
    if not isinstance(raw, dict) or not isinstance(raw.get("items"), str):
        fix = "evaluate again with this version, from the file of answers"
        raise InputError(f"Result `{key}` of {file} names no items", expected="`items`: a .items.parquet", fix=fix)
    items = file.parent / raw["items"]
    if not items.is_file():
        raise InputError(f"The items of {file} are gone", got=f"no {items}", fix="keep the files of --out together")
    return Measured(label, key, raw.get("protocol") or {}, *read_items(items))


def compare(paths: Sequence[Path]) -> list[Comparison]:
    """Every result against the first one of its task, in the order given.

    Raises:
        InputError: if there are fewer than two results of a task, or two of them share no items.
    """
    by_key: dict[str, list[Measured]] = {}
    for path in paths:
        for measured in load_measured(path):
            by_key.setdefault(measured.key, []).append(measured)
    made = [pair for found in by_key.values() for pair in _against_first(found)]
    if not made:
        got = ", ".join(f"{len(found)} of {key}" for key, found in by_key.items()) or "none"
        raise InputError("There is nothing to compare", got=got, expected="two results of one task")
    return made


def _against_first(found: Sequence[Measured]) -> Iterator[Comparison]:
    given = [measured.label for measured in found]
    labels = [f"{name} ({k})" if given.count(name) > 1 else name for k, name in enumerate(given, start=1)]
    base = found[0]
    place = {name: k for k, name in enumerate(base.ids)}
    for label, other in zip(labels[1:], found[1:], strict=True):
        common = [(place[name], k) for k, name in enumerate(other.ids) if name in place]
        if not common:
            got = f"{other.ids[0]}, …" if other.ids else "none"
            expected = f"{base.ids[0]}, …" if base.ids else "none"
            raise InputError(f"{labels[0]} and {label} share no items", got=got, expected=expected)
        a, b = (np.array(column) for column in zip(*common, strict=True))
        clusters = cluster_numbers([base.images[k] for k in a])
        rows = []
        for metric, share in base.shares.items():
            if metric in other.shares:
                one, two = _taken(share, a), _taken(other.shares[metric], b)
                difference = paired_difference(one, two, clusters)
                rows.append(Row(base.key, metric, one.value(), two.value(), difference))
        changes = _changes(base.protocol, other.protocol)
        counts = len(common), len(base.ids), len(other.ids)
        yield Comparison(base.key, labels[0], label, *counts, changes, tuple(rows))


def _taken(share: Share, rows: Any) -> Share:
    return Share(share.parts[rows], share.wholes[rows])


def _changes(a: dict[str, Any], b: dict[str, Any]) -> tuple[str, ...]:
    # What a file of answers doesn't say can't be told to differ.
    known = [name for name in a if name not in SAME and None not in (a[name], b.get(name))]
    names = [name for name in known if a[name] != b[name]]
    return tuple(f"{name}: {a.get(name)} → {b.get(name)}" for name in names)


def table(comparison: Comparison) -> list[str]:
    """A comparison as lines of text."""
    c = comparison
    lines = [f"{c.key}: {c.base} → {c.other}, {c.n:,} items"]
    if not c.n == c.base_n == c.other_n:
        lines.append(f"  only the items that both have: {c.base} has {c.base_n:,}, {c.other} has {c.other_n:,}")
    lines += [f"  protocols differ: {change}" for change in c.changes]
    lines.append(
        f"  {'':<16} {c.base[-12:]:>12} {c.other[-12:]:>12} {'difference':>12}  {'95 % interval':<20} {'p':>7}"
    )
    for row in c.rows:
        d = row.difference
        cells = [f"{value:.4f}" if value is not None else "–" for value in (row.base, row.other)]
        tail = f"{d.value:>+12.4f}  {f'[{d.ci95[0]:+.4f}, {d.ci95[1]:+.4f}]':<20} {d.p:>7.4f}" if d else f"{'–':>12}"
        lines.append(f"  {row.metric:<16} {cells[0]:>12} {cells[1]:>12} {tail}")
    return lines
