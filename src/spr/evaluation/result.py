"""What an evaluation found: figures with intervals, by group, and each item's part in them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from spr.core.atomic import write_atomically
from spr.core.errors import InputError
from spr.evaluation.metrics import Bools, Ints, Share, bootstrap, cluster_numbers, intervals
from spr.evaluation.predictions import Prediction
from spr.runs.store import read_table, write_table

SHOWN = 20
"""Ids that a result's file names of each problem; all are counted."""
ITEMS, ANSWERS = ".items.parquet", ".answers.jsonl"


@dataclass(frozen=True, eq=False)
class Result:
    """A task's figures.

    Attributes:
        task: ``rec``, ``phrase-grounding``, ``referring``, ``pope`` or ``description``.
        protocol: What was done, in words and numbers: every choice that changes a figure.
        ids: The N items, as the annotations name them.
        images: The image of each: what is resampled together.
        shares: The figures by name, each with its arrays ``(N,)``.
        groups: Subsets of the items, bool ``(N,)`` by name.
        problems: Ids by what was wrong with their answers; the answers still count.
        predictions: The answers themselves, in the order of the items; empty if they were not kept.

    >>> result = Result("rec", {}, ("a", "b"), ("1", "2"), {"acc@0.5": Share.mean([1, 0])})
    >>> result.value("acc@0.5")
    0.5
    """

    task: str
    protocol: Mapping[str, Any]
    ids: tuple[str, ...]
    images: tuple[str, ...]
    shares: Mapping[str, Share]
    groups: Mapping[str, Bools] = field(default_factory=dict)
    problems: Mapping[str, Sequence[str]] = field(default_factory=dict)
    predictions: tuple[Prediction, ...] = ()

    @cached_property
    def clusters(self) -> Ints:
        """The number of each item's image, int64 ``(N,)``."""
        return cluster_numbers(self.images)

    def value(self, name: str, group: str | None = None) -> float | None:
        """A figure; None where there is nothing to divide by."""
        return self.shares[name].value(None if group is None else self.groups[group])

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """``{name: {"value": …, "ci95": [low, high]}}`` of all items."""
        return self._measured[0]

    @cached_property
    def _measured(self) -> list[dict[str, dict[str, Any]]]:
        """Values and intervals of all items and then of each group, all from the same resamples."""
        names, masks = list(self.shares), [mask.astype(np.float64) for mask in self.groups.values()]
        masked: dict[tuple[int, int], Any] = {}
        nothing = np.zeros(len(self.ids))

        def column(values: Any, group: int) -> Any:
            # Many columns are all of the figure (one data set) or none of it: then they are one array, summed once.
            key = id(values), group
            if key not in masked:
                made = values * masks[group]
                masked[key] = values if np.array_equal(made, values) else made if made.any() else nothing
            return masked[key]

        columns = [self.shares[name] for name in names]
        for group in range(len(masks)):
            columns += [
                Share(column(s.parts, group), column(s.wholes, group)) for s in map(self.shares.get, names) if s
            ]
        found = intervals(bootstrap(columns, self.clusters)) if columns and self.ids else [None] * len(columns)
        rows = [
            {"value": rounded(share.value()), "ci95": None if ci is None else [rounded(v) for v in ci]}
            for share, ci in zip(columns, found, strict=True)
        ]
        width = len(names)
        return (
            [dict(zip(names, rows[k : k + width], strict=True)) for k in range(0, len(rows), width)] if width else [{}]
        )

    def to_json(self) -> dict[str, Any]:
        """As ``--out`` has it: task, protocol, n, metrics, groups and problems."""
        by_group = zip(self.groups.items(), self._measured[1:], strict=True)
        return {
            "task": self.task,
            "protocol": dict(self.protocol),
            "n": len(self.ids),
            "metrics": self.metrics,
            "groups": {name: {"n": int(mask.sum()), "metrics": metrics} for (name, mask), metrics in by_group},
            "problems": {
                kind: {"count": len(ids), "ids": list(ids[:SHOWN])} for kind, ids in self.problems.items() if ids
            },
        }

    def write(self, path: Path, root: Path | None = None) -> dict[str, Any]:
        """Write ``path`` and, beside it, each item's parts (``.items.parquet``) and the answers (``.answers.jsonl``).

        Args:
            path: The result's file, ``….json``.
            root: What the paths in the returned object are relative to; None for the folder of ``path``.

        Returns:
            What ``path`` holds: `to_json`, and the ``items`` and ``answers`` beside it, to be put into a run's
            ``metrics.json``.

        Raises:
            RunError: if a file can't be written.
        """
        made = self.to_json()
        beside = path.with_name(path.stem + ITEMS)
        write_table(beside, self.items_table())
        made["items"] = beside.name
        if self.predictions:
            answers = path.with_name(path.stem + ANSWERS)
            write_atomically(answers, "".join(line.to_line() for line in self.predictions).encode())
            made["answers"] = answers.name
        write_atomically(path, (json.dumps(made, indent=2, ensure_ascii=False) + "\n").encode())
        if root is not None:
            away = Path(os.path.relpath(path.parent, root))
            made |= {key: str(away / made[key]) for key in ("items", "answers") if key in made}
        return made

    def items_table(self) -> pa.Table:
        """A row an item: ``id``, ``image``, and of each figure its ``NAME`` (parts) and ``NAME of`` (wholes)."""
        columns: dict[str, Any] = {"id": pa.array(self.ids, pa.string()), "image": pa.array(self.images, pa.string())}
        for name, share in self.shares.items():
            columns[name] = pa.array(share.parts)
            columns[f"{name} of"] = pa.array(share.wholes)
        return pa.table(columns)


def read_items(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Share]]:
    """Ids, images and figures of an ``.items.parquet``.

    Raises:
        InputError: if it holds something else.
        RunError: if it can't be read.
    """
    table = read_table(path)
    names = [name for name in table.column_names if f"{name} of" in table.column_names]
    if not {"id", "image"} <= set(table.column_names) or not names:
        raise InputError(f"{path} holds no items of an evaluation", got=table.column_names, expected="id, image, …")
    shares = {name: Share(table[name].to_numpy(), table[f"{name} of"].to_numpy()) for name in names}
    return tuple(table["id"].to_pylist()), tuple(table["image"].to_pylist()), shares


def rounded(value: float | None) -> float | None:
    """Six digits after the point: more than any interval has.

    >>> rounded(2 / 3), rounded(None)
    (0.666667, None)
    """
    return None if value is None else round(value, 6)
