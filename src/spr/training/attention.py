"""Attention over [prompt | chosen | rejected]: its beginning is plain causal, so only its end needs a mask.

Kernels compute every block under a mask, and skip what lies above the diagonal under the causal flag. The prompt is
most of the sequence; so it goes without a mask, which halves the attention's work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spr.models.families import Family
from spr.training.last_layer import MARK

KERNEL = "spr_causal_beginning"
"""Its name in transformers' table of attention kernels."""


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention whose first rows are causal; in the last layer they are left out.

    Args:
        module: The attention layer.
        query: ``(S, heads, T, D)``.
        key: ``(S, heads of keys, T, D)``.
        value: As ``key``.
        attention_mask: ``(S, 1, M, T)`` bool, of the last M rows; those before are causal. None, or M = T: all rows
            alike, as in transformers' own.
        **options: As transformers gives them.

    Returns:
        ``(S, T, heads, D)``, zero where left out, and None in place of the weights.
    """
    causal = 0 if attention_mask is None else query.shape[2] - attention_mask.shape[2]
    if not causal:
        return _sdpa(module, query, key, value, attention_mask, **options), None
    end = _sdpa(module, query[:, :, causal:], key, value, attention_mask, **options)
    if hasattr(module, MARK):
        return nn.functional.pad(end, (0, 0, 0, 0, causal, 0)), None
    begin = _sdpa(module, *(part[:, :, :causal] for part in (query, key, value)), None, **options)
    return torch.cat([begin, end], dim=1), None


def _sdpa(module: nn.Module, *parts: Tensor | None, **options: Any) -> Tensor:
    made: Tensor = sdpa_attention_forward(module, *parts, **options)[0]
    return made


def use_causal_beginning(model: Any, family: Family) -> bool:
    """Let the language model use `attend`, where it used transformers' ``sdpa``; returns whether it does.

    Args:
        model: The model of transformers.
        family: What is known of its family.
    """
    part = model.get_submodule(family.language_model.removesuffix(".layers"))
    if part.config._attn_implementation not in ("sdpa", KERNEL):
        return False
    ALL_ATTENTION_FUNCTIONS.register(KERNEL, attend)
    # Other masks than ours are made as for sdpa.
    ALL_MASK_ATTENTION_FUNCTIONS.register(KERNEL, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    part.config._attn_implementation = KERNEL
    return True
