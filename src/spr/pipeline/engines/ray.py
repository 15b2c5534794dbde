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
import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from spr import __version__
from spr.config import Config, EngineConfig
from spr.core.errors import RunError, SprError, missing_package
from spr.core.paths import is_dir, is_file, is_remote
from spr.core.progress import Progress, count_in
from spr.pipeline import jobs
from spr.pipeline.engines.local import AHEAD
from spr.pipeline.engines.processes import needs_of, threads_each
from spr.pipeline.jobs import Job
from spr.pipeline.stage import Stage
from spr.runs.store import ShardEntry

ATTEMPTS = 3
"""How often a job may fail on nodes that are alive."""
_POLL = 1.0  # seconds
_OBJECT_STORE = 512 * 2**20  # bytes, of a cluster that is started here: only the rows of a few shards are in it
_CONNECT = 10.0  # seconds


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
    busy: bool = False
    count: int = 0
    node: str | None = None
    look: Any = None


@dataclass(slots=True)
class _Pool:
    """The processes of a stage: actors, or, without models, tasks."""

    most: int
    options: dict[str, Any]
    threads: str | None  # None: tasks
    actors: list[_Actor] = field(default_factory=list)
    tasks: int = 0


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

    Raises:
        SprError: if Ray is not installed.
        RunError: if there is no cluster at the address.
    """

    overlapping = True

    def __init__(self, settings: EngineConfig, run: Path, config: Config, workers: int | None = None) -> None:
        self.workers = workers
        self._started = _connect(settings)
        import ray

        self._ray: Any = ray
        self._marks = Marks.of(run, config)
        self._pools: dict[str, _Pool] = {}
        self._running: dict[Any, _Running] = {}
        self._again: deque[Job] = deque()
        self._failures: Counter[tuple[str, int]] = Counter()
        self._task = ray.remote(max_retries=0)(_run_task)
        look = ray.method(concurrency_group="look")(_Worker.look)
        worker = type("Worker", (_Worker,), {"look": look})
        self._actor = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"look": 1})(worker)

    def begin(self, stage: Stage, config: Config, at_most: int | None, progress: Progress) -> None:  # noqa: ARG002
        """Prepare for the jobs of a stage; actors are started with their first job."""
        total = self._ray.cluster_resources()
        cpus = max(total.get("CPU", 1.0), 1.0)
        needs = needs_of(stage, config)
        # Half of a small cluster's CPUs are left to tasks: actors that hold all of them would stop the stages before.
        if needs is None:
            share = 1 if cpus >= 2 else 0.5
            self._pools[stage.name] = _Pool(self.workers or int(cpus) * AHEAD, {"num_cpus": share}, None)
            return
        gpus = int(total.get("GPU", 0))
        processes = needs.processes_on(gpus)
        cpu = min(1.0, round(cpus / 4 / processes, 2) or 0.01)
        options: dict[str, Any] = {"num_cpus": cpu, "scheduling_strategy": "SPREAD"}
        if gpus and needs.gpus:
            options["num_gpus"] = needs.gpus if needs.assigned else gpus
        own = os.environ.get("OMP_NUM_THREADS")
        threads = own or str(max(1, int(cpus) // processes) if len(self._ray.nodes()) > 1 else threads_each(processes))
        most = processes if at_most is None else min(processes, max(1, at_most))
        self._pools[stage.name] = _Pool(most, options, threads)

    def has_room(self, stage: Stage) -> bool:
        """Whether a process of the stage has nothing to do, or another may be started."""
        pool = self._pools[stage.name]
        if pool.threads is None:
            return pool.tasks < pool.most
        return len(pool.actors) < pool.most or not all(actor.busy for actor in pool.actors)

    def submit(self, job: Job) -> None:
        """Start a job as a task, or in an actor that has nothing to do."""
        pool = self._pools[job.stage.name]
        actor = None
        if pool.threads is None:
            pool.tasks += 1
            reference = self._task.options(name=f"{job.stage.name} {job.index}", **pool.options).remote(
                job, self._marks
            )
        else:
            actor = next((actor for actor in pool.actors if not actor.busy), None)
            if actor is None:
                actor = _Actor(self._actor.options(**pool.options).remote(pool.threads))
                pool.actors.append(actor)
            actor.busy, actor.count = True, 0
            reference = actor.handle.run.remote(job, self._marks)
        self._running[reference] = _Running(job, actor, self._alive())

    def wait(self) -> list[tuple[Job, ShardEntry]]:
        """The jobs that have finished, after at most a second; jobs that failed are started again.

        Raises:
            RunError: if a job's process died too often. The error of a job that failed too often is raised as it is.
        """
        with _lost():
            first, _ = self._ray.wait(list(self._running), timeout=_POLL)
            ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        finished = []
        for reference in dict.fromkeys([*first, *ready]):
            run = self._running.pop(reference)
            self._release(run)
            try:
                finished.append((run.job, self._ray.get(reference)))
            except self._ray.exceptions.RayError as error:
                self._failed(run, error)
        while self._again:
            self.submit(self._again.popleft())
        self._look()
        return finished

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
        """Ask the actors how far they are, and note what they have answered."""
        for pool in self._pools.values():
            for actor in pool.actors:
                if actor.look is not None:
                    if not self._ray.wait([actor.look], timeout=0)[0]:
                        continue
                    with contextlib.suppress(self._ray.exceptions.RayError):
                        actor.count, actor.node = self._ray.get(actor.look)
                actor.look = actor.handle.look.remote() if actor.busy else None

    def _alive(self) -> frozenset[str]:
        with _lost():
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
        if not self._ray.is_initialized():
            return
        for reference, run in self._running.items():
            if run.actor is None:
                with contextlib.suppress(Exception):
                    self._ray.cancel(reference, force=True)
        self._running.clear()
        for pool in self._pools.values():
            for actor in pool.actors:
                with contextlib.suppress(Exception):
                    self._ray.kill(actor.handle)
        self._pools.clear()
        if self._started:
            self._ray.shutdown()


def _connect(settings: EngineConfig) -> bool:
    """Connect to a cluster, or start one; returns False if this process was connected before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # prints nothing; what ends a run is in its error
    try:
        import ray
    except ModuleNotFoundError as error:
        raise missing_package(error, "engine.name: ray") or error from error
    if ray.is_initialized():
        return False
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    address = None if settings.address == "auto" else settings.address
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        with _quiet():
            _check_port(where)
            if address is None and not os.environ.get("RAY_ADDRESS"):
                try:
                    ray.init(address="auto", **options)
                    return True
                except ConnectionError:
                    address = "local"
            if address == "local":
                options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
            ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        fix = "start it (ray start --head), correct engine.address, or use engine.address=local"
        raise RunError(f"There is no Ray cluster at {where}", got=" ".join(str(error).split())[:300], fix=fix) from None
    return True


def _check_port(address: str) -> None:
    """Raise OSError if nothing listens at ``HOST:PORT``: Ray would end this process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT).close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray prints while it starts out of the terminal."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    import ray

    try:
        yield
    except (ray.exceptions.RaySystemError, ray.exceptions.LocalRayletDiedError, ConnectionError) as error:
        fix = "run the same command again, once the cluster is there: finished shards are kept"
        raise RunError("The Ray cluster is gone", got=" ".join(str(error).split())[:300], fix=fix) from None
