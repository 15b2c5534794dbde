"""Generation of many answers: a prompt is read once for all its samples, and finished answers make room for others.

The tokens are those of transformers' `generate` with `SeededSampling`, without its cost per step: the cache is not
copied (`spr.models.describers.cache`), the model's arguments are prepared once, and nothing is computed for finished
answers (`spr.models.describers.rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from spr.models.describers.prefill import Prefilled, prefill
from spr.models.describers.rows import Ending, Rows

Prompt = TypeVar("Prompt")

_REFILL = 2  # new prompts are read once one in so many rows is free


def no_gradients(trained: bool) -> torch.no_grad | torch.inference_mode:
    """In this context, no gradients are computed; ``trained``: the model's are, at other times.

    Otherwise it is PyTorch's inference mode, in which every operation takes less time. Tensors of that mode, which
    modules may keep, can't be used for gradients later.
    """
    return torch.no_grad() if trained else torch.inference_mode()


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
        size: Maximum number of answers that are generated at once.
        ending: How tokens are drawn, and which are the last.
        equal_lengths: Whether prompts that are read together must have the same number of tokens.
        options: Further arguments of the model's `generate`.
        trained: See `no_gradients`.
    """

    def __init__(
        self,
        model: Any,
        encode: Callable[[Sequence[Prompt]], dict[str, Tensor]],
        *,
        size: int,
        ending: Ending,
        equal_lengths: bool = False,
        options: dict[str, Any] | None = None,
        trained: bool = False,
    ) -> None:
        self.model, self.encode, self.size, self.ending = model, encode, size, ending
        self.equal_lengths, self.options = equal_lengths, options or {}
        self.trained = trained

    def run(self, prompts: Sequence[Samples[Prompt]]) -> Iterator[tuple[int, list[int]]]:
        """Each sample's number and its tokens, as they are finished. The longest prompts should come first.

        Raises:
            NotResumableError: before the first sample, if the model's `generate` must be used instead.
        """
        found: Iterator[tuple[int, list[int]]] = no_gradients(self.trained)(self._run)(prompts)  # whenever it runs
        return found

    def _run(self, prompts: Sequence[Samples[Prompt]]) -> Iterator[tuple[int, list[int]]]:
        waiting = [part for samples in prompts for part in samples.split(self.size)][::-1]
        least = max(1, self.size // _REFILL)
        rows: Rows | None = None
        while waiting or (rows is not None and rows.numbers):
            used = len(rows.numbers) if rows is not None else 0
            free = self.size - used
            refills = rows is None or not used or (rows.refills and not self.equal_lengths and free >= least)
            batch = self._take(waiting, free) if refills else []
            if batch:
                if rows is not None:
                    rows.release()
                read = self._read(batch)
                if rows is None:
                    counts = [len(samples.numbers) for samples in batch]
                    rows = Rows(read, counts, size=self.size, ending=self.ending)
                rows.add(read, [samples.numbers for samples in batch], [samples.seeds for samples in batch])
                del read  # its tensors are freed before the next prompts are read
            elif rows is not None:
                rows.step()
            if rows is not None:
                yield from rows.finished()

    def _take(self, waiting: list[Samples[Prompt]], free: int) -> list[Samples[Prompt]]:
        """The next prompts that have room for all their samples, the last ones of ``waiting``."""
        batch: list[Samples[Prompt]] = []
        while waiting and len(waiting[-1].numbers) <= free:
            if self.equal_lengths and batch and batch[0].length != waiting[-1].length:
                break
            batch.append(waiting.pop())
            free -= len(batch[-1].numbers)
        return batch

    def _read(self, batch: Sequence[Samples[Prompt]]) -> Prefilled:
        return prefill(self.model, self.encode([samples.prompt for samples in batch]), **self.options)
