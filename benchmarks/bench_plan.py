"""Claim: `spr plan` predicts a run ten times as large as its sample within 25 %, per stage and in total.

Calibrates and runs in turn, each in its own process, so that both start equally cold: a plan, the run that it predicts,
and another plan, since other programs may make one of them slower. Per stage, seconds by the clock and CPU seconds are
compared. Scenes with the embedded models, or with fake models.

    python benchmarks/bench_plan.py [--models embedded|fake] [--sample 100] [--threads 1]
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
from typing import Any

FAKES = ["describer.backend=fake", "describer.model=null", "scorer.backend=fake", "detector.backend=fake"]
CLAIM = 0.25


def measure(overrides: list[str], out: Path, images: int) -> None:
    """Run the pipeline as `spr run` does, and print the seconds and CPU seconds of its stages as JSON."""
    from spr.config import load_config
    from spr.pipeline.runner import run
    from spr.workflows.measuring import MeasuringEngine

    config = load_config("quickstart", [*overrides, f"annotations.max_images={images}"])
    engine, began = MeasuringEngine(config), time.perf_counter()
    summaries = run(config, out, engine=engine)
    total = time.perf_counter() - began
    stages = {}
    for summary in summaries:
        times = engine.stages[summary.name]
        cpu = times.load.cpu + sum(shard.cost.cpu for shard in times.shards)
        size = sum(path.stat().st_size for path in (out / summary.name).iterdir())
        stages[summary.name] = {"seconds": summary.seconds, "cpu": cpu, "bytes": size, "memory": times.memory}
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(json.dumps({"stages": stages, "seconds": total, "bytes": size}))


def predict(overrides: list[str], folder: Path, sample: int, images: int) -> dict[str, Any]:
    """What `spr plan` says, from its JSON file."""
    file = folder / "plan.json"
    command = [sys.executable, "-m", "spr", "plan", "quickstart", *overrides]
    command += ["--sample", str(sample), "--images", str(images), "--json", str(file)]
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
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    images = arguments.sample * arguments.factor
    if arguments.run is not None:
        measure(arguments.overrides, arguments.run, images)
        return
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "spr", "scenes", "--out", str(folder / "scenes"), "-n", str(2 * images)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        overrides = [f"annotations.path={folder}/scenes/instances.json", f"annotations.images={folder}/scenes/images"]
        overrides += FAKES if arguments.models == "fake" else []
        plans = [predict(overrides, folder, arguments.sample, images)]
        command = [sys.executable, __file__, "--run", str(folder / "run"), "--sample", str(arguments.sample)]
        command += ["--factor", str(arguments.factor), *overrides]
        measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        plans.append(predict(overrides, folder, arguments.sample, images))
    show(arguments, images, plans, measured)


def show(arguments: argparse.Namespace, images: int, plans: list[dict[str, Any]], measured: dict[str, Any]) -> None:
    """Print the table and the line of JSON."""
    print(
        f"{arguments.models} models, {images:,} images planned from {arguments.sample}, {arguments.threads} thread(s)"
    )
    print("| stage | seconds, planned before | measured | planned after | CPU seconds, before | measured | after |")
    print("|---|---|---|---|---|---|---|")
    rows, worst = [], {"seconds": 0.0, "cpu": 0.0}
    for place, (name, stage) in enumerate(measured["stages"].items()):
        found = [each["plan"]["stages"][place] for each in plans]
        rows.append(
            (
                name,
                [each["time"]["seconds"] for each in found],
                stage["seconds"],
                [each["cpu_seconds"] for each in found],
                stage["cpu"],
            )
        )
    totals = [each["plan"]["total"]["seconds"] for each in plans]
    cpus = [sum(stage["cpu_seconds"] for stage in each["plan"]["stages"]) for each in plans]
    rows.append(("total", totals, measured["seconds"], cpus, sum(row[4] for row in rows)))
    for name, seconds, real, cpu, real_cpu in rows:
        cells = [*_pair(seconds, real), *_pair(cpu, real_cpu)]
        print(f"| {name} | {' | '.join(cells)} |")
        for kind, values, truth in (("seconds", seconds, real), ("cpu", cpu, real_cpu)):
            if truth >= 1:  # shorter stages are of no importance to a plan
                worst[kind] = max(worst[kind], *(abs(value / truth - 1) for value in values))
    sizes = [each["plan"]["bytes"] / measured["bytes"] for each in plans]
    print(f"bytes planned over measured: {', '.join(f'{size:.2f}' for size in sizes)} of {measured['bytes']:,}")
    waited = [each["calibration"]["waited"] for each in plans]
    print(f"waited for a core during the calibrations: {', '.join(f'{share:.0%}' for share in waited)}")
    print(f"largest error of a stage of a second or more, or of the total (claim: {CLAIM:.0%}): ", end="")
    print(f"{worst['seconds']:.0%} of seconds, {worst['cpu']:.0%} of CPU seconds")
    print(json.dumps({"benchmark": "plan", "images": images, "worst": worst, "measured": measured, "bytes": sizes}))


def _pair(planned: list[float], real: float) -> list[str]:
    before, after = (f"{value:.1f} ({value / real - 1:+.0%})" if real else f"{value:.1f}" for value in planned)
    return [before, f"{real:.1f}", after]


if __name__ == "__main__":
    main()
