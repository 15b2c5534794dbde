"""`spr train` as a function: train in a run folder, on the run's own pairs or on pairs from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from spr.config import Config, TrainingPart
from spr.core.errors import ConfigError
from spr.core.paths import as_path
from spr.core.remote import RemotePath
from spr.models.loading import model_source
from spr.models.registry import trained_model
from spr.runs.cues import kept_cues
from spr.runs.images import check_images
from spr.runs.reviews import ReviewMode, effect
from spr.runs.training_copy import TrainingCopy
from spr.runs.trainings import open_training, training_place
from spr.training.held_out import Evaluate
from spr.training.loss import needs_rejected
from spr.training.pairs import run_pairs, trl_pairs
from spr.training.trainer import TrainingSummary, train


def run(
    config: Config | TrainingPart,
    out: Path,
    *,
    name: str | None = None,
    pairs: Path | None = None,
    allow_outside_images: bool = False,
    reference: Path | None = None,
    reviews: ReviewMode = "use",
    evaluate: Evaluate | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> TrainingSummary:
    """Train a LoRA adapter in a run folder, or resume where an earlier call stopped.

    First reports the warnings about the run's pairs (`spr.runs.cues`), unless the loss uses chosen answers only. A
    training that is refused leaves ``config.yaml`` as it was. For a run in object storage, the training works in a
    local copy (`spr.runs.training_copy`) and puts its checkpoints and its adapter into the run. With several processes,
    all of them call this function.

    Args:
        config: From `spr.config.load_config`; with ``pairs``, `spr.config.load_training` is enough.
        out: The run folder; the adapter is written to ``out/adapter``.
        name: Of a training beside the default one: it goes to ``out/trainings/NAME``, and leaves ``out/config.yaml`` as
            it is. Only the section `training` and the seed may then differ from the run's config.
        pairs: Pairs in TRL's preference format, see `spr.training.pairs.trl_pairs`; by default the run's own pairs.
        allow_outside_images: Also open images that ``pairs`` names by an absolute path, or outside of its folder.
        reference: Another run's ``training/reference.parquet``, whose values are used for the pairs that it knows.
        reviews: What becomes of pairs that reviewers have decided about (`spr.runs.reviews.ReviewMode`).
        evaluate: Measures `training.eval_tasks`; see `spr.workflows.training`, which gives one.
        report: Called with each line for the user.

    Raises:
        ConfigError: if the config names no model to train, or has no annotations although ``pairs`` is None; for
            ``allow_outside_images`` without ``pairs``, or ``reviews: require`` with them; or for a name that a folder
            can't have.
        RunError: if the run has no pairs, is in use, was made under another config or of other images, or is a run that
            has its own annotations although ``pairs`` are given.
        InputError, ModelError, DeviceMemoryError, InterruptedTrainingError, SprError: see `spr.training.trainer.train`.
    """
    if allow_outside_images and pairs is None:
        fix = "set annotations.allow_outside_images: true for the run's own images"
        raise ConfigError("--allow-outside-images has no effect without --pairs", fix=fix)
    out = as_path(out)
    copy = TrainingCopy(out, name) if isinstance(out, RemotePath) else None
    place = training_place(out, name) if copy is None else copy.local
    if reviews == "require" and pairs is not None:
        fix = "leave --reviews out; export the accepted pairs with `spr export RUN --format trl --reviews require`"
        raise ConfigError("--reviews require can't be used with --pairs", got="pairs without reviews", fix=fix)
    if pairs is not None:
        source = trl_pairs(pairs, allow_outside_images=allow_outside_images)
        config = TrainingPart(seed=config.seed, describer=config.describer, training=config.training)
    elif isinstance(config, Config):
        source = run_pairs(out, config.annotations.image_source, reviews, negatives=config.pairing.negatives > 0)
    else:
        raise ConfigError("The config has no annotations", fix="read it with load_config, or give pairs (--pairs)")
    model = model_source(trained_model(config.describer, config.training.init_adapter))
    main_process = int(os.environ.get("RANK", "0")) == 0
    with open_training(out, config, name) if main_process else nullcontext():
        if main_process and isinstance(config, Config):
            check_images(out, config.annotations)
            if (line := effect(out, reviews)) is not None:
                report(line)
        if main_process and isinstance(config, Config) and needs_rejected(config.training):
            found = kept_cues(out)
            others = tuple(cue for cue in found.cues if cue.group != "length")  # `train` measures it, in tokens
            for warning in replace(found, cues=others).warnings:
                report(f"Warning: {warning}")
        if copy is not None and int(os.environ.get("LOCAL_RANK", "0")) == 0:  # each machine has a copy
            copy.download()
        summary = train(
            source,
            model,
            config.training,
            place,
            shared=out / "training" if copy is None else None,
            revision=config.describer.revision if config.describer is not None else None,
            seed=config.seed,
            dialect=config.describer.dialect if config.describer is not None else None,
            reference=reference,
            evaluate=evaluate,
            saved=copy.upload if copy is not None and main_process else None,
            report=report,
        )
        if copy is not None and main_process:
            copy.upload()  # what an earlier call could not
        return summary
