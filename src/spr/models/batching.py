"""Batches that fit into memory: filled across requests, and halved for good when the device runs out of memory.

With ``batch_size: auto``, batches also grow while the device has enough free memory.

Threads prepare a batch on the CPU while the model works on the previous one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, Self, TypeVar

import torch

from spr.config import DescriberConfig, DetectorConfig, ScorerConfig
from spr.core.errors import SprError
from spr.core.progress import advance

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = TypeVar("Work")


class DeviceMemoryError(SprError):
    """A single item does not fit into the device's memory."""


@contextmanager
def prepared(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[list[Future[Result]]]:
    """Do CPU work such as resizing on each item in threads. Leaving the context cancels what has not begun."""
    pool = ThreadPoolExecutor(4, thread_name_prefix="prepare")
    try:
        yield [pool.submit(work, item) for item in items]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Memory:
    """The memory of a CUDA device during a batch, to judge whether a larger one fits."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._before = device, 0

    def start(self) -> None:
        """Begin to measure a batch."""
        torch.cuda.reset_peak_memory_stats(self.device)
        self._before = torch.cuda.memory_allocated(self.device)

    def room(self) -> float:
        """How many batches as large as the measured one the memory that was free before it could hold."""
        used = max(torch.cuda.max_memory_allocated(self.device) - self._before, 1)
        free, _ = torch.cuda.mem_get_info(self.device)
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return (free + held) / used


class _Sized(Generic[Item, Work]):
    """How many items are worked on at once, and how that number adapts to the device's memory."""

    ROOM = 2.5
    LARGEST = 32

    def __init__(
        self, work: Work, size: int, *, length: Callable[[Item], int] = lambda _: 0, memory: Memory | None = None
    ) -> None:
        self.work, self.size, self.length, self.memory = work, size, length, memory
        self._largest = size * self.LARGEST
        self._settled = memory is None

    @classmethod
    def of(
        cls,
        work: Work,
        section: DescriberConfig | ScorerConfig | DetectorConfig,
        device: torch.device,
        *,
        factor: int = 1,
        length: Callable[[Item], int] = lambda _: 0,
    ) -> Self:
        """With ``factor`` times the section's ``batch_size``; `auto` begins with its default, and grows on a GPU."""
        size, memory = _size_and_memory(section, device)
        return cls(work, factor * size, length=length, memory=memory)

    def _order(self, items: Sequence[Item]) -> list[int]:
        """Longest first, so that a batch that does not fit fails early."""
        return sorted(range(len(items)), key=lambda k: -self.length(items[k]))

    def _grow(self, finished: int) -> None:
        if self.memory is not None and finished == self.size < self._largest and self.memory.room() >= self.ROOM:
            self.size *= 2

    def _shrink(self, failed: int, message: str) -> None:
        if failed == 1:
            fix = "use a smaller model, dtype bfloat16, 4-bit weights, or smaller images"
            raise DeviceMemoryError("A single item does not fit into the device's memory", got=message, fix=fix)
        self.size, self.memory = failed // 2, None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Batcher(_Sized[Item, Callable[[Sequence[Item]], Sequence[Result]]], Generic[Item, Result]):
    """Runs work, which returns one result per item, on batches of at most ``size`` items.

    Items of similar length share a batch, which reduces padding. Running out of memory halves the size permanently.
    With a ``memory``, a full batch that would fit ``ROOM`` times doubles the size of the following ones, up to
    ``LARGEST`` times the size at the beginning, until the memory runs out once.
    Finished items are counted (`spr.core.progress.advance`).
    """

    def __call__(self, items: Sequence[Item]) -> list[Result]:
        """One result per item, in their order; `DeviceMemoryError` if a single item does not fit."""
        order = self._order(items)
        results: dict[int, Result] = {}
        done = 0
        while done < len(order):
            batch = order[done : done + self.size]
            if self.memory is not None:
                self.memory.start()
            try:
                finished = self.work([items[k] for k in batch])
            except torch.OutOfMemoryError as error:
                message = str(error)
            else:
                results.update(zip(batch, finished, strict=True))
                done += len(batch)
                self._grow(len(batch))
                advance(len(batch))
                continue
            # Outside of the except block: its traceback keeps the tensors of the failed batch alive.
            self._shrink(len(batch), message)
        return [results[k] for k in range(len(items))]


class RefilledBatcher(
    _Sized[Item, Callable[[Sequence[Item], int], Iterable[tuple[int, Result]]]], Generic[Item, Result]
):
    """Runs work on all items, of which it has at most ``size`` at once in the device's memory.

    The work gets the items, longest first, and ``size``, and yields each item's index and result once it is finished.
    When the memory runs out, ``size`` is halved permanently, and the unfinished items begin again. With a ``memory``,
    the work gets only ``size`` items, and the size grows as that of a `Batcher`, until a full batch shows that twice as
    many would not fit. Finished items are counted (`spr.core.progress.advance`).
    """

    def __call__(self, items: Sequence[Item]) -> list[Result]:
        """One result per item, in their order; `DeviceMemoryError` if a single item does not fit.

        Raises:
            RuntimeError: if the work ends without a result for each item that it got.
        """
        order = self._order(items)
        results: dict[int, Result] = {}
        while left := [k for k in order if k not in results]:
            batch = left if self._settled or self.memory is None else left[: self.size]
            if self.memory is not None:
                self.memory.start()
            try:
                for k, result in self.work([items[k] for k in batch], self.size):
                    results[batch[k]] = result
                    advance(1)
            except torch.OutOfMemoryError as error:
                message = str(error)
            else:
                if missing := sum(k not in results for k in batch):
                    raise RuntimeError(f"the work gave no result for {missing:,} of {len(batch):,} items")
                size = self.size
                self._grow(min(len(batch), size))
                self._settled = self._settled or len(batch) >= size == self.size
                continue
            # Outside of the except block: its traceback keeps the tensors of the failed batch alive.
            self._shrink(min(len(batch), self.size), message)
        return [results[k] for k in range(len(items))]


def _size_and_memory(
    section: DescriberConfig | ScorerConfig | DetectorConfig, device: torch.device
) -> tuple[int, Memory | None]:
    default: int = type(section).model_fields["batch_size"].default
    if section.batch_size == "auto":
        return default, Memory(device) if device.type == "cuda" else None
    return section.batch_size, None
