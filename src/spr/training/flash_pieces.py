"""The shared prefix on FlashAttention's kernels, which know causal attention but take no other mask.

The attention of [prompt | chosen | rejected] consists of two causal pieces, so no mask is needed:

- queries of [prompt | chosen], keys of [prompt | chosen];
- queries of [rejected], keys of [prompt | rejected].

A kernel for sequences of varying length computes the pieces of all pairs in one call. Its causal mask is aligned to the
bottom right: the last query of a piece sees all of its keys. Padding belongs to no piece and costs nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.utils import is_flash_attn_2_available

from spr.models.errors import ModelError
from spr.training.batches import PairSpan


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """The causal pieces of a batch's attention.

    ``queries`` and ``keys`` are ``(N,)`` int64 indices of tokens in the sequences, one sequence after the other;
    ``query_ends`` and ``key_ends`` ``(pieces + 1,)`` int32, where each piece ends in them, after a 0; ``most_queries``
    and ``most_keys`` the greatest numbers in a piece.
    """

    queries: Tensor
    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, spans: Iterable[PairSpan], width: int, device: torch.device, *, first: int = 0) -> Pieces:
        """Those of sequences of ``width`` tokens, of the rows from ``first`` on only."""
        queries, keys = list[Tensor](), list[Tensor]()
        for row, start, chosen, rejected, end in spans:
            tokens = torch.arange(start, end) + row * width
            parts = [
                (max(start, first), rejected, tokens[: rejected - start]),
                (max(rejected, first), end, torch.cat([tokens[: chosen - start], tokens[rejected - start :]])),
            ]
            for begin, stop, seen in parts:
                if begin < stop:
                    queries.append(tokens[begin - start : stop - start])
                    keys.append(seen)
        sizes = [[len(piece) for piece in pieces] for pieces in (queries, keys)]
        ends = [torch.tensor([0, *accumulate(each)], dtype=torch.int32, device=device) for each in sizes]
        indices = [torch.cat(pieces).to(device) for pieces in (queries, keys)]
        return cls(indices[0], indices[1], ends[0], ends[1], max(sizes[0]), max(sizes[1]))


def attend_pieces(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    pieces: Pieces,
    last_pieces: Pieces,
    last_attention: nn.Module | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of [prompt | chosen | rejected], by pieces.

    It has the signature of an attention kernel of transformers, and does not read the mask: query ``(S, heads, T, D)``,
    key and value ``(S, key heads, T, D)``. ``last_pieces`` are those of the module ``last_attention``. Returns
    ``(S, T, heads, D)``, zero in rows that are in no piece, and None in place of the attention weights.
    """
    own = last_pieces if module is last_attention else pieces
    sequences, heads, width = query.shape[:3]
    query, key, value = (states.transpose(1, 2).flatten(0, 1) for states in same_dtype(query, key, value))
    query, key, value = (
        states.index_select(0, tokens) for states, tokens in ((query, own.queries), (key, own.keys), (value, own.keys))
    )
    size = value.shape[-1]
    if size < query.shape[-1]:  # the kernels take heads of one size
        value = nn.functional.pad(value, (0, query.shape[-1] - size))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    output = causal_attention(query, key, value, own, scale=scale, dropout=dropout, softcap=softcap or 0.0)[..., :size]
    rows = output.new_zeros(sequences * width, heads, size).index_copy(0, own.queries, output)
    return rows.view(sequences, width, heads, size), None


def same_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """The three in autocast's type if it is on, else in the value's: rotary embeddings may be in float32."""
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    return tuple(states.to(dtype) for states in (query, key, value))


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, pieces: Pieces, *, scale: float, dropout: float, softcap: float
) -> Tensor:
    """Causal attention, aligned to the bottom right, within each piece: ``(tokens, heads, D)`` each.

    It is computed by flash-attn's function where the package is installed, else by PyTorch's own build of it.
    """
    places = (pieces.query_ends, pieces.key_ends, pieces.most_queries, pieces.most_keys)
    if is_flash_attn_2_available():
        flash = lazy_import_flash_attention("flash_attention_2")[0][1]
        names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
        options: dict[str, Any] = dict(zip(names, places, strict=True))
        if softcap:  # versions before 2.6 don't know it
            options["softcap"] = softcap
        output: Tensor = flash(query, key, value, **options, dropout_p=dropout, softmax_scale=scale, causal=True)
        return output
    kernel = torch_kernel()
    if kernel is None or dropout or softcap:
        lacking = "attention dropout" if dropout else "a limit of the attention's logits" if softcap else "this"
        what = f"PyTorch's own kernel of FlashAttention does not support {lacking}"
        raise ModelError(what, got=f"torch {torch.__version__}", fix="pip install flash-attn")
    return kernel(query, key, value, *places, scale=scale, window_size=(-1, 0), enable_gqa=True)


def torch_kernel() -> Callable[..., Tensor] | None:
    """PyTorch's function for sequences of varying length, from the version on that has what is needed here, or None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    kernel: Any = varlen_attn
    known = inspect.signature(kernel).parameters
    return kernel if {"scale", "window_size", "enable_gqa"} <= set(known) else None


def check_kernel(device: torch.device, dtype: torch.dtype) -> None:
    """Compare the kernel on a device with plain attention on few numbers.

    Raises:
        ModelError: if it can't be run, does not support the type, or gives something else, as versions of flash-attn
            before 2.1, which align their causal mask to the top left.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        fix = "set training.dtype=bfloat16, or training.attn_implementation=sdpa"
        raise ModelError("FlashAttention computes in 16 bits", got=str(dtype), expected="bfloat16, float16", fix=fix)
    draw = torch.Generator().manual_seed(0)
    spans = [PairSpan(0, 0, 5, 8, 12), PairSpan(1, 0, 3, 4, 6)]
    query, key, value = (torch.randn(2, heads, 12, 64, generator=draw).to(device, dtype) for heads in (4, 2, 2))
    pieces = Pieces.of(spans, 12, device)
    fix = "set training.attn_implementation=sdpa, or install another version of flash-attn"
    try:
        found, _ = attend_pieces(nn.Module(), query, key, value, None, pieces=pieces, last_pieces=pieces)
    except (RuntimeError, TypeError, ValueError, ImportError) as error:
        got = " ".join(str(error).split())[:300]
        raise ModelError("FlashAttention can't be run on this device", got=got, fix=fix) from error
    query, key, value = (part.float().repeat_interleave(4 // part.shape[1], dim=1) for part in (query, key, value))
    for row, start, chosen, rejected, end in spans:
        tokens = torch.arange(end, device=device)
        seen = tokens[:, None] >= tokens
        seen[rejected:, chosen:rejected] = False
        scores = query[row, :, start:end] @ key[row, :, start:end].mT / 8
        expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value[row, :, start:end]
        difference = float((found[row, start:end].float() - expected.transpose(0, 1)).abs().max())
        if not difference < 0.05:
            got = f"a difference of {difference:.3g} from plain attention"
            raise ModelError("FlashAttention gives a wrong result on this device", got=got, expected="< 0.05", fix=fix)
