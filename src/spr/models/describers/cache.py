"""A key-value cache with room for the tokens to come, in which sequences come and go while others are generated.

All sequences write their next token to the same column. A sequence that joins later is placed so that its prompt ends
there, which leaves unused columns before it:

    row 0   a a a a a a . .      `.` is free, `-` is unused
    row 1   - - - b b b . .
                        ^ next column

The layers of transformers' own cache are copied with every token, and all their rows end at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from spr.models.describers.cached_states import BufferedState, resized

LEAST_RELEASED = 1 << 24
"""Bytes of a cache whose free rows are worth a copy of the others to free them."""

_SPARE = 32  # least number of columns by which the cache grows


def why_not_buffered(cache: object) -> str | None:
    """Why the layers of a cache can't be kept in buffers, such as an unknown class of them; None if they can."""
    if not isinstance(cache, DynamicCache):
        return f"its cache is a {type(cache).__name__}"
    known = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer, DummyLayer)
    unknown = sorted({type(layer).__name__ for layer in cache.layers if type(layer) not in known})
    return f"its cache has layers of {', '.join(unknown)}" if unknown else None


class BufferedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, ``(rows, heads, columns, size of a head)``, in buffers with room for more columns.

    Attributes:
        rows: Number of rows in use; the others are free.
        first: The first column that a row in use still needs.
        next: The column that the next token is written to.
        window: Number of columns that a token sees, itself included; None for all.
        base: The column that the buffers begin with. They hold little more than the window.
    """

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.rows = self.first = self.next = self.base = 0
        self.window = window
        self.size = (0, 0)
        self.is_sliding = window is not None
        self.is_initialized = True
        self.buffers: list[Tensor] = []

    @property
    def sliding_window(self) -> int | None:
        """The window by the name that transformers gives it."""
        return self.window

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the states of new tokens, and return views of all columns that these tokens see."""
        new = key_states.shape[-2]
        start, end = self._start(), self.next + new
        if end - self.base > self.buffers[0].shape[2]:
            self.move_columns(0, self.buffers[0].shape[2])
        keys, values = self.buffers
        if len(keys) != self.rows:
            keys, values = keys[: self.rows], values[: self.rows]
        keys.narrow(2, self.next - self.base, new).copy_(key_states)
        values.narrow(2, self.next - self.base, new).copy_(value_states)
        self.next = end
        start -= self.base
        return keys.narrow(2, start, end - self.base - start), values.narrow(2, start, end - self.base - start)

    def _start(self) -> int:
        return self.first if self.window is None else max(self.first, self.next + 1 - self.window)

    def _capacity(self, columns: int) -> int:
        return columns if self.window is None else min(columns, self.window + max(_SPARE, self.window // 8))

    def get_seq_length(self) -> int:
        """Number of columns before the next token's."""
        return self.next - self.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of columns that `update` returns, and number of needed columns before them."""
        start = self._start()
        return self.next + query_length - start, start - self.first

    def put(self, rows: slice, sources: Tensor, layer: DynamicLayer, size: tuple[int, int]) -> None:
        """Copy rows ``sources`` of a prompt's layer to ``rows``, so that they end before the next column.

        The buffers have ``size`` rows, and at most as many columns, if they don't exist yet. The prompt's layer is
        emptied.
        """
        columns, end = self._capacity(size[1]), self.next - self.base
        self.resize(size[0])
        states = [layer.keys, layer.values]
        layer.keys = layer.values = None
        for k in range(2):
            state, states[k] = states[k], None
            if len(self.buffers) <= k:
                self.buffers.append(state.new_zeros(size[0], state.shape[1], columns, state.shape[3]))
            kept = min(state.shape[2], self.next)
            copied = state[:, :, state.shape[2] - kept :].index_select(0, sources.to(state.device))
            self.buffers[k][rows, :, end - kept : end] = copied

    def resize(self, rows: int) -> None:
        """Give the buffers so many rows, of which those in use keep their columns; drop them if there are none."""
        if not rows:
            self.buffers = []
        for k, buffer in enumerate(self.buffers):
            self.buffers[k] = resized(buffer, self.rows, rows)

    def move_rows(self, targets: Tensor, sources: Tensor) -> None:
        """Copy whole rows; no target is a source."""
        for buffer in self.buffers:
            part = buffer[:, :, self._start() - self.base : self.next - self.base]
            part[targets.to(buffer.device)] = part[sources.to(buffer.device)]

    def move_columns(self, by: int, columns: int) -> None:
        """Move the needed columns to the right (left if negative), with room for at least this number of columns."""
        base = 0 if self.window is None else max(0, self.next + by + 1 - self.window)
        start, shift, size = self._start(), by + self.base - base, self._capacity(columns)
        old = slice(start - self.base, self.next - self.base)
        new = slice(old.start + shift, old.stop + shift)
        for k, buffer in enumerate(self.buffers):
            used = buffer[: self.rows, :, old]
            if size > buffer.shape[2]:
                self.buffers[k] = buffer.new_zeros(*buffer.shape[:2], size, buffer.shape[3])
                self.buffers[k][: self.rows, :, new] = used
            elif shift:
                buffer[: self.rows, :, new] = used.clone()
        self.first, self.next, self.base = self.first + by, self.next + by, base


class BufferedCache(Cache):  # type: ignore[misc]
    """A cache of at most ``size`` rows, made like the cache of the first prompts.

    No row gets more than ``limit`` tokens after its prompt, for which the buffers need no more columns than the longest
    row.

    Attributes:
        starts: The first column of each row in use.
        columns: Number of columns of the buffers.
        attention: The layers that keep keys and values.
    """

    def __init__(
        self,
        like: DynamicCache,
        size: int,
        *,
        limit: int | None = None,
        layer_class: type[BufferedLayer] = BufferedLayer,
    ) -> None:
        layers: list[Any] = []
        for layer in like.layers:
            if type(layer) is LinearAttentionLayer:
                layers.append(BufferedState(layer.number_of_states))
            elif type(layer) is DummyLayer:
                layers.append(DummyLayer())
            else:
                layers.append(
                    layer_class(layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None)
                )
        super().__init__(layers=layers)
        self.size, self.columns, self.limit, self._longest = size, 0, limit, 0
        self.starts: list[int] = []
        self._seen: tuple[list[int], Tensor | None] | None = None
        self.attention: list[BufferedLayer] = [layer for layer in layers if isinstance(layer, BufferedLayer)]
        self._states: list[BufferedState] = [layer for layer in layers if isinstance(layer, BufferedState)]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """A layer's `update`: nothing is moved between devices here."""
        found: tuple[Tensor, Tensor] = self.layers[layer_idx].update(key_states, value_states, *args, **kwargs)
        return found

    @property
    def first(self) -> int:
        """The first column that a row in use still needs."""
        return self.attention[0].first

    @property
    def next(self) -> int:
        """The column that the next token is written to."""
        return self.attention[0].next

    @property
    def windows(self) -> bool:
        """Whether a layer sees only the latest tokens."""
        return any(layer.window is not None for layer in self.attention)

    def add(self, prompts: DynamicCache, sources: Sequence[int], lengths: Sequence[int], columns: int) -> None:
        """Add a row for each of the ``sources``, rows of the cache of prompts, which is emptied layer by layer.

        ``lengths`` are the numbers of tokens of the prompts. The buffers get room for as many more ``columns`` if they
        don't exist yet.
        """
        longest, used = max(lengths), len(self.starts)
        if not used:
            for layer in self.attention:
                layer.first = layer.next = layer.base = 0
        self._longest = max(self._longest, longest)
        if longest > self.next:
            self.move_columns(longest - self.next)
        self.columns = max(self.columns, self.next + (0 if self.columns else columns))
        rows, source = slice(used, used + len(sources)), torch.tensor(sources)
        for layer, prompt in zip(self.layers, prompts.layers, strict=True):
            if type(layer) is not DummyLayer:
                layer.put(rows, source, prompt, (self.size, self.columns))
        self._use(self.starts + [self.next - lengths[k] for k in sources])

    def seen(self, device: torch.device) -> Tensor | None:
        """The columns from the first one to the next that each row sees, ``(rows, columns)`` of 0 and 1; None if all.

        It is made once for many steps, after there is room for another column.
        """
        if self._seen is None or self._seen[0] is not self.starts:
            seen = None
            if min(self.starts) < max(self.starts):
                columns = torch.arange(self.first, self.columns, device=device)
                seen = (columns >= torch.tensor(self.starts, device=device)[:, None]).long()
            self._seen = self.starts, seen  # which are replaced whenever rows or columns change
        every = self._seen[1]
        return None if every is None else every[:, : self.next + 1 - self.first]

    def release(self) -> None:
        """Free the memory of the rows that are not in use, until others are added, unless it is little."""
        buffers = [b for layer in self.attention for b in layer.buffers]
        buffers += [b for state in self._states for b in state.buffers.values()]
        if sum(buffer.nbytes for buffer in buffers) < LEAST_RELEASED:
            return
        rows = len(self.starts)
        self.columns = self.columns if rows else 0
        for layer in self.attention:
            layer.resize(rows)
        for state in self._states:
            state.resize(rows)

    def remove(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Free rows. The last rows take the place of others: returns where they are put, and where they were."""
        left = len(self.starts) - len(rows)
        gone = set(rows)
        targets = sorted(row for row in gone if row < left)
        sources = [row for row in range(left, len(self.starts)) if row not in gone]
        starts = self.starts.copy()
        if targets:
            to, source = torch.tensor(targets), torch.tensor(sources)
            for kept in self.attention:
                kept.move_rows(to, source)
            for state in self._states:
                state.move_rows(to, source)
            for target, row in zip(targets, sources, strict=True):
                starts[target] = starts[row]
        self._use(starts[:left])
        return targets, sources

    def _use(self, starts: list[int]) -> None:
        self.starts = starts
        for layer in self.attention:
            layer.rows, layer.first = len(starts), min(starts, default=layer.next)
        for state in self._states:
            state.use_rows(len(starts))

    def move_columns(self, by: int) -> None:
        """Move the needed columns to the right, or to the left if negative; the buffers grow if necessary."""
        self.columns = max(self.columns, self.next + by) if self.columns else 0
        for layer in self.attention:
            layer.move_columns(by, self.columns)
        self.starts = [start + by for start in self.starts]

    def make_room(self) -> None:
        """See to it that another column can be written: move the needed ones to the left, or grow."""
        if self.next < self.columns:
            return
        spare = max(_SPARE, self.columns // 8)
        if self.limit is not None:
            spare = min(spare, max(self._longest + self.limit - self.columns, 0))
        if self.first >= max(spare, 1):
            self.move_columns(-self.first)
        else:
            self.columns += max(spare, 1)
            self.move_columns(0)
