"""Batches that fit: filled across requests, halved when memory runs out, and the size that worked is kept.

What the CPU does for a batch, it does in threads while the model works on the one before.
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

THREADS = 4


class DeviceMemoryError(SprError):
    """Even one item does not fit into the device's memory."""


@contextmanager
def prepared(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[list[Future[Result]]]:
    """Within this, threads do some work on each item, in order; what has not begun by its end is left undone.

    Args:
        work: Bound to the CPU, and mostly outside of Python: decoding, resizing.
        items: All results are in memory together, so only as many as may be.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="prepare")
    try:
        yield [pool.submit(work, item) for item in items]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Batcher(Generic[Item, Result]):
    """Runs work on batches of at most ``size`` items; out of memory halves the size, for good.

    Args:
        work: A batch → one result an item, in order.
        size: The most items a batch, at least 1.
        length: Items of like length share a batch (less padding); results come back in the order of the items.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        size: int,
        *,
        length: Callable[[Item], int] | None = None,
    ) -> None:
        self.work, self.size, self.length = work, size, length

    def __call__(self, items: Sequence[Item]) -> list[Result]:
        """One result an item.

        Raises:
            DeviceMemoryError: if a single item does not fit.
        """
        order = list(range(len(items)))
        if self.length is not None:
            # Longest first: what does not fit is found at once.
            lengths = [self.length(item) for item in items]
            order.sort(key=lambda k: -lengths[k])
        results: dict[int, Result] = {}
        done = 0
        while done < len(order):
            batch = order[done : done + self.size]
            try:
                made = self.work([items[k] for k in batch])
            except torch.OutOfMemoryError as error:
                message = str(error)
            else:
                results.update(zip(batch, made, strict=True))
                done += len(batch)
                continue
            # Outside of the handler, whose traceback would keep the failed batch's tensors alive.
            self._shrink(len(batch), message)
        return [results[k] for k in range(len(items))]

    def _shrink(self, failed: int, message: str) -> None:
        if failed == 1:
            fix = "use a smaller model, dtype bfloat16, 4-bit weights, or smaller images"
            raise DeviceMemoryError("One item alone does not fit into the device's memory", got=message, fix=fix)
        self.size = failed // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
