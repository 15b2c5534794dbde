"""Work done ahead in threads: images are decoded and resized while the model computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    items: Iterable[Item], work: Callable[[Item], Result], *, threads: int = 4, ahead: int = 8
) -> Iterator[tuple[Item, Result]]:
    """Each item with what ``work`` makes of it, in order; at most ``ahead`` are done, or being done, before asked for.

    Args:
        items: What is worked on.
        work: Runs in a thread; what it raises is raised when its item is asked for.
        threads: How many.
        ahead: How many items are in memory.

    >>> list(prefetch([1, 2, 3], lambda number: number * number))
    [(1, 1), (2, 4), (3, 9)]
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) >= ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
