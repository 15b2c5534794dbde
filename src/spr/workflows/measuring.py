"""An engine that measures: seconds, CPU seconds and peak memory of each stage of a run in one process."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from spr.config import Config
from spr.core.progress import Progress
from spr.models.registry import load_describer, load_detector, load_scorer
from spr.pipeline.engines.local import LocalEngine
from spr.pipeline.engines.processes import needs_of, threads_each
from spr.pipeline.jobs import Job
from spr.pipeline.stage import Stage
from spr.runs.store import ShardEntry

_LOADERS: dict[str, Callable[[Any], Any]] = {
    "describer": load_describer,
    "scorer": load_scorer,
    "detector": load_detector,
}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Cost(NamedTuple):
    """Seconds by the clock, and seconds of all CPU cores together."""

    seconds: float = 0.0
    cpu: float = 0.0

    def plus(self, other: Cost) -> Cost:
        """The sum."""
        return Cost(self.seconds + other.seconds, self.cpu + other.cpu)

    def times(self, factor: float) -> Cost:
        """The multiple."""
        return Cost(self.seconds * factor, self.cpu * factor)


class Shard(NamedTuple):
    """A shard that was computed from a number of input rows, and what it cost."""

    number: int
    inputs: int
    cost: Cost


@dataclass(slots=True)
class StageTimes:
    """What was measured of a stage.

    Attributes:
        load: Starting to run: importing packages and loading models.
        shards: The computed shards in their order.
        ended: When its models were freed, by the engine's clock.
        memory: Peak of the process's memory in bytes, since the stage before.
        gpu_memory: Peak of the GPU memory that PyTorch reserved, in bytes; 0 without a GPU.
    """

    load: Cost = field(default_factory=Cost)
    shards: list[Shard] = field(default_factory=list)
    ended: float = 0.0
    memory: int = 0
    gpu_memory: int = 0


class MeasuringEngine(LocalEngine):
    """Runs all jobs in this process, and measures them.

    Args:
        config: Where it asks for several processes of a model on CPUs, models run with the threads of one of them.
        clock: Seconds.
        cpu_clock: Seconds of all cores that this process has used.
    """

    def __init__(
        self,
        config: Config,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        super().__init__(1)
        self.config, self.clock, self.cpu_clock = config, clock, cpu_clock
        self.stages: dict[str, StageTimes] = {}
        self._threads: int | None = None
        reset_peak_memory()

    def begin(self, stage: Stage, config: Config, at_most: int | None, progress: Progress) -> None:
        """Prepare for the jobs of a stage, and load its models."""
        own = self.stages[stage.name] = StageTimes()
        with _Measured(self) as measured:
            super().begin(stage, config, at_most, progress)
            for name in stage.models_for(config):
                if name in _LOADERS and (section := getattr(config, name)) is not None:
                    _LOADERS[name](section)
        own.load = measured.cost
        self._share_threads(stage)
        if (cuda := _cuda()) is not None:
            for device in range(cuda.device_count()):
                cuda.reset_peak_memory_stats(device)

    def _share_threads(self, stage: Stage) -> None:
        needs, torch = needs_of(stage, self.config), sys.modules.get("torch")
        if torch is None or needs is None or (needs.processes or 1) == 1 or (needs.gpus and _cuda() is not None):
            return
        threads = torch.get_num_threads()
        if (own := threads_each(needs.processes or 1)) < threads:
            self._threads = threads
            torch.set_num_threads(own)

    def wait(self) -> list[tuple[Job, ShardEntry]]:
        """Run the next job."""
        with _Measured(self) as measured:
            ((job, entry),) = super().wait()
        self.stages[job.stage.name].shards.append(Shard(job.index, job.inputs, measured.cost))
        return [(job, entry)]

    def end(self, stage: Stage) -> None:
        """Note the memory, and free the models."""
        own = self.stages[stage.name]
        own.memory = peak_memory()
        if (cuda := _cuda()) is not None:
            own.gpu_memory = max(map(cuda.max_memory_reserved, range(cuda.device_count())), default=0)
        self._restore_threads()
        super().end(stage)
        own.ended = self.clock()
        reset_peak_memory()

    def close(self) -> None:
        """Stop all work."""
        self._restore_threads()
        super().close()

    def _restore_threads(self) -> None:
        if self._threads is not None:
            sys.modules["torch"].set_num_threads(self._threads)
            self._threads = None


class _Measured:
    """Measures what a block costs."""

    def __init__(self, engine: MeasuringEngine) -> None:
        self._engine, self.cost = engine, Cost()

    def __enter__(self) -> Self:
        self._began = Cost(self._engine.clock(), self._engine.cpu_clock())
        return self

    def __exit__(self, *_: object) -> None:
        self.cost = Cost(self._engine.clock(), self._engine.cpu_clock()).plus(self._began.times(-1))


def peak_memory() -> int:
    """The largest memory of this process in bytes, since `reset_peak_memory` where the system can do that."""
    with contextlib.suppress(OSError):
        for line in _STATUS.read_bytes().splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory() -> None:
    """Let `peak_memory` begin anew, on Linux."""
    with contextlib.suppress(OSError):
        _CLEAR.write_bytes(b"5")


def _cuda() -> Any:
    """PyTorch's module for CUDA, if PyTorch is imported and has a device."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
