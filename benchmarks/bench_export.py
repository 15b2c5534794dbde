"""Claim: the memory of `spr export` does not grow with the number of pairs: 30,000 need at most 10 % more than 3,000.

    python benchmarks/bench_export.py [--pairs 30000] [--side 64]

The run has 200 images and uses the fake models; its shard is repeated until there are enough pairs. Every image is
checked, read and written as in a real export, from a warm file system cache. Each export is a separate process; memory
is its peak resident size (`ru_maxrss`), imports included. Images are small PNGs, so that the pairs per second measure
the work on rows, not the decoding. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from spr.config import make_config
from spr.pipeline.runner import run
from spr.pipeline.stage import STAGES
from spr.runs.store import StageStore

FORMATS = ("trl", "llava", "grpo-trl")
IMAGES, OBJECTS, MAX_GROWTH = 200, 12, 1.10


def make_run(folder: Path, side: int) -> Path:
    """Run the pipeline with fake models on `IMAGES` generated images; the run has one shard."""
    draw = np.random.default_rng(0)
    coco: dict[str, list[dict[str, object]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (folder / "images").mkdir(parents=True)
    for k in range(IMAGES):
        pixels = draw.integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{k}.png")
        coco["images"].append({"id": k, "file_name": f"{k}.png", "width": side, "height": side})
        for j in range(OBJECTS):
            x, y = draw.uniform(0, side * 0.7, 2)
            box = [float(x), float(y), side * 0.28, side * 0.25]
            coco["annotations"].append(
                {"id": k * OBJECTS + j, "image_id": k, "category_id": 1, "bbox": box, "iscrowd": 0}
            )
    (folder / "a.json").write_text(json.dumps(coco))
    config = make_config(
        {
            "annotations": {"path": str(folder / "a.json"), "images": str(folder / "images"), "min_area": 1},
            "describer": {"backend": "fake"},
            "scorer": {"backend": "fake"},
            "detector": {"backend": "none"},
        }
    )
    run(config, folder / "run")
    return folder / "run"


def repeated(source: Path, target: Path, pairs: int) -> int:
    """Copy a one-shard run, repeating its shard until there are about ``pairs`` pairs; returns the number of pairs."""
    shutil.copytree(source, target)
    times = max(pairs // StageStore(source / "pairs").finished().rows, 1)
    for name in STAGES:
        store = StageStore(target / name)
        if store.manifest() is None:  # of a stage that the run does not have
            continue
        manifest = store.finished()
        (shard,) = manifest.shards
        for index in range(1, times):
            store.part(index).hardlink_to(store.part(0))
        manifest.shards = [dataclasses.replace(shard, index=index) for index in range(times)]
        store.save(manifest)
    return StageStore(target / "pairs").finished().rows


def measure(run_folder: Path, out: Path, key: str) -> dict[str, float]:
    """Pairs, seconds and peak memory of one export in a separate process."""
    command = [sys.executable, __file__, "--export", str(run_folder), str(out), key]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(result.stdout.splitlines()[-1]))


def export_here(run_folder: str, out: str, key: str) -> None:
    """Export in this process, and print pairs, seconds and peak memory as JSON."""
    from spr.exports.writing import export

    started = time.monotonic()
    exported = export(Path(run_folder), Path(out), key)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"pairs": exported.pairs + exported.prompts, "seconds": seconds, "peak_mib": peak}))


def main() -> None:
    """Measure two sizes of each format, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30_000, help="pairs of the larger run")
    parser.add_argument("--side", type=int, default=64, help="width and height of the images in pixels")
    parser.add_argument("--export", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export:
        export_here(*options.export)
        return
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_run(folder / "data", options.side)
        runs = {}
        for pairs in (options.pairs // 10, options.pairs):
            runs[repeated(source, folder / f"run-{pairs}", pairs)] = folder / f"run-{pairs}"
        print(f"{'format':<16}{'rows':>10}{'seconds':>10}{'rows/s':>10}{'peak MiB':>10}")
        for key in FORMATS:
            rows = [measure(path, folder / f"out-{key}-{count}", key) for count, path in runs.items()]
            for row in rows:
                rate = row["pairs"] / row["seconds"]
                print(f"{key:<16}{row['pairs']:>10,}{row['seconds']:>10.1f}{rate:>10,.0f}{row['peak_mib']:>10.0f}")
            growth = rows[1]["peak_mib"] / rows[0]["peak_mib"]
            results[key] = {"rows": rows, "growth": round(growth, 3), "held": growth <= MAX_GROWTH}
    print(json.dumps({"benchmark": "export", "wanted": MAX_GROWTH, "formats": results}))


if __name__ == "__main__":
    main()
