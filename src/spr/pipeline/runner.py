"""Runs the stages into a run folder, shard by shard, and resumes where an earlier run stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from spr.annotations import prepare_annotations
from spr.config import Config
from spr.core.errors import InputError
from spr.core.paths import as_path
from spr.core.reasons import explain
from spr.models.registry import check_loadable
from spr.pipeline.engines.engine import Engine
from spr.pipeline.engines.local import LocalEngine, start_server
from spr.pipeline.flow import run_stages
from spr.pipeline.reuse import OtherRun, take_over
from spr.pipeline.stage import Stage, due_stages, ordered_stages
from spr.pipeline.stage_run import FirstStageRun, StageRun, StageSummary
from spr.runs.dropped import merge_dropped
from spr.runs.folder import open_run
from spr.runs.images import check_images
from spr.runs.store import StageStore, reasons_sorted

__all__ = ["StageSummary", "run"]


def run(
    config: Config,
    out: Path,
    *,
    until: str | None = None,
    workers: int | None = None,
    reuse: Sequence[Path] = (),
    report: Callable[[StageSummary], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    engine: Engine | None = None,
) -> list[StageSummary]:
    """Run all stages that are not finished yet.

    Args:
        config: The whole experiment.
        out: The run folder; created if it is missing. A run that is there is resumed from its finished shards.
        until: The last stage to run. None runs all stages; without a describer, all that need none.
        workers: Number of processes for stages that load no model; None for one, or, on Ray, for all CPUs.
        reuse: Other run folders. A finished stage is taken over from the first one where its inputs and settings agree.
        report: Called after each stage.
        say: Called with a line about what a stage keeps of an earlier run.
        engine: Runs the jobs; None uses the one that the config names. ``workers`` is not used with an engine.

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
            if engine is None and config.engine.name == "local":
                start_server(config, _unfinished(stages, out))
            _check_models(config, stages, out)
        fingerprints = _fingerprints(stages, config, inputs)
        summaries: dict[str, StageSummary] = {}
        taken: dict[str, str | None] = {}

        def make(stage: Stage) -> StageRun:
            taken[stage.name] = take_over(others, stage, config, out, fingerprints)
            if others:  # what is not taken over needs its models
                _check_models(config, [stage], out)
            kind = StageRun if stage.plan is None else FirstStageRun
            return kind(stage, config, out, fingerprints[stage.name])

        def finished(done: StageRun, summary: StageSummary) -> None:
            summary = replace(summary, reuse=taken[done.stage.name])
            summaries[done.stage.name] = summary
            if done.stage.name == "objects" and summary.rows:
                check_images(out, config.annotations, renew=not summary.done_before)
            report(summary)
            if not summary.done_before or not summary.rows or done.stage is stages[-1]:
                merge_dropped(out, [known.name for known in ordered_stages()])
            if not summary.rows:
                raise _empty(done.stage, summary, out)

        own = engine or _engine(config, stages, out, workers)
        run_stages(own, [partial(make, stage) for stage in stages], say, finished)
        return [summaries[stage.name] for stage in stages]


def _fingerprints(stages: Sequence[Stage], config: Config, inputs: Mapping[str, str]) -> dict[str, str]:
    """A hash of everything that determines a stage's rows, for each stage."""
    found: dict[str, str] = {}
    for stage in stages:
        before = [found[name] for name in stage.inputs]
        content = json.dumps([before or inputs, stage.name, stage.version, stage.settings(config)], sort_keys=True)
        found[stage.name] = hashlib.sha256(content.encode()).hexdigest()
    return found


def _engine(config: Config, stages: Sequence[Stage], out: Path, workers: int | None) -> Engine:
    if config.engine.name == "ray":
        from spr.pipeline.engines.ray import RayEngine

        engine = RayEngine(config.engine, out, config, workers)
        if _unfinished(stages, out):
            engine.connect()  # before the annotations are read
        return engine
    return LocalEngine(workers or 1)


def _unfinished(stages: Sequence[Stage], out: Path) -> list[Stage]:
    manifests = [(stage, StageStore(out / stage.name).manifest()) for stage in stages]
    return [stage for stage, manifest in manifests if manifest is None or not manifest.complete]


def _empty(stage: Stage, summary: StageSummary, out: Path) -> InputError:
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
    return InputError(
        f"Stage `{stage.name}` has no {stage.unit}",
        got=f"dropped: {reasons}" if reasons else "an input without rows",
        expected=f"at least one of the {stage.unit}",
        fix=fix,
    )


def _check_models(config: Config, stages: Sequence[Stage], out: Path) -> None:
    names = dict.fromkeys(name for stage in _unfinished(stages, out) for name in stage.models_for(config))
    sections = [getattr(config, name) for name in names]
    if None not in sections:  # the stage that needs a describer says so
        check_loadable(sections)
