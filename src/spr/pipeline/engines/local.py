"""Runs shards in this process, or in worker processes of this machine, one stage after another."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

from spr.config import Config
from spr.core.errors import RunError
from spr.core.processes import exit_with_parent, script_not_repeated, sigint_blocked
from spr.core.progress import Progress, count_in
from spr.models.registry import release
from spr.pipeline import jobs
from spr.pipeline.engines.processes import backend_modules, environments, needs_of, visible_gpus
from spr.pipeline.jobs import Job
from spr.pipeline.stage import Stage
from spr.runs.store import ShardEntry

AHEAD = 2
"""Jobs queued per worker: enough to keep it busy, few enough to waste little when the stage reaches its limit."""


class LocalEngine:
    """Runs the jobs of one stage at a time, in this process or in several.

    Args:
        workers: The number of processes for stages that load no model; 1 uses this process.
    """

    overlapping = False

    def __init__(self, workers: int = 1) -> None:
        self.workers: int | None = workers
        self._pool: Pool | None = None
        self._queue: deque[Job] = deque()

    def begin(self, stage: Stage, config: Config, at_most: int | None, progress: Progress) -> None:
        """Prepare for the jobs of a stage: worker processes, if it needs more than one."""
        needs, most = needs_of(stage, config), max(1, at_most) if at_most is not None else None
        gpus: list[str] = []
        if needs is None:
            wanted = self.workers or 1
        else:
            gpus = visible_gpus() if needs.gpus and most != 1 else []
            wanted = needs.processes_on(len(gpus))
        processes = min(wanted, most or wanted)
        if processes > 1:
            variables = environments(needs, processes, gpus) if needs is not None else [{}] * processes
            modules = backend_modules(config) if needs is not None else None
            self._pool = Pool(variables, progress, modules=modules)
        elif needs is not None and wanted > 1:
            stop_server()  # a single shard is left: this process loads the models, and needs the memory

    def has_room(self, stage: Stage) -> bool:  # noqa: ARG002 - there is only one
        """Whether another job may be submitted now."""
        return self._pool.has_room if self._pool is not None else not self._queue

    def submit(self, job: Job) -> None:
        """Take a job on."""
        if self._pool is None:
            self._queue.append(job)
        else:
            self._pool.submit(job, jobs.run_shard)

    def wait(self) -> list[tuple[Job, ShardEntry]]:
        """The jobs that have finished since the last call, at least one."""
        if self._pool is not None:
            return self._pool.wait()
        job = self._queue.popleft()
        return [(job, jobs.run_shard(job))]

    def in_progress(self, stage: Stage) -> int:  # noqa: ARG002 - the progress follows the processes themselves
        """0: the progress of the stage counts what is in progress."""
        return 0

    def end(self, stage: Stage) -> None:  # noqa: ARG002 - there is only one
        """Drop the jobs that have not finished, and free the models."""
        self._queue.clear()
        if self._pool is not None:
            self._pool.stop()
            self._pool = None
        release()

    def close(self) -> None:
        """Stop all work at once."""
        if self._pool is not None:
            self._pool.stop()
            self._pool = None


def start_server(config: Config, stages: Iterable[Stage]) -> None:
    """Let the server of the worker processes import what they need, while this process goes on.

    It does nothing unless the config asks for several processes that load the models of one of these stages.
    """
    if any(needs is not None and (needs.processes or 1) > 1 for needs in (needs_of(stage, config) for stage in stages)):
        _server(backend_modules(config))
        with sigint_blocked():
            forkserver.ensure_running()


def stop_server() -> None:
    """End the server of the worker processes, which holds what it has imported; the next pool starts another one.

    It does nothing while this process has children, for which the server may have to wait. The standard library has no
    public way to end the server; with a version whose private method is missing, the server runs on.
    """
    stop = getattr(getattr(forkserver, "_forkserver", None), "_stop", None)
    if stop is not None and not multiprocessing.active_children():
        # A stop that Ctrl-C interrupts would leave a state with which no server can start; threads are not interrupted.
        thread = threading.Thread(target=stop)
        thread.start()
        thread.join()


def _server(modules: Iterable[str]) -> ForkServerContext:
    """The context of the worker processes; ``modules`` are imported once, unless the server runs already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spr.pipeline.runner", *modules])
    return context


class Pool:
    """Worker processes for jobs.

    Args:
        environments: The environment variables of each process besides those of this one.
        progress: Shows what the processes count.
        modules: What the models of the processes need, imported once for all pools; None if they load no models.
    """

    def __init__(
        self, environments: Sequence[dict[str, str]], progress: Progress, *, modules: Sequence[str] | None = None
    ) -> None:
        # Not forks of this process: Arrow and torch run threads, and a fork copies their locks in whatever state they
        # are. Forks of a server, which has imported what workers need and runs no threads, start faster than new
        # processes.
        context = _server(modules or ())
        workers = len(environments)
        finished, number, stop = (
            context.RawArray("q", workers),
            context.Value("i", 0),
            context.RawValue("b", 0),
        )
        progress.follow(lambda: sum(finished))
        self._stop, self._models = stop, modules is not None
        # The server has the environment of its start; a variable may have changed since.
        arguments = [{**os.environ, **own} for own in environments], finished, number, stop
        self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=arguments)
        self._running: dict[Future[Any], Any] = {}
        self._most = workers * AHEAD

    @property
    def has_room(self) -> bool:
        """Whether fewer than `AHEAD` jobs per process are submitted."""
        return len(self._running) < self._most

    def submit(self, job: Any, work: Callable[[Any], Any]) -> None:
        """Queue a job; ``work`` can be imported by name."""
        with self._explained(), sigint_blocked(), script_not_repeated():
            self._running[self._pool.submit(work, job)] = job

    def wait(self) -> list[tuple[Any, Any]]:
        """The jobs that have finished since the last call, at least one, with what ``work`` returned or raised."""
        with self._explained():
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            # In the order of submission: which one of several errors is raised must not depend on chance.
            return [(self._running.pop(future), future.result()) for future in list(self._running) if future in done]

    def stop(self) -> None:
        """End the processes at once. Files are written atomically, so what they are working on is merely lost."""
        self._stop.value = 1
        self._pool.shutdown(wait=True, cancel_futures=True)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool:
            fewer = "a smaller num_processes" if self._models else "fewer --workers"
            fix = f"use {fewer} if memory ran out, and run the same command again: finished shards are kept"
            raise RunError("A worker process died", got="killed or crashed", fix=fix) from None


@dataclass(frozen=True, slots=True)
class _Slot:
    """The number of items that a worker process has finished, in memory that the parent reads.

    Each worker has its own number, so that no lock is needed, which a killed process would leave locked.
    """

    finished: Any
    number: int

    def advance(self, count: int = 1) -> None:
        self.finished[self.number] += count


def _start(environments: Sequence[dict[str, str]], finished: Any, number: Any, stop: Any) -> None:
    with number.get_lock():
        own = number.value % len(finished)
        number.value += 1
    os.environ.clear()
    os.environ.update(environments[own])
    if "torch" in sys.modules and (threads := environments[own].get("OMP_NUM_THREADS", "")).isdecimal():
        # The server has imported it with the threads of its own environment.
        sys.modules["torch"].set_num_threads(max(1, int(threads)))
    count_in(_Slot(finished, own))
    exit_with_parent(stop)
