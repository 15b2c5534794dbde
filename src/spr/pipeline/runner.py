"""Runs the stages that are due into a run folder, shard by shard, and goes on where an earlier run stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from spr.config import Config
from spr.errors import InputError, RunError
from spr.pipeline import objects, regions
from spr.pipeline.engines.local import run_shards
from spr.pipeline.folder import adopt, locked, log
from spr.pipeline.stage import Plan, Stage
from spr.progress import MEGABYTE, Progress
from spr.store import (
    Manifest,
    ShardEntry,
    StageOutput,
    StageStore,
    count_reasons,
    dropped_columns,
    merge_dropped,
    read_table,
    reasons_sorted,
    sha256,
    write_table,
)

STAGES: tuple[Stage, ...] = (objects.STAGE, regions.STAGE)
STAGE_NAMES = tuple(stage.name for stage in STAGES)


@dataclass(frozen=True, slots=True)
class StageSummary:
    """What a stage has made, for people to read."""

    name: str
    unit: str
    rows: int
    dropped: dict[str, int]
    counts: dict[str, int]
    seconds: float
    done_before: bool


@dataclass(frozen=True, slots=True)
class Job:
    """One shard's work, all that a worker process needs; ``source``: a shard's file, or a table in Arrow's IPC form."""

    stage: Stage
    config: Config
    folder: Path
    index: int
    source: Path | bytes


def run_shard(job: Job) -> ShardEntry:
    """Read a shard, process it, write its files; the manifest is the caller's."""
    table = read_table(job.source) if isinstance(job.source, Path) else pa.ipc.open_stream(job.source).read_all()
    return StageStore(job.folder).write_shard(job.index, job.stage.process(table, job.config))


def run(config: Config, out: Path, *, until: str = STAGE_NAMES[-1], workers: int = 1) -> list[StageSummary]:
    """Run all due stages up to ``until`` (ARCHITECTURE: "How data flows").

    Args:
        config: The whole experiment.
        out: The run folder; made if it is not there. One that holds a run goes on from its finished shards.
        until: The last stage to run.
        workers: Processes for stages bound to the CPU.

    Raises:
        RunError: if the folder was made under another config or from other annotations, is in use, or is no run.
        InputError: if the input can't be read, or a stage leaves nothing over.
    """
    with locked(out):
        inputs = adopt(config, out, STAGES)
        summaries = []
        fingerprint = json.dumps(inputs, sort_keys=True)
        source: Path | None = None
        for stage in STAGES[: STAGE_NAMES.index(until) + 1]:
            decides = [fingerprint, stage.name, stage.version, stage.settings(config)]
            fingerprint = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
            summary = run_stage(stage, config, out, fingerprint, source, workers)
            summaries.append(summary)
            merge_dropped(out, STAGE_NAMES)
            if not summary.rows:
                _nothing_left(summary, out)
            source = out / stage.name
        return summaries


def run_stage(
    stage: Stage, config: Config, out: Path, fingerprint: str, source: Path | None, workers: int
) -> StageSummary:
    """Run one stage: what its manifest lacks, from the shards in the folder ``source`` or, for the first, its plan.

    Raises:
        RunError: if the folder holds rows of another fingerprint.
        InputError: if the first stage's input can't be read.
    """
    started, store = time.monotonic(), StageStore(out / stage.name)
    manifest = store.manifest() or Manifest(stage.name, fingerprint)
    if manifest.fingerprint != fingerprint:
        fix = f"delete {store.folder} to have it made anew, or choose another --out"
        raise RunError(f"{store.folder} was made by another version of SPR or from other rows", fix=fix)
    valid = store.valid_shards(manifest)
    if manifest.complete and len(valid) == len(manifest.shards) and _source_drops_valid(store, manifest):
        return _summary(stage, manifest, 0.0, done_before=True)
    manifest.shards, manifest.complete = valid, False
    store.sweep(manifest)
    log(out, "stage started", stage=stage.name, shards_kept=len(valid), workers=workers)
    if stage.plan is None:
        assert source is not None  # noqa: S101 (every stage but the first has one before it)
        before = StageStore(source)
        entries = before.finished().shards
        sizes, shard_of = [entry.rows for entry in entries], before.part
        _run_shards(stage, config, store, manifest, sizes, shard_of, None, workers)
    else:
        label = f"{stage.name}: reading {config.annotations.path.name}"
        with Progress(label, config.annotations.path.stat().st_size // MEGABYTE, "MB") as progress:
            plan = stage.plan(config, progress)
        _run_first(stage, config, store, manifest, plan, workers)
    manifest.complete = True
    store.save(manifest)
    store.sweep(manifest)
    summary = _summary(stage, manifest, time.monotonic() - started)
    log(out, "stage finished", stage=stage.name, rows=summary.rows, dropped=summary.dropped, seconds=summary.seconds)
    return summary


def _run_first(stage: Stage, config: Config, store: StageStore, manifest: Manifest, plan: Plan, workers: int) -> None:
    starts = range(0, len(plan.ids), config.shard_rows)
    sizes = [min(config.shard_rows, len(plan.ids) - start) for start in starts]

    def shard_of(index: int) -> bytes:
        return _to_ipc(plan.rows(starts[index], starts[index] + sizes[index]))

    seen = _run_shards(stage, config, store, manifest, sizes, shard_of, plan.limit, workers)
    dropped = pa.concat_tables([plan.dropped, _not_sampled(stage, plan.ids.slice(seen))])
    manifest.source = {
        "counts": plan.counts,
        "dropped": count_reasons(dropped),
        "dropped_sha256": write_table(store.source_drops, dropped),
    }


def _run_shards(
    stage: Stage,
    config: Config,
    store: StageStore,
    manifest: Manifest,
    sizes: list[int],
    shard_of: Callable[[int], Path | bytes],
    limit: int | None,
    workers: int,
) -> int:
    """Do the shards that the manifest lacks, until ``limit`` rows are out; returns how many input rows that took."""
    kept = len(manifest.shards)
    seen = sum(sizes[:kept])
    limit = sum(sizes) if limit is None else limit
    if manifest.rows >= limit:
        return seen
    jobs = (Job(stage, config, store.folder, index, shard_of(index)) for index in range(kept, len(sizes)))
    bar = Progress(stage.name, sum(sizes), "images", done=seen)
    with bar, contextlib.closing(run_shards(jobs, run_shard, workers)) as results:
        for entry in results:
            manifest.shards.append(_cut(store, stage, entry, limit - manifest.rows))
            store.save(manifest)
            seen += sizes[entry.index]
            bar.advance(sizes[entry.index])
            if manifest.rows >= limit:
                break
    return seen


def _to_ipc(table: pa.Table) -> bytes:
    # Not pickled: pyarrow 26 forgets the field names and nullability inside fixed-size lists that way.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _cut(store: StageStore, stage: Stage, entry: ShardEntry, room: int) -> ShardEntry:
    """The shard with no more rows than there is room for; what goes is dropped as not sampled."""
    if entry.rows <= room:
        return entry
    table, dropped = read_table(store.part(entry.index)), read_table(store.drops(entry.index))
    over = _not_sampled(stage, table["image_id"].combine_chunks().slice(room))
    return store.write_shard(entry.index, StageOutput(table.slice(0, room), pa.concat_tables([dropped, over])))


def _not_sampled(stage: Stage, ids: pa.Array) -> pa.Table:
    return dropped_columns(stage.name, "image", ids, "not_sampled")


def _source_drops_valid(store: StageStore, manifest: Manifest) -> bool:
    expected = manifest.source.get("dropped_sha256")
    return expected is None or (store.source_drops.is_file() and sha256(store.source_drops) == expected)


def _summary(stage: Stage, manifest: Manifest, seconds: float, *, done_before: bool = False) -> StageSummary:
    counts = manifest.source.get("counts", {})
    return StageSummary(stage.name, stage.unit, manifest.rows, manifest.dropped, counts, seconds, done_before)


def _nothing_left(summary: StageSummary, out: Path) -> None:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in reasons_sorted(summary.dropped)[:6])
    raise InputError(
        f"Stage `{summary.name}` leaves no {summary.unit}",
        got=f"dropped: {reasons}" if reasons else "an input without rows",
        expected=f"at least one of the {summary.unit}",
        fix=f"look at {out / 'dropped.parquet'} (spr show), then at the paths and thresholds in {out / 'config.yaml'}",
    )
