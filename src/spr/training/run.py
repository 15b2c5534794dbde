"""`spr train` as a function: train in a run folder, on the run's own pairs or on pairs from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from spr.config import Config, TrainingPart
from spr.core.atomic import write_atomically
from spr.core.errors import ConfigError, RunError
from spr.models.loading import model_source
from spr.models.registry import trained_model
from spr.runs.folder import adopt, locked
from spr.training.pairs import run_pairs, trl_pairs
from spr.training.trainer import TrainingSummary, train


def run(
    config: Config | TrainingPart,
    out: Path,
    *,
    stages: Sequence[Any] = (),
    pairs: Path | None = None,
    reference: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> TrainingSummary:
    """Train a LoRA adapter in a run folder, or resume where it stopped.

    Input is checked before anything is written, and a training that is refused leaves ``config.yaml`` as it was.

    Args:
        config: From `spr.config.load_config`; with ``pairs``, `spr.config.load_training` is enough.
        out: The run folder; the adapter is written to ``out/adapter``.
        stages: The stages of the pipeline, whose sections of the config must not have changed.
        pairs: Pairs in TRL's preference format, see `spr.training.pairs.trl_pairs`; by default the run's own pairs.
        reference: Another run's ``training/reference.parquet``, so that it is not computed again.
        report: Called with each line for the user.

    Raises:
        ConfigError: if the config names no model to train, or lacks the sections of a run.
        RunError: if the run has no pairs, is in use, was made under another config, or ``pairs`` are given for a run
            with pairs of its own.
        InputError, ModelError, DeviceMemoryError, InterruptedTrainingError, SprError: see `spr.training.trainer.train`.
    """
    if pairs is not None:
        source = trl_pairs(pairs)
    elif isinstance(config, Config):
        source = run_pairs(out, config.annotations.image_source)
    else:
        raise ConfigError("The config has no annotations", fix="read it with load_config, or give pairs")
    model = model_source(trained_model(config.describer))
    if pairs is not None and (out / "inputs.json").is_file():
        fix = "leave --pairs out to train on the run's own pairs, or choose another --out"
        raise RunError(f"{out} is a run with its own annotations", got="--pairs", fix=fix)
    with ExitStack() as stack:
        if int(os.environ.get("RANK", "0")) == 0:
            stack.enter_context(locked(out))
            stack.enter_context(_config_kept_if_refused(out))
            if pairs is None and isinstance(config, Config):
                adopt(config, out, stages)
            else:
                write_atomically(out / "config.yaml", config.to_yaml().encode())
        return train(
            source,
            model,
            config.training,
            out,
            revision=config.describer.revision if config.describer is not None else None,
            seed=config.seed,
            reference=reference,
            report=report,
        )


@contextmanager
def _config_kept_if_refused(out: Path) -> Iterator[None]:
    """Restore ``config.yaml`` if the training is refused, so that it still describes how the run was made."""
    path = out / "config.yaml"
    before = path.read_bytes() if path.is_file() else None
    try:
        yield
    except RunError:
        if before is not None:
            write_atomically(path, before)
        raise
