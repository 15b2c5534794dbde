"""Claim: the memory of a stage does not grow with the number of images: the peak for 10 times as many is within 10 %.

Each stage of `spr run` is a separate process that continues the run folder of the previous one; its peak is VmHWM of
Linux. Measured for the fake models on images like photographs (640 × 480, twelve objects), and for the embedded models
on generated scenes. One shard at a time is in memory. The smaller number of images fills two shards, not one: because
the heap is fragmented after the first shard, it grows by about 5 % during the second, but no longer after the third.

    python benchmarks/bench_memory.py [--images 200] [--scenes 32] [--times 10]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from spr.config import load_config
from spr.embedded.scenes import write_scenes
from spr.pipeline.stage import due_stages

FAKES = ["describer.backend=fake", "scorer.backend=fake", "detector.backend=fake"]
STAGE = """
import sys
from pathlib import Path
from spr.config import load_config
from spr.pipeline.runner import run
run(load_config(sys.argv[1], sys.argv[4:]), Path(sys.argv[2]), until=sys.argv[3])
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def write_photographs(folder: Path, count: int, distinct: int = 16) -> None:
    """Write COCO JSON with ``count`` images, whose files are hard links to ``distinct`` ones."""
    draw, images = random.Random(0), folder / "images"
    images.mkdir(parents=True)
    for k in range(min(distinct, count)):
        coarse = Image.merge("RGB", [Image.effect_noise((80, 60), 40 + k) for _ in range(3)])
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(images / f"{k}.jpg", quality=90)
    for k in range(distinct, count):
        os.link(images / f"{k % distinct}.jpg", images / f"{k}.jpg")
    annotations = [
        {
            "id": 12 * k + j,
            "image_id": k,
            "category_id": 1 + j % 3,
            "bbox": [draw.uniform(0, 500), draw.uniform(0, 360), draw.uniform(40, 140), draw.uniform(40, 120)],
            "iscrowd": 0,
        }
        for k in range(count)
        for j in range(12)
    ]
    entries = [{"id": k, "file_name": f"{k}.jpg", "width": 640, "height": 480} for k in range(count)]
    names = [{"id": k, "name": name} for k, name in enumerate(("dog", "traffic light", "cup"), start=1)]
    coco = {"images": entries, "annotations": annotations, "categories": names}
    (folder / "instances.json").write_text(json.dumps(coco))


def peaks(config: str, data: Path, out: Path, overrides: list[str]) -> dict[str, float]:
    """Peak memory of each stage in MiB."""
    paths = [f"annotations.path={data / 'instances.json'}", f"annotations.images={data / 'images'}"]
    found = {}
    for stage in (stage.name for stage in due_stages(load_config(config, [*paths, *overrides]))):
        command = [sys.executable, "-c", STAGE, config, str(out), stage, *paths, *overrides]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        found[stage] = int(done.stdout.split()[-1]) / 1024
    return found


def compare(title: str, few: dict[str, float], many: dict[str, float], counts: tuple[int, int]) -> dict[str, Any]:
    """Print one table."""
    print(f"\n{title}\n{'stage':12}{counts[0]:>8,} images{counts[1]:>8,} images{'ratio':>9}")
    for stage in few:
        print(f"{stage:12}{few[stage]:>11.0f} MiB{many[stage]:>11.0f} MiB{many[stage] / few[stage]:>9.3f}")
    return {"few": few, "many": many, "ratio": {stage: many[stage] / few[stage] for stage in few}}


def main() -> None:
    """Print the tables, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"images": 200, "scenes": 32, "times": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty.yaml").write_text("{}")
        measured: dict[str, list[dict[str, float]]] = {"fakes": [], "embedded": []}
        for times in (1, arguments.times):
            photographs, scenes = folder / f"photographs-{times}", folder / f"scenes-{times}"
            write_photographs(photographs, times * arguments.images)
            shard = [f"shard_rows={-(-arguments.images // 2)}"]
            config = str(folder / "empty.yaml")
            measured["fakes"].append(peaks(config, photographs, folder / f"fakes-{times}", [*FAKES, *shard]))
            write_scenes(scenes, times * arguments.scenes, 0)
            shard = [f"shard_rows={-(-arguments.scenes // 2)}"]
            measured["embedded"].append(peaks("quickstart", scenes, folder / f"embedded-{times}", shard))
    for title, count in (("fakes", arguments.images), ("embedded", arguments.scenes)):
        results[title] = compare(title, *measured[title], (count, arguments.times * count))
    print(json.dumps({"benchmark": "memory", **results}))


if __name__ == "__main__":
    main()
