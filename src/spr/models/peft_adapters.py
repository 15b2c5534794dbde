"""PEFT adapters from disk, put onto the model that they were trained on: whole, or one clear error."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from spr.models.loading import ModelError, Source, clear_errors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def load_adapter(model: Any, adapter: Source, *, merge: bool = True) -> Any:
    """A model with an adapter, frozen and in eval mode.

    Args:
        model: The model of transformers that the adapter was trained on.
        adapter: A folder as PEFT's ``save_pretrained`` writes it.
        merge: Add the adapter to the weights, so that it costs no time; not possible with quantised ones.

    Raises:
        ModelError: if the folder holds no adapter in safetensors, or one whose tensors are not this model's.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    folder = Path(adapter)
    lacking = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if lacking:
        raise ModelError(
            f"{folder} holds no PEFT adapter",
            got=f"no {' and no '.join(lacking)}" if folder.is_dir() else "no such folder",
            expected=f"{CONFIG} and {WEIGHTS}",
            fix="give the adapter's folder: RUN/adapter of a run that was trained",
        )
    with clear_errors(str(folder)), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by old names
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        made = get_peft_model(model, config)
        tensors = load_file(folder / WEIGHTS)
        found = set_peft_model_state_dict(made, tensors)
    missing = sorted(key for key in found.missing_keys if "lora_" in key or "modules_to_save" in key)
    if missing or found.unexpected_keys:
        odd = [f"missing: {name}" for name in missing] + [f"unexpected: {name}" for name in found.unexpected_keys]
        raise ModelError(
            f"The adapter {folder} is not this model's",
            got="; ".join(odd[:4]) + (f"; and {len(odd) - 4} more" if len(odd) > 4 else ""),
            expected="each tensor of the adapter, and no other",
            fix="give the model that the adapter was trained on (base_model_name_or_path in its adapter_config.json)",
        )
    return (made.merge_and_unload() if merge else made).eval().requires_grad_(False)
