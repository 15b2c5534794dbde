"""The sequences that are being generated, one in each row of the model's inputs.

A step computes the next token of all rows. What the model gets beside its last tokens, positions and cache is prepared
once, by its own `prepare_inputs_for_generation`. Finished sequences leave their rows to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from spr.models.describers.cache import BufferedCache, why_not_buffered
from spr.models.describers.prefill import Prefilled, other_processors, why_not_resumed
from spr.models.describers.sampling import Sampler, random_streams
from spr.models.describers.shared_prompts import (
    NotSharedError,
    SharedPromptCache,
    shared_attention,
    sharing_configs,
)

LEAST_SAVED = 2_000_000
"""Bytes per layer and step that must not be read from memory for a `SharedPromptCache` to be faster (measured)."""

_COLUMNS = 64  # the room for answers at the beginning; it grows
_can_share: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # by model


class NotResumableError(Exception):
    """Steps after the first that can't be done here; ``lasting`` if due to the model and not to its settings."""

    def __init__(self, reason: str, *, lasting: bool) -> None:
        super().__init__(reason)
        self.lasting = lasting


@dataclass(frozen=True, slots=True)
class Ending:
    """How sequences are drawn and when they end.

    Attributes:
        ends: Tokens that end a sequence.
        limit: Maximum number of tokens.
        temperature, top_p: See `spr.models.describers.sampling`.
    """

    ends: frozenset[int]
    limit: int
    temperature: float
    top_p: float


class Rows:
    """At most ``size`` sequences.

    Args:
        read: The first prompts that the model has read, not yet added.
        samples: The number of samples of each.
        size: Maximum number of rows.
        ending: How tokens are drawn, and which are the last.

    Attributes:
        numbers: The number that the caller gave each row.
        refills: Whether sequences can be added while others are generated.

    Raises:
        NotResumableError: if the model's own `generate` must be used instead.
    """

    def __init__(self, read: Prefilled, samples: Sequence[int], *, size: int, ending: Ending) -> None:
        reason = why_not_resumed(read) or why_not_buffered(read.cache)
        if reason is not None:
            # With gradient checkpointing, a model that is being trained keeps no keys.
            raise NotResumableError(reason, lasting=not read.model.training)
        if (names := other_processors(read)) is not None:
            raise NotResumableError(f"its logits pass through {names}", lasting=False)
        self.numbers: list[int] = []
        self.refills = read.positions is not None
        self.ending = ending
        device = read.logits.device
        self._model, self._settings, self._token_types = read.model, read.settings, read.token_types
        self._arguments: dict[str, Any] | None = None
        self._answers: list[list[int]] = []
        self._ended: list[int] = []
        self._last = torch.zeros(0, 1, dtype=torch.int64, device=device)
        self._sampler = Sampler(ending.temperature, ending.top_p)
        # Those of all rows' next tokens are side by side; a row has as many as tokens, which begin again at the top.
        self._streams = torch.zeros(ending.limit, size, 1, dtype=torch.int64, device=device)
        self._next = 0
        self._positions: Tensor | None = None
        if read.positions is not None:
            *further, _, one = read.positions.shape
            self._positions = read.positions.new_zeros(*further, size, one)
        self._criteria = read.criteria
        longest = max((criterion.maximum_token_len for criterion in read.criteria), default=0)
        self._tail = torch.full((size, longest), int(read.config.pad_token_id or 0), device=device)
        self._least = read.config.min_new_tokens or 0
        # A model that counts positions by the cache's columns needs the prompts in them.
        worth_it = self.refills and not read.model.training and _bytes_saved(read, samples) >= LEAST_SAVED
        self._sharing = sharing_configs(read.model, read.cache) if worth_it else None
        if self._sharing is not None and not self._attends(read):
            self._sharing = None
        self._cache = (BufferedCache if self._sharing is None else SharedPromptCache)(
            read.cache, size, limit=ending.limit
        )

    def add(self, read: Prefilled, samples: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> None:
        """Add rows for samples of prompts, and draw their first tokens.

        ``samples`` and ``seeds`` are the numbers and the seeds of each prompt's samples.
        """
        sources = [k for k, numbers in enumerate(samples) for _ in numbers]
        self._cache.add(read.cache, sources, read.lengths, min(self.ending.limit, _COLUMNS))
        start, device = len(self.numbers), read.logits.device
        rows = slice(start, start + len(sources))
        self.numbers += [number for numbers in samples for number in numbers]
        source = torch.tensor(sources, device=device)
        if self.ending.temperature > 0:
            own = torch.tensor([seed for own in seeds for seed in own], device=device)
            self._streams[:, rows] = random_streams(own, self.ending.limit).roll(self._next, 0)
        if self._positions is not None and read.positions is not None:
            self._positions[..., rows, :] = read.positions.index_select(-2, source.to(read.positions.device))
        if self._criteria:
            width = min(self._tail.shape[1], read.input_ids.shape[1])
            self._tail[rows, -width:] = read.input_ids[:, -width:].index_select(0, source)
        self._answers += [[] for _ in sources]
        self._last = torch.cat([self._last, self._draw(read.logits.index_select(0, source), rows)])

    def release(self) -> None:
        """Free the memory of rows that are not in use: prompts that are read need it before they are added."""
        self._cache.release()

    def step(self) -> None:
        """Compute the next token of all rows."""
        rows = slice(0, len(self.numbers))
        self._cache.make_room()
        positions = None if self._positions is None else self._positions[..., rows, :]
        logits = self._forward(self._cache, self._last, positions)
        if positions is not None:
            positions += 1
        self._next = (self._next + 1) % self.ending.limit
        self._last = self._draw(logits, rows)

    def finished(self) -> list[tuple[int, list[int]]]:
        """The numbers and tokens of the finished sequences, whose rows are freed."""
        if not self._ended:
            return []
        ended, self._ended = self._ended, []
        found = [(self.numbers[row], self._answers[row]) for row in ended]
        targets, sources = self._cache.remove(ended)
        left = len(self.numbers) - len(ended)
        if targets:
            for target, source in zip(targets, sources, strict=True):
                self.numbers[target], self._answers[target] = self.numbers[source], self._answers[source]
            to, moved = (torch.tensor(rows, device=self._last.device) for rows in (targets, sources))
            for state in (self._last, self._tail):
                state[to] = state[moved]
            self._streams[:, to] = self._streams[:, moved]
            if self._positions is not None:
                to, moved = to.to(self._positions.device), moved.to(self._positions.device)
                self._positions[..., to, :] = self._positions[..., moved, :]
        del self.numbers[left:], self._answers[left:]
        self._last = self._last[:left]
        return found

    def _draw(self, logits: Tensor, rows: slice) -> Tensor:
        """Draw the next tokens of rows, ``(n, 1)``, from their logits, and note which sequences are finished."""
        answers, ending = self._answers[rows], self.ending
        if self._least and (early := [row for row, answer in enumerate(answers) if len(answer) < self._least]):
            ends = [token for token in ending.ends if token < logits.shape[1]]
            logits = logits.clone()
            logits[torch.tensor(early)[:, None], torch.tensor(ends)] = -torch.inf
        tokens, drawn = self._sampler(logits, self._streams[self._next, rows])
        last = tokens[:, None]
        stopped: list[bool] | None = None
        if self._criteria:
            self._tail[rows] = torch.cat([self._tail[rows, 1:], last], 1)
            stopped = self._criteria(self._tail[rows], None).tolist()
        for k, (answer, token) in enumerate(zip(answers, drawn, strict=True)):
            answer.append(token)
            if token in ending.ends or len(answer) == ending.limit or (stopped is not None and stopped[k]):
                self._ended.append(rows.start + k)
        return last

    def _forward(self, cache: BufferedCache, last: Tensor, positions: Tensor | None) -> Tensor:
        """The logits after the last tokens ``(rows, 1)``, in float32."""
        shared = isinstance(cache, SharedPromptCache) and self._sharing is not None
        mask = None if shared else cache.seen(last.device)
        if self._arguments is None:
            self._arguments = self._further_arguments(cache, last, positions, mask)
        arguments = {name: value.expand(len(last), 1) for name, value in self._types.items()}
        if positions is not None:
            arguments["position_ids"] = positions
        with shared_attention(self._sharing, cache) if shared else nullcontext():  # type: ignore[arg-type]
            outputs = self._model(
                input_ids=last,
                past_key_values=cache,
                attention_mask=mask,
                **arguments,
                **self._arguments,
                return_dict=True,
            )
        logits: Tensor = outputs.logits[:, -1].float()
        return logits

    def _further_arguments(
        self, cache: BufferedCache, last: Tensor, positions: Tensor | None, mask: Tensor | None
    ) -> dict[str, Any]:
        """Arguments of the model that don't change from step to step."""
        types = {name: value.expand(len(last), 1) for name, value in self._token_types.items()}
        prepared = self._model.prepare_inputs_for_generation(
            last,
            next_sequence_length=1,
            past_key_values=cache,
            attention_mask=mask,
            position_ids=positions,
            **types,
            **self._settings,
        )
        self._types = {name: self._token_types[name] for name in types if prepared.get(name) is not None}
        other = ("input_ids", "past_key_values", "attention_mask", "position_ids", *types)
        return {name: value for name, value in prepared.items() if name not in other}

    def _attends(self, read: Prefilled) -> bool:
        """Whether the model can attend by a `SharedPromptCache`: tried once for each model, on one row."""
        if read.model not in _can_share:
            cache = SharedPromptCache(read.cache, 1)
            cache.add(read.cache, [0], read.lengths, 1)
            positions = None if read.positions is None else read.positions[..., :1, :]
            try:
                self._forward(cache, read.input_ids[:1, -1:], positions)
                _can_share[read.model] = True
            except NotSharedError:
                _can_share[read.model] = False
            self._arguments = None
        return _can_share[read.model]


def _bytes_saved(read: Prefilled, samples: Sequence[int]) -> int:
    """How much less a layer reads in a step if each prompt is kept once for so many samples."""
    kept = next((layer for layer in read.cache.layers if isinstance(layer, DynamicLayer)), None)
    if kept is None:
        return 0
    of_token = sum(state.shape[1] * state.shape[3] * state.element_size() for state in (kept.keys, kept.values))
    tokens = sum(length * (count - 1) for length, count in zip(read.lengths, samples, strict=True))
    return tokens * int(of_token)
