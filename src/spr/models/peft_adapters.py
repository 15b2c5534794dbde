"""Loads PEFT adapters onto the model that they were trained on: completely, or with one clear error."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from spr.models.loading import ModelError, Source, clear_errors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def load_adapter(model: Any, adapter: Source, *, merge: bool = True) -> Any:
    """Load an adapter onto a model; returns it frozen and in eval mode.

    Args:
        model: The model of transformers that the adapter was trained on.
        adapter: A folder in the format of PEFT's ``save_pretrained``.
        merge: Merge the adapter into the weights, so that inference is as fast as without it. Not possible for
            quantized weights.

    Raises:
        ModelError: if the folder has no adapter in safetensors, or its tensors don't match this model.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    folder = Path(adapter)
    missing_files = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing_files:
        raise ModelError(
            f"{folder} has no PEFT adapter",
            got=f"no {' and no '.join(missing_files)}" if folder.is_dir() else "no such folder",
            expected=f"{CONFIG} and {WEIGHTS}",
            fix="give the folder of an adapter, such as RUN/adapter of a trained run",
        )
    with clear_errors(str(folder)), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses deprecated names of transformers
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted = get_peft_model(model, config)
        tensors = load_file(folder / WEIGHTS)
        found = set_peft_model_state_dict(adapted, tensors)
    missing = sorted(key for key in found.missing_keys if "lora_" in key or "modules_to_save" in key)
    if missing or found.unexpected_keys:
        wrong = [f"missing: {name}" for name in missing] + [f"unexpected: {name}" for name in found.unexpected_keys]
        raise ModelError(
            f"The adapter {folder} was not trained on this model",
            got="; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""),
            expected="exactly the tensors of the adapter",
            fix="use the model that the adapter was trained on: base_model_name_or_path in its adapter_config.json",
        )
    return (adapted.merge_and_unload() if merge else adapted).eval().requires_grad_(False)
