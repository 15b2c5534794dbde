"""The expert and the position of each token, derived from the token types (Wang et al. 2023, Sec. 2.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LANGUAGE, VISION = 0, 1
"""Values of ``token_type_ids``: text, and image (including its begin and end token)."""


class Routing(NamedTuple):
    """Tokens sorted by expert.

    Attributes:
        order: ``(B·L,)`` indices into the flattened tokens, those of the visual expert first.
        inverse: ``(B·L,)``, the inverse permutation.
        vision: The number of tokens of the visual expert.
    """

    order: Tensor
    inverse: Tensor
    vision: int


def route(token_type_ids: Tensor) -> Routing | None:
    """Route image tokens, except the last of each image, to the visual expert; None if there are none.

    Args:
        token_type_ids: ``(B, L)``, `LANGUAGE` or `VISION`. Images must be complete.

    >>> route(torch.tensor([[0, 1, 1, 1, 0]]))
    Routing(order=tensor([1, 2, 0, 3, 4]), inverse=tensor([2, 0, 1, 3, 4]), vision=2)
    """
    is_image = token_type_ids == VISION
    visual = is_image.clone()
    visual[:, :-1] &= is_image[:, 1:]
    visual[:, -1] = False
    count = int(visual.sum())
    if count == 0:
        return None
    order = visual.flatten().to(torch.uint8).argsort(descending=True, stable=True)
    return Routing(order, order.argsort(), count)


def by_expert(
    hidden_states: Tensor,
    routing: Routing | None,
    vision: Callable[[Tensor], Tensor],
    language: Callable[[Tensor], Tensor],
) -> Tensor:
    """Apply to each token the function of its expert: ``(B, L, D)`` → ``(B, L, D')``."""
    if routing is None:
        return language(hidden_states)
    tokens = hidden_states.flatten(0, 1)[routing.order]
    images, texts = tokens[: routing.vision], tokens[routing.vision :]
    outputs = torch.cat([vision(images), language(texts)])[routing.inverse]
    return outputs.view(*hidden_states.shape[:2], -1)


def build_position_ids(token_type_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Positions for the rotary embedding: one per text, begin or end token, and one for all patches of an image.

    Args:
        token_type_ids: ``(B, L)``, `LANGUAGE` or `VISION`.
        attention_mask: ``(B, L)``, 0 for padding. The first token that is not padding has position 0, so that left
            padding changes nothing. (The published code starts padded rows at 1; only differences matter.)

    Returns:
        int64 ``(B, L)``; 0 for left padding.

    >>> build_position_ids(torch.tensor([[0, 1, 1, 1, 1, 0, 0]])).tolist()
    [[0, 1, 2, 2, 3, 4, 5]]
    """
    real = torch.ones_like(token_type_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    image = (token_type_ids == VISION) & real
    patch = torch.zeros_like(image)
    patch[:, 1:-1] = image[:, 1:-1] & image[:, :-2] & image[:, 2:]
    follows = torch.zeros_like(image)
    follows[:, 1:] = patch[:, 1:] & patch[:, :-1]
    return ((real & ~follows).long().cumsum(-1) - 1).clamp(min=0)


def image_token_types(input_ids: Tensor, length: int, *, bos: int, image: int) -> Tensor:
    """Token types from token ids: an image is ``length`` placeholders right after the start token.

    Args:
        input_ids: ``(B, L)``; rows may be padded on either side, also with the placeholder's id.
        length: Tokens per image.
        bos: Id of the start token.
        image: Id of the placeholder.

    >>> image_token_types(torch.tensor([[0, 1, 0, 0, 0, 7, 0], [1, 7, 7, 7, 0, 0, 0]]), 3, bos=1, image=0).tolist()
    [[0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]]
    """
    begins = input_ids == bos
    start = begins.int().argmax(-1, keepdim=True) + 1
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    inside = (place >= start) & (place < start + length)
    whole = ((input_ids == image) & inside).sum(-1, keepdim=True) == length
    return (inside & whole & begins.any(-1, keepdim=True)).long()
