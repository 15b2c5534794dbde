"""Claim: the stage `regions` processes 2,000 images per second on one core, and 1.7 times as many with two workers.

Runs the stage as `spr run` does (read a shard, grow regions, write both files and the manifest) on generated images
with 15 objects each. Both numbers of workers are measured in turn on the whole stage, including the start of the
processes.

    python benchmarks/bench_regions.py [--images 400000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from spr.config import Config, make_config
from spr.pipeline import objects, regions
from spr.pipeline.engines.local import LocalEngine
from spr.pipeline.flow import run_stages
from spr.pipeline.stage_run import FirstStageRun, StageRun
from spr.records.columns import box_array, list_array
from spr.records.schemas import OBJECTS
from spr.runs.store import Manifest, StageOutput, StageStore, dropped_table

OBJECTS_PER_IMAGE = 15
SIZE_WH = (640, 480)


def make_shard(start: int, rows: int) -> pa.Table:
    """Rows of the stage `objects`: 15 objects per image with sides of 20 to 200 px, anywhere in the image."""
    draw = np.random.default_rng(start)
    count = rows * OBJECTS_PER_IMAGE
    sides = draw.uniform(20, 200, (count, 2))
    corners = draw.uniform(0, 1, (count, 2)) * (np.array(SIZE_WH) - sides)
    fields = OBJECTS.field("objects").type.value_type
    structs = pa.StructArray.from_arrays(
        [
            pa.array(range(start * OBJECTS_PER_IMAGE, start * OBJECTS_PER_IMAGE + count)).cast(pa.string()),
            pa.repeat(pa.scalar("thing"), count),
            box_array(np.concatenate([corners, corners + sides], axis=1)),
            pa.repeat(pa.scalar("annotation"), count),
            pa.nulls(count, pa.float32()),
        ],
        fields=list(fields),
    )
    ids = pa.array(range(start, start + rows)).cast(pa.string())
    sizes = [pa.array(np.full(rows, side, dtype=np.int32)) for side in SIZE_WH]
    offsets = np.arange(rows + 1) * OBJECTS_PER_IMAGE
    columns = {"image_id": ids, "file_name": ids, "width": sizes[0], "height": sizes[1]}
    columns |= {"objects": list_array(offsets, structs), "split": pa.repeat(pa.scalar("train"), rows)}
    return pa.table([columns.get(field.name, pa.nulls(rows, field.type)) for field in OBJECTS], schema=OBJECTS)


def prepare(out: Path, config: Config, images: int) -> None:
    """Write the stage `objects` as if it had run."""
    store, manifest = StageStore(out / "objects"), Manifest("objects", "benchmark", complete=True)
    for index, start in enumerate(range(0, images, config.shard_rows)):
        table = make_shard(start, min(config.shard_rows, images - start))
        manifest.shards.append(
            store.write_shard(index, StageOutput(table, dropped_table("objects", "image", [])), inputs=len(table))
        )
    store.save(manifest)


def seconds(out: Path, config: Config, workers: int) -> float:
    """Wall-clock seconds of the whole stage."""
    shutil.rmtree(out / "regions", ignore_errors=True)
    before = FirstStageRun(objects.STAGE, config, out, "benchmark")
    start = time.perf_counter()
    stages = [lambda: before, lambda: StageRun(regions.STAGE, config, out, "benchmark")]
    run_stages(LocalEngine(workers), stages, lambda _: None, lambda *_: None)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    config = make_config({"annotations": {"path": "-", "images": "-"}, "shard_rows": 4096})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        prepare(out, config, arguments.images)
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(arguments.repeats):
            for workers, taken in times.items():
                taken.append(seconds(out, config, workers))
    one, two = (statistics.median(times[workers]) for workers in (1, 2))
    ratio = statistics.median(a / b for a, b in zip(times[1], times[2], strict=True))
    print(f"{arguments.images:,} images with {OBJECTS_PER_IMAGE} objects each, median of {arguments.repeats} runs")
    print(f"{'workers':>8} {'seconds':>8} {'images/s':>10}")
    for workers, taken in ((1, one), (2, two)):
        print(f"{workers:>8} {taken:>8.2f} {arguments.images / taken:>10,.0f}")
    print(f"two workers are {ratio:.2f} times as fast as one (target: 1.7); target for one core: 2,000 images/s")
    result = {"images": arguments.images, "images_per_second": arguments.images / one, "two_over_one": ratio}
    print(json.dumps({"benchmark": "regions", **result, "times": times}))


if __name__ == "__main__":
    main()
