"""Builds models from config sections. Backends are imported and weights loaded on first use, once per process."""

from __future__ import annotations

import gc
from functools import lru_cache
from typing import Any, cast

from spr.config import DescriberConfig, DetectorConfig, ScorerConfig
from spr.config.backends import DESCRIBERS, DETECTORS, SCORERS
from spr.core.errors import ConfigError, missing_package
from spr.core.registry import Registry
from spr.models.protocols import Describer, Detector, ImageTextScorer


@lru_cache(maxsize=1)
def load_describer(config: DescriberConfig) -> Describer:
    """The describer of a config section, loaded once per process."""
    return cast(Describer, _build(DESCRIBERS, config))


@lru_cache(maxsize=1)
def load_scorer(config: ScorerConfig) -> ImageTextScorer:
    """The image-text model of a config section, loaded once per process."""
    return cast(ImageTextScorer, _build(SCORERS, config))


@lru_cache(maxsize=1)
def load_detector(config: DetectorConfig) -> Detector | None:
    """The detector of a config section, loaded once per process; None for the backend ``none``."""
    return None if config.backend == "none" else cast(Detector, _build(DETECTORS, config))


def _build(backends: Registry[Any], config: DescriberConfig | ScorerConfig | DetectorConfig) -> Any:
    try:
        backend = backends[config.backend]
    except ModuleNotFoundError as error:
        raise missing_package(error, f"The {backends.kind} `{config.backend}`") or error from error
    return backend(config)


def release() -> None:
    """Drop all cached models, so that the next stage's models have the device's memory."""
    for load in (load_describer, load_scorer, load_detector):
        load.cache_clear()
    gc.collect()


def trained_model(config: DescriberConfig | None) -> str:
    """The model of a config's describer, from which training starts: a folder, a Hub id or ``embedded/…``.

    Raises:
        ConfigError: if there is none, or if the describer has an adapter, which training would silently start without.
    """
    if config is None or config.model is None:
        got, fix = "a config without describer.model", "set describer.model"
        raise ConfigError("There is no model to train", got=got, fix=fix)
    if config.peft_adapter is not None:
        fix = "merge it (spr merge), and set describer.model to the merged folder"
        raise ConfigError("Training starts from a model without an adapter", got=config.peft_adapter, fix=fix)
    return config.model
