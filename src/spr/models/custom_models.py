"""Models that transformers does not have: their classes are registered with its auto classes on first use."""

from __future__ import annotations

from collections.abc import Collection
from pkgutil import resolve_name
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from spr.models.families import FAMILIES, CustomModel, unknown_family
from spr.models.loading import ModelError, Source, clear_errors, load_part, load_pretrained, read_model_type
from spr.models.ported.tensor_files import convert_pickles


def custom_models() -> dict[str, CustomModel]:
    """The classes of each family that transformers does not have, by ``model_type``."""
    return {kind: family.custom for kind, family in FAMILIES.items() if family.custom is not None}


def register_custom_models() -> None:
    """Register the classes of all `custom_models` with the auto classes of transformers; may be called repeatedly."""
    for model_type, custom in custom_models().items():
        config = resolve_name(custom.config)
        AutoConfig.register(model_type, config, exist_ok=True)
        AutoModelForImageTextToText.register(config, resolve_name(custom.model), exist_ok=True)


def load_config(source: Source, *, revision: str | None = None, expected: Collection[str] | None = None) -> Any:
    """Load a model's config, including configs that name only ``architectures``. Runs no remote code.

    A config that can't be loaded, or whose model type is not ``expected`` or not known, is a `ModelError`.
    """
    customs = custom_models()
    by_architecture = {name: kind for kind, custom in customs.items() for name in custom.architectures}
    model_type = read_model_type(source, expected, revision=revision, by_architecture=by_architecture)
    if model_type not in customs:
        _check_known(source, model_type, revision)
        return load_part(AutoConfig, source, revision=revision)
    register_custom_models()
    return load_part(resolve_name(customs[model_type].config), source, revision=revision)


def _check_known(source: Source, model_type: str, revision: str | None) -> None:
    """Raise `ModelError` if transformers has no classes for a model type."""
    if model_type in CONFIG_MAPPING or model_type == str(None):  # without one, transformers says what is wrong
        return
    with clear_errors(source, revision):
        config, _ = PreTrainedConfig.get_config_dict(source, revision=revision or "main")
    remote = "its classes are Python files in its own repository (auto_map), which are never run"
    why = remote if "auto_map" in config else None
    what = f"Neither transformers {transformers.__version__} nor SPR has the model class of {source}"
    raise unknown_family(model_type, what, why=why, instead="choose another model, or a version for transformers")


def load_trainable_config(source: Source, *, revision: str | None = None) -> Any:
    """`load_config` of a model whose family can be trained, or `ModelError`."""
    config = load_config(source, revision=revision)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise unknown_family(config.model_type, f"{source} can't be trained, because its family is unknown")
    if not family.trainable:
        known = ", ".join(name for name, entry in FAMILIES.items() if entry.trainable)
        what, fix = f"{source} can describe, but not be trained", "train a model of another family"
        raise ModelError(what, got=f"model_type {family.model_type}", expected=known, fix=fix)
    return config


def class_name(model_type: str) -> str | None:
    """The name of the class of a multimodal LLM, by ``model_type``; None if it is not known."""
    custom = custom_models().get(model_type)
    if custom is not None:
        return custom.model.partition(":")[2]
    name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(model_type)
    return name if isinstance(name, str) else None


def check_multimodal(source: Source, model_type: str) -> None:
    """Raise a `ModelError` if models of this type are not multimodal LLMs."""
    if class_name(model_type) is None and model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        got, expected = f"model_type {model_type}", "a model of AutoModelForImageTextToText"
        raise ModelError(f"{source} is not a multimodal LLM", got=got, expected=expected, fix="choose another model")


def load_mllm(source: Source, config: Any, **options: Any) -> Any:
    """Load a multimodal LLM, given its ``config`` from `load_config`; options and errors as in `load_pretrained`.

    If the local folder of a custom model has its weights as pickles, they are first converted to safetensors, once.
    """
    if config.model_type in custom_models():
        convert_pickles(source)
        options["config"] = config
    return load_pretrained(AutoModelForImageTextToText, source, **options)
