"""What each stage kept and dropped, and when it ran: from the manifests, the drops' tables and the run's log."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from spr.core.reasons import explain
from spr.pipeline.stage import ordered_stages
from spr.runs.store import StageStore, count_reasons, read_table, reasons_sorted

LISTED = 200
"""Ids listed a reason; `RUN/dropped.parquet` has all."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Things of one kind that one stage dropped for one reason; ``ids`` are the first of them."""

    stage: str
    kind: str
    reason: str
    count: int
    explained: str
    ids: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StageCount:
    """What a stage made.

    Attributes:
        name, unit: Of the stage and of its rows.
        rows: How many rows it has.
        lost: How many of what its rows are made from fell out.
        complete: Whether it has finished.
        seconds: How long it took, over all times that it was run; None where the log doesn't say.
        drops: Most first.
    """

    name: str
    unit: str
    rows: int
    lost: int
    complete: bool
    seconds: float | None
    drops: list[Drop]

    @property
    def kept(self) -> float:
        """Share of what could have become a row that did, 0..1."""
        return self.rows / max(self.rows + self.lost, 1)


def count_stages(run: Path, events: list[dict[str, Any]]) -> list[StageCount]:
    """The stages that have begun, in the order of the data.

    Args:
        run: The run folder.
        events: `read_log`'s lines.

    Raises:
        RunError: if a manifest or a table of drops is damaged.
    """
    took: Counter[str] = Counter()
    for event in events:
        if event.get("event") == "stage finished" and isinstance(event.get("seconds"), int | float):
            took[str(event.get("stage"))] += event["seconds"]
    counts = []
    for stage in ordered_stages():
        store = StageStore(run / stage.name)
        manifest = store.manifest()
        if manifest is None:
            continue
        ids = _first_ids(store, set(manifest.dropped))
        drops = []
        for name, count in reasons_sorted(manifest.dropped):
            kind, _, reason = name.partition(": ")
            explained = stage.reasons.get(reason) or explain(stage.name, reason)
            drops.append(Drop(stage.name, kind, reason, count, explained, ids.get(name, [])))
        lost = sum(drop.count for drop in drops if drop.kind == stage.kind)
        seconds = took.get(stage.name)
        counts.append(StageCount(stage.name, stage.unit, manifest.rows, lost, manifest.complete, seconds, drops))
    return counts


def training_drops(run: Path) -> list[Drop]:
    """The pairs that the training left out, from `RUN/training/dropped.parquet`; none where it has not begun.

    Raises:
        RunError: if the table is damaged.
    """
    path = run / "training" / "dropped.parquet"
    if not path.is_file():
        return []
    table = read_table(path)
    drops = []
    for name, count in reasons_sorted(count_reasons(table)):
        kind, _, reason = name.partition(": ")
        drops.append(Drop("training", kind, reason, count, reason.replace("_", " "), _ids_of(table, name, LISTED)))
    return drops


def _first_ids(store: StageStore, wanted: set[str]) -> dict[str, list[str]]:
    """The first ids of each ``"<kind>: <reason>"``."""
    manifest = store.manifest()
    found: dict[str, list[str]] = {name: [] for name in wanted}
    for path in store.dropped_files(manifest) if manifest is not None else ():
        table = read_table(path)
        short = [name for name, ids in found.items() if len(ids) < LISTED]
        if not short:
            break
        for name in short:
            found[name] += _ids_of(table, name, LISTED - len(found[name]))
    return found


def _ids_of(table: pa.Table, name: str, limit: int) -> list[str]:
    kind, _, reason = name.partition(": ")
    mask = pc.and_(pc.equal(table["kind"], kind), pc.equal(table["reason"], reason))
    ids: list[str] = table["id"].filter(mask).slice(0, limit).to_pylist()
    return ids


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file of JSON lines, and how many lines are none.

    A process that is killed leaves half a line, and a log is no reason to show nothing: such lines are counted, not
    raised. A file that is not there has no lines.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return [], 0
    events, broken = [], 0
    for line in lines:
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict):
            events.append(event)
        else:
            broken += 1
    return events, broken
