"""What vLLM can apply of a PEFT adapter: LoRA of the language model, up to rank 512."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from spr.core.documents import read_json
from spr.models.errors import ModelError
from spr.models.families import Family
from spr.models.loading import clear_errors

MERGE = "merge it (spr merge), and set describer.model to the merged folder"

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM 0.33: MaxLoRARanks in vllm/config/lora.py
_SHOWN = 3


def lora_rank(adapter: str, family: Family) -> int:
    """The smallest of vLLM's maximum ranks that holds an adapter, which `spr.models.loading.check_adapter` accepts.

    Raises:
        ModelError: if vLLM can't apply the adapter, or would silently leave a part of it out.
    """
    folder = Path(adapter)
    with clear_errors(folder):
        config = read_json(folder / "adapter_config.json")
        with safe_open(folder / "adapter_model.safetensors", "pt") as tensors:
            names = list(tensors.keys())
        ranks = [int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())]
    problem = _problem(config, names, family)
    if problem is None and max(ranks) > _RANKS[-1]:
        problem = f"its rank is {max(ranks)}"
    if problem is not None:
        expected = f"LoRA of the language model alone, with a rank of at most {_RANKS[-1]}"
        raise ModelError(f"vLLM can't apply the adapter {folder}", got=problem, expected=expected, fix=MERGE)
    return next(rank for rank in _RANKS if rank >= max(ranks))


def _problem(config: dict[str, object], names: list[str], family: Family) -> str | None:
    if family.vllm != "adapter":
        return f"vLLM has no LoRA for {family.models}"
    if config.get("peft_type") != "LORA":
        return f"its peft_type is {config.get('peft_type')}"
    set_options = [name for name in ("use_dora", "lora_bias", "modules_to_save") if config.get(name)]
    if config.get("bias", "none") != "none":
        set_options.append("bias")
    if set_options:
        return f"it has {', '.join(set_options)}"
    inside = f"base_model.model.{family.decoder}."
    outside = [name for name in names if not name.startswith(inside)]
    if outside:
        more = f", and {len(outside) - _SHOWN} more" if len(outside) > _SHOWN else ""
        return f"weights outside of the language model: {', '.join(outside[:_SHOWN])}{more}"
    return None
