"""Batches that fit into memory: filled across requests, and halved for good when the device runs out of memory.

Threads prepare a batch on the CPU while the model works on the previous one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

from spr.core.errors import SprError

Item = TypeVar("Item")
Result = TypeVar("Result")


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


class Batcher(Generic[Item, Result]):
    """Runs work, which returns one result per item, on batches of at most ``size`` items.

    Items of similar length share a batch, which reduces padding. Running out of memory halves the size permanently.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        size: int,
        *,
        length: Callable[[Item], int] = lambda _: 0,
    ) -> None:
        self.work, self.size, self.length = work, size, length

    def __call__(self, items: Sequence[Item]) -> list[Result]:
        """One result per item, in their order; `DeviceMemoryError` if a single item does not fit."""
        # Longest first, so that a batch that does not fit fails early.
        order = sorted(range(len(items)), key=lambda k: -self.length(items[k]))
        results: dict[int, Result] = {}
        done = 0
        while done < len(order):
            batch = order[done : done + self.size]
            try:
                finished = self.work([items[k] for k in batch])
            except torch.OutOfMemoryError as error:
                message = str(error)
            else:
                results.update(zip(batch, finished, strict=True))
                done += len(batch)
                continue
            # Outside of the except block: its traceback keeps the tensors of the failed batch alive.
            self._shrink(len(batch), message)
        return [results[k] for k in range(len(items))]

    def _shrink(self, failed: int, message: str) -> None:
        if failed == 1:
            fix = "use a smaller model, dtype bfloat16, 4-bit weights, or smaller images"
            raise DeviceMemoryError("A single item does not fit into the device's memory", got=message, fix=fix)
        self.size = failed // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
