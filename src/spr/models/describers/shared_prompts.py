"""A cache that keeps each prompt once for all its samples, and attention that reads it once for them.

On a CPU, much of a step's time is that of reading the keys and values of all sequences from memory, of which most are
equal if a prompt has several samples. The attention to a prompt and the attention to a sample's own tokens are computed
separately, and joined by their maxima and sums as in online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from spr.models.describers.cache import BufferedCache, BufferedLayer
from spr.models.describers.cached_states import BufferedState

_NAME = "spr_shared_prompts"
_KEPT = 0.6  # prompts are copied together once fewer of a block are still needed

_current: ContextVar[SharedPromptCache] = ContextVar("current")
_lock = Lock()
_threads: Counter[int] = Counter()  # by the id of a config


class NotSharedError(Exception):
    """A layer whose attention is not computed from its keys and values alone."""


@dataclass(slots=True, eq=False)
class Block:
    """Prompts that were read together.

    Attributes:
        states: Keys and values of each layer, ``(prompts, heads, tokens, size of a head)``.
        hidden: −∞ for the padding before a prompt, else 0, ``(prompts, 1, 1, tokens)``; None without padding.
        samples: Number of places for samples of each prompt.
        rows: The rows that belong to the prompts, ``(n,)``.
        places: Their places, ``prompt · samples + sample``, ``(n,)``.
    """

    states: dict[int, tuple[Tensor, Tensor]]
    hidden: Tensor | None
    samples: int
    rows: Tensor
    places: Tensor

    def attend(self, layer: int, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attention of scaled queries ``(n, heads, group, size)``: maxima, sums of exponentials, weighted values."""
        keys, values = self.states[layer]
        prompts, heads, _, size = keys.shape
        group = query.shape[2]
        grid = query.new_zeros(prompts * self.samples, heads, group, size)
        grid[self.places] = query
        asked = grid.view(prompts, self.samples, heads, group, size).transpose(1, 2)
        scores = asked.reshape(prompts, heads, self.samples * group, size) @ keys.transpose(2, 3)
        if self.hidden is not None:
            scores += self.hidden
        highest = scores.amax(-1, keepdim=True)
        weights = scores.sub_(highest).exp_()
        found = (highest, weights.sum(-1, keepdim=True), weights @ values)
        return tuple(self._of_rows(part, heads, group) for part in found)  # type: ignore[return-value]

    def _of_rows(self, part: Tensor, heads: int, group: int) -> Tensor:
        prompts, size = part.shape[0], part.shape[-1]
        grid = part.view(prompts, heads, self.samples, group, size).transpose(1, 2)
        return grid.reshape(prompts * self.samples, heads, group, size)[self.places]

    def prune(self) -> None:
        """Forget prompts without rows, if they are many."""
        needed, prompts = torch.unique(self.places // self.samples, return_inverse=True)
        total = len(next(iter(self.states.values()))[0])
        if len(needed) >= _KEPT * total:
            return
        for layer, (keys, values) in self.states.items():
            self.states[layer] = keys.index_select(0, needed), values.index_select(0, needed)
        self.hidden = None if self.hidden is None else self.hidden.index_select(0, needed)
        self.places = prompts * self.samples + self.places % self.samples


class SharedLayer(BufferedLayer):
    """Keys and values of the tokens after the prompts.

    Attributes:
        shown: What the model got from `update` in this step.
    """

    shown: tuple[Tensor, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the states of new tokens, and return views of all tokens after the prompts."""
        if not self.buffers:
            rows, columns = self.size
            for state in (key_states, value_states):
                self.buffers.append(state.new_zeros(rows, state.shape[1], columns, state.shape[3]))
        self.shown = found = super().update(key_states, value_states)
        return found


class SharedPromptCache(BufferedCache):
    """A `BufferedCache` whose columns hold only what was generated; the prompts are in blocks.

    Only for full attention, with the implementation ``sdpa``.
    """

    def __init__(self, like: DynamicCache, size: int, *, limit: int | None = None) -> None:
        super().__init__(like, size, limit=limit, layer_class=SharedLayer)
        self.blocks: list[Block] = []

    def add(self, prompts: DynamicCache, sources: Sequence[int], lengths: Sequence[int], columns: int) -> None:
        """Add a row for each of the ``sources``, rows of the cache of prompts, which becomes a part of this cache."""
        used = len(self.starts)
        self.columns = self.columns or columns
        if not used:
            for layer in self.attention:
                layer.first = layer.next = 0
        states = {}
        for k, (layer, prompt) in enumerate(zip(self.layers, prompts.layers, strict=True)):
            if isinstance(layer, BufferedState):
                layer.put(slice(used, used + len(sources)), torch.tensor(sources), prompt, (self.size, 0))
            elif isinstance(layer, BufferedLayer):
                layer.size = self.size, self.columns
                if layer.buffers:
                    layer.resize(self.size)
                states[k] = prompt.keys, prompt.values
        keys = next(iter(states.values()))[0]
        tokens = keys.shape[2]
        hidden = None
        if min(lengths) < tokens:
            padding = torch.arange(tokens) < tokens - torch.tensor(lengths)[:, None]
            hidden = torch.zeros(len(lengths), 1, 1, tokens, dtype=keys.dtype)
            hidden.masked_fill_(padding[:, None, None], -torch.inf)
        counts = [sources.count(k) for k in range(len(lengths))]
        samples = max(counts)
        places = [k * samples + sample for k, count in enumerate(counts) for sample in range(count)]
        rows = torch.arange(used, used + len(sources))
        self.blocks.append(Block(states, hidden, samples, rows, torch.tensor(places)))
        self._use(self.starts + [self.next] * len(sources))

    def remove(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Free rows, see `BufferedCache.remove`."""
        total = len(self.starts)
        targets, sources = super().remove(rows)
        now = torch.arange(total)
        now[torch.tensor(rows)] = -1
        now[torch.tensor(sources, dtype=torch.int64)] = torch.tensor(targets, dtype=torch.int64)
        for block in self.blocks:
            moved = now[block.rows]
            left = moved >= 0
            block.rows, block.places = moved[left], block.places[left]
        self.blocks = [block for block in self.blocks if len(block.rows)]
        for block in self.blocks:
            block.prune()
        return targets, sources

    def begin_step(self) -> None:
        """Prepare what all layers share in a step, in which the model sees no mask."""
        self.attended = 0
        seen = self.seen(torch.device("cpu"))
        self.hidden: Tensor | None = None if seen is None else (seen == 0)[:, None, None]

    def attend(self, number: int, query: Tensor, scaling: float | None) -> Tensor:
        """Attention of a layer's queries ``(rows, heads, 1, size)`` to prompts and answers, in the same shape."""
        layer: Any = self.layers[number]
        keys, values = layer.shown
        rows, heads, _, size = query.shape
        query = query.reshape(rows, keys.shape[1], heads // keys.shape[1], size)
        query = query * (size**-0.5 if scaling is None else scaling)
        scores = query @ keys.transpose(2, 3)
        if self.hidden is not None:
            scores = scores.masked_fill_(self.hidden, -torch.inf)
        if len(self.blocks) == 1:
            rows_of = self.blocks[0].rows
            parts = list(self.blocks[0].attend(number, query[rows_of]))
            parts = [torch.empty_like(part).index_copy_(0, rows_of, part) for part in parts]
        else:
            sizes = (1, 1, values.shape[-1])
            parts = [query.new_empty(*query.shape[:3], width) for width in sizes]
            for block in self.blocks:
                for part, of_block in zip(parts, block.attend(number, query[block.rows]), strict=True):
                    part[block.rows] = of_block
        highest, total, weighted = parts
        top = torch.maximum(highest, scores.amax(-1, keepdim=True))
        share, weights = (highest - top).exp_(), scores.sub_(top).exp_()
        total = (total * share).add_(weights.sum(-1, keepdim=True))
        found: Tensor = (weights @ values).addcmul_(weighted, share).div_(total)
        self.attended += 1
        return found.view(rows, heads, 1, values.shape[-1])


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    cache = _current.get(None)
    if cache is None:  # another thread uses the model at the same time
        further_options = {"dropout": dropout, "scaling": scaling, **kwargs}
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **further_options
        )
        return found
    shown = getattr(cache.layers[module.layer_idx], "shown", ()) or (None, None)
    further = any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias"))
    if key is not shown[0] or value is not shown[1] or attention_mask is not None or dropout or further:
        raise NotSharedError
    return cache.attend(module.layer_idx, query, scaling).transpose(1, 2), None


def sharing_configs(model: Any, prompts: DynamicCache) -> list[Any] | None:
    """The configs that name a model's attention, if it is worth a try; else None.

    It is on a CPU, with full attention by ``sdpa`` in all layers that keep keys, and weights of 32 or 64 bits: with 16,
    the parts of a softmax that are computed apart round more than ``sdpa`` does.
    """
    if model.dtype not in (torch.float32, torch.float64):
        return None
    kept = [layer for layer in prompts.layers if not isinstance(layer, LinearAttentionLayer)]
    if model.device.type != "cpu" or not all(type(layer) is DynamicLayer for layer in kept):
        return None
    found = (module.config for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "config"))
    configs = list({id(config): config for config in found}.values())
    # Another thread may be in a step.
    sdpa = all(config._attn_implementation in ("sdpa", _NAME) for config in configs)
    return configs if configs and sdpa else None


def _name(configs: Sequence[Any], by: int) -> None:
    """Count the threads that attend by a cache of theirs, and name the attention of configs that one of them uses."""
    with _lock:
        for config in configs:
            _threads[id(config)] += by
            config._attn_implementation = _NAME if _threads[id(config)] else "sdpa"
            if not _threads[id(config)]:
                del _threads[id(config)]


@contextmanager
def shared_attention(configs: Sequence[Any], cache: SharedPromptCache) -> Iterator[None]:
    """In this context, a model with these configs attends by the cache; `NotSharedError` if a layer did not."""
    token = _current.set(cache)
    cache.begin_step()
    try:
        _name(configs, 1)
        try:
            yield
        finally:
            _name(configs, -1)
    finally:
        _current.reset(token)
        for layer in cache.attention:
            layer.shown = ()  # the views would keep buffers that are too small alive while larger ones replace them
    if cache.attended != len(cache.attention):
        raise NotSharedError


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
