"""Attention masks of language models whose layers differ: sliding windows, and images that attend in both directions.

Gemma 3 and 4 take one mask per type of layer. For one sequence per answer they make them themselves, from the types of
the tokens. For [prompt | chosen | rejected] in one sequence they are made here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spr.models.families import LayerMasks


def layer_masks(
    rules: LayerMasks, config: Any, mask: Tensor, positions: Tensor, image_tokens: Tensor
) -> dict[str, Tensor]:
    """The mask of each type of layer, ``(S, 1, T, T)`` bool.

    ``mask`` ``(S, 1, T, T)`` is that of causal layers without a window, ``positions`` are ``(S, T)``, ``image_tokens``
    ``(S, T)`` bool, and ``config`` is the language model's. A window counts positions, not columns: the rejected answer
    sees as much of the prompt as the chosen one.
    """
    distance = positions[:, None, :, None] - positions[:, None, None, :]
    both_ways = both_directions(rules, config)
    masks = {}
    for kind in set(config.layer_types):
        own = mask | same_image(image_tokens) if kind in both_ways else mask
        masks[kind] = own & (distance < config.sliding_window) if kind == "sliding_attention" else own
    return masks


def both_directions(rules: LayerMasks, config: Any) -> tuple[str, ...]:
    """The types of layers in which the tokens of an image attend to each other in both directions."""
    if rules.setting is not None and getattr(config, rules.setting, None) != "vision":
        return ()
    return rules.both_directions


def image_runs(image_tokens: Tensor) -> Tensor:
    """``(S, T)`` bool → ``(S, T)`` int64, the number of the run of image tokens that a token is in; 0 for all others.

    >>> image_runs(torch.tensor([[False, True, True, False, True]]))
    tensor([[0, 1, 1, 0, 2]])
    """
    starts = image_tokens & ~torch.nn.functional.pad(image_tokens, (1, 0))[:, :-1]
    return starts.cumsum(dim=1) * image_tokens


def same_image(image_tokens: Tensor) -> Tensor:
    """``(S, T)`` bool → ``(S, 1, T, T)`` bool, true where both tokens are of the same run of image tokens.

    >>> same_image(torch.tensor([[False, True, True, False, True]])).int()[0, 0].tolist()[1]
    [0, 1, 1, 0, 0]
    """
    runs = image_runs(image_tokens)
    return ((runs[:, :, None] == runs[:, None, :]) & image_tokens[:, :, None])[:, None]
