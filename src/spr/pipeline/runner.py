"""Runs the stages into a run folder, shard by shard, and resumes where an earlier run stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from spr.annotations import prepare_annotations
from spr.config import Config
from spr.core.atomic import has_sha256
from spr.core.errors import InputError, RunError
from spr.core.paths import as_path
from spr.core.progress import MEGABYTE, Progress, counted
from spr.core.reasons import FIXES, NOTEWORTHY, explain
from spr.core.terminal import count_text
from spr.models.registry import check_loadable, local_weights, release
from spr.pipeline.engines.local import run_shards
from spr.pipeline.reuse import OtherRun, changed_weights, take_over
from spr.pipeline.stage import STAGES, Plan, Stage, due_stages, ordered_stages
from spr.runs.dropped import merge_dropped
from spr.runs.folder import append_log, open_run
from spr.runs.images import check_images
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


@dataclass(frozen=True, slots=True)
class StageSummary:
    """The result of a stage; ``seconds`` is how long it ran this time, 0 if it was ``done_before``."""

    name: str
    unit: str  # what its rows are, in the plural
    rows: int
    dropped: dict[str, int]  # by "<kind>: <reason>"
    counts: dict[str, int]  # what a first stage has read, and notes
    examples: dict[str, str]  # a case of a note or of a drop reason
    seconds: float
    done_before: bool
    totals: dict[str, int] = field(default_factory=dict)  # how many items of a kind there were before the drops
    hint: str | None = None  # what to check, if it ran this time
    reuse: str | None = None  # whether it was taken over from another run, or why not

    @property
    def advice(self) -> str | None:
        """What to change, if more than half of the items were dropped for one reason.

        For objects that is any reason, otherwise one of `spr.core.reasons.NOTEWORTHY`.
        """
        notes = []
        for name, count in self.dropped.items():
            kind, _, reason = name.partition(": ")
            same_kind = sum(number for other, number in self.dropped.items() if other.startswith(f"{kind}: "))
            total = self.totals.get(kind, self.rows + same_kind)
            is_object = kind == "object" and not reason.startswith("detection_")
            if 2 * count > total and (is_object or reason in NOTEWORTHY):
                units = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
                note = f"{count:,} of {total:,} {units} were dropped as {reason} ({explain(self.name, reason)})"
                notes.append(f"{note}: {FIXES[reason]}" if reason in FIXES else note)
        return "; ".join(notes) or None


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a worker process needs to compute the shard ``index`` in the stage's ``folder``."""

    stage: Stage
    config: Config
    folder: Path
    index: int
    sources: Mapping[str, Path | bytes]  # by stage name: Parquet files, or a first stage's rows in Arrow's IPC format
    inputs: int  # number of input rows
    work: int  # what the progress counts for it
    source: str = ""  # identifies the input rows, see `ShardEntry`


def run(
    config: Config,
    out: Path,
    *,
    until: str | None = None,
    workers: int = 1,
    reuse: Sequence[Path] = (),
    report: Callable[[StageSummary], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> list[StageSummary]:
    """Run all stages that are not finished yet.

    Args:
        config: The whole experiment.
        out: The run folder; created if it is missing. A run that is there is resumed from its finished shards.
        until: The last stage to run. None runs all stages; without a describer, all that need none.
        workers: Number of processes for stages that load no model.
        reuse: Other run folders. A finished stage is taken over from the first one where its inputs and settings agree.
        report: Called after each stage.
        say: Called with a line about what a stage keeps of an earlier run.

    Raises:
        RunError: if the folder was made with another config, other annotations, other images or SPR 0.1, is in use, or
            is not a run.
        InputError: if the input can't be read, or a stage has no rows.
        ModelError: naming all models of these stages that can't be loaded, before the first stage.
        ConfigError: if there is no stage ``until``.
    """
    out = as_path(out)
    stages = due_stages(config, until)
    prepare_annotations(config.annotations)
    others = [OtherRun(path) for path in reuse]
    with contextlib.ExitStack() as locks:
        for other in others:
            locks.enter_context(other.locked(out))
        inputs = locks.enter_context(open_run(out, config))
        if not others:
            _check_models(config, stages, out)
        summaries: list[StageSummary] = []
        fingerprints: dict[str, str] = {}
        for stage in stages:
            before = [fingerprints[name] for name in stage.inputs]
            content = json.dumps([before or inputs, stage.name, stage.version, stage.settings(config)], sort_keys=True)
            fingerprints[stage.name] = hashlib.sha256(content.encode()).hexdigest()
            taken = take_over(others, stage, config, out, fingerprints)
            if others:  # what is not taken over needs its models
                _check_models(config, [stage], out)
            summary = replace(run_stage(stage, config, out, fingerprints[stage.name], workers, say), reuse=taken)
            summaries.append(summary)
            if stage.name == "objects" and summary.rows:
                check_images(out, config.annotations, renew=not summary.done_before)
            report(summary)
            if not summary.done_before or not summary.rows or stage is stages[-1]:
                merge_dropped(out, [known.name for known in ordered_stages()])
            if not summary.rows:
                fix = (
                    f"look at the dropped items (spr show {out / 'dropped.parquet'}), then check the paths and "
                    f"thresholds in {out / 'config.yaml'}"
                )
                dropped = reasons_sorted(summary.dropped)
                reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped[:6])
                if summary.advice:
                    fix = f"{fix}. {summary.advice}"
                elif dropped:
                    reason = dropped[0][0].partition(": ")[2]
                    fix = f"{fix}. {reason} means: {explain(stage.name, reason)}"
                raise InputError(
                    f"Stage `{stage.name}` has no {stage.unit}",
                    got=f"dropped: {reasons}" if reasons else "an input without rows",
                    expected=f"at least one of the {stage.unit}",
                    fix=fix,
                )
        return summaries


def _check_models(config: Config, stages: Sequence[Stage], out: Path) -> None:
    names = dict.fromkeys(
        name
        for stage in stages
        if (manifest := StageStore(out / stage.name).manifest()) is None or not manifest.complete
        for name in stage.models_for(config)
    )
    sections = [getattr(config, name) for name in names]
    if None not in sections:  # the stage that needs a describer says so
        check_loadable(sections)


def run_stage(
    stage: Stage,
    config: Config,
    out: Path,
    fingerprint: str,
    workers: int,
    say: Callable[[str], None] = lambda _: None,
) -> StageSummary:
    """Compute the shards of a stage that are missing or damaged, in ``workers`` processes unless it loads models.

    ``out`` is the run folder, which is locked; ``fingerprint`` is a hash of everything that determines the rows. Rows
    with another fingerprint are a `RunError`.
    """
    started, store = time.monotonic(), StageStore(out / stage.name)
    empty = Manifest(stage.name, fingerprint, inputs=stage.inputs, sections=stage.depends_on(config))
    manifest = store.manifest() or empty
    if manifest.fingerprint != fingerprint:
        fix = f"choose another --out with --reuse {out}, which keeps what agrees, or delete {store.folder}"
        raise RunError(f"{store.folder} was made by another version of SPR or from other rows", fix=fix)
    store.sweep(manifest)
    with Progress(f"{stage.name}: checking", len(manifest.shards), "shards"):
        kept, expected, jobs = store.valid_shards(manifest), len(manifest.shards), list[Job]()
    if stage.plan is None:
        jobs = _jobs(stage, config, store, out)
        sources = {job.index: job.source for job in jobs}
        kept, expected = [shard for shard in kept if shard.source == sources.get(shard.index)], len(jobs)
    if manifest.complete and len(kept) == expected and _source_drops_valid(store, manifest):
        return _summary(stage, manifest, 0.0, done_before=True)
    weights = local_weights(config, stage.models_for(config))
    if kept and manifest.weights and (changed := changed_weights(manifest, weights)) is not None:
        fix = f"restore the weights, or choose another --out with --reuse {out}, or delete {store.folder}"
        raise RunError(f"{store.folder} was begun with other weights", got=changed, fix=fix)
    manifest.shards, manifest.complete, manifest.weights = kept, False, weights
    append_log(out, "stage started", stage=stage.name, shards_kept=len(kept), workers=workers)
    if kept:
        of = f" of {expected:,}" if stage.plan is None else ""
        say(f"{stage.name}: keeps {len(kept):,}{of} shards, {count_text(manifest.rows, stage.unit)}")
    processes = 1 if stage.models_for(config) else workers
    if stage.plan is None:
        _run_jobs(stage, config, store, manifest, jobs, processes)
    else:
        path = config.annotations.json_path
        with Progress(f"{stage.name}: reading {path.name}", path.stat().st_size // MEGABYTE, "MB") as progress:
            plan = stage.plan(config, progress)
        _run_plan(stage, config, store, manifest, plan, processes)
    release()
    store.sweep(manifest)
    store.delete_unfinished()
    manifest.complete = True
    store.save(manifest)
    summary = _summary(stage, manifest, time.monotonic() - started)
    if stage.hint is not None:
        summary = replace(summary, hint=stage.hint(store, manifest.shards))
    details = {"rows": summary.rows, "dropped": summary.dropped, "seconds": summary.seconds}
    append_log(out, "stage finished", stage=stage.name, **details)
    return summary


def run_shard(job: Job) -> ShardEntry:
    """Read a shard's inputs, process them and write its files; the caller writes the manifest."""
    tables = {
        name: read_table(source) if isinstance(source, Path) else pa.ipc.open_stream(source).read_all()
        for name, source in job.sources.items()
    }
    store = StageStore(job.folder)
    extra = {"unfinished": store.unfinished(job.index)} if job.stage.keeps_unfinished else {}
    with counted(job.work):
        output = job.stage.process(tables, job.config, **extra)
        job.stage.check(output)
        return store.write_shard(job.index, output, inputs=job.inputs, source=job.source)


def _jobs(stage: Stage, config: Config, store: StageStore, out: Path) -> list[Job]:
    """A job for each shard of the stage's inputs."""
    before = {name: StageStore(out / name) for name in stage.inputs}
    entries = {name: input_store.finished().shards for name, input_store in before.items()}
    jobs, (per_row, _) = [], _work(stage, config)
    for index, entry in enumerate(entries[stage.inputs[-1]]):
        sources = {name: input_store.part(index) for name, input_store in before.items()}
        identity = "+".join(entries[name][index].sha256 for name in stage.inputs)
        jobs.append(Job(stage, config, store.folder, index, sources, entry.rows, per_row * entry.rows, identity))
    return jobs


def _work(stage: Stage, config: Config) -> tuple[int, str]:
    return stage.work(config) if stage.work is not None else (1, STAGES[stage.inputs[-1]].unit)


def _run_jobs(
    stage: Stage, config: Config, store: StageStore, manifest: Manifest, jobs: Sequence[Job], workers: int
) -> None:
    """Run the jobs whose shards the manifest lacks."""
    done = {shard.index: shard for shard in manifest.shards}
    missing = [job for job in jobs if job.index not in done]
    total, unit = sum(job.work for job in jobs), _work(stage, config)[1]
    bar = Progress(stage.name, total, unit, done=total - sum(job.work for job in missing))
    with bar, contextlib.closing(run_shards(missing, run_shard, workers)) as results:
        for entry in results:
            done[entry.index] = entry
            manifest.shards = [done[index] for index in sorted(done)]
            store.save(manifest)
            store.unfinished(entry.index).unlink(missing_ok=True)


def _run_plan(stage: Stage, config: Config, store: StageStore, manifest: Manifest, plan: Plan, workers: int) -> None:
    """Compute the shards of a first stage in order until there are enough rows."""
    # Which rows of a shard count depends on the shards before it, so those after a gap are computed again.
    manifest.shards = [shard for number, shard in enumerate(manifest.shards) if shard.index == number]
    size, total, used = config.shard_rows, len(plan.ids), sum(shard.inputs for shard in manifest.shards)
    limit = total if plan.limit is None else min(plan.limit, total)

    def job(start: int, inputs: int) -> Job:
        table = plan.rows(start, start + inputs)
        return Job(stage, config, store.folder, start // size, {"source": _to_ipc(table)}, inputs, inputs)

    starts = range(len(manifest.shards) * size, total, size)
    # A shortened shard is always the last one, also if the run was killed right after it.
    finished = manifest.rows >= limit or used % size != 0
    jobs = () if finished else (job(start, min(size, total - start)) for start in starts)
    bar = Progress(stage.name, limit, stage.unit, done=manifest.rows)
    with bar, contextlib.closing(run_shards(jobs, run_shard, workers)) as results:
        for entry in results:
            missing, counted_inputs = limit - manifest.rows, entry.inputs
            if entry.rows >= missing:
                # The inputs up to the one that gave the last of the missing rows.
                last = read_table(store.part(entry.index))["image_id"][missing - 1]
                inputs = int(pc.index(plan.ids.slice(used), last).as_py()) + 1
                if inputs < entry.inputs:
                    entry = run_shard(job(used, inputs))
                    counted_inputs += inputs
            manifest.shards.append(entry)
            store.save(manifest)
            used += entry.inputs
            bar.advance(entry.rows - counted_inputs)  # dropped rows don't count towards the limit
            if manifest.rows >= limit:
                break
    names = plan.file_names.slice(used)
    not_sampled = dropped_columns(stage.name, "image", plan.ids.slice(used), "not_sampled", names)
    dropped = pa.concat_tables([plan.dropped, not_sampled])
    manifest.source = {
        "counts": plan.counts,
        "totals": plan.totals,
        "dropped": count_reasons(dropped),
        "dropped_sha256": write_table(store.source_drops, dropped),
    }


def _to_ipc(table: pa.Table) -> bytes:
    # Not pickled: pickling loses the field names and nullability inside fixed-size lists.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _source_drops_valid(store: StageStore, manifest: Manifest) -> bool:
    expected = manifest.source.get("dropped_sha256")
    return expected is None or has_sha256(store.source_drops, expected)


def _summary(stage: Stage, manifest: Manifest, seconds: float, *, done_before: bool = False) -> StageSummary:
    counts, totals = {**manifest.source.get("counts", {}), **manifest.notes}, manifest.source.get("totals", {})
    told = manifest.rows, manifest.dropped, counts, manifest.examples
    return StageSummary(stage.name, stage.unit, *told, seconds, done_before, totals)
