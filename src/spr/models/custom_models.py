"""Models that transformers lacks and that are built here: known to its auto classes once something asks for a model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from spr.models.loading import ModelError, Source, clear_errors, load_part
from spr.models.tensor_files import convert_pickles


@dataclass(frozen=True, slots=True)
class CustomModel:
    """A kind of model.

    Attributes:
        config: Its config class.
        model: Its model class.
        load_processor: Folder or hub id, config and ``revision=`` → its processor, padding on the left.
    """

    config: Any
    model: Any
    load_processor: Callable[..., Any]


def _ferret() -> CustomModel:
    from spr.models.ported.ferret.configuration import FerretConfig
    from spr.models.ported.ferret.modeling import FerretForConditionalGeneration
    from spr.models.ported.ferret.processing import load_ferret_processor

    return CustomModel(FerretConfig, FerretForConditionalGeneration, load_ferret_processor)


def _cogvlm() -> CustomModel:
    from spr.models.ported.cogvlm.configuration import CogVLMConfig
    from spr.models.ported.cogvlm.modeling import CogVLMForCausalLM
    from spr.models.ported.cogvlm.processing import load_cogvlm_processor

    return CustomModel(CogVLMConfig, CogVLMForCausalLM, load_cogvlm_processor)


CUSTOM_MODELS: dict[str, Callable[[], CustomModel]] = {"ferret": _ferret, "cogvlm": _cogvlm}
"""``model_type`` → what loads the classes."""

ARCHITECTURES = {"CogVLMForCausalLM": "cogvlm"}
"""For published folders whose config.json has no ``model_type``: its ``architectures`` → ours."""


def register_custom_models() -> None:
    """Tell the auto classes of transformers about all of `CUSTOM_MODELS`; again does no harm."""
    for model_type, load in CUSTOM_MODELS.items():
        native = load()
        AutoConfig.register(model_type, native.config, exist_ok=True)
        AutoModelForImageTextToText.register(native.config, native.model, exist_ok=True)


def load_config(source: Source, *, revision: str | None = None, expected: Collection[str] | None = None) -> Any:
    """A model's config, also where only ``architectures`` says that it is one of `CUSTOM_MODELS`. Runs no remote code.

    Args:
        source: A folder or a hub id.
        revision: Branch, tag or commit of the hub's repository.
        expected: The model types that will do; None for any.

    Raises:
        ModelError: as `spr.models.loading.load_pretrained`, and if the model is of another type.
    """
    with clear_errors(source, revision):
        found, _ = PreTrainedConfig.get_config_dict(source, revision=revision or "main")
    names = found.get("architectures") or [None]
    model_type = found.get("model_type") or ARCHITECTURES.get(names[0])
    if expected is not None and model_type not in expected:
        fix = "choose a model of that kind, or the adapter for this one"
        raise ModelError(f"{source} is another kind of model", got=model_type, expected=" or ".join(expected), fix=fix)
    if model_type not in CUSTOM_MODELS:
        return load_part(AutoConfig, source, revision=revision)
    register_custom_models()
    with clear_errors(source, revision):
        return CUSTOM_MODELS[model_type]().config.from_pretrained(source, revision=revision or "main")


def custom_options(source: Source, config: Any) -> dict[str, Any]:
    """What ``from_pretrained`` must be told of a model of `CUSTOM_MODELS`; nothing for others.

    A local folder that has its weights as pickles gets them as safetensors, too, once.

    Args:
        source: A folder or a hub id.
        config: From `load_config`.
    """
    if config.model_type not in CUSTOM_MODELS:
        return {}
    convert_pickles(source)
    return {"config": config}
