"""Runs shards in this process, or in worker processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from spr.core.errors import RunError
from spr.core.progress import count_in, follow

Job = TypeVar("Job")
Result = TypeVar("Result")

AHEAD = 2
"""Jobs queued per worker: enough to keep it busy, few enough to waste little when the stage reaches its limit."""


def run_shards(jobs: Iterable[Job], work: Callable[[Job], Result], workers: int = 1) -> Generator[Result]:
    """Yield the results in the order of the jobs.

    Args:
        jobs: Taken one by one, a few ahead of the results.
        work: A function that can be imported by name, for worker processes.
        workers: Number of processes; 1 uses this process.

    Raises:
        RunError: if a worker process dies. Errors of ``work`` are raised when their job's result is due.
    """
    if workers == 1:
        yield from map(work, jobs)
        return
    # Not forks of this process: Arrow and torch run threads, and a fork copies their locks in whatever state they are.
    # Forks of a server, which has imported what workers need and runs no threads, start faster than new processes.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spr.pipeline.runner"])
    finished, number = context.RawArray("q", workers), context.Value("i", 0)
    follow(lambda: sum(finished))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(finished, number))
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            with _sigint_blocked():
                waiting.append(pool.submit(work, job))
            if len(waiting) > workers * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        fix = "use fewer --workers if memory ran out, and run the same command again: finished shards are kept"
        raise RunError("A worker process died", got="killed or crashed", fix=fix) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT while worker processes start, because they inherit the blocked signals.

    Ctrl-C reaches the whole process group. The parent handles it; workers finish their current shard.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True, slots=True)
class _Slot:
    """The number of items that a worker process has finished, in memory that the parent reads.

    Each worker has its own number, so that no lock is needed, which a killed process would leave locked.
    """

    finished: Any
    number: int

    def advance(self, count: int = 1) -> None:
        self.finished[self.number] += count


def _start_worker(finished: Any, number: Any) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    with number.get_lock():
        count_in(_Slot(finished, number.value % len(finished)))
        number.value += 1


def _exit_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
