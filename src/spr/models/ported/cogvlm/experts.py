"""Which expert reads a token, and where it stands: both follow from the token types (Wang et al. 2023, §2.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LANGUAGE, VISION = 0, 1
"""Values of ``token_type_ids``: text, and image (its begin and end marks included)."""


class Routing(NamedTuple):
    """Tokens sorted by expert.

    Attributes:
        order: ``(B·L,)`` indices into the flattened tokens, those of the visual expert first.
        inverse: ``(B·L,)`` puts the sorted tokens back.
        vision: How many the visual expert reads.
    """

    order: Tensor
    inverse: Tensor
    vision: int


def route(token_type_ids: Tensor) -> Routing | None:
    """The visual expert reads image tokens but for an image's last one, the end mark; None where it reads none.

    Args:
        token_type_ids: ``(B, L)``, `LANGUAGE` or `VISION`. An image must not be cut at the end of a row.

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
    """Each token through its expert: ``(B, L, D)`` → ``(B, L, D')``."""
    if routing is None:
        return language(hidden_states)
    tokens = hidden_states.flatten(0, 1)[routing.order]
    images, texts = tokens[: routing.vision], tokens[routing.vision :]
    done = torch.cat([vision(images), language(texts)])[routing.inverse]
    return done.view(*hidden_states.shape[:2], -1)


def build_position_ids(token_type_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Positions for the rotary angles: text and the marks of an image count one each, all its patches one together.

    Args:
        token_type_ids: ``(B, L)``, `LANGUAGE` or `VISION`.
        attention_mask: ``(B, L)``, 0 for padding. The first token that counts has position 0, so that padding on the
            left changes nothing. (The published code starts padded rows at 1. Only differences of positions count.)

    Returns:
        ``(B, L)`` int64; 0 for padding on the left.

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
    """Token types, read off the ids: an image is ``length`` placeholders right behind the beginning of text.

    Args:
        input_ids: ``(B, L)``; rows may be padded on either side, also with the placeholder's id.
        length: Tokens of an image.
        bos: Id of the beginning of text.
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
