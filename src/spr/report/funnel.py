"""What each stage kept and dropped, and how long it took, for every stage that the run has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from spr.config.public import public_name
from spr.core.reasons import DROP_REASONS, explain
from spr.pipeline.stage import STAGES
from spr.records.schemas import DROPPED
from spr.runs.dropped import dropped_by
from spr.runs.reader import Run
from spr.runs.store import count_reasons, read_table, reasons_sorted
from spr.runs.trainings import training_place

LISTED = 200
"""Ids listed per reason; `RUN/dropped.parquet` has all."""


@dataclass(frozen=True, slots=True)
class Drop:
    """What a stage dropped for one reason; ``ids`` are the first `LISTED` ones.

    ``files`` are the names of their image files, without folders of a machine; None where they are not known.
    """

    stage: str
    kind: str
    reason: str
    explanation: str
    count: int
    ids: list[str] = field(default_factory=list)
    files: list[str | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StageCount:
    """The output of a stage: rows and drops, the most frequent reason first.

    ``unit`` is what its rows are, in the plural; ``lost`` counts dropped items that would otherwise have become rows;
    ``seconds`` is the total duration of all its runs, None if the log doesn't say.
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
        """Share of the possible rows that were kept, 0..1."""
        return self.rows / max(self.rows + self.lost, 1)


def count_stages(run: Run) -> list[StageCount]:
    """The stages that have started, in the order of the data, also those of packages that are not installed."""
    seconds: Counter[str] = Counter()
    for event in run.events:
        if event.get("event") == "stage finished" and isinstance(event.get("seconds"), int | float):
            seconds[str(event.get("stage"))] += event["seconds"]
    counts = []
    for name in run.stages:
        store = run.store(name)
        manifest = store.manifest()
        if manifest is None:
            continue
        stage = STAGES.get(name)
        unit, reasons = (stage.unit, stage.reasons) if stage else ("rows", {})
        drops = _drops(name, manifest.dropped, dropped_by(run.path, manifest), reasons)
        lost = sum(drop.count for drop in drops if stage is None or drop.kind == stage.kind)
        counts.append(StageCount(name, unit, manifest.rows, lost, manifest.complete, seconds.get(name), drops))
    return counts


def training_drops(run: Run, name: str | None = None) -> list[Drop]:
    """The pairs that a training left out, from its `training/dropped.parquet`; empty before it began."""
    path = training_place(run.path, name) / "training" / "dropped.parquet"
    stage = f"training {name}" if name else "training"
    if not path.is_file():
        return []
    table = read_table(path, schema=DROPPED)
    return _drops(stage, count_reasons(table), table.to_batches(), DROP_REASONS["training"])


def _drops(
    stage: str, dropped: Mapping[str, int], rows: Iterable[pa.RecordBatch], reasons: Mapping[str, str]
) -> list[Drop]:
    """The drops of each ``"<kind>: <reason>"``, with their first ids and file names."""
    drops = []
    for key, count in reasons_sorted(dropped):
        kind, _, reason = key.partition(": ")
        drops.append(Drop(stage, kind, reason, reasons.get(reason) or explain(stage, reason), count))
    for batch in rows:
        unlisted = [drop for drop in drops if len(drop.ids) < min(drop.count, LISTED)]
        if not unlisted:
            break
        for drop in unlisted:
            mask = pc.and_(pc.equal(batch["kind"], drop.kind), pc.equal(batch["reason"], drop.reason))
            listed = batch.filter(mask).slice(0, LISTED - len(drop.ids))
            drop.ids.extend(listed["id"].to_pylist())
            drop.files.extend(name and public_name(name) for name in listed["file_name"].to_pylist())
    return drops
