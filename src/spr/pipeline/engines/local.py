"""Shards in this process, or in worker processes of this machine."""

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
from typing import TypeVar

from spr.core.errors import RunError

Job = TypeVar("Job")
Result = TypeVar("Result")

AHEAD = 2
"""Jobs a worker may have waiting, so that it never idles and a limit wastes little."""


def run_shards(jobs: Iterable[Job], work: Callable[[Job], Result], workers: int = 1) -> Generator[Result]:
    """Results in the order of the jobs, whichever finishes first.

    Args:
        jobs: Taken one by one, only a few ahead of the results.
        work: A function that can be imported by name.
        workers: Processes; 1 works in this process.

    Raises:
        RunError: if a worker process dies; whatever ``work`` raises.
    """
    if workers == 1:
        yield from map(work, jobs)
        return
    # Spawned, not forked: Arrow and torch run threads, whose locks a fork would copy in any state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            with _interrupts_held():
                waiting.append(pool.submit(work, job))
            if len(waiting) > workers * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        fix = "give fewer --workers (out of memory?); finished shards are kept, so the same command goes on"
        raise RunError("A worker process died", got="it was killed or crashed", fix=fix) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while processes start: they inherit that, for good.

    Ctrl-C reaches the whole process group. The parent decides; workers finish the shard they are at.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
