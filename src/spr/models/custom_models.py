"""Models that transformers does not have: their classes are registered with its auto classes on first use."""

from __future__ import annotations

from collections.abc import Collection
from pkgutil import resolve_name
from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from spr.models.families import FAMILIES, CustomModel
from spr.models.loading import ModelError, Source, clear_errors, load_part
from spr.models.tensor_files import convert_pickles


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

    Args:
        source: A folder or a hub id.
        revision: Branch, tag or commit of the hub's repository.
        expected: The accepted model types; None for any.

    Raises:
        ModelError: as `spr.models.loading.load_pretrained`, and if the model type is not an expected one.
    """
    customs = custom_models()
    with clear_errors(source, revision):
        found, _ = PreTrainedConfig.get_config_dict(source, revision=revision or "main")
    named = (found.get("architectures") or [None])[0]
    by_architecture = next((kind for kind, custom in customs.items() if named in custom.architectures), None)
    model_type = found.get("model_type") or by_architecture
    if expected is not None and model_type not in expected:
        fix = "choose a model of an expected type, or the backend for this one"
        raise ModelError(f"{source} is another kind of model", got=model_type, expected=" or ".join(expected), fix=fix)
    if model_type not in customs:
        return load_part(AutoConfig, source, revision=revision)
    register_custom_models()
    with clear_errors(source, revision):
        return resolve_name(customs[model_type].config).from_pretrained(source, revision=revision or "main")


def custom_options(source: Source, config: Any) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that a custom model needs; empty for models of transformers.

    If a local folder has its weights as pickles, they are first converted to safetensors, once.

    Args:
        source: A folder or a hub id.
        config: From `load_config`.
    """
    if config.model_type not in custom_models():
        return {}
    convert_pickles(source)
    return {"config": config}
