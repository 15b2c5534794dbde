"""A map in threads that works ahead and yields results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int = 4,
    ahead: int = 8,
    budget: float = float("inf"),
    cost: Callable[[Item], float] = lambda _: 0.0,
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its result, in order, while threads work on the next items.

    An exception of ``work`` is raised when its item is due. At most ``ahead`` results are in memory, including the one
    that is due, and at most a total ``cost`` of ``budget``, such as pixels; one item is always allowed.

    >>> [result for _, result in ordered_map(lambda number: number * number, [1, 2, 3])]
    [1, 4, 9]
    """
    pending: deque[tuple[Item, Future[Result]]] = deque()
    held = 0.0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ordered_map")
    try:
        for item in items:
            pending.append((item, pool.submit(work, item)))
            held += cost(item)
            while len(pending) >= ahead or (pending and held > budget):
                due, future = pending.popleft()
                held -= cost(due)
                yield due, future.result()
        while pending:
            due, future = pending.popleft()
            yield due, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
