"""Training with evaluations of the tasks that `training.eval_tasks` names, on the run's held-out images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spr.config import Config, DescriberConfig, TrainingPart
from spr.config.training import EVAL_METRICS
from spr.core.errors import ConfigError
from spr.core.randomness import stable_hash
from spr.evaluation.expressions import Expressions
from spr.evaluation.task import evaluate
from spr.evaluation.tasks.description import EMBEDDED_PROMPT, Description, Regions
from spr.evaluation.tasks.rec import Rec
from spr.models.describers.hf import HfDescriber
from spr.records import ImageObjects, RegionQuery
from spr.records.schemas import from_table
from spr.runs.reviews import ReviewMode
from spr.runs.store import StageStore
from spr.training.run import run
from spr.training.trainer import TrainingSummary


def train(
    config: Config | TrainingPart,
    out: Path,
    *,
    name: str | None = None,
    pairs: Path | None = None,
    allow_outside_images: bool = False,
    reference: Path | None = None,
    reviews: ReviewMode = "use",
    report: Callable[[str], None] = lambda _: None,
) -> TrainingSummary:
    """Train a LoRA adapter in a run folder, or resume where an earlier call stopped.

    `spr.training.run.run` has the arguments and what is raised. In addition, `training.eval_tasks` are evaluated on the
    run's held-out images; they are a ConfigError with ``pairs`` from elsewhere, and where no image is held out.
    """
    measure = None
    if config.training.eval_tasks:
        if pairs is not None or not isinstance(config, Config):
            fix = "set training.eval_tasks=[]"
            raise ConfigError("`training.eval_tasks` needs a run with its own images", got="--pairs", fix=fix)
        measure = partial(_measure, config, _held_out_items(config, out))
    options: dict[str, Any] = {"pairs": pairs, "allow_outside_images": allow_outside_images, "reference": reference}
    return run(config, out, name=name, **options, reviews=reviews, evaluate=measure, report=report)


def _held_out_items(config: Config, out: Path) -> dict[str, Any]:
    """The items of each task in `training.eval_tasks`, at most `eval_samples`, always the same ones."""

    def sample(rows: list[Any], id_of: Callable[[Any], str]) -> list[Any]:
        chosen = sorted(rows, key=lambda row: stable_hash(0, "eval", id_of(row)))[: config.training.eval_samples]
        return sorted(chosen, key=id_of)

    items: dict[str, Any] = {}
    if "description" in config.training.eval_tasks:
        regions = sample(_held_out(out, "regions", RegionQuery), lambda query: query.query_id)
        embedded = config.describer is not None and (config.describer.model or "").startswith("embedded/")
        prompt = EMBEDDED_PROMPT if embedded else config.prompts.full
        items["description"] = Regions(regions, config.annotations.image_source, prompt)
    if "rec" in config.training.eval_tasks:
        expressions = []
        for image in _held_out(out, "objects", ImageObjects):
            counts = Counter(item.category for item in image.objects)
            expressions += [(image, item) for item in image.objects if counts[item.category] == 1]
        items["rec"] = _expressions(sample(expressions, lambda row: f"{row[0].image_id}/{row[1].id}"))
    for task, found in items.items():
        if not (found.queries if isinstance(found, Regions) else found.ids):
            fix = f"remove {task} from training.eval_tasks, or make a run with annotations.holdout and enough images"
            raise ConfigError(f"There is nothing to evaluate `{task}` on", got=f"no held-out images in {out}", fix=fix)
    return items


def _held_out(out: Path, stage: str, kind: type[Any]) -> list[Any]:
    rows = [row for table in StageStore(out / stage).tables() for row in from_table(table, kind)]
    return [row for row in rows if row.split != "train"]


def _expressions(rows: list[Any]) -> Expressions:
    return Expressions(
        tuple(f"{image.image_id}/{item.id}" for image, item in rows),
        tuple(image.file_name for image, _ in rows),
        tuple(f"the {item.category}" for _, item in rows),
        np.array([item.box for _, item in rows], dtype=np.float64).reshape(-1, 4),
        tuple((image.width, image.height) for image, _ in rows),
        ("",) * len(rows),
    )


def _measure(config: Config, items: Mapping[str, Any], model: Any, processor: Any, name: str) -> dict[str, float]:
    """The metrics of the model that is trained, as it is."""
    section = config.describer or DescriberConfig()
    section = section.model_copy(update={"temperature": 0.0, "backend": "hf"})
    before = model.generation_config
    describer = HfDescriber.around(model, processor, section, name=name)
    metrics: dict[str, float] = {}
    try:
        for task, found in items.items():
            kind = Description(prompt=found.prompt) if isinstance(found, Regions) else Rec()
            result = evaluate(kind, found, describer=describer, images=config.annotations.image_source)
            names = [metric for metric, of in EVAL_METRICS.items() if of == task]
            metrics |= {metric: value for metric in names if (value := result.value(metric)) is not None}
    finally:
        model.generation_config = before
    return metrics
