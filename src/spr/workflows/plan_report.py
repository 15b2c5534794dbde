"""What `spr plan` prints and writes: the table of a plan, warnings, and JSON."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spr.config import Config
from spr.core import FORMAT_VERSION
from spr.core.documents import read_json
from spr.core.outputs import check_output, write_output
from spr.core.progress import duration
from spr.core.terminal import count_text, size_text
from spr.pipeline.stage import due_stages
from spr.workflows.calibration import COMMAND, Calibration
from spr.workflows.plan import Estimate, Plan, Setup, plan, setups

WIDE = 0.4
"""The sample is too small if the total may be larger by this share."""
BUSY = 0.15
"""Share of the time spent on waiting for a core, over which other programs have disturbed the calibration."""


def lines(measured: Calibration, config: Config, found: Plan, wanted: int | None) -> Iterator[str]:
    """The plan as a table with its memory and disk space, for people to read."""
    gpus = count_text(measured.gpus, "GPUs") if measured.gpus else "no GPU"
    machine = f"{count_text(measured.cores, 'cores')}, {gpus}"
    shards = count_text(measured.shards, "shards")
    took = duration(measured.seconds)
    yield f"Calibration: {count_text(measured.images, 'images')} in {shards}, {took} in one process ({machine})"
    yield ""
    shards = f"{count_text(found.shards, 'shards')} of up to {config.shard_rows:,} rows"
    yield f"{count_text(found.images, 'images')}, {shards}, engine: {config.engine.name}"
    head = ("stage", "input", "rows", "processes", "on disk", "time, and its range")
    rows = [
        (
            stage.name,
            f"{stage.inputs:,}",
            f"{stage.rows:,}",
            str(stage.processes),
            size_text(stage.bytes),
            _time(stage.time),
        )
        for stage in found.stages
    ]
    rows.append(("other", "", "", "", "", duration(found.other)))
    name = "total, overlapping" if found.setup.overlapping else "total"
    rows.append((name, "", "", "", size_text(found.bytes), _time(found.total)))
    yield from _table([head, *rows])
    yield ""
    yield f"Memory: {size_text(found.driver_memory)} for the process of `spr run`"
    for stage in found.stages:
        if stage.name in found.model_memory:
            gpu = f", and {size_text(found.gpu_memory[stage.name])} of a GPU" if stage.name in found.gpu_memory else ""
            each = f" in each of {stage.processes} processes" if stage.processes > 1 else ""
            yield f"        {size_text(found.model_memory[stage.name])} for `{stage.name}`{each}{gpu}"
    yield f"Disk:   {size_text(found.bytes)} for the run folder; {size_text(_free())} free in this folder"
    for note in notes(measured, config, found, wanted):
        yield f"Note:   {note}"


def more_lines(measured: Calibration, config: Config, found: Plan, workers: int | None) -> Iterator[str]:
    """The time with more processes, GPUs or machines, if that changes it."""
    rows, last = [], found.total.seconds
    for setup in setups(measured, config, workers):
        number = setup.gpus or (setup.machines if setup.machines > 1 else setup.model_processes or 1)
        if number & (number - 1) or setup.machines > 8:
            continue
        other = plan(measured, config, found.images, setup)
        if other.total.seconds < 0.95 * last:
            last = other.total.seconds
            rows.append((f"  {setup_text(setup, config)}", _time(other.total)))
    if rows:
        yield ""
        yield "With more processes:"
        yield from _table(rows)


def within_lines(config: Config, wished: float, found: Plan, reached: bool) -> Iterator[str]:
    """What reaches a wished time, or what is the fastest that this calibration can tell."""
    yield ""
    setup = setup_text(found.setup, config)
    if reached:
        yield f"Within {duration(wished)}: {setup}: {_time(found.total)}"
        return
    yield f"Within {duration(wished)}: not reached. The fastest: {setup}: {_time(found.total)}"
    if any(stage.processes == found.shards for stage in found.stages):
        yield (
            f"        A process takes whole shards, and there are {count_text(found.shards, 'shards')}: a smaller "
            f"shard_rows than {config.shard_rows} gives more"
        )


def setup_text(setup: Setup, config: Config) -> str:
    """A setup as what to change: GPUs, machines, or config fields and options."""
    workers = [] if setup.overlapping or setup.workers == 1 else [f"--workers {setup.workers}"]
    if setup.gpus:
        return ", ".join([f"{count_text(setup.gpus, 'GPUs')} and {count_text(setup.cores, 'cores')}", *workers])
    if setup.machines > 1:
        return f"{setup.machines} machines like this one (engine=ray)"
    models = [f"{name}.num_processes={setup.model_processes}" for name in _model_sections(config)]
    own = [] if setup.model_processes is None else models
    return " ".join([*own, *workers]) or "as configured"


def _model_sections(config: Config) -> list[str]:
    due = {name for stage in due_stages(config) for name in stage.models_for(config)}
    found: list[str] = []
    for name in ("describer", "scorer", "detector"):
        section = getattr(config, name)
        if name in due and section is not None and section.backend not in ("none", "openai"):
            found.append(name)
    return found


def notes(measured: Calibration, config: Config, found: Plan, wanted: int | None) -> Iterator[str]:
    """What makes the estimate doubtful, or would stop the run."""
    if wanted is not None and found.images < wanted:
        yield f"the annotations have about {found.images:,} images that pass the filters, not {wanted:,}"
    free = _free()
    if found.bytes > free:
        yield f"the run folder needs {size_text(found.bytes)}, and {size_text(free)} are free in this folder"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if found.memory > memory:
        yield f"the processes need {size_text(found.memory)} of memory, and this machine has {size_text(memory)}"
    if found.total.high > (1 + WIDE) * found.total.seconds and measured.images < found.images:
        sample = count_text(measured.images, "images")
        yield f"the sample of {sample} in {count_text(measured.shards, 'shards')} is small; a larger --sample says more"
    if measured.waited > BUSY:
        share = f"{measured.waited:.0%}"
        yield f"the calibration waited for a core for {share} of its time: other programs run, so times may be shorter"
    for stage in measured.stages:
        if stage.is_remote and config.describer is not None:
            yield (
                f"`{stage.name}` asks {config.describer.base_url}: its time depends on what that server does for "
                f"others, and on describer.concurrency ({config.describer.concurrency})"
            )
    if found.setup.overlapping:
        yield "measured without Ray; a cluster is taken to have the cores and GPUs of this machine"
    if config.describer is None:
        yield "the config has no describer, so the run ends with the regions"


def check_json(path: Path) -> None:
    """Refuse a file for `write_json` that this command did not write, before any work."""
    check_output(path, "a plan", _is_plan, folder=False)


def write_json(path: Path, measured: Calibration, found: Plan, within: tuple[float, Plan, bool] | None = None) -> None:
    """Write the calibration and the plans as JSON; times are in seconds, sizes in bytes."""
    content: dict[str, Any] = {
        "format": COMMAND,
        "format_version": FORMAT_VERSION,
        "calibration": asdict(measured),
        "plan": asdict(found),
    }
    if within is not None:
        wished, fastest, reached = within
        content["within"] = {"seconds": wished, "reached": reached, "plan": asdict(fastest)}
    write_output(path, (json.dumps(content, indent=1) + "\n").encode(), "a plan", _is_plan)


def _is_plan(path: Path) -> bool:
    return bool(read_json(path).get("format") == COMMAND)


def _free() -> int:
    return shutil.disk_usage(".").free


def _time(time: Estimate) -> str:
    return f"{duration(time.seconds)} ({duration(time.low)} to {duration(time.high)})"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows with their first and last column aligned to the left, and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if place in (0, len(row) - 1) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
