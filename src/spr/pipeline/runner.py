"""Runs the stages that are due into a run folder, shard by shard, and goes on where an earlier run stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from spr.config import Config
from spr.core.atomic import sha256
from spr.core.errors import InputError, RunError
from spr.core.progress import MEGABYTE, Progress
from spr.models.registry import release
from spr.pipeline import describe, objects, pair, regions, score
from spr.pipeline.engines.local import run_shards
from spr.pipeline.stage import Stage
from spr.runs.dropped import merge_dropped
from spr.runs.folder import adopt, locked, log
from spr.runs.store import (
    Manifest,
    ShardEntry,
    StageStore,
    count_reasons,
    dropped_columns,
    read_table,
    reasons_sorted,
    write_table,
)

STAGES: tuple[Stage, ...] = (objects.STAGE, regions.STAGE, describe.STAGE, score.STAGE, pair.STAGE)
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
    """One shard's work, all that a worker process needs; sources are shards' files, or tables in Arrow's IPC form."""

    stage: Stage
    config: Config
    folder: Path
    index: int
    sources: Mapping[str, Path | bytes]
    inputs: int
    source: str = ""


def run_shard(job: Job) -> ShardEntry:
    """Read a shard's inputs, process them, write its files; the manifest is the caller's."""
    tables = {
        name: read_table(source) if isinstance(source, Path) else pa.ipc.open_stream(source).read_all()
        for name, source in job.sources.items()
    }
    store = StageStore(job.folder)
    kept = {"unfinished": store.unfinished(job.index)} if job.stage.keeps_unfinished else {}
    output = job.stage.process(tables, job.config, **kept)
    return store.write_shard(job.index, output, inputs=job.inputs, source=job.source)


def run(
    config: Config,
    out: Path,
    *,
    until: str | None = None,
    workers: int = 1,
    report: Callable[[StageSummary], None] = lambda _: None,
) -> list[StageSummary]:
    """Run all due stages up to ``until`` (ARCHITECTURE: "How data flows").

    Args:
        config: The whole experiment.
        out: The run folder; made if it is not there. One that holds a run goes on from its finished shards.
        until: The last stage to run; None: ``pairs``, or ``regions`` where the config names no describer.
        workers: Processes for stages bound to the CPU.
        report: Called after each stage.

    Raises:
        RunError: if the folder was made under another config or from other annotations, is in use, or is no run.
        InputError: if the input can't be read, or a stage leaves nothing over.
    """
    with locked(out):
        inputs = adopt(config, out, STAGES)
        summaries = []
        fingerprint = json.dumps(inputs, sort_keys=True)
        last = until or ("regions" if config.describer is None else STAGE_NAMES[-1])
        for stage in STAGES[: STAGE_NAMES.index(last) + 1]:
            decides = [fingerprint, stage.name, stage.version, stage.settings(config)]
            fingerprint = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
            summary = run_stage(stage, config, out, fingerprint, workers)
            summaries.append(summary)
            report(summary)
            merge_dropped(out, STAGE_NAMES)
            if not summary.rows:
                _nothing_left(summary, out)
        return summaries


def run_stage(stage: Stage, config: Config, out: Path, fingerprint: str, workers: int) -> StageSummary:
    """Run one stage: what its manifest lacks, from the shards of its inputs or, for the first, its plan.

    Raises:
        RunError: if the folder holds rows of another fingerprint.
        InputError: if the first stage's input can't be read.
    """
    started, store = time.monotonic(), StageStore(out / stage.name)
    manifest = store.manifest() or Manifest(stage.name, fingerprint)
    if manifest.fingerprint != fingerprint:
        fix = f"delete {store.folder} to have it made anew, or choose another --out"
        raise RunError(f"{store.folder} was made by another version of SPR or from other rows", fix=fix)
    store.sweep(manifest)
    valid = store.valid_shards(manifest)
    jobs_of = _work_before(stage, config, store, out) if stage.plan is None else None
    if jobs_of is not None:
        valid = [shard for shard in valid if shard.index < len(jobs_of) and shard.source == jobs_of[shard.index].source]
    expected = len(manifest.shards) if jobs_of is None else len(jobs_of)
    if manifest.complete and len(valid) == expected and _source_drops_valid(store, manifest):
        return _summary(stage, manifest, 0.0, done_before=True)
    manifest.shards, manifest.complete = valid, False
    log(out, "stage started", stage=stage.name, shards_kept=len(valid), workers=workers)
    if jobs_of is not None:
        _run_jobs(stage, store, manifest, jobs_of, 1 if stage.model_sections(config) else workers)
    else:
        _run_first(stage, config, store, manifest, 1 if stage.model_sections(config) else workers)
    release()
    store.sweep(manifest)
    store.forget_unfinished()
    manifest.complete = True
    store.save(manifest)
    summary = _summary(stage, manifest, time.monotonic() - started)
    log(out, "stage finished", stage=stage.name, rows=summary.rows, dropped=summary.dropped, seconds=summary.seconds)
    return summary


def _work_before(stage: Stage, config: Config, store: StageStore, out: Path) -> list[Job]:
    """A job for each shard of the stages that this one reads."""
    before = {name: StageStore(out / name) for name in stage.inputs}
    entries = {name: input_store.finished().shards for name, input_store in before.items()}
    jobs = []
    for index, entry in enumerate(entries[stage.inputs[-1]]):
        sources = {name: input_store.part(index) for name, input_store in before.items()}
        identity = "+".join(entries[name][index].sha256 for name in stage.inputs)
        jobs.append(Job(stage, config, store.folder, index, sources, entry.rows, identity))
    return jobs


def _run_jobs(stage: Stage, store: StageStore, manifest: Manifest, jobs: Sequence[Job], workers: int) -> None:
    """Do the jobs whose shards the manifest lacks."""
    done = {shard.index: shard for shard in manifest.shards}
    missing = [job for job in jobs if job.index not in done]
    unit = next((before.unit for before in STAGES if before.name == stage.inputs[-1]), "rows")
    total = sum(job.inputs for job in jobs)
    bar = Progress(stage.name, total, unit, done=total - sum(job.inputs for job in missing))
    with bar, contextlib.closing(run_shards(missing, run_shard, workers)) as results:
        for entry in results:
            done[entry.index] = entry
            manifest.shards = [done[index] for index in sorted(done)]
            store.save(manifest)
            store.unfinished(entry.index).unlink(missing_ok=True)
            bar.advance(entry.inputs)


def _run_first(stage: Stage, config: Config, store: StageStore, manifest: Manifest, workers: int) -> None:
    """Plan, and do shards in their order until ``limit`` rows are out."""
    assert stage.plan is not None  # noqa: S101 (the caller has looked)
    label = f"{stage.name}: reading {config.annotations.path.name}"
    with Progress(label, config.annotations.path.stat().st_size // MEGABYTE, "MB") as progress:
        plan = stage.plan(config, progress)
    # What comes after a gap was made under another count of rows: only a beginning without gaps is kept.
    manifest.shards = [shard for number, shard in enumerate(manifest.shards) if shard.index == number]
    limit = len(plan.ids) if plan.limit is None else min(plan.limit, len(plan.ids))
    kept, seen = len(manifest.shards), sum(shard.inputs for shard in manifest.shards)

    def job(start: int, inputs: int) -> Job:
        table = plan.rows(start, start + inputs)
        return Job(stage, config, store.folder, start // config.shard_rows, {"source": _to_ipc(table)}, inputs)

    starts = range(kept * config.shard_rows, len(plan.ids), config.shard_rows)
    jobs = (job(start, min(config.shard_rows, len(plan.ids) - start)) for start in starts)
    # A shard that was cut ends the stage, also when the run was killed right after it.
    finished = manifest.rows >= limit or seen % config.shard_rows != 0
    bar = Progress(stage.name, limit, stage.unit, done=manifest.rows)
    with bar, contextlib.closing(run_shards(() if finished else jobs, run_shard, workers)) as results:
        for entry in results:
            if manifest.rows + entry.rows >= limit:
                inputs = _inputs_for(store, entry, limit - manifest.rows, plan.ids.slice(seen))
                entry = run_shard(job(seen, inputs)) if inputs < entry.inputs else entry
            manifest.shards.append(entry)
            store.save(manifest)
            seen += entry.inputs
            bar.advance(entry.rows)
            if manifest.rows >= limit:
                break
    dropped = pa.concat_tables([plan.dropped, _not_sampled(stage, plan.ids.slice(seen))])
    manifest.source = {
        "counts": plan.counts,
        "dropped": count_reasons(dropped),
        "dropped_sha256": write_table(store.source_drops, dropped),
    }


def _inputs_for(store: StageStore, entry: ShardEntry, rows: int, ids: pa.Array) -> int:
    """How many of a shard's inputs, which begin ``ids``, give its first ``rows`` rows; the others are not sampled."""
    made = read_table(store.part(entry.index))["image_id"].combine_chunks()
    return int(pc.index(ids, made[rows - 1]).as_py()) + 1


def _to_ipc(table: pa.Table) -> bytes:
    # Not pickled: pyarrow 26 forgets the field names and nullability inside fixed-size lists that way.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


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
