"""Claim: memory does not grow while 100,000 queries pass through all stages, and the number of files is bounded.

Generates small images with twelve objects each, the files being hard links to a few, and runs all stages with fake
models in a new process: in that process alone, in `--workers` processes, or with `--engine ray`. The memory of all
processes together (sum of PSS) is sampled, and its mean is reported for each tenth of each stage's time. Claim: in each
stage that takes more than a few seconds, the last tenth's is at most 5 % over the second tenth's. A run has two files
per shard and stage, one manifest per stage, and at most `OTHER_FILES` others. Everything is written into a temporary
folder that is deleted at the end.

    python benchmarks/bench_soak.py [--images 20000] [--per-image 5] [--workers 1] [--engine local]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from process_tree import ProcessTree, Sample

OBJECTS, DISTINCT, SIZE_WH = 12, 16, (160, 120)
GROWTH_WANTED = 1.05
SHORT = 5.0
"""Seconds; a stage that takes less has too few samples."""
OTHER_FILES = 9
MODELS = ("describer", "scorer", "detector")
FAKES = [f"{section}.backend=fake" for section in MODELS]


def write_dataset(folder: Path, images: int) -> None:
    """Write COCO JSON and the images."""
    draw, files = random.Random(0), folder / "images"
    files.mkdir()
    for k in range(min(images, DISTINCT)):
        coarse = Image.merge("RGB", [Image.effect_noise((16, 12), 40 + k) for _ in range(3)])
        coarse.resize(SIZE_WH).save(files / f"{k}.jpg")
    for k in range(DISTINCT, images):
        os.link(files / f"{k % DISTINCT}.jpg", files / f"{k}.jpg")
    annotations = [
        {
            "id": OBJECTS * k + j,
            "image_id": k,
            "category_id": 1 + j % 3,
            "bbox": [draw.uniform(0, 120), draw.uniform(0, 80), draw.uniform(18, 40), draw.uniform(18, 40)],
            "iscrowd": 0,
        }
        for k in range(images)
        for j in range(OBJECTS)
    ]
    width, height = SIZE_WH
    entries = [{"id": k, "file_name": f"{k}.jpg", "width": width, "height": height} for k in range(images)]
    names = [{"id": k, "name": name} for k, name in enumerate(("dog", "traffic light", "cup"), start=1)]
    coco = {"images": entries, "annotations": annotations, "categories": names}
    (folder / "instances.json").write_text(json.dumps(coco))


def run(folder: Path, per_image: int, workers: int, engine: str) -> tuple[ProcessTree, float, float]:
    """Run all stages in a new process; its samples, and when it started and ended."""
    content = {
        "annotations": {"path": str(folder / "instances.json"), "images": str(folder / "images"), "max_images": None},
        "regions": {"per_image": per_image, "min_inside": 2},
        "engine": engine,
        "describer": {"samples": {"full": 1, "crop": 1, "crop_objects": 1}},
    }
    (folder / "config.yaml").write_text(json.dumps(content))
    command = [sys.executable, "-m", "spr", "run", str(folder / "config.yaml"), "--out", str(folder / "run"), *FAKES]
    if workers > 1:
        command += [f"{section}.num_processes={workers}" for section in MODELS]
    started = time.time()
    process = subprocess.Popen([*command, "--workers", str(workers)])
    with ProcessTree(process.pid) as tree:
        if process.wait():
            raise SystemExit(process.returncode)
    return tree, started, time.time()


def phases(out: Path, overlapping: bool) -> list[tuple[str, float, float]]:
    """Name, start and end of each stage, or of all together if they overlap."""
    times: dict[str, list[float]] = {}
    for line in (out / "log.jsonl").read_text().splitlines():
        event = json.loads(line)
        times.setdefault(event["stage"], []).append(datetime.fromisoformat(event["time"]).timestamp())
    found = [(stage, min(own), max(own)) for stage, own in times.items()]
    return [("all stages", min(s for _, s, _ in found), max(e for _, _, e in found))] if overlapping else found


def tenths(samples: Sequence[Sample], start: float, end: float) -> list[float]:
    """The mean memory, in bytes, of each tenth of a time."""
    means = []
    for k in range(10):
        low, high = (start + (end - start) * part / 10 for part in (k, k + 1))
        own = [sample.pss for sample in samples if low <= sample.time <= high]
        means.append(statistics.fmean(own) if own else float("nan"))
    return means


def main() -> None:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"images": 20_000, "per-image": 5, "workers": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_dataset(folder, arguments.images)
        tree, started, ended = run(folder, arguments.per_image, arguments.workers, arguments.engine)
        out = folder / "run"
        shards = {path.parent.name: sum(1 for _ in path.parent.glob("part-*")) for path in out.glob("*/manifest.json")}
        rows = {
            stage: sum(pq.read_metadata(path).num_rows for path in (out / stage).glob("part-*")) for stage in shards
        }
        files = [path for path in out.rglob("*") if path.is_file()]
        others = len(files) - sum(2 * count + 1 for count in shards.values())
        size = sum(path.stat().st_size for path in files)
        results: dict[str, Any] = {}
        print(f"{rows['regions']:,} queries, {rows['candidates']:,} candidates, {rows['pairs']:,} pairs")
        print(f"{'MB of all processes':20}{'seconds':>8}" + "".join(f"{k:>7}" for k in range(1, 11)) + "   10/2")
        for name, start, end in phases(out, overlapping=arguments.engine == "ray"):
            means = tenths(tree.samples, start, end)
            ratio = means[9] / means[1]
            results[name] = {"seconds": end - start, "means": means, "ratio": ratio}
            note = "" if end - start >= SHORT else "  (short)"
            cells = "".join(f"{mean / 1e6:>7.0f}" for mean in means)
            print(f"{name:20}{end - start:>8.0f}{cells}{ratio:>7.3f}{note}")
        worst = max((r["ratio"] for r in results.values() if r["seconds"] >= SHORT), default=0.0)
        print(f"peak of the whole command {max(sample.pss for sample in tree.samples) / 1e6:,.0f} MB")
        print(f"worst growth {worst:.3f} (wanted: at most {GROWTH_WANTED})")
        print(f"{len(files):,} files, {size / 1e6:,.0f} MB: {sum(shards.values()):,} shards of {len(shards)} stages, ")
        print(f"{others} files besides two per shard and a manifest per stage (wanted: at most {OTHER_FILES})")
        figures = {"files": len(files), "bytes": size, "others": others, "seconds": ended - started, "rows": rows}
        print(json.dumps({"benchmark": "soak", **vars(arguments), **figures, "stages": results, "worst": worst}))


if __name__ == "__main__":
    main()
