"""Config sections → models. Adapters are imported, and weights loaded, only when a stage asks for them."""

from __future__ import annotations

import gc
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec

from spr.config import DescriberConfig, DetectorConfig, ScorerConfig
from spr.core.errors import ConfigError, SprError
from spr.models.protocols import Describer, Detector, ImageTextScorer

EMBEDDED = "embedded/"
"""`embedded/describer`, `embedded/scorer` and `embedded/detector` are the models that ship with the package."""


def model_source(model: str) -> str:
    """A folder or hub id; `embedded/…` gives the folder inside the package.

    Raises:
        ConfigError: if no such model ships.
    """
    if not model.startswith(EMBEDDED):
        return model
    folder = files("spr") / "embedded" / "weights" / model.removeprefix(EMBEDDED)
    if not folder.is_dir():
        expected = "embedded/describer, embedded/scorer or embedded/detector"
        raise ConfigError("There is no such embedded model", got=model, expected=expected)
    return str(folder)


def trained_model(config: DescriberConfig | None) -> str:
    """The folder or hub id of the model that a config's describer is, which training starts from.

    Raises:
        ConfigError: if there is none, or it is the model with an adapter: training would start without that.
    """
    if config is None or config.model is None:
        got, fix = "a config without describer.model", "set describer.model"
        raise ConfigError("There is no model to train", got=got, fix=fix)
    if config.peft_adapter is not None:
        fix = "merge it (spr merge), and set describer.model to the merged folder"
        raise ConfigError("Training starts from a model without an adapter", got=config.peft_adapter, fix=fix)
    return model_source(config.model)


def _device(name: str) -> str | None:
    return None if name == "auto" else name


@lru_cache(maxsize=1)
def load_describer(config: DescriberConfig) -> Describer:
    """The describer of a config, loaded once a process."""
    if config.backend == "fake":
        from spr.models.fakes import FakeDescriber

        return FakeDescriber(config.dialect or "llava_onevision")
    if config.backend == "openai":
        return _openai_describer(config)
    from spr.models.describers.hf import HfDescriber

    return HfDescriber(
        model_source(config.model or ""),
        dialect=config.dialect,
        revision=config.revision,
        adapter=config.peft_adapter,
        dtype=config.dtype,
        device=_device(config.device),
        device_map=config.device_map,
        attention=config.attn_implementation,
        load_in_4bit=config.load_in_4bit,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
    )


def _openai_describer(config: DescriberConfig) -> Describer:
    if find_spec("httpx") is None:
        fix = "pip install 'spatial-preference-rewarding[openai]'"
        raise SprError("Describers behind a server need httpx", got="it is not installed", fix=fix)
    from spr.models.describers.openai import OpenAiDescriber, read_key

    return OpenAiDescriber(
        config.model or "",
        base_url=config.base_url or "",
        dialect=config.dialect or "",
        api_key=read_key(config.api_key_env),
        concurrency=config.concurrency,
        connect_timeout=config.connect_timeout,
        timeout=config.timeout,
        retries=config.retries,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        request_fields=config.request_fields,
    )


@lru_cache(maxsize=1)
def load_scorer(config: ScorerConfig) -> ImageTextScorer:
    """The image-text model of a config, loaded once a process."""
    if config.backend == "fake":
        from spr.models.fakes import FakeScorer

        return FakeScorer()
    from spr.models.scorers.clip import ClipScorer

    return ClipScorer(
        model_source(config.model),
        revision=config.revision,
        long_text=config.long_text,
        batch_size=config.batch_size,
        dtype=config.dtype,
        device=_device(config.device),
    )


@lru_cache(maxsize=1)
def load_detector(config: DetectorConfig) -> Detector | None:
    """The detector of a config, loaded once a process; None for the adapter ``none``."""
    if config.backend == "none":
        return None
    if config.backend == "fake":
        from spr.models.fakes import FakeDetector

        return FakeDetector()
    if config.backend == "owlv2":
        from spr.models.detectors.owl import Owlv2Detector

        return Owlv2Detector(
            model_source(config.model),
            revision=config.revision,
            box_threshold=config.box_threshold,
            batch_size=config.batch_size,
            dtype=config.dtype,
            device=_device(config.device),
        )
    from spr.models.detectors.grounding_dino import GroundingDinoDetector

    return GroundingDinoDetector(
        model_source(config.model),
        revision=config.revision,
        box_threshold=config.box_threshold,
        text_threshold=config.text_threshold,
        batch_size=config.batch_size,
        dtype=config.dtype,
        device=_device(config.device),
    )


def release() -> None:
    """Forget all models, so that the next stage's have the device's memory."""
    for load in (load_describer, load_scorer, load_detector):
        load.cache_clear()
    gc.collect()
