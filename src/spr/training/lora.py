"""The adapter: LoRA on the linear layers of the language model, and nowhere else (METHOD §6)."""

from __future__ import annotations

import difflib
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from spr.config import LoraSection
from spr.core.errors import ConfigError, SprError
from spr.models.families import Family


def add_adapter(model: Any, settings: LoraSection, family: Family, *, seed: int = 0) -> PeftModel:
    """Put a fresh adapter on a frozen model; its second matrices are zero, so that nothing changes before a step.

    Args:
        model: A model of transformers, frozen.
        settings: Rank, alpha, dropout and, where not all of the family's, the layers.
        family: Of the model's family.
        seed: Decides the first matrices.

    Raises:
        ConfigError: for a target that is no linear layer of the language model.
        SprError: if anything else would be trained.
    """
    targets = settings.target_modules or family.target_modules
    names = _linear_names(model, family.language_model)
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            last = sorted({name.rsplit(".", 1)[-1] for name in names})
            near = difflib.get_close_matches(target, last, n=1)
            raise ConfigError(
                "Config field `training.lora.target_modules` names no linear layer of the language model",
                got=target,
                expected=", ".join(last),
                fix=f"did you mean `{near[0]}`?" if near else None,
            )
    pattern = rf"{re.escape(family.language_model)}\..*\.({'|'.join(map(re.escape, targets))})"
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=pattern,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with renamed_properties():
            adapted = get_peft_model(model, config)
    check_trained(adapted, family)
    return adapted


@contextmanager
def renamed_properties() -> Iterator[None]:
    """Around calls of PEFT that ask a model for a property that transformers has renamed, and warns about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def check_trained(model: PeftModel, family: Family) -> None:
    """Make sure that what trains is the adapter in the language model, and nothing of vision, projector or embeddings.

    Raises:
        SprError: naming the parameters that must not train, or saying that none does.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    prefix = f"base_model.model.{family.language_model.removesuffix('.layers')}.layers."
    wrong = [name for name in trained if not (name.startswith(prefix) and ".lora_" in name)]
    if wrong:
        more = f", and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise SprError(
            "Parameters outside of the language model's adapter would be trained",
            got=", ".join(wrong[:4]) + more,
            expected=f"LoRA matrices below {family.language_model}.layers alone",
            fix="freeze the model before add_adapter, and mend training.lora.target_modules",
        )
    if not trained:
        raise SprError(
            "No parameter would be trained", expected="LoRA matrices", fix="mend training.lora.target_modules"
        )


def describe_trained(model: PeftModel) -> str:
    """What trains, in a line: ``trains 161,480,704 of 8.0 billion parameters: LoRA of rank 128 on 28 × q_proj, …``."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters()) - trained
    layers = Counter(
        name.split(".lora_A.")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if ".lora_A." in name
    )
    rank = next(iter(model.peft_config.values())).r
    counts = set(layers.values())
    where = ", ".join(layers) if len(counts) == 1 else ", ".join(f"{n} × {name}" for name, n in layers.items())
    times = f"{counts.pop()} × " if len(counts) == 1 else ""
    return f"trains {trained:,} parameters beside {total:,} frozen ones: LoRA of rank {rank} on {times}{where}"


def _linear_names(model: nn.Module, language_model: str) -> set[str]:
    part = model.get_submodule(language_model)
    return {name for name, module in part.named_modules() if isinstance(module, nn.Linear)}
