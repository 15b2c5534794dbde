"""Worker processes of this machine: how they start, how they end, and a map over them that yields results in order."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from spr.core.errors import RunError

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """The number of cores that this process may use; at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_start_processes() -> bool:
    """Whether this process can start workers: not on Windows, nor in a process that must not have its own."""
    return "forkserver" in multiprocessing.get_all_start_methods() and not multiprocessing.current_process().daemon


def process_map(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    ahead: int,
    preload: Sequence[str] = (),
    fix: str | None = None,
) -> Iterator[Result]:
    """Yield the result of each item, in order, while worker processes work on the next items.

    An exception of ``work`` is raised when its item is due. At most ``ahead`` results are in memory.

    Args:
        work: A function that can be imported by name, or a `functools.partial` of one.
        items: What it is called with; like the results, they are sent between processes.
        workers: The number of processes, which start with the first items.
        ahead: The number of items that are submitted, including the one that is due.
        preload: Modules that are imported once for all processes.
        fix: The advice of the error for a process that died.

    Raises:
        RunError: if a process is killed or crashes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    stop = context.RawValue("b", 0)
    # The server has the environment and the working directory of its start, which may have changed since.
    arguments = dict(os.environ), Path.cwd(), stop
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=arguments)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            with sigint_blocked(), script_not_repeated():
                pending.append(pool.submit(work, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise RunError("A worker process died", got="killed or crashed", fix=fix) from None
    finally:
        stop.value = len(pending) > 0  # work that nobody waits for ends at once
        pool.shutdown(wait=True, cancel_futures=True)


def _start(environment: dict[str, str], folder: Path, stop: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    exit_with_parent(stop)


@contextlib.contextmanager
def sigint_blocked() -> Iterator[None]:
    """Block SIGINT while worker processes or their server start, because they inherit the blocked signals.

    Ctrl-C reaches the whole process group. The parent handles it, and stops the workers.
    """
    resource_tracker.ensure_running()  # its start, which comes with that of the server, would unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def script_not_repeated() -> Iterator[None]:
    """Let worker processes that start leave out the script that runs here, unless it has `if __name__ == "__main__"`.

    A worker imports the script for what it defines. Without that line, it would do all of its work again.
    """
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    try:
        repeats = path is not None and "__name__" not in Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        repeats = True
    if not repeats:
        yield
        return
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def exit_with_parent(stop: Any) -> None:
    """In a worker process: end it with its parent, or as soon as the shared value ``stop`` is not 0."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=_exit_with, args=(parent, stop), daemon=True).start()


def _exit_with(parent: multiprocessing.process.BaseProcess | None, stop: Any) -> None:
    while not stop.value and (parent is None or parent.is_alive()):
        if parent is None:
            threading.Event().wait(0.1)
        else:
            parent.join(0.1)
    os._exit(1)
