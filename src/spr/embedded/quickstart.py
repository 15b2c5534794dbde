"""The main job on the embedded default: pairs from scenes, training, figures before and after, the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spr.config import Config, load_config
from spr.core.atomic import write_atomically
from spr.embedded.scenes import write_scenes
from spr.embedded.texts import PROMPTS
from spr.evaluation.compare import compare, table
from spr.evaluation.expressions import read_expressions
from spr.evaluation.inference import from_folder
from spr.evaluation.regions_source import read_regions
from spr.evaluation.result import Result
from spr.evaluation.tasks.description import evaluate_description
from spr.evaluation.tasks.rec import evaluate_rec
from spr.models.describers.hf import HfDescriber
from spr.models.registry import trained_model
from spr.pipeline import runner
from spr.report.page import write_report
from spr.runs.folder import lock_run
from spr.training.pairs import run_pairs
from spr.training.trainer import train

SCENES, HELD_OUT_SCENES = 800, 300
HELD_OUT = 500_000_000
"""Added to the seed for the held-out scenes, so that no training on a small seed ever sees them."""


def run_quickstart(
    out: Path,
    seed: int,
    *,
    scenes: int = SCENES,
    held_out_scenes: int = HELD_OUT_SCENES,
    workers: int = 1,
    say: Callable[[str], None] = lambda _: None,
    report: Callable[[runner.StageSummary], None] = lambda _: None,
) -> Path:
    """Run the whole method; stages and training that are done are not done again; the same seed gives the same table.

    Args:
        out: ``scenes-SEED-NUMBER/`` and ``held-out-SEED-NUMBER/`` with images and annotations; ``run/`` and
            ``held-out/`` with runs.
        seed: Of the scenes, the descriptions and the training.
        scenes: How many are trained on.
        held_out_scenes: How many the figures come from.
        workers: Processes for the stages bound to the CPU.
        say: Told what a user wants to know, line by line.
        report: Told of each stage.

    Returns:
        The path of the report's ``index.html``.
    """
    started = time.monotonic()
    config = _config(out / f"scenes-{seed}-{scenes}", scenes, seed, seed)
    held_out = _config(out / f"held-out-{seed}-{held_out_scenes}", held_out_scenes, seed + HELD_OUT, seed)
    run = out / "run"
    say(f"Scenes: {config.annotations.images.parent} to train on, {held_out.annotations.images.parent} held out")
    runner.run(config, run, workers=workers, report=report)
    runner.run(held_out, out / "held-out", until="regions", workers=workers)
    model = trained_model(config.describer)
    with lock_run(run):
        made = train(run_pairs(run, config.annotations), model, config.training, run, seed=seed, report=say)
        say(f"training: {made.steps:,} steps on {made.pairs:,} pairs ({made.seconds:.1f} s)")
        _evaluate(run, held_out, out / "held-out", model, say)
        index = write_report(run, say=say)
    for comparison in compare([run]):
        for line in table(comparison):
            say(line)
    say(f"All in {time.monotonic() - started:.0f} s")
    return index


def _config(data: Path, scenes: int, scene_seed: int, seed: int) -> Config:
    """The shipped config on generated scenes, which are written where they are not there."""
    if not (data / "expressions.json").is_file():
        write_scenes(data, scenes, scene_seed)
    # JSON texts are YAML texts, whatever is in the path.
    paths = {"path": data / "instances.json", "images": data / "images"}
    overrides = [f"annotations.{name}={json.dumps(str(path))}" for name, path in paths.items()]
    return load_config("quickstart", [*overrides, f"seed={seed}"])


def _evaluate(run: Path, held_out: Config, regions_run: Path, model: str, say: Callable[[str], None]) -> None:
    """Figures before and after into ``RUN/metrics.json``, measured anew each time."""
    images = held_out.annotations.images
    queries = read_regions(regions_run).queries
    items = read_expressions(images.parent / "expressions.json")
    metrics: dict[str, Any] = {"before": {}, "after": {}, "counts": {}, "seconds": {}}
    states: dict[str, Path | None] = {"before": None, "after": run / "adapter"}
    for when, adapter in states.items():
        start = time.monotonic()
        describer = HfDescriber(model, adapter=adapter, temperature=0.0, batch_size=64, max_new_tokens=160)
        found: dict[str, Result] = {
            "rec": evaluate_rec(describer, items, from_folder(images), prompt=PROMPTS["rec"]),
            "description": evaluate_description(describer, queries, from_folder(images), prompt=held_out.prompts.full),
        }
        for task, result in found.items():
            metrics[when][task] = result.write(run / "evaluation" / f"{when}-{task}.json", run)
            metrics["counts"][task] = len(result.ids)
        metrics["seconds"][when] = time.monotonic() - start
        say(f"evaluated {when} training: {len(items.ids):,} expressions, {len(queries):,} regions")
    write_atomically(run / "metrics.json", json.dumps(metrics, indent=2).encode())
