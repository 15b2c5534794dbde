"""Runs shards on a Ray cluster: tasks for stages without models, a pool of actors for each stage with models.

Only Ray's core is used. Ray Data cuts its input into blocks whose sizes depend on the cluster, and its checkpoints
deliver rows at least once; here the shard is the unit of work, of storage and of resumption, so that a run has the same
bytes on any engine.

A job that fails is done again by another process. It ends the run if it fails `ATTEMPTS` times, not counting those in
which a node died; errors that will not go away (a wrong config, a missing input) end it at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from spr import __version__
from spr.config import Config, EngineConfig
from spr.core.errors import RunError, SprError
from spr.core.paths import is_dir, is_file, is_remote
from spr.core.progress import Progress, count_in
from spr.core.terminal import count_text
from spr.pipeline import jobs
from spr.pipeline.engines.local import AHEAD
from spr.pipeline.engines.processes import needs_of, threads_each
from spr.pipeline.engines.ray_cluster import connected, lost
from spr.pipeline.jobs import Job
from spr.pipeline.stage import Stage
from spr.runs.store import ShardEntry

ATTEMPTS = 3
"""How often a job may fail on nodes that are alive."""
_POLL = 1.0  # seconds
_STARVED = 10.0
"""Seconds that a pool with jobs may have no actor before the idle actors of other pools are ended."""
_LOST = 60.0
"""Seconds that a pool with jobs may have no actor, and no node that is large enough for one, before the run stops."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What every process must see before it works, so that no node computes from other files, or from none."""

    run: Path
    version: str
    config: str  # sha256 of RUN/config.yaml
    images: Path | None
    image: str | None  # a name in the folder of images; empty for a tar file

    @classmethod
    def of(cls, run: Path, config: Config) -> Marks:
        """The marks as this process sees them."""
        images, name = config.annotations.images, None
        if not is_remote(images) and is_dir(images):  # a store is the same for all
            with contextlib.closing(images.iterdir()) as entries:
                name = next((path.name for path in entries), None)
        elif not is_remote(images) and is_file(images):
            name = ""
        return cls(run, __version__, _digest(run / "config.yaml"), images if name is not None else None, name)

    def check(self) -> None:
        """Raise `RunError` unless this process sees the same."""
        fix = "put it on a disk that all nodes share, or into object storage (s3://, gs://, az://)"
        if self.version != __version__:
            got, same = f"SPR {__version__} on {_here()}", "install the same version on all nodes"
            raise RunError("A node has another version of SPR", got=got, expected=f"SPR {self.version}", fix=same)
        if _digest(self.run / "config.yaml") != self.config:
            got = f"another config.yaml, or none, on {_here()}"
            raise RunError(f"Not every node sees the run folder {self.run}", got=got, fix=fix)
        if self.images is not None and not (self.images / (self.image or "")).exists():
            got = f"no {self.image!r} in it on {_here()}" if self.image else f"no such file on {_here()}"
            raise RunError(f"Not every node sees the images in {self.images}", got=got, fix=fix)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if is_file(path) else ""


def _here() -> str:
    return f"node {os.uname().nodename}"


@cache
def _check_once(marks: Marks) -> None:
    marks.check()


def _run_task(job: Job, marks: Marks) -> ShardEntry:
    _check_once(marks)
    return jobs.run_shard(job)


class _Worker:
    """An actor: a process that keeps the models of its stage loaded."""

    def __init__(self, threads: str) -> None:
        os.environ["OMP_NUM_THREADS"] = threads  # before PyTorch is imported
        self._count = 0

    def advance(self, count: int = 1) -> None:
        """Count items of the job that runs."""
        self._count += count

    def run(self, job: Job, marks: Marks) -> ShardEntry:
        """Run a job."""
        _check_once(marks)
        self._count = 0
        count_in(self)
        return jobs.run_shard(job)

    def look(self) -> tuple[int, str]:
        """How many items of its job are finished, and the id of its node; answered while the job runs."""
        import ray

        return self._count, ray.get_runtime_context().get_node_id()


@dataclass(slots=True, eq=False)
class _Actor:
    handle: Any
    look: Any
    ready: bool = False  # it has a place in the cluster: it has answered
    busy: bool = False
    count: int = 0
    node: str | None = None


@dataclass(slots=True)
class _Pool:
    """The processes of a stage: actors, or, without models, tasks."""

    most: int
    options: dict[str, Any]
    threads: str | None  # None: tasks
    actors: list[_Actor] = field(default_factory=list)
    tasks: int = 0
    queue: deque[Job] = field(default_factory=deque)  # jobs for which no actor is ready
    deaths: int = 0  # of actors that were never ready, since one was
    starved: float | None = None  # since when it has jobs and no actor

    @property
    def busy(self) -> int:
        return sum(actor.busy for actor in self.actors)


@dataclass(slots=True)
class _Running:
    job: Job
    actor: _Actor | None
    nodes: frozenset[str]  # those that were alive when it began


class RayEngine:
    """Runs jobs on a Ray cluster, of all stages at once.

    Args:
        settings: Which cluster.
        run: The run folder, which all nodes must see.
        config: Its ``annotations.images`` must be seen by all nodes, too.
        workers: The most tasks of a stage without models that run at a time; None for as many as the cluster has CPUs.
    """

    overlapping = True

    def __init__(self, settings: EngineConfig, run: Path, config: Config, workers: int | None = None) -> None:
        self.workers = workers
        self._settings, self._run, self._config = settings, run, config
        self._ray: Any = None
        self._cluster = contextlib.ExitStack()
        self._pools: dict[str, _Pool] = {}
        self._running: dict[Any, _Running] = {}
        self._again: deque[Job] = deque()
        self._failures: Counter[tuple[str, int]] = Counter()

    def connect(self) -> None:
        """Connect to the cluster, or start it. `begin` does so, too: a run in which nothing is left to do needs none.

        Raises:
            SprError: if Ray is not installed.
            RunError: if there is no cluster at the address.
        """
        if self._ray is not None:
            return
        self._cluster.enter_context(connected(self._settings))
        import ray

        self._ray = ray
        self._marks = Marks.of(self._run, self._config)
        self._task = ray.remote(max_retries=0)(_run_task)
        look = ray.method(concurrency_group="look")(_Worker.look)
        worker = type("Worker", (_Worker,), {"look": look})
        self._actor = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"look": 1})(worker)

    def begin(self, stage: Stage, config: Config, at_most: int | None, progress: Progress) -> None:  # noqa: ARG002
        """Prepare for the jobs of a stage; actors are started with their first job.

        Raises:
            RunError: if no node has the CPUs or GPUs that a process needs.
        """
        self.connect()
        cpus = [int(node.get("CPU", 0)) for node in self._nodes() if node.get("CPU", 0) >= 1]
        if not cpus:
            fix = "start a node with CPUs (ray start --num-cpus), or use engine.address=local"
            raise RunError(f"No node of the Ray cluster has a CPU for `{stage.name}`", fix=fix)
        # On every node, however actors are spread, room is left for a task: actors without end would stop the stages
        # before their own.
        least = min(cpus)
        needs = needs_of(stage, config)
        if needs is None:
            share = 1 if least >= 2 else 0.5
            self._pools[stage.name] = _Pool(self.workers or sum(cpus) * AHEAD, {"num_cpus": share}, None)
            return
        options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
        gpus = [int(node["GPU"]) for node in self._nodes() if node.get("GPU", 0) >= 1]
        processes = needs.processes or 1
        if gpus and needs.gpus:
            options["num_gpus"] = each = needs.gpus if needs.assigned else max(gpus)
            room = sum(int(number // each) if each >= 1 else number * int(1 / each) for number in gpus)
            if not room:
                fix = f"use a smaller num_gpus, or add a node with {each:g} GPUs"
                what = f"No node of the Ray cluster has the {each:g} GPUs for a process of `{stage.name}`"
                raise RunError(what, got=f"nodes with at most {count_text(max(gpus), 'GPUs')}", fix=fix)
            processes = needs.processes or (room if needs.assigned else 1)
        options["num_cpus"] = max(0.0001, min(1.0, int(least / 8 / processes * 1e4) / 1e4))
        own = os.environ.get("OMP_NUM_THREADS")
        threads = own or str(max(1, sum(cpus) // processes) if len(self._nodes()) > 1 else threads_each(processes))
        most = processes if at_most is None else min(processes, max(1, at_most))
        self._pools[stage.name] = _Pool(most, options, threads)

    def _nodes(self) -> list[dict[str, float]]:
        """The resources of the nodes that are alive."""
        with lost():
            return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def has_room(self, stage: Stage) -> bool:
        """Whether a process of the stage has nothing to do, or another may be started."""
        pool = self._pools[stage.name]
        return (pool.tasks if pool.threads is None else len(pool.queue) + pool.busy) < pool.most

    def submit(self, job: Job) -> None:
        """Start a job as a task, or queue it for an actor that has nothing to do."""
        pool = self._pools[job.stage.name]
        if pool.threads is None:
            pool.tasks += 1
            task = self._task.options(name=f"{job.stage.name} {job.index}", **pool.options)
            self._running[task.remote(job, self._marks)] = _Running(job, None, self._alive())
        else:
            pool.queue.append(job)
            self._hand_out(pool)

    def _hand_out(self, pool: _Pool) -> None:
        """Give queued jobs to actors that have nothing to do, and start actors for the others.

        An actor for which the cluster has no room yet holds no job: another one would be done with all others and wait
        for it, without ever making room.
        """
        for actor in pool.actors:
            if pool.queue and actor.ready and not actor.busy:
                job = pool.queue.popleft()
                actor.busy, actor.count = True, 0
                self._running[actor.handle.run.remote(job, self._marks)] = _Running(job, actor, self._alive())
        starting = sum(not actor.ready for actor in pool.actors)
        for _ in range(min(len(pool.queue) - starting, pool.most - len(pool.actors))):
            handle = self._actor.options(**pool.options).remote(pool.threads)
            pool.actors.append(_Actor(handle, handle.look.remote()))

    def wait(self) -> list[tuple[Job, ShardEntry]]:
        """The jobs that have finished, after at most a second; jobs that failed are started again.

        Raises:
            RunError: if a job's process died too often, or there is no node for it any more. The error of a job that
                failed too often is raised as it is.
        """
        starting = [actor.look for pool in self._pools.values() for actor in pool.actors if not actor.ready]
        with lost():
            first, _ = self._ray.wait([*self._running, *starting], timeout=_POLL)
            running = list(self._running)
            ready = self._ray.wait(running, num_returns=len(running), timeout=0)[0] if running else []
        finished = []
        for reference in dict.fromkeys([*first, *ready]):
            if (run := self._running.pop(reference, None)) is None:
                continue
            self._release(run)
            try:
                finished.append((run.job, self._ray.get(reference)))
            except self._ray.exceptions.RayError as error:
                self._failed(run, error)
        while self._again:
            self.submit(self._again.popleft())
        self._look()
        for pool in self._pools.values():
            self._hand_out(pool)
        self._feed_starved()
        return finished

    def _feed_starved(self) -> None:
        """End idle actors of other pools if a pool has jobs and no actor, because those hold all GPUs, say."""
        for name, pool in self._pools.items():
            if not pool.queue or any(actor.ready for actor in pool.actors):
                pool.starved = None
                continue
            now = time.monotonic()
            pool.starved = pool.starved or now
            if now - pool.starved > _STARVED:
                for other in self._pools.values():
                    for actor in [] if other.queue else [actor for actor in other.actors if not actor.busy]:
                        other.actors.remove(actor)
                        self._ray.kill(actor.handle)
            if now - pool.starved > _LOST and not self._fits(pool):
                needed = f"{pool.options.get('num_gpus', 0):g} GPUs and {pool.options['num_cpus']:g} CPUs"
                fix = "start such a node, and run the same command again: finished shards are kept"
                raise RunError(f"No node of the Ray cluster has the {needed} for a process of `{name}`", fix=fix)

    def _fits(self, pool: _Pool) -> bool:
        wanted = {"CPU": pool.options["num_cpus"], "GPU": pool.options.get("num_gpus", 0)}
        return any(all(node.get(kind, 0) >= n for kind, n in wanted.items()) for node in self._nodes())

    def _release(self, run: _Running) -> None:
        if run.actor is None:
            self._pools[run.job.stage.name].tasks -= 1
        else:
            run.actor.busy = False

    def _failed(self, run: _Running, error: Exception) -> None:
        """Do a job again that failed, or raise the error that ends the run."""
        own = error.cause if isinstance(error, self._ray.exceptions.RayTaskError) else None
        if isinstance(own, SprError) and not isinstance(own, RunError):
            raise own  # the config, an input or a model: another try changes nothing
        if isinstance(own, ModuleNotFoundError):
            fix = "install the same packages on all nodes, SPR and plug-ins among them"
            raise RunError("A node lacks a package", got=own, fix=fix) from None
        pool = self._pools[run.job.stage.name]
        if run.actor is not None:
            # Also where the process lives: after an error of CUDA, say, it can't be used any more.
            pool.actors.remove(run.actor)
            self._ray.kill(run.actor.handle)
        alive = self._alive()
        node_died = own is None and (
            run.actor.node not in alive if run.actor is not None and run.actor.node is not None else run.nodes - alive
        )
        key = run.job.stage.name, run.job.index
        self._failures[key] += not node_died
        if self._failures[key] >= ATTEMPTS:
            if own is not None:
                raise own
            got = " ".join(str(error).split())[:500]
            fix = "use fewer processes if memory ran out, and run the same command again: finished shards are kept"
            what = f"The process of shard {run.job.index} of `{run.job.stage.name}` died {ATTEMPTS} times"
            raise RunError(what, got=got, fix=fix) from None
        self._again.append(run.job)

    def _look(self) -> None:
        """Ask the actors how far they are, and note what they have answered.

        Raises:
            RunError: if actors die before they answer for the first time.
        """
        for name, pool in self._pools.items():
            for actor in list(pool.actors):
                if actor.look is not None:
                    if not self._ray.wait([actor.look], timeout=0)[0]:
                        continue
                    try:
                        actor.count, actor.node = self._ray.get(actor.look)
                        actor.ready, pool.deaths = True, 0
                    except self._ray.exceptions.RayError as error:
                        if not actor.ready:
                            pool.actors.remove(actor)
                            self._not_started(name, pool, error)
                actor.look = actor.handle.look.remote() if actor.busy else None

    def _not_started(self, name: str, pool: _Pool, error: Exception) -> None:
        pool.deaths += 1
        if pool.deaths >= ATTEMPTS * pool.most:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            fix = "check that SPR and its plug-ins are installed on all nodes, and that they have enough memory"
            raise RunError(f"No process of `{name}` starts", got=" ".join(lines[-3:])[:500], fix=fix) from None

    def _alive(self) -> frozenset[str]:
        with lost():
            return frozenset(node["NodeID"] for node in self._ray.nodes() if node["Alive"])

    def in_progress(self, stage: Stage) -> int:
        """What the running jobs of a stage have counted so far."""
        pool = self._pools.get(stage.name)
        return sum(actor.count for actor in pool.actors if actor.busy) if pool is not None else 0

    def end(self, stage: Stage) -> None:
        """Drop the jobs of a stage that have not finished, wait for those that run, and end its actors."""
        mine = [reference for reference, run in self._running.items() if run.job.stage.name == stage.name]
        for reference in mine:
            if self._running[reference].actor is None:
                self._ray.cancel(reference)
        pool = self._pools.pop(stage.name)
        for actor in pool.actors:
            self._ray.kill(actor.handle)
        if mine:
            self._ray.wait(mine, num_returns=len(mine))
        for reference in mine:
            del self._running[reference]

    def close(self) -> None:
        """Stop all work at once, and the cluster if it was started here."""
        with self._cluster:
            if self._ray is None or not self._ray.is_initialized():
                return
            for reference, run in self._running.items():
                # Not by force: Ray ends this process if the result of such a task comes at the same time.
                if run.actor is None:
                    with contextlib.suppress(Exception):
                        self._ray.cancel(reference)
            self._running.clear()
            for pool in self._pools.values():
                for actor in pool.actors:
                    with contextlib.suppress(Exception):
                        self._ray.kill(actor.handle)
            self._pools.clear()
