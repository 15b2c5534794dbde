"""`spr quickstart`: the whole method on generated scenes with the embedded models."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spr.config import Config, load_config
from spr.core.terminal import count_text
from spr.embedded.scenes import write_scenes
from spr.evaluation.compare import compare, conclude, table
from spr.evaluation.run_results import put, result_path
from spr.evaluation.task import Task, evaluate
from spr.evaluation.tasks.description import Description
from spr.evaluation.tasks.rec import Rec
from spr.models.describers.hf import HfDescriber
from spr.models.questions import EMBEDDED_PROMPT
from spr.models.registry import trained_model
from spr.pipeline import runner
from spr.pipeline.engines.local import stop_server
from spr.report.page import write_report
from spr.runs.folder import lock_run
from spr.training.run import run as train

_HELD_OUT = 500_000_000  # added to the held-out scenes' seed, so that they differ from training scenes of small seeds


def run_quickstart(
    out: Path,
    seed: int,
    *,
    scenes: int = 540,
    held_out_scenes: int = 300,
    workers: int = 1,
    say: Callable[[str], None] = lambda _: None,
    report: Callable[[runner.StageSummary], None] = lambda _: None,
) -> Path:
    """Run all stages, training and evaluation; returns the path of the report's ``index.html``.

    Finished parts are skipped; the same seed gives the same results. ``out`` will hold the scenes in
    ``scenes-SEED-NUMBER/`` and ``held-out-SEED-NUMBER/``, and the runs ``run/`` and ``held-out/``. ``workers`` are
    processes for the CPU-bound stages.
    """
    times = StageTimes()
    config = _config(out / f"scenes-{seed}-{scenes}", scenes, seed, seed)
    held_out = _config(
        out / f"held-out-{seed}-{held_out_scenes}",
        held_out_scenes,
        seed + _HELD_OUT,
        seed,
        # The ground truth of an evaluation is what was annotated, not what the detector finds.
        "annotations.crowds=drop",
        "annotations.holdout=0",  # none of these scenes is trained on
    )
    run = out / "run"
    times.end("scenes")
    say(f"Scenes: {config.annotations.images.parent} to train on, {held_out.annotations.images.parent} held out")
    say(method(config))

    def finish(stage: runner.StageSummary) -> None:
        times.end(stage.name)
        report(stage)

    runner.run(config, run, workers=workers, report=finish, say=say)
    runner.run(held_out, out / "held-out", until="regions", workers=workers)
    times.end("held-out regions")
    stop_server()  # training needs the memory
    model = trained_model(config.describer)
    summary = train(config, run, report=say)
    times.end("training")
    trained = f"{count_text(summary.steps, 'steps')} on {count_text(summary.pairs, 'pairs')}"
    say(f"training: {trained} ({summary.seconds:.1f} s)")
    with lock_run(run):
        _evaluate(run, held_out, out / "held-out", model, say, times)
        index = write_report(run, say=say)
        times.end("report")
    comparisons = compare([run])
    for comparison in comparisons:
        for line in table(comparison):
            say(line)
    for line in conclude(comparisons, run):
        say(line)
    times.end("comparison")
    for line in times.table():
        say(line)
    return index


class StageTimes:
    """Wall-clock seconds by stage: each stage lasts from the end of the one before it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def end(self, stage: str) -> None:
        """Count the time since the last call, or since the beginning, for a stage."""
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def table(self) -> list[str]:
        """Lines with the seconds and the share of each stage, and their sum.

        >>> times = StageTimes()
        >>> times.seconds = {"scenes": 1.0, "training": 3.0}
        >>> for line in times.table():
        ...     print(line)
        Time by stage:
               1.0 s  25 %  scenes
               3.0 s  75 %  training
               4.0 s        in all
        """
        total = sum(self.seconds.values())
        stages = [f"{value:10.1f} s {value / total:4.0%}  {name}" for name, value in self.seconds.items()]
        return ["Time by stage:", *(line.replace("%", " %") for line in stages), f"{total:10.1f} s        in all"]


def method(config: Config) -> str:
    """One line that says which parts of the method a config uses."""
    counts = [] if config.describer is None else list(config.describer.samples)
    samples = ", ".join(f"{count} {kind}" for kind, count in counts if count) or "none"
    training, losses = config.training, " + ".join(config.training.losses)
    return (
        f"Method: descriptions per region {samples}; λ {config.scoring.semantic_weight:g}; "
        f"detector {config.detector.backend}; pairing.unmatched {config.pairing.unmatched}; "
        f"{losses} with β {training.beta:g}, NLL weight {training.nll_weight:g}; epochs {training.num_train_epochs}"
    )


def _config(data: Path, scenes: int, scene_seed: int, seed: int, *changes: str) -> Config:
    """The preset `quickstart` on generated scenes, which are written unless they exist."""
    write_scenes(data, scenes, scene_seed)
    # A JSON string is also a YAML string, whatever the path contains.
    paths = {"path": data / "instances.json", "images": data / "images"}
    overrides = [f"annotations.{name}={json.dumps(str(path))}" for name, path in paths.items()]
    return load_config("quickstart", [*overrides, f"seed={seed}", *changes])


def _evaluate(
    run: Path, held_out: Config, regions_run: Path, model: str, say: Callable[[str], None], times: StageTimes
) -> None:
    """Evaluate before and after training, and put the results into ``RUN/metrics.json``."""
    images = held_out.annotations.images
    rec, description = Rec(prompt=EMBEDDED_PROMPT), Description(prompt=held_out.prompts.full)
    expressions, regions = rec.load(images.parent / "expressions.json"), description.load(regions_run)
    tasks: tuple[tuple[Task[Any], Any], ...] = (rec, expressions), (description, regions)
    states: dict[str, Path | None] = {"before": None, "after": run / "adapter"}
    for when, adapter in states.items():
        start = time.monotonic()
        describer = HfDescriber(model, peft_adapter=adapter, temperature=0.0, batch_size=64, max_new_tokens=160)
        for task, items in tasks:
            result = evaluate(task, items, describer=describer, images=images)
            entry = result.write(result_path(run, when, task.name), run)
            put(run, when, task.name, entry, seconds=time.monotonic() - start)
        counts = f"{count_text(len(expressions), 'expressions')}, {count_text(len(regions.queries), 'regions')}"
        say(f"evaluated {when} training: {counts}")
        times.end(f"evaluation {when}")
