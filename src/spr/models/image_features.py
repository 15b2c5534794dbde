"""Image features: what the vision tower and the projector make of an image, as the language model takes it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """An image as the language model reads it.

    Attributes:
        tokens: ``(n, D)``, one row per image token of the prompt.
        deep: ``(n, D)`` each, added to the first layers of the language model (Qwen3-VL); empty for other families.
    """

    tokens: Tensor
    deep: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.nbytes for part in (self.tokens, *self.deep))

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Features:
        """Return the features on a device."""
        tokens, *deep = (part.to(device, non_blocking=non_blocking) for part in (self.tokens, *self.deep))
        return Features(tokens, tuple(deep))

    def copied(self) -> Features:
        """Return a copy in main memory, which keeps no larger tensors alive."""
        tokens, *deep = (part.to("cpu", copy=True) for part in (self.tokens, *self.deep))
        return Features(tokens, tuple(deep))

    def split(self, counts: Sequence[int]) -> list[Features]:
        """The features of several images, of which each has so many tokens."""
        tokens, *deep = (torch.split(part, list(counts)) for part in (self.tokens, *self.deep))
        return [Features(own, tuple(level[k] for level in deep)) for k, own in enumerate(tokens)]


def compute_features(model: Any, vision_inputs: Mapping[str, Tensor], *, deep: bool = False) -> Features:
    """Run images through vision tower and projector; with ``deep``, also their deep features.

    The vision inputs are the processor's output for the images: ``pixel_values`` and, for some families, sizes or
    grids. The features of several images follow each other (`Features.split`).
    """
    device, dtype = model.device, model.dtype
    inputs = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in vision_inputs.items()
    }
    output = _vision_model(model).get_image_features(**inputs, return_dict=True)
    pooled = output.pooler_output
    parts = [pooled] if isinstance(pooled, Tensor) else list(pooled)
    tokens = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
    levels = output.deepstack_features if deep else ()
    return Features(tokens, tuple(torch.cat(list(level)) for level in levels))


def vision_names(model: Any) -> frozenset[str]:
    """The names of the processor's outputs that determine an image's features."""
    return frozenset(inspect.signature(_vision_model(model).get_image_features).parameters) - {"kwargs"}


def _vision_model(model: Any) -> Any:
    """The part of a model, with or without PEFT around it, that has the vision tower."""
    base = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    return base.model


def image_outputs(features: Sequence[Features], *, joined: bool) -> SimpleNamespace:
    """Combine the features of several images, one per sequence, into what a model takes in place of pixels.

    ``joined`` selects one tensor instead of a list of tensors; see `Family.joined_features`.
    """
    tokens = [part.tokens for part in features]
    deep = [list(level) for level in zip(*(part.deep for part in features), strict=True)]
    return SimpleNamespace(pooler_output=torch.cat(tokens) if joined else tokens, deepstack_features=deep or None)
