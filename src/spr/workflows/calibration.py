"""Calibration: the real pipeline on a small sample, to learn what each stage costs per shard and per record.

A first round with a few images and tiny shards gives what it costs to start a stage and to handle a shard. Larger
rounds, with shards of up to the config's size, give what a record costs.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import NamedTuple

import pyarrow as pa

from spr.config import Config, EngineConfig
from spr.core.atomic import atomic_dir
from spr.core.errors import InputError
from spr.core.outputs import check_output, read_marker, write_marker
from spr.core.terminal import count_text
from spr.pipeline.engines.processes import Needs, needs_of, threads_each, visible_gpus
from spr.pipeline.objects import QUALIFYING
from spr.pipeline.runner import run
from spr.pipeline.stage import STAGES, Stage
from spr.pipeline.stage_run import StageSummary
from spr.runs.dropped import merge_dropped
from spr.runs.images import IMAGES
from spr.runs.store import MANIFEST, StageStore, read_table, write_table
from spr.workflows.measuring import Cost, MeasuringEngine, Shard, StageTimes

COMMAND = "spr plan"
FIRST = 8
"""Images of the first round, in shards of two."""
MOST = 2048
"""Images of the largest round, unless the user gives its size."""
BUDGET = 120.0
"""Seconds of work, not counting the start, that the largest round should take."""
GROWTH = 32
"""How many times as many images a round has as the one before, at most."""
_GROUP = 32  # images; a model's batches are made within groups of so many queries
_SHARDS = 6  # of a large round
_T95 = (
    12.7,
    4.3,
    3.2,
    2.8,
    2.6,
    2.4,
    2.4,
    2.3,
    2.3,
    2.2,
)  # of Student's t, for 1, 2, … degrees of freedom


@dataclass(frozen=True, slots=True)
class StageCosts:
    """What a stage costs on this machine in one process.

    Attributes:
        name: The stage.
        source: The stage whose rows are its input; None reads the annotations.
        unit: What its rows are, in the plural.
        inputs: Input rows of the sample.
        rows: Rows of the sample.
        drops: Dropped items of the sample.
        start: Once per process: importing packages, loading models, and what the first batch costs more than others.
        fixed: Once: reading the annotations, the manifest, and freeing models.
        per_shard: Per shard, in whatever size: reading and writing files.
        per_row: Per input row.
        after: Seconds per row once the stage is finished, such as for recording the images' sizes.
        spread: 95 % range of the mean seconds per image, relative to it: 0.1 is ±10 %; None if it is unknown.
        file_bytes: Bytes of a shard without rows.
        row_bytes: Bytes of a row.
        drop_bytes: Bytes of a dropped item.
        fixed_bytes: Bytes of what is written once.
        memory: Peak memory of the process in bytes.
        gpu_memory: Peak of the GPU memory in bytes.
        needs: What its models need; None if it loads none.
        is_remote: Whether its model is behind a server, so that this machine does not determine its speed.
    """

    name: str
    source: str | None
    unit: str
    inputs: int
    rows: int
    drops: int
    start: Cost
    fixed: Cost
    per_shard: Cost
    per_row: Cost
    after: float
    spread: float | None
    file_bytes: int
    row_bytes: float
    drop_bytes: float
    fixed_bytes: int
    memory: int
    gpu_memory: int = 0
    needs: Needs | None = None
    is_remote: bool = False


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured on a sample.

    Attributes:
        images: Images of the largest sample.
        shards: In how many shards they were.
        seconds: How long the calibration took.
        qualifying: Images of the annotations that pass the filters, before their files are opened.
        stages: The stages in their order.
        fixed: Seconds per run outside of the stages: importing packages, hashing the annotations, checks.
        imports: Seconds of it for importing packages, which each process with models does.
        merge: Seconds for writing ``RUN/dropped.parquet`` after each stage, per dropped item.
        source_drops: Items that were dropped while reading the annotations, those not sampled included.
        image_bytes: Bytes per image of ``RUN/images.parquet``.
        merged_bytes: Bytes per item of ``RUN/dropped.parquet``.
        cores: Cores of this machine that the process may use.
        gpus: GPUs of this machine that the process may use.
        waited: Share of its working time that the process waited for a core, 0..1.
    """

    images: int
    shards: int
    seconds: float
    qualifying: int
    stages: tuple[StageCosts, ...]
    fixed: float
    imports: float
    merge: float
    source_drops: int
    image_bytes: float
    merged_bytes: float
    cores: int
    gpus: int = 0
    waited: float = 0.0


@dataclass(slots=True)
class Round:
    """A run of a sample: its summaries, what was measured, and the error if a stage had no rows."""

    images: int
    folder: Path
    engine: MeasuringEngine
    summaries: list[StageSummary]
    after: dict[str, float]
    seconds: float
    empty: InputError | None = None

    @property
    def outside(self) -> float:
        """Seconds outside of the stages. In the first round, they include importing packages."""
        return self.seconds - sum(summary.seconds for summary in self.summaries)

    @property
    def work(self) -> float:
        """Seconds of work, without the start of each stage."""
        seconds = 0.0
        for times in self.engine.stages.values():
            later = times.shards[1:] or times.shards  # the first also warms the model up
            seconds += mean(shard.cost.seconds for shard in later) * len(times.shards)
        return seconds


@contextlib.contextmanager
def calibration_folder(keep: Path | None = None) -> Iterator[Path]:
    """A folder for `calibrate`: a temporary one, or one that is at ``keep`` if the block ends without an error.

    Raises:
        RunError: if there is something else at ``keep`` than a calibration.
    """
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="spr-plan-") as folder:
            yield Path(folder)
        return
    check_output(keep, "a calibration", lambda path: read_marker(path, COMMAND) is not None, folder=True)
    with atomic_dir(keep, sync=False) as folder:
        yield folder
        write_marker(folder, COMMAND)


def calibrate(
    config: Config,
    folder: Path,
    images: int | None,
    *,
    sample: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    budget: float = BUDGET,
) -> Calibration:
    """Run the pipeline on small samples of a config's images, and measure what each stage costs.

    Args:
        config: The config that is planned for.
        folder: An empty folder for the runs; the largest is in ``run``.
        images: The number of images that are planned for; no sample is larger. None plans for all.
        sample: Images of the largest sample; None lets it grow until it takes about ``budget`` seconds of work.
        say: Called with a line before each round.
        budget: Seconds.

    Raises:
        InputError: if a stage has no rows even in the largest sample.
        SprError: what `spr.pipeline.runner.run` raises.
    """
    began, waits = time.perf_counter(), _waiting()
    count = min(size for size in (images, sample, FIRST) if size is not None)
    say(f"Calibration: {count_text(count, 'images')} to begin with")
    first = last = _run(config, count, max(1, count // 4), folder / "first")
    qualifying = first.summaries[0].counts.get(QUALIFYING, count) if first.summaries else count
    most = qualifying if images is None else min(images, qualifying)
    while (count := _next(last, most, sample, budget)) > last.images:
        say(f"Calibration: {count_text(count, 'images')}")
        last = _run(config, count, _shard_rows(config, count), folder / f"run-{count}")
    if last.empty is not None:
        raise _explained(last)
    last.folder = last.folder.rename(folder / "run")
    costs = tuple(_costs(STAGES[summary.name], config, first, last, summary) for summary in last.summaries)
    objects = StageStore(last.folder / "objects")
    merge, merged = _merging(last.folder, [stage.name for stage in costs])
    after = sum(stage.after * stage.rows for stage in costs)
    fixed = max(0.0, last.outside - after - merge * len(costs))
    imports = max(0.0, first.outside - last.outside) if first.empty is None else 0.0
    gpus = len(visible_gpus()) if any(stage.needs is not None and stage.needs.gpus for stage in costs) else 0
    return Calibration(
        images=last.summaries[0].rows,
        shards=len(objects.finished().shards),
        seconds=time.perf_counter() - began,
        qualifying=qualifying,
        stages=costs,
        fixed=fixed + imports,
        imports=imports,
        merge=merge / max(1, merged),
        source_drops=sum(objects.finished().source.get("dropped", {}).values()),
        image_bytes=(last.folder / IMAGES).stat().st_size / last.summaries[0].rows,
        merged_bytes=(last.folder / "dropped.parquet").stat().st_size / max(1, merged),
        cores=threads_each(1),
        gpus=gpus,
        waited=_waited(waits),
    )


def _next(last: Round, most: int, sample: int | None, budget: float) -> int:
    """The number of images of the next round; no more than those of the last one if there is none."""
    if sample is not None:
        return min(sample, most)
    if last.empty is not None:
        return min(most, MOST, last.images * GROWTH)
    if last.images > FIRST and last.work >= budget / 3:
        return 0
    wanted = math.ceil(last.images * budget / max(last.work, 1e-9))
    # Tiny shards make small batches, which take longer per record: the first round is no measure of the second.
    return min(max(wanted, 4 * last.images), most, MOST, last.images * GROWTH)


def _shard_rows(config: Config, images: int) -> int:
    """Rows per shard, in whole groups of `_GROUP`: so many that there are several shards."""
    each = images // _SHARDS // _GROUP * _GROUP or min(_GROUP, max(1, images // 4))
    return min(config.shard_rows, each)


def sample_config(config: Config, images: int, shard_rows: int) -> Config:
    """The config of a round: its sample and shards, in one process of this machine."""
    changes: dict[str, object] = {
        "annotations": config.annotations.model_copy(update={"max_images": images}),
        "engine": EngineConfig(),
        "shard_rows": shard_rows,
    }
    for name in ("describer", "scorer", "detector"):
        if (section := getattr(config, name)) is not None:
            changes[name] = section.model_copy(update={"num_processes": 1})
    return config.model_copy(update=changes)


def _run(config: Config, images: int, shard_rows: int, folder: Path) -> Round:
    engine = MeasuringEngine(config)
    summaries: list[StageSummary] = []
    after: dict[str, float] = {}

    def report(summary: StageSummary) -> None:
        summaries.append(summary)
        if summary.name in engine.stages:
            after[summary.name] = max(0.0, engine.clock() - engine.stages[summary.name].ended)

    began, empty = engine.clock(), None
    try:
        run(sample_config(config, images, shard_rows), folder, report=report, engine=engine)
    except InputError as error:
        if not summaries or summaries[-1].rows:
            raise
        if not summaries[0].rows:
            raise _explained(Round(images, folder, engine, summaries, after, 0.0, error)) from None
        empty = error
    return Round(images, folder, engine, summaries, after, engine.clock() - began, empty)


def _explained(failed: Round) -> InputError:
    """The error for a stage without rows, which does not name the folder of the calibration."""
    error, summary = failed.empty, failed.summaries[-1]
    see = f"to see what was dropped, run the same config with annotations.max_images={failed.images}"
    fix = f"{summary.advice or 'check the paths and thresholds of the config'}; {see}"
    if failed.summaries[0].rows:
        fix = f"use a larger --sample; {fix}"
    what = f"Stage `{summary.name}` has no {summary.unit} in a sample of {count_text(failed.images, 'images')}"
    return InputError(what, got=error.got if error else None, expected=error.expected if error else None, fix=fix)


def _costs(stage: Stage, config: Config, first: Round, last: Round, summary: StageSummary) -> StageCosts:
    times = last.engine.stages[stage.name]
    small = first.engine.stages.get(stage.name, StageTimes()) if first is not last else StageTimes()
    per_shard, per_row = fit(small.shards[1:], times.shards[1:] or times.shards)
    cold = small if len(small.shards) > 1 else times
    start = cold.load
    if len(cold.shards) > 1:
        more = [cold.shards[0].cost[part] - median(s.cost[part] for s in cold.shards[1:]) for part in range(2)]
        start = start.plus(Cost(*(max(0.0, value) for value in more)))
    rest = summary.seconds - times.load.seconds - sum(shard.cost.seconds for shard in times.shards)
    entries = StageStore(last.folder / "objects").finished().shards
    images = {entry.index: entry.inputs if stage.plan is not None else entry.rows for entry in entries}
    own = StageStore(last.folder / stage.name)
    manifest = own.finished()
    describer = config.describer
    return StageCosts(
        name=stage.name,
        source=stage.inputs[-1] if stage.inputs else None,
        unit=stage.unit,
        inputs=sum(entry.inputs for entry in manifest.shards),
        rows=summary.rows,
        drops=sum(sum(entry.dropped.values()) for entry in manifest.shards),
        start=start,
        fixed=Cost(max(0.0, rest), max(0.0, rest)),
        per_shard=per_shard,
        per_row=per_row,
        after=_after(stage.name, first, last),
        spread=spread(times.shards, images),
        memory=times.memory,
        gpu_memory=times.gpu_memory,
        needs=needs_of(stage, config),
        is_remote=describer is not None and describer.backend == "openai" and "describer" in stage.models_for(config),
        **_sizes(own, config.shard_rows / sum(entry.inputs for entry in entries))._asdict(),
    )


def _after(name: str, first: Round, last: Round) -> float:
    """Seconds per row once a stage is finished, from two rounds."""
    rows = [next((s.rows for s in each.summaries if s.name == name), 0) for each in (first, last)]
    if rows[1] <= rows[0]:
        return 0.0
    return max(0.0, last.after.get(name, 0.0) - first.after.get(name, 0.0)) / (rows[1] - rows[0])


def fit(small: Sequence[Shard], large: Sequence[Shard]) -> tuple[Cost, Cost]:
    """What a shard costs besides its rows, and what a row costs, from shards of two sizes.

    >>> fit([Shard(1, 2, Cost(1.2, 1.2))], [Shard(1, 100, Cost(11.0, 11.0))])
    (Cost(seconds=1.0, cpu=1.0), Cost(seconds=0.1, cpu=0.1))
    """
    size = mean(shard.inputs for shard in large)
    few = mean(shard.inputs for shard in small) if small else size
    found = []
    for part in range(2):
        cost = mean(shard.cost[part] for shard in large)
        tiny = median(shard.cost[part] for shard in small) if small else 0.0
        shard = (tiny * size - cost * few) / (size - few) if 2 * few < size else 0.0
        shard = cost if size == 0 else min(max(0.0, shard), tiny, cost)
        found.append((shard, (cost - shard) / size if size else 0.0))
    (shard_seconds, row_seconds), (shard_cpu, row_cpu) = found
    return Cost(shard_seconds, shard_cpu), Cost(row_seconds, row_cpu)


def spread(shards: Sequence[Shard], images: dict[int, int]) -> float | None:
    """The 95 % range of the mean seconds per image, relative to it; None with fewer than three shards.

    ``images`` are those of each shard. The first shard is left out, since it also starts the stage, and so is a last
    one of less than half the size.
    """
    least = max(1.0, max(images.values(), default=0) / 2)
    own = [(shard.cost.seconds, images.get(shard.number, 0)) for shard in shards[1:]]
    costs = [seconds / count for seconds, count in own if count >= least]
    if len(costs) < 2 or not (middle := mean(costs)):
        return None
    factor = _T95[min(len(costs) - 1, len(_T95)) - 1]
    return factor * stdev(costs) / math.sqrt(len(costs)) / middle


class _Sizes(NamedTuple):
    """Bytes, as `StageCosts` has them."""

    file_bytes: int
    row_bytes: float
    drop_bytes: float
    fixed_bytes: int


def _sizes(store: StageStore, share: float) -> _Sizes:
    """Bytes per shard, row and drop: those of a shard of the config's size, which is a ``share`` of the sample."""
    manifest = store.finished()
    rows = pa.concat_tables(store.tables())
    drops = pa.concat_tables([read_table(store.drops(entry.index)) for entry in manifest.shards])
    probe, found = store.folder.parent / "size.parquet", {}
    for name, table in (("row", rows), ("drop", drops)):
        sizes = []
        for part in (table.slice(0, 0), table.slice(0, math.ceil(len(table) * min(1.0, share)))):
            write_table(probe, part)
            sizes.append(probe.stat().st_size)
        found[name] = sizes[0], (sizes[1] - sizes[0]) / max(1, math.ceil(len(table) * min(1.0, share)))
    probe.unlink()
    entry_bytes = (store.folder / MANIFEST).stat().st_size // len(manifest.shards)
    source = store.source_drops.stat().st_size if store.source_drops.is_file() else 0
    return _Sizes(found["row"][0] + found["drop"][0] + entry_bytes, found["row"][1], found["drop"][1], source)


def _merging(run_folder: Path, stages: Sequence[str]) -> tuple[float, int]:
    """Seconds for merging all drops once, and how many there are."""
    began = time.perf_counter()
    count = merge_dropped(run_folder, stages)
    return time.perf_counter() - began, count


def _waiting() -> tuple[float, float]:
    """Seconds for which the threads of this process have worked, and have waited for a core; zeros if unknown."""
    worked = waited = 0.0
    with contextlib.suppress(OSError, ValueError):
        for path in Path("/proc/self/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                cpu, delay = path.read_bytes().split()[:2]
                worked, waited = worked + int(cpu) / 1e9, waited + int(delay) / 1e9
    return worked, waited


def _waited(before: tuple[float, float]) -> float:
    worked, waited = (now - then for now, then in zip(_waiting(), before, strict=True))
    return max(0.0, waited) / (worked + waited) if worked > 0 and waited > 0 else 0.0
