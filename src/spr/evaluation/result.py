"""The result of an evaluation: metrics with confidence intervals, overall and by group, and their values per item."""

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

from spr.core import FORMAT_VERSION
from spr.core.atomic import atomic_file, leftovers, recover, write_atomically
from spr.core.documents import read_json
from spr.core.errors import InputError
from spr.core.outputs import check_output
from spr.evaluation.metrics import Bools, Interval, Share, cluster_numbers, intervals
from spr.evaluation.predictions import Prediction
from spr.runs.store import read_table, write_table

_SHOWN = 20  # ids that a result file lists per problem; all are counted
NO_INTERVAL = "not a ratio of sums over images"
"""Why a metric of `Result.figures` has no interval."""


@dataclass(frozen=True, eq=False)
class Result:
    """The metrics of a task over N items.

    Attributes:
        protocol: Every choice that changes a metric.
        ids: The ids of the N items.
        images: The image of each item; confidence intervals resample images.
        shares: The metrics by name, each with arrays of shape ``(N,)``.
        groups: Subsets of the items by name, bool ``(N,)``.
        problems: By kind, the ids of answers with a problem (`spr.evaluation.predictions.PROBLEMS`).
        predictions: The model's answers; empty if they come from a predictions file.
        matched: How a predictions file was read: ``id_field`` and ``answer_field``, its ``items`` ``of_items`` that
            have an answer and ``lines`` ``of_lines`` that belong to an item. None for a model.
        notes: What makes the metrics doubtful, as sentences: more than 10 % of the items failed or have boxes on
            another scale, or no answer could be read. ``spr evaluate`` then ends with exit code 3.
        figures: Metrics that are no ratio of sums over the items, such as average precision, by name. They have a
            value over all items, but no interval and no values per group or item.

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
    matched: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    figures: Mapping[str, float | None] = field(default_factory=dict)

    def value(self, name: str, group: str | None = None) -> float | None:
        """The value of a metric, over all items or a group; None if its wholes sum to 0."""
        if group is None and name in self.figures:
            return self.figures[name]
        return self.shares[name].value(None if group is None else self.groups[group])

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """``{name: {"value": …, "ci95": [low, high]}}`` over all items, those of `figures` first.

        Without an interval, ``ci95`` is None and ``no_ci95`` the reason (`intervals`).
        """
        without = interval_json(Interval(None, NO_INTERVAL))
        figures = {name: {"value": rounded(value), **without} for name, value in self.figures.items()}
        return figures | self._measured[0]

    @cached_property
    def _measured(self) -> list[dict[str, dict[str, Any]]]:
        """Values and intervals of all items, and then of each group, from the same resamples."""
        shares = self.shares.values()
        columns, zeros = list(shares), np.zeros(len(self.ids))
        halves = {id(values): values for share in shares for values in (share.parts, share.wholes)}
        for mask in self.groups.values():
            # Values that lie completely inside or outside the group become a shared array, which is summed once.
            inside = {
                key: (values * mask if values[mask].any() else zeros) if values[~mask].any() else values
                for key, values in halves.items()
            }
            columns += [Share(inside[id(share.parts)], inside[id(share.wholes)]) for share in shares]
        found = intervals(columns, cluster_numbers(self.images))
        rows = [
            {"value": rounded(share.value()), **interval_json(interval)}
            for share, interval in zip(columns, found, strict=True)
        ]
        width = len(self.shares)
        return [dict(zip(self.shares, rows[k * width :], strict=False)) for k in range(len(self.groups) + 1)]

    def to_json(self) -> dict[str, Any]:
        """The content of a result file: format version, task, protocol, n, metrics, groups, problems and notes."""
        groups = zip(self.groups.items(), self._measured[1:], strict=True)
        problems = {kind: {"count": len(ids), "ids": list(ids[:_SHOWN])} for kind, ids in self.problems.items() if ids}
        return {
            "format_version": FORMAT_VERSION,
            "task": self.task,
            "protocol": dict(self.protocol),
            "n": len(self.ids),
            "metrics": self.metrics,
            "groups": {name: {"n": int(mask.sum()), "metrics": metrics} for (name, mask), metrics in groups},
            "problems": problems,
            **({"matched": dict(self.matched)} if self.matched is not None else {}),
            "notes": list(self.notes),
        }

    def write(self, path: Path, root: Path | None = None) -> dict[str, Any]:
        """Write the result, and beside it the items (``.items.parquet``) and the answers (``.answers.jsonl``), if any.

        Returns:
            The content of the file. Its paths ``items`` and ``answers`` are relative to ``root``, by default the folder
            of ``path``: with the run as root, it is an entry for the run's ``metrics.json``.

        Raises:
            RunError: if one of the files can't be written, or is not part of an earlier result (`check_result`).
        """
        content = self.to_json()
        beside, answers = _beside(path)
        check_result(path, answers=bool(self.predictions))
        # Until it is renamed, the file's temporary one says to whom the files beside it belong, see `check_result`.
        with atomic_file(path) as file:
            write_table(beside, self.items_table())
            content["items"] = beside.name
            if self.predictions:
                write_atomically(answers, "".join(line.to_line() for line in self.predictions).encode())
                content["answers"] = answers.name
            file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        for written in (path, beside, answers):
            recover(written)
        if root is not None:
            folder = Path(os.path.relpath(path.parent, root))
            content |= {key: str(folder / content[key]) for key in ("items", "answers") if key in content}
        return content

    def items_table(self) -> pa.Table:
        """One row per item: ``id``, ``image``, and for each metric ``NAME`` (parts) and ``NAME of`` (wholes)."""
        columns: dict[str, Any] = {"id": pa.array(self.ids, pa.string()), "image": pa.array(self.images, pa.string())}
        for name, share in self.shares.items():
            columns |= {name: pa.array(share.parts), f"{name} of": pa.array(share.wholes)}
        return pa.table(columns)


def check_result(path: Path, *, answers: bool) -> None:
    """Raise `RunError` if a result at ``path``, with or without a file of answers, would replace another file.

    Files of an earlier result are replaced, and those of an evaluation that was killed while it wrote them.
    """
    check_output(path, "a result of `spr evaluate`", lambda file: _read_result(file) is not None, folder=False)
    named = (_read_result(path) or {}).values()
    killed = bool(leftovers(path.parent, path.name))
    for beside in _beside(path)[: 1 + answers]:
        check_output(beside, f"part of the result {path.name}", lambda file: killed or file.name in named, folder=False)


def _beside(path: Path) -> tuple[Path, Path]:
    """The files of the items and of the answers of a result."""
    return path.with_name(path.stem + ".items.parquet"), path.with_name(path.stem + ".answers.jsonl")


def _read_result(path: Path) -> dict[str, str] | None:
    """The names of the files of a result; None if the file is not one."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not {"format_version", "task", "protocol", "metrics"} <= set(content):
        return None
    return {key: str(content[key]) for key in ("items", "answers") if key in content}


def read_items(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Share]]:
    """The ids, images and metrics of an ``.items.parquet`` file."""
    table = read_table(path)
    names = [name for name in table.column_names if f"{name} of" in table.column_names]
    if not {"id", "image"} <= set(table.column_names) or not names:
        raise InputError(f"{path} is not an items file", got=table.column_names, expected="the columns id, image, …")
    shares = {name: Share(table[name].to_numpy(), table[f"{name} of"].to_numpy()) for name in names}
    return tuple(table["id"].to_pylist()), tuple(table["image"].to_pylist()), shares


def interval_json(interval: Interval) -> dict[str, Any]:
    """An interval as in result files: ``ci95``, and ``no_ci95`` if there is none."""
    if interval.ci95 is None:
        return {"ci95": None, "no_ci95": interval.reason}
    return {"ci95": [rounded(bound) for bound in interval.ci95]}


def without_interval(reasons: Mapping[str, str]) -> list[str]:
    """Lines that say which metrics have no interval, and why; ``reasons`` by the metrics' names."""
    return [
        f"  no interval for {', '.join(name for name, why in reasons.items() if why == reason)}: {reason}"
        for reason in dict.fromkeys(reasons.values())
    ]


def rounded(value: float | None) -> float | None:
    """Round to six decimals, more than any confidence interval resolves."""
    return None if value is None else round(value, 6)
