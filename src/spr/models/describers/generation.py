"""Generation of many answers: each prompt is read once for all its samples, and a finished answer makes room for another.

The steps are those of transformers' `generate` with sampling by seed, without its cost per step: the cache is not copied
(`spr.models.describers.cache`), the arguments of the model are prepared once, and rows whose answer is finished are not
computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from spr.models.describers.cache import BufferedCache, why_not_buffered
from spr.models.describers.prefill import Prefilled, prefill, why_not_resumed
from spr.models.describers.sampling import draw
from spr.models.describers.shared_prompts import NotSharedError, SharedPromptCache, shared_attention, sharing_configs

Prompt = TypeVar("Prompt")

LEAST_SAVED = 2_000_000
"""Bytes per layer and step that must not be read from memory for a `SharedPromptCache` to be faster (measured)."""
_REFILL = 2  # new prompts are read once one in so many rows is free
_attends: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # by model
_COLUMNS = 64  # the room for answers at the beginning; it grows


class NotResumableError(Exception):
    """A model whose steps after the first can't be done here."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples(Generic[Prompt]):
    """A prompt and its samples.

    Attributes:
        prompt: What `Generation` gets its inputs by.
        length: Approximate number of its tokens.
        numbers: The samples' numbers, by which `Generation.run` yields them.
        seeds: One for each sample.
    """

    prompt: Prompt
    length: int
    numbers: tuple[int, ...]
    seeds: tuple[int, ...]

    def split(self, size: int) -> Iterator[Samples[Prompt]]:
        """The same in parts of at most ``size`` samples."""
        for start in range(0, len(self.numbers), size):
            part = slice(start, start + size)
            yield Samples(self.prompt, self.length, self.numbers[part], self.seeds[part])


class Generation(Generic[Prompt]):
    """Generates answers to prompts, ``size`` at a time.

    Args:
        model: The model.
        encode: Prompts → the model's inputs, on its device, padded on the left.
        size: Number of answers that are generated at once.
        ends: Tokens that end an answer.
        limit: Maximum number of tokens of an answer.
        temperature, top_p: How tokens are sampled, see `spr.models.describers.sampling`.
        equal_lengths: Whether the prompts of a batch must have the same number of tokens.
        options: Further arguments of the model's `generate`.
    """

    def __init__(
        self,
        model: Any,
        encode: Callable[[Sequence[Prompt]], dict[str, Tensor]],
        *,
        size: int,
        ends: frozenset[int],
        limit: int,
        temperature: float,
        top_p: float,
        equal_lengths: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.encode, self.size, self.limit = model, encode, size, limit
        self.temperature, self.top_p, self.equal_lengths = temperature, top_p, equal_lengths
        self.options = options or {}
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64, device=model.device)
        self._cache: BufferedCache | None = None
        self._refills = not equal_lengths
        self._numbers: list[int] = []  # of the rows in use

    @torch.no_grad()
    def run(self, prompts: Sequence[Samples[Prompt]]) -> Iterator[tuple[int, list[int]]]:
        """Yield each sample's number and its tokens, as they are finished.

        Raises:
            NotResumableError: before the first sample, if the model's `generate` must be used instead.
        """
        waiting = [part for samples in prompts for part in samples.split(self.size)][::-1]
        least = max(1, self.size // _REFILL)
        while waiting or self._numbers:
            free = self.size - len(self._numbers)
            if waiting and free >= least and (self._refills or not self._numbers):
                if batch := self._take(waiting, free):
                    self._begin(batch)
                    yield from self._finished()
                    continue
            if self._numbers:
                self._step()
                yield from self._finished()

    def _take(self, waiting: list[Samples[Prompt]], free: int) -> list[Samples[Prompt]]:
        batch: list[Samples[Prompt]] = []
        while waiting and len(waiting[-1].numbers) <= free:
            if self.equal_lengths and batch and batch[0].length != waiting[-1].length:
                break
            batch.append(waiting.pop())
            free -= len(batch[-1].numbers)
        return batch

    def _begin(self, batch: Sequence[Samples[Prompt]]) -> None:
        """Read prompts, and draw the first token of each of their samples."""
        read = prefill(self.model, self.encode([samples.prompt for samples in batch]), **self.options)
        if self._cache is None:
            self._prepare(read, [len(samples.numbers) for samples in batch])
        assert self._cache is not None
        sources = [k for k, samples in enumerate(batch) for _ in samples.numbers]
        self._cache.add(read.cache, sources, read.lengths, min(self.limit, _COLUMNS))
        start, device = len(self._numbers), read.logits.device
        rows = slice(start, start + len(sources))
        self._numbers += [number for samples in batch for number in samples.numbers]
        source = torch.tensor(sources, device=device)
        self._seeds[rows] = torch.tensor([seed for samples in batch for seed in samples.seeds], device=device)
        self._steps[rows] = 0
        if read.positions is not None:
            self._positions[..., rows, :] = read.positions.index_select(-2, source.to(read.positions.device))
        if self._criteria:
            width = min(self._tail.shape[1], read.input_ids.shape[1])
            self._tail[rows, -width:] = read.input_ids[:, -width:].index_select(0, source)
        self._draw(read.logits.index_select(0, source), rows)

    def _prepare(self, read: Prefilled, samples: Sequence[int]) -> None:
        reason = why_not_resumed(read) or why_not_buffered(read.cache)
        if reason is not None:
            raise NotResumableError(reason)
        device, size = read.logits.device, self.size
        self._inner, self._read = read.model, read
        self._arguments: dict[str, Any] | None = None
        self._sharing = sharing_configs(read.model, read.cache) if bytes_saved(read, samples) >= LEAST_SAVED else None
        if self._sharing is not None and not self._attends(read):
            self._sharing = None
        self._cache = (BufferedCache if self._sharing is None else SharedPromptCache)(read.cache, size)
        self._refills = self._refills and read.positions is not None
        self._seeds = torch.zeros(size, dtype=torch.int64, device=device)
        self._steps = torch.zeros(size, dtype=torch.int64, device=device)
        self._tokens = torch.zeros(size, self.limit, dtype=torch.int64, device=device)
        self._last = torch.zeros(size, 1, dtype=torch.int64, device=device)
        self._ended = torch.zeros(size, dtype=torch.bool, device=device)
        self._ends = self._ends.to(device)
        if read.positions is not None:
            shape = list(read.positions.shape)
            shape[-2] = size
            self._positions = read.positions.new_zeros(shape)
        self._criteria = read.criteria
        widths = [criterion.maximum_token_len for criterion in read.criteria]
        pad = int(read.config._pad_token_tensor or 0)
        self._tail = torch.full((size, max(widths, default=0)), pad, device=device)
        self._least = read.config.min_new_tokens or 0

    def _draw(self, logits: Tensor, rows: slice) -> None:
        """Draw the next tokens of rows from their logits, and note which answers are finished."""
        steps = self._steps[rows]
        if self._least:
            early = (steps < self._least)[:, None] & torch.isin(torch.arange(logits.shape[1]), self._ends)
            logits = logits.masked_fill(early, -torch.inf)
        tokens = draw(logits, self._seeds[rows], steps, temperature=self.temperature, top_p=self.top_p)
        self._last[rows, 0] = tokens
        self._tokens[rows].scatter_(1, steps[:, None], tokens[:, None])
        steps += 1
        ended = (tokens[:, None] == self._ends).any(1) | (steps == self.limit)
        if self._criteria:
            self._tail[rows] = torch.cat([self._tail[rows, 1:], tokens[:, None]], 1)
            ended |= self._criteria(self._tail[rows], None)
        self._ended[rows] = ended

    def _step(self) -> None:
        """Compute the next token of all rows."""
        assert self._cache is not None
        rows = slice(0, len(self._numbers))
        self._cache.make_room()
        positions = None if self._read.positions is None else self._positions[..., rows, :]
        logits = self._forward(self._cache, self._last[rows], positions)
        if positions is not None:
            positions += 1
        self._draw(logits, rows)

    def _forward(self, cache: BufferedCache, last: Tensor, positions: Tensor | None) -> Tensor:
        """The logits after the last tokens ``(rows, 1)``, in float32."""
        if self._arguments is None:
            self._arguments = self._further_arguments(cache, last, positions)
        arguments = {name: value.expand(len(last), 1) for name, value in self._types.items()}
        if positions is not None:
            arguments["position_ids"] = positions
        shared = isinstance(cache, SharedPromptCache)
        with shared_attention(self._sharing or (), cache) if isinstance(cache, SharedPromptCache) else nullcontext():
            outputs = self._inner(
                input_ids=last,
                past_key_values=cache,
                attention_mask=None if shared else _mask(cache, last.device),
                **arguments,
                **self._arguments,
                return_dict=True,
            )
        logits: Tensor = outputs.logits[:, -1].float()
        return logits

    def _attends(self, read: Prefilled) -> bool:
        """Whether the model can attend by a `SharedPromptCache`: tried once for each model, on one row."""
        model = read.model
        if model not in _attends:
            cache = SharedPromptCache(read.cache, 1)
            cache.add(read.cache, [0], read.lengths, 1)
            positions = None if read.positions is None else read.positions[..., :1, :]
            try:
                self._forward(cache, read.input_ids[:1, -1:], positions)
                _attends[model] = True
            except NotSharedError:
                _attends[model] = False
            self._arguments = None
        return _attends[model]

    def _further_arguments(
        self, cache: BufferedCache, last: Tensor, positions: Tensor | None
    ) -> dict[str, Any]:
        """Arguments of the model that don't change from step to step."""
        read, names = self._read, ("input_ids", "past_key_values", "attention_mask", "position_ids")
        types = {name: value.expand(len(last), 1) for name, value in read.token_types.items()}
        prepared = self._inner.prepare_inputs_for_generation(
            last,
            next_sequence_length=1,
            past_key_values=cache,
            attention_mask=_mask(cache, last.device),
            position_ids=positions,
            **types,
            **read.settings,
        )
        self._types = {name: read.token_types[name] for name in types if prepared.get(name) is not None}
        return {k: v for k, v in prepared.items() if k not in names and k not in types}

    def _finished(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the finished answers, and free their rows."""
        rows = self._ended[: len(self._numbers)].nonzero()[:, 0]
        ended: list[int] = rows.tolist()
        if not ended:
            return
        assert self._cache is not None
        answers = self._tokens[rows].tolist()
        steps = self._steps[rows].tolist()
        numbers = [self._numbers[row] for row in ended]
        targets, sources = self._cache.remove(ended)
        if targets:
            for target, source in zip(targets, sources, strict=True):
                self._numbers[target] = self._numbers[source]
            to, source = (torch.tensor(rows, device=self._last.device) for rows in (targets, sources))
            for state in (self._seeds, self._steps, self._tokens, self._last, self._ended, self._tail):
                state[to] = state[source]
            if self._read.positions is not None:
                self._positions[..., to, :] = self._positions[..., source, :]
        del self._numbers[len(self._cache.starts) :]
        for number, answer, count in zip(numbers, answers, steps, strict=True):
            yield number, answer[:count]


def _mask(cache: BufferedCache, device: torch.device) -> Tensor | None:
    """The columns that each row sees, ``(rows, columns)``; None if it is all of them."""
    if min(cache.starts) == max(cache.starts):
        return None
    columns = torch.arange(cache.first, cache.next + 1, device=device)
    return (columns >= torch.tensor(cache.starts, device=device)[:, None]).long()


def bytes_saved(read: Prefilled, samples: Sequence[int]) -> int:
    """How much less a layer reads in a step if each prompt is kept once for so many samples."""
    kept = next((layer for layer in read.cache.layers if getattr(layer, "keys", None) is not None), None)
    if kept is None:
        return 0
    of_token = sum(state.shape[1] * state.shape[3] * state.element_size() for state in (kept.keys, kept.values))
    return sum(length * (count - 1) for length, count in zip(read.lengths, samples, strict=True)) * of_token
