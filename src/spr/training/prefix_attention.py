"""What the language model is given for one sequence per pair: masks, and the kernel that reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers.utils import is_flash_attn_2_available

from spr.config import TrainingConfig
from spr.models.errors import ModelError
from spr.models.families import Family
from spr.training.batches import Batch
from spr.training.block_masks import TokenRoles, attend_blocks, block_masks
from spr.training.flash_pieces import Pieces, attend_pieces, torch_kernel
from spr.training.layer_masks import image_runs, layer_masks
from spr.training.shared_prefix import attend, language_model

Masks = dict[str, Tensor | BlockMask | None]
Kernel = Callable[..., Any]


def masks_and_kernel(attention: str, batch: Batch, family: Family, model: Any) -> tuple[Masks, Kernel | None]:
    """The mask of each type of layer, under ``""`` if the layers are alike, and the kernel, None for the model's own.

    ``attention`` is an implementation in which the model can share the prefix, and the model one of transformers. For
    two sequences per pair, it is the mask of the tokens, and the model's own kernel.
    """
    if not batch.spans:
        return {"": batch.mask}, None
    width, device = batch.input_ids.shape[1], batch.input_ids.device
    if attention == "flash_attention_2":
        all_rows, last_rows = (Pieces.of(batch.spans, width, device, first=first) for first in (0, batch.begin))
        # A mask with four axes keeps transformers from making one. The kernel does not read it.
        unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        return {"": unread}, partial(attend_pieces, pieces=all_rows, last_pieces=last_rows)
    rules, config = family.layer_masks, language_model(model, family).config
    images = batch.input_ids == model.config.image_token_id if rules is not None else None
    if attention == "flex_attention":
        roles = TokenRoles.of(batch.spans, batch.positions[0])
        if images is not None:
            roles = roles._replace(image=image_runs(images))
        elif batch.image_tokens is not None:  # those of one pair, also if there are others between them
            roles = roles._replace(image=(roles.pair + 1) * batch.image_tokens)
        kinds = config.layer_types if rules is not None else [""]
        blocks = block_masks(roles, rules, config, set(kinds))
        (last,) = block_masks(roles, rules, config, kinds[-1:], first=batch.begin).values()
        return {**blocks}, partial(attend_blocks, last_mask=last)
    if batch.mask is None:
        raise ValueError(f"attention {attention} needs a batch with its dense mask")
    if images is not None and rules is not None:
        return _additive(attention, model, layer_masks(rules, config, batch.mask, batch.positions[0], images)), None
    if attention == "sdpa" and batch.begin and batch.image_tokens is None:
        return {"": batch.mask[:, :, batch.begin :]}, attend
    return _additive(attention, model, {"": batch.mask}), None


def _additive(attention: str, model: Any, masks: dict[str, Tensor]) -> Masks:
    """The masks as they are, or for eager attention, which adds its mask to the scores, as numbers."""
    if attention != "eager":
        return {**masks}
    least = torch.finfo(model.dtype).min
    return {kind: torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, least) for kind, mask in masks.items()}


def loaded_with(settings: TrainingConfig, device: torch.device, shared: bool, reason: str | None) -> str:
    """The attention implementation to load a model with, for a training with `training.attn_implementation`.

    FlexAttention, and PyTorch's own build of FlashAttention, compute only the language model's attention under a shared
    prefix, so the model is loaded with ``sdpa``. ``reason`` is why the prefix is not ``shared``, if there is one.

    Raises:
        ModelError: if the implementation can't be used on the device, or without a shared prefix.
    """
    name, fix = settings.attn_implementation, "set training.attn_implementation=sdpa"
    if name == "flex_attention":
        if not shared:
            what = "`training.attn_implementation: flex_attention` computes a shared prefix only"
            raise ModelError(what, got=reason or "training.prefix_sharing is `separate`", fix=fix)
        if device.type == "cpu":
            got = "training.device is a CPU, where FlexAttention computes no gradients"
            raise ModelError("`training.attn_implementation: flex_attention` needs a GPU", got=got, fix=fix)
        return "sdpa"
    if name == "flash_attention_2":
        if device.type == "cpu":
            what = "`training.attn_implementation: flash_attention_2` needs a GPU"
            raise ModelError(what, got="training.device is a CPU", fix=fix)
        if shared and not is_flash_attn_2_available() and torch_kernel() is not None:
            return "sdpa"
    return name
