"""Builds models from config sections. Backends are imported and weights loaded on first use, once per process."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from spr.config import Config, DescriberConfig, DetectorConfig, ScorerConfig
from spr.config.backends import DESCRIBERS, DETECTORS, SCORERS
from spr.core.errors import ConfigError, missing_package
from spr.core.paths import is_dir
from spr.core.registry import Registry
from spr.grounding import Dialect, get_dialect
from spr.grounding.geometry import Resized
from spr.models.protocols import Describer, Detector, ImageTextScorer

_LOADING = {"hf", "vllm", "clip", "grounding_dino", "owlv2"}  # the backends that load the section's `model`
_IMPORTED_LATE = {"vllm"}  # backends that import the package of their name with the first model
WITHOUT_GPU = frozenset({"fake", "openai", "none"})
"""Backends that use no GPU of the process that they are in."""


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
    return _backend(backends, config.backend)(config)


def _backend(backends: Registry[Any], name: str) -> Any:
    try:
        if name in _IMPORTED_LATE and find_spec(name) is None:
            raise ModuleNotFoundError(name=name)
        return backends[name]
    except ModuleNotFoundError as error:
        raise missing_package(error, f"The {backends.kind} `{name}`") or error from error


def check_loadable(sections: Iterable[DescriberConfig | ScorerConfig | DetectorConfig]) -> None:
    """Raise one error for all models of these sections that can't be loaded, see `spr.models.available.check_models`.

    An unknown dialect is a `GroundingError`, and a backend whose package is not installed an `SprError`.
    """
    sections = [section for section in sections if section.backend != "none"]
    kinds = {DescriberConfig: DESCRIBERS, ScorerConfig: SCORERS, DetectorConfig: DETECTORS}
    for section in sections:
        _backend(kinds[type(section)], section.backend)  # a missing package is an error
        if isinstance(section, DescriberConfig) and section.dialect is not None:
            get_dialect(section.dialect)
    own = [section for section in sections if section.backend in _LOADING and section.model is not None]
    if own:
        from spr.models.available import check_models

        check_models(own)


def local_weights(config: Config, sections: Iterable[str]) -> dict[str, str]:
    """The weights of the models and adapters that are folders, by field: ``{"scorer.model": "clip@0123456789ab"}``.

    ``sections`` are names of the config's sections. Weights are named as `spr.models.loading.source_name` does it.
    """
    found = {}
    for name in sections:
        section = getattr(config, name)
        for field in ("model", "peft_adapter") if section is not None and section.backend in _LOADING else ():
            if (value := getattr(section, field, None)) is not None:
                from spr.models.loading import model_source, source_name

                if is_dir(source := model_source(value)):
                    found[f"{name}.{field}"] = source_name(source)
    return found


def expected_dialect(config: DescriberConfig) -> Dialect | None:
    """The dialect of a describer that is not loaded yet, without its image processor's settings; None if unknown."""
    if config.backend not in ("hf", "vllm") or config.model is None:
        return None if config.dialect is None else get_dialect(config.dialect)
    from spr.models.custom_models import load_config
    from spr.models.loading import model_source
    from spr.models.model_dialect import choose_dialect

    model_config = load_config(model_source(config.model), revision=config.revision)
    return choose_dialect(config.dialect, model_config.model_type, None)


def planned_dialect(config: DescriberConfig) -> Dialect | None:
    """The dialect of a describer that is not loaded, with its image processor's settings; None if unknown.

    Of the model, the config is read, and the processors where the dialect depends on how they resize images.
    """
    if config.backend == "fake":
        from spr.models.fakes import FakeDescriber

        return FakeDescriber(config).dialect
    dialect = expected_dialect(config)
    if dialect is None or config.model is None or config.backend == "openai":
        return dialect
    if not isinstance(dialect.geometry, Resized):
        return dialect
    from spr.models.custom_models import load_config
    from spr.models.families import FAMILIES
    from spr.models.image_processors import load_processor
    from spr.models.loading import model_source
    from spr.models.model_dialect import choose_dialect

    source, revision = model_source(config.model), config.revision
    model_type = load_config(source, revision=revision).model_type
    processor = load_processor(source, model_type, family=FAMILIES.get(model_type), revision=revision)
    return choose_dialect(config.dialect, model_type, processor.image_processor)


def release() -> None:
    """Drop all cached models, so that the next stage's models have the device's memory. vLLM's engines shut down."""
    loaders = (load_describer, load_scorer, load_detector)
    if any(load.cache_info().currsize for load in loaders):
        for load in loaders:
            load.cache_clear()
        gc.collect()  # takes 0.3 s with PyTorch and transformers imported


def trained_model(config: DescriberConfig | None, init_adapter: Path | None = None) -> str:
    """The model of a config's describer, from which training starts: a folder, a Hub id or ``embedded/…``.

    Raises:
        ConfigError: if there is none, or if the describer has an adapter, which training would silently start without:
            there is no ``init_adapter`` that it starts from.
    """
    if config is None or config.model is None:
        got, fix = "a config without describer.model", "set describer.model"
        raise ConfigError("There is no model to train", got=got, fix=fix)
    if config.peft_adapter is not None and init_adapter is None:
        fix = (
            f"set training.init_adapter={config.peft_adapter} to continue it; or merge it (spr merge), and set "
            "describer.model to the merged folder"
        )
        raise ConfigError("Training starts from a model without an adapter", got=config.peft_adapter, fix=fix)
    return config.model
