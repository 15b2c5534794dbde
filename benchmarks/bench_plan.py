"""Claim: `spr plan` predicts a run ten times as large as its sample within 25 %, each long stage and the total.

Calibrates and runs in turn, each in its own process, so that all start equally cold: a plan, the run that it predicts,
and another plan, since other programs may make one of them slower. Seconds by the clock and, with one process, CPU
seconds are compared. A stage is long if it takes at least 5 % of the run. Scenes with the embedded models, or with fake
models.

    python benchmarks/bench_plan.py [--models embedded|fake] [--sample 100] [--threads 1] [--processes 1]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

FAKES = ["describer.backend=fake", "describer.model=null", "scorer.backend=fake", "detector.backend=fake"]
CLAIM = 0.25
LONG = 0.05


class Row(NamedTuple):
    """A stage, or the total: what each plan said, and what was measured."""

    name: str
    seconds: list[float]
    real: float
    ranges: list[tuple[float, float]]
    cpu: list[float]
    real_cpu: float


def measure(overrides: list[str], out: Path, processes: int, images: int) -> None:
    """Run the pipeline as `spr run` does, and print the seconds and CPU seconds of its stages as JSON."""
    from spr.config import load_config
    from spr.pipeline.runner import run
    from spr.workflows.measuring import MeasuringEngine, StageTimes

    config = load_config("quickstart", [*overrides, f"annotations.max_images={images}"])
    engine = MeasuringEngine(config) if processes == 1 else None
    began = time.perf_counter()
    summaries = run(config, out, engine=engine, workers=processes)
    total, stages = time.perf_counter() - began, {}
    for summary in summaries:
        times = engine.stages[summary.name] if engine is not None else StageTimes()
        cpu = times.load.cpu + sum(shard.cost.cpu for shard in times.shards)
        size = sum(path.stat().st_size for path in (out / summary.name).iterdir())
        stages[summary.name] = {"seconds": summary.seconds, "cpu": cpu, "bytes": size, "memory": times.memory}
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(json.dumps({"stages": stages, "seconds": total, "bytes": size}))


def predict(overrides: list[str], folder: Path, arguments: argparse.Namespace, images: int) -> dict[str, Any]:
    """What `spr plan` says, from its JSON file."""
    file = folder / "plan.json"
    command = [sys.executable, "-m", "spr", "plan", "quickstart", *overrides, "--images", str(images)]
    command += ["--sample", str(arguments.sample), "--workers", str(arguments.processes), "--json", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def main() -> None:
    """Measure, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", choices=("embedded", "fake"), default="embedded")
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--factor", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    images = arguments.sample * arguments.factor
    if arguments.run is not None:
        measure(arguments.overrides, arguments.run, arguments.processes, images)
        return
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "spr", "scenes", "--out", str(folder / "scenes"), "-n", str(2 * images)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        overrides = [f"annotations.path={folder}/scenes/instances.json", f"annotations.images={folder}/scenes/images"]
        overrides += FAKES if arguments.models == "fake" else []
        overrides += [f"{model}.num_processes={arguments.processes}" for model in ("describer", "scorer", "detector")]
        plans = [predict(overrides, folder, arguments, images)]
        command = [sys.executable, __file__, "--run", str(folder / "run"), "--sample", str(arguments.sample)]
        command += ["--factor", str(arguments.factor), "--processes", str(arguments.processes), *overrides]
        measured = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        plans.append(predict(overrides, folder, arguments, images))
    show(arguments, images, plans, measured)


def rows_of(plans: list[dict[str, Any]], measured: dict[str, Any]) -> list[Row]:
    """The stages in their order, and the total."""
    rows = []
    for place, (name, stage) in enumerate(measured["stages"].items()):
        found = [each["plan"]["stages"][place] for each in plans]
        times = [each["time"] for each in found]
        ranges = [(time["low"], time["high"]) for time in times]
        cpu = [each["cpu_seconds"] for each in found]
        rows.append(Row(name, [time["seconds"] for time in times], stage["seconds"], ranges, cpu, stage["cpu"]))
    totals = [each["plan"]["total"] for each in plans]
    cpu = [sum(values) for values in zip(*(row.cpu for row in rows), strict=True)]
    ranges = [(total["low"], total["high"]) for total in totals]
    seconds, real_cpu = [total["seconds"] for total in totals], sum(row.real_cpu for row in rows)
    return [*rows, Row("total", seconds, measured["seconds"], ranges, cpu, real_cpu)]


def show(arguments: argparse.Namespace, images: int, plans: list[dict[str, Any]], measured: dict[str, Any]) -> None:
    """Print the table and the line of JSON."""
    told = f"{arguments.processes} process(es) of {arguments.threads} thread(s)"
    print(f"{arguments.models} models, {images:,} images planned from {arguments.sample}, {told}")
    print("| stage | seconds, planned before | measured | planned after | CPU seconds, before | measured | after |")
    print("|---|---|---|---|---|---|---|")
    rows = rows_of(plans, measured)
    for row in rows:
        cells = [*_cells(row.seconds, row.real), *_cells(row.cpu, row.real_cpu)]
        print(f"| {row.name} | {' | '.join(cells)} |")
    long = [row for row in rows if row.real >= LONG * measured["seconds"]]
    worst = max(abs(value / row.real - 1) for row in long for value in row.seconds)
    cpu = max((abs(value / row.real_cpu - 1) for row in long if row.real_cpu for value in row.cpu), default=None)
    inside = [low <= row.real <= high for row in rows for low, high in row.ranges]
    sizes = [each["plan"]["bytes"] / measured["bytes"] for each in plans]
    names = ", ".join(row.name for row in long)
    print(f"largest error of {names} (claim: {CLAIM:.0%}): {worst:.0%}", end="")
    print("" if cpu is None else f", {cpu:.0%} of CPU seconds")
    print(f"within the plan's range: {sum(inside)} of {len(inside)}")
    print(f"bytes of the run folder, planned over measured: {', '.join(f'{size:.2f}' for size in sizes)}")
    for name, stage in measured["stages"].items():
        planned = [each["calibration"]["stages"] for each in plans]
        memory = [next(s["memory"] for s in stages if s["name"] == name) for stages in planned]
        if stage["memory"]:
            ratios = ", ".join(f"{size / stage['memory']:.2f}" for size in memory)
            print(f"memory of {name}, planned over measured: {ratios} of {stage['memory'] / 1e6:.0f} MB")
    waited = [each["calibration"]["waited"] for each in plans]
    print(f"waited for a core during the calibrations: {', '.join(f'{share:.0%}' for share in waited)}")
    print(json.dumps({"benchmark": "plan", "images": images, "worst": worst, "cpu": cpu, "measured": measured}))


def _cells(planned: list[float], real: float) -> list[str]:
    if not real:
        return ["", "", ""]
    before, after = (f"{value:.1f} ({value / real - 1:+.0%})" for value in planned)
    return [before, f"{real:.1f}", after]


if __name__ == "__main__":
    main()
