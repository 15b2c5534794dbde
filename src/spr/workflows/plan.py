"""`spr plan`: what a run of many images takes, worked out from a calibration on a small sample.

A stage with K shards and R input rows in P processes takes start + fixed + max(⌈K / P⌉ / K × work, CPU work / cores),
where work = K × cost per shard + R × cost per row. A process takes whole shards, so P is at most K, and processes on
one machine share its cores. The stages of `engine: local` follow one another. Those of `engine: ray` overlap: the run
takes as long as its slowest stage, or as its work keeps the cores or the GPUs busy, and the first shard passes through
the other stages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from spr.config import Config
from spr.core.errors import ConfigError
from spr.workflows.calibration import Calibration, StageCosts
from spr.workflows.measuring import Cost

SAME_MACHINE = 0.1
"""Relative uncertainty of every estimate: the same work takes longer in one hour than in another."""
UNKNOWN = 0.5
"""Relative uncertainty where the sample has too few shards to measure it."""
SEVERAL = 0.25
"""By how much several processes may be slower than their number says: they share memory, disk and, on CPUs, caches."""
RAY = 0.2
"""By how much Ray may be slower than the same work without it."""
FIRST_POOL, NEXT_POOL = 1.5, 0.2
"""Seconds until the first worker processes of a run have started, and those of a later stage, without imports."""
RAY_START = 10.0
"""Seconds until a Ray cluster of one machine and its first processes have started."""
MOST_MACHINES = 256
_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(rf"\s*(\d+(?:\.\d+)?)\s*({'|'.join(sorted(_UNITS, key=len, reverse=True))})(?![a-z])")


@dataclass(frozen=True, slots=True)
class Setup:
    """Where a run takes place: processes for stages without models, and machines like the one that was calibrated.

    ``model_processes`` is the number of processes per machine for models on CPUs; None uses the config's.
    """

    workers: int
    cores: int
    gpus: int
    machines: int = 1
    model_processes: int | None = None
    overlapping: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, with the range in which they are to be expected."""

    seconds: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What a stage will take: rows, bytes on disk, processes and time. ``bytes`` includes its list of drops."""

    name: str
    unit: str
    inputs: int
    rows: int
    processes: int
    time: Estimate
    cpu_seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take.

    Attributes:
        images: The number of images in the sample of the run.
        shards: Shards of each stage.
        setup: Where it runs.
        stages: The stages in their order.
        other: Seconds outside of the stages: checks, recording the images, the list of drops.
        total: The whole run. With overlapping stages, it is less than the sum.
        bytes: Of the run folder.
        driver_memory: Peak of the process that runs `spr run`, in bytes.
        model_memory: Peak of a process with models by stage, in bytes.
        gpu_memory: Peak of a process's GPU memory by stage, in bytes.
    """

    images: int
    shards: int
    setup: Setup
    stages: tuple[StagePlan, ...]
    other: float
    total: Estimate
    bytes: int
    driver_memory: int
    model_memory: dict[str, int]
    gpu_memory: dict[str, int]

    @property
    def memory(self) -> int:
        """Bytes of memory of the driver and the model processes that run at the same time, on one machine."""
        each = {
            stage.name: -(-stage.processes // self.setup.machines) * self.model_memory[stage.name]
            for stage in self.stages
            if stage.name in self.model_memory and (stage.processes > 1 or self.setup.overlapping)
        }
        most = sum(each.values()) if self.setup.overlapping else max(each.values(), default=0)
        return self.driver_memory + most


def plan(measured: Calibration, config: Config, images: int | None, setup: Setup) -> Plan:
    """Work out what a run of a number of images takes; None means all that pass the filters, and it is never more."""
    first, *_ = measured.stages
    passing = first.rows / first.inputs
    passed = max(1, round(measured.qualifying * passing))
    images = passed if images is None else min(images, passed)
    inputs = {first.name: images / passing}
    shards = max(1, math.ceil(inputs[first.name] / config.shard_rows))
    rows: dict[str, float] = {}
    stages, works, pool = [], {}, FIRST_POOL
    for costs in measured.stages:
        if costs.source is not None:
            inputs[costs.name] = rows[costs.source]
        rows[costs.name] = images if costs is first else inputs[costs.name] * costs.rows / max(1, costs.inputs)
        own, processes = inputs[costs.name], processes_of(costs, setup, shards)
        work = works[costs.name] = costs.per_shard.times(shards).plus(costs.per_row.times(own))
        seconds = stage_seconds(costs, work, shards, processes, setup.cores)
        if processes > 1 and not setup.overlapping:
            seconds += pool + (measured.imports if costs.needs is not None else 0.0)
            pool = NEXT_POOL
        time = _estimate(seconds, costs.spread, SEVERAL if processes > 1 else 0.0, measured.waited)
        drops = costs.drops / max(1, costs.inputs) * own
        size = shards * costs.file_bytes + rows[costs.name] * costs.row_bytes + drops * costs.drop_bytes
        cpu = costs.start.cpu * processes + costs.fixed.cpu + work.cpu
        counts = round(own), round(rows[costs.name]), processes
        stages.append(StagePlan(costs.name, costs.unit, *counts, time, cpu, round(size) + costs.fixed_bytes))
    dropped = sum(costs.drops / max(1, costs.inputs) * inputs[costs.name] for costs in measured.stages)
    dropped += max(0, measured.source_drops - (images - measured.images))
    other = measured.fixed + len(stages) * measured.merge * dropped
    other += sum(costs.after * rows[costs.name] for costs in measured.stages)
    in_driver = [
        costs.memory
        for costs, stage in zip(measured.stages, stages, strict=True)
        if costs.needs is None or (stage.processes == 1 and not setup.overlapping)
    ]
    return Plan(
        images=images,
        shards=shards,
        setup=setup,
        stages=tuple(stages),
        other=other,
        total=_total(measured, stages, works, shards, setup, other),
        bytes=round(
            sum(stage.bytes for stage in stages) + images * measured.image_bytes + dropped * measured.merged_bytes
        ),
        driver_memory=max(in_driver, default=first.memory),
        model_memory={costs.name: costs.memory for costs in measured.stages if costs.needs is not None},
        gpu_memory={costs.name: costs.gpu_memory for costs in measured.stages if costs.gpu_memory},
    )


def processes_of(costs: StageCosts, setup: Setup, shards: int) -> int:
    """The number of processes of a stage; at most one per shard."""
    needs = costs.needs
    if needs is None:
        wanted = setup.workers
    elif costs.is_remote:
        wanted = needs.processes or 1
    elif setup.gpus and needs.gpus:
        wanted = needs.processes_on(setup.gpus)
    else:
        wanted = (setup.model_processes or needs.processes or 1) * setup.machines
    return max(1, min(wanted, shards))


def stage_seconds(costs: StageCosts, work: Cost, shards: int, processes: int, cores: int) -> float:
    """Seconds of a stage by itself once its processes run, see the formula in the module's docstring."""
    start = costs.start.seconds + costs.fixed.seconds
    if processes == 1:
        return start + work.seconds
    return start + max(math.ceil(shards / processes) / shards * work.seconds, work.cpu / cores)


def _estimate(seconds: float, spread: float | None, slower: float, waited: float) -> Estimate:
    """A range that is wider to the top with several processes, and to the bottom if the calibration was disturbed."""
    relative = math.hypot(SAME_MACHINE, UNKNOWN if spread is None else spread)
    return Estimate(seconds, seconds * max(0.0, 1 - relative) * (1 - waited), seconds * (1 + relative + slower))


def _total(
    measured: Calibration,
    stages: list[StagePlan],
    works: dict[str, Cost],
    shards: int,
    setup: Setup,
    other: float,
) -> Estimate:
    if not setup.overlapping:
        parts = [*(stage.time for stage in stages), Estimate(other, other * (1 - SAME_MACHINE), other * 1.1)]
        return Estimate(*(sum(getattr(part, name) for part in parts) for name in ("seconds", "low", "high")))
    costs = measured.stages
    alone = [
        stage.time.seconds - own.start.seconds - own.fixed.seconds for own, stage in zip(costs, stages, strict=True)
    ]
    busy_cores = sum(work.cpu for work in works.values()) / setup.cores
    on_gpus = [works[own.name].seconds * own.needs.gpus for own in costs if own.needs is not None and setup.gpus]
    slowest = max(*alone, busy_cores, sum(on_gpus) / max(1, setup.gpus))
    passing = sum(works[own.name].seconds for own in costs) / shards
    start = (
        RAY_START + measured.imports + max(own.start.seconds for own in costs) + sum(own.fixed.seconds for own in costs)
    )
    seconds = start + slowest + (passing if shards > 1 else sum(alone) - slowest) + other
    low, middle, high = (sum(getattr(s.time, name) for s in stages) for name in ("low", "seconds", "high"))
    return Estimate(seconds, seconds * low / middle, seconds * (high / middle + RAY))


def own_setup(measured: Calibration, config: Config, workers: int | None = None) -> Setup:
    """This machine with the config's numbers of processes; ``workers`` is that of `spr run --workers`."""
    ray = config.engine.name == "ray"
    return Setup(workers or (measured.cores if ray else 1), measured.cores, measured.gpus, overlapping=ray)


def setups(measured: Calibration, config: Config, workers: int | None = None) -> Iterator[Setup]:
    """Setups with more and more processes, GPUs or machines: first those that this machine can have.

    Stages without models use all cores, unless ``workers`` is given.
    """
    cores, gpus = measured.cores, measured.gpus
    own, ray = workers or cores, config.engine.name == "ray"
    if gpus:
        for count in range(1, MOST_MACHINES + 1):
            machines = -(-count // gpus)
            yield Setup(own * machines, cores * machines, count, machines, overlapping=ray)
        return
    for processes in range(1, cores + 1):
        yield Setup(own, cores, 0, model_processes=processes, overlapping=ray)
    for machines in range(2, MOST_MACHINES + 1):
        yield Setup(cores * machines, cores * machines, 0, machines, cores, overlapping=True)


def reach(
    measured: Calibration, config: Config, own: Plan, seconds: float, workers: int | None = None
) -> tuple[Plan, bool]:
    """The plan that is expected to take at most so many seconds: the ``own`` one, or with the smallest of the `setups`.

    If none is, the fastest one, and False.
    """
    if own.total.seconds <= seconds:
        return own, True
    measured = replace(measured, stages=tuple(_free(costs) for costs in measured.stages))
    fastest = own
    for setup in setups(measured, config, workers):
        found = plan(measured, config, own.images, setup)
        if found.total.seconds <= seconds:
            return found, True
        if found.total.seconds < 0.99 * fastest.total.seconds:
            fastest = found
    return fastest, False


def _free(costs: StageCosts) -> StageCosts:
    """A stage whose number of processes may be chosen."""
    needs = costs.needs
    if needs is None or costs.is_remote or not needs.gpus:
        return costs
    return replace(costs, needs=replace(needs, processes=None))


def parse_duration(text: str) -> float:
    """A duration in seconds.

    >>> parse_duration("24h"), parse_duration("1d 12h"), parse_duration("90 min"), parse_duration("1.5h")
    (86400.0, 129600.0, 5400.0, 5400.0)

    Raises:
        ConfigError: if it is not one, or zero.
    """
    place, total = 0, 0.0
    while (match := _DURATION.match(text, place)) is not None:
        place, total = match.end(), total + float(match[1]) * _UNITS[match[2]]
    if place < len(text.rstrip()) or not total:
        expected = "a number with a unit, such as 24h, 90min or 2d"
        raise ConfigError("--within is not a duration", got=text, expected=expected)
    return total
