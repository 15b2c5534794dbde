"""The shared prefix on FlexAttention, whose kernel skips the blocks of 128 × 128 that a mask leaves empty.

A block mask lists these blocks, and a function of two tokens decides inside the ones that are partly seen. So the
attention costs what the tokens see of each other, and no mask of all pairs of tokens is kept. Sliding windows and
images that attend in both directions are part of the function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers.integrations.flex_attention import flex_attention_forward

from spr.models.families import LayerMasks
from spr.training.batches import PairSpan
from spr.training.flash_pieces import same_dtype
from spr.training.layer_masks import both_directions

BLOCK = 128
"""Tokens per side of a block, FlexAttention's default."""
_CHUNK = 16 * BLOCK
"""Rows whose blocks are found at once, in memory for so many rows of a dense mask."""
COMPILATIONS = 64
"""How often FlexAttention may be compiled."""
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def allow_compilations() -> None:
    """Let FlexAttention be compiled for all types of layers and shapes of batches that a training has.

    Each combination of a type of layer, all or the last rows, with and without gradients, and one or several sequences
    is compiled once. Beyond its limit, 8 by default, PyTorch runs the function uncompiled, with all scores in memory.
    """
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, COMPILATIONS)


class TokenRoles(NamedTuple):
    """What decides which tokens see each other, ``(S, T)`` integers each.

    ``pair``: the number of the token's pair in the batch, −1 for padding; ``answer``: 0 for prompts, 1 for chosen and 2
    for rejected answers; ``position``; ``image``: the number of the group of tokens that see each other in both
    directions, 0 for tokens that are in none; None if there are no such groups.
    """

    pair: Tensor
    answer: Tensor
    position: Tensor
    image: Tensor | None = None

    @classmethod
    def of(cls, spans: Iterable[PairSpan], positions: Tensor, image: Tensor | None = None) -> TokenRoles:
        """Those of a batch with positions ``(S, T)`` and groups ``image`` ``(S, T)``."""
        pair = torch.full(positions.shape, -1, dtype=torch.int32)
        answer = torch.zeros_like(pair)
        for number, (row, start, chosen, rejected, end) in enumerate(spans):
            pair[row, start:end] = number
            answer[row, chosen:rejected], answer[row, rejected:end] = 1, 2
        return cls(pair.to(positions.device), answer.to(positions.device), positions, image)


def mask_function(roles: TokenRoles, *, images: bool, window: int | None, first: int = 0) -> MaskMod:
    """The function ``(sequence, head, row, column)`` that is true if the row's token attends to the column's.

    Rows are counted from ``first``. With ``images``, the tokens of an image attend to each other in both directions;
    with ``window``, none sees farther back than so many positions.
    """
    pair, answer, position, image = roles
    offset = torch.tensor(first, device=pair.device)

    def attends(sequence: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        row = row + offset
        seen = (column <= row) & (pair[sequence, row] == pair[sequence, column])
        own = answer[sequence, column]
        seen = seen & ((own == 0) | (own == answer[sequence, row]))
        if images and image is not None:
            both = image[sequence, row]
            seen = seen | ((both > 0) & (both == image[sequence, column]))
        if window is not None:
            seen = seen & (position[sequence, row] - position[sequence, column] < window)
        return seen

    return attends


def block_mask(roles: TokenRoles, *, images: bool, window: int | None, first: int = 0) -> BlockMask:
    """The block mask of the rows from ``first`` on, for all columns."""
    sequences, width = roles.pair.shape
    device = roles.pair.device
    parts = []
    for begin in range(first, width, _CHUNK):
        rows = min(_CHUNK, width - begin)
        attends = mask_function(roles, images=images, window=window, first=begin)
        parts.append(create_block_mask(attends, sequences, None, rows, width, device, BLOCK))
    names = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
    numbers, indices, full_numbers, full_indices = (
        torch.cat([getattr(part, name) for part in parts], dim=2) for name in names
    )
    attends = mask_function(roles, images=images, window=window, first=first)
    size = (width - first, width)
    return BlockMask.from_kv_blocks(numbers, indices, full_numbers, full_indices, BLOCK, attends, seq_lengths=size)


def block_masks(
    roles: TokenRoles, rules: LayerMasks | None, config: Any, kinds: Iterable[str], *, first: int = 0
) -> dict[str, BlockMask]:
    """The block masks of types of layers, as in `layer_masks`; ``rules`` are None for models whose layers are alike."""
    if rules is None:
        return {kind: block_mask(roles, images=True, window=None, first=first) for kind in kinds}
    both, window = both_directions(rules, config), config.sliding_window
    return {
        kind: block_mask(
            roles, images=kind in both, window=window if kind == "sliding_attention" else None, first=first
        )
        for kind in kinds
    }


def attend_blocks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask,
    *,
    last_mask: BlockMask,
    last_attention: nn.Module | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """FlexAttention under a block mask; ``last_mask`` is that of the module ``last_attention``, for its last rows only.

    It has the signature of an attention kernel of transformers: query ``(S, heads, T, D)``, key and value
    ``(S, key heads, T, D)``. Returns ``(S, T, heads, D)``, zero in skipped rows, and None in place of the attention
    weights.
    """
    query, key, value = same_dtype(query, key, value)
    if module is not last_attention:
        return flex_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    skipped = query.shape[2] - last_mask.seq_lengths[0]
    output = flex_attention_forward(module, query[:, :, skipped:], key, value, last_mask, **options)[0]
    return nn.functional.pad(output, (0, 0, 0, 0, skipped, 0)), None
