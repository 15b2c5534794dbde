"""Compare the speed and memory of `read_coco` with those of pycocotools on a file shaped like Objects365.

    python benchmarks/bench_import.py [--boxes 1000000] [--large-boxes 10000000] [--repeats 3]

Every measurement is a separate process, the readers alternate, and medians are reported. Only the reading is timed,
after the imports and with the file in the page cache. Both readers use one thread. The bounds apply to CPU seconds,
which depend less on other processes than wall-clock time does. Memory is the peak resident size of the process
(`ru_maxrss`), in total and as the increase over its size before reading; the bounds apply to the total. Only
`read_coco` reads the large file. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BOXES_PER_IMAGE = 15
CATEGORIES = 365
SPEEDUP_WANTED, MEMORY_SHARE_WANTED, LARGE_MIB_WANTED, LINEAR_WANTED = 5.0, 0.25, 3 * 1000**3 / 2**20, 1.25


def generate(path: Path, boxes: int, seed: int = 0) -> None:
    """Write a file like that of Objects365 v2: same keys in the same order, 10 decimals per float, shuffled images."""
    rng = random.Random(seed)
    images = max(boxes // BOXES_PER_IMAGE, 1)
    sizes = [rng.choice([(1024, 683), (769, 512), (500, 333), (480, 640)]) for _ in range(images)]
    ids = rng.sample(range(1, 2 * images + 1), images)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"images": [')
        for n, (id_, (width, height)) in enumerate(zip(ids, sizes, strict=True)):
            name = f"images/v2/patch{n % 51}/objects365_v2_{id_:08d}.jpg"
            file.write(
                f'{", " if n else ""}{{"height": {height}, "id": {id_}, "license": 5, "width": {width}, '
                f'"file_name": "{name}", "url": ""}}'
            )
        file.write('], "annotations": [')
        for n in range(boxes):
            image = int(rng.random() * images)
            width, height = sizes[image]
            w, h = (0.01 + 0.4 * rng.random()) * width, (0.01 + 0.4 * rng.random()) * height
            x, y = rng.random() * (width - w), rng.random() * (height - h)
            rare = rng.random()
            file.write(
                f'{", " if n else ""}{{"id": {n + 1}, "iscrowd": {int(rare < 0.01)}, '
                f'"isfake": {int(0.5 < rare < 0.52)}, '
                f'"area": {w * h:.10f}, "isreflected": {int(rare > 0.99)}, '
                f'"bbox": [{x:.10f}, {y:.10f}, {w:.10f}, {h:.10f}], '
                f'"image_id": {ids[image]}, "category_id": {1 + int(rng.random() * CATEGORIES)}}}'
            )
        names = ", ".join(f'{{"name": "category {n}", "id": {n}}}' for n in range(1, CATEGORIES + 1))
        file.write(f'], "categories": [{names}], "licenses": [{{"name": "", "id": 5, "url": ""}}]}}')


def measure_here(reader: str, path: str) -> dict[str, float]:
    """Read the file in this process; seconds, and peak resident size in MiB in total and as an increase."""
    from pycocotools.coco import COCO  # imported for both readers, so that both start with the same memory

    from spr.annotations import read_coco

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = time.perf_counter(), time.process_time()
    count = len(read_coco(path).object_ids) if reader == "spr" else len(COCO(path).anns)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"wall_s": wall, "cpu_s": cpu, "peak_mib": peak, "added_mib": peak - before, "boxes": count}


def measure(reader: str, path: Path, boxes: int) -> dict[str, float]:
    """Read the file in a new process, from the page cache, so that the disk is not measured."""
    with path.open("rb") as file:
        while file.read(2**24):
            pass
    command = [sys.executable, __file__, "--reader", reader, "--path", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if result["boxes"] != boxes:
        raise SystemExit(f"{reader} read {result['boxes']} of {boxes} boxes")
    return result


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of every quantity."""
    return {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def row(name: str, figures: dict[str, float]) -> str:
    """One line of the table."""
    return (
        f"{name:<12} {figures['boxes']:>12,.0f} {figures['wall_s']:>9.2f} {figures['cpu_s']:>9.2f} "
        f"{figures['peak_mib']:>10,.0f} {figures['added_mib']:>10,.0f}"
    )


def compare(boxes: int, large_boxes: int, repeats: int) -> dict[str, Any]:
    """Measure both readers and print the table."""
    print(f"{'reader':<12} {'boxes':>12} {'wall s':>9} {'CPU s':>9} {'peak MiB':>10} {'added MiB':>10}")
    with tempfile.TemporaryDirectory(prefix="bench-import-") as folder:
        small, large = Path(folder) / "small.json", Path(folder) / "large.json"
        tasks = {"spr": ("spr", small, boxes), "pycocotools": ("pycocotools", small, boxes)}
        generate(small, boxes)
        if large_boxes:
            generate(large, large_boxes)
            tasks["spr, large"] = ("spr", large, large_boxes)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in tasks}
        for _ in range(repeats):
            for name, task in tasks.items():
                runs[name].append(measure(*task))
        sizes = {path.stem: round(path.stat().st_size / 1e6) for path in (small, large) if path.exists()}
    found = {name: medians(results) for name, results in runs.items()}
    print(*(row(name, figures) for name, figures in found.items()), sep="\n")
    ours, theirs = found["spr"], found["pycocotools"]
    summary: dict[str, Any] = {
        "benchmark": "import",
        "file_mb": sizes,
        "repeats": repeats,
        "figures": found,
        "speedup_cpu": round(theirs["cpu_s"] / ours["cpu_s"], 2),
        "speedup_wall": round(theirs["wall_s"] / ours["wall_s"], 2),
        "memory_share": round(ours["peak_mib"] / theirs["peak_mib"], 3),
        # Small files add nothing to the peak that a process begins with.
        "memory_share_added": round(ours["added_mib"] / theirs["added_mib"], 3) if theirs["added_mib"] else None,
    }
    if large_boxes:
        big = found["spr, large"]
        summary["large_peak_mib"] = big["peak_mib"]
        summary["time_per_box_ratio"] = round(big["cpu_s"] / large_boxes / (ours["cpu_s"] / boxes), 3)
    summary["machine"] = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    return summary


def main() -> None:
    """Measure, print, and exit with status 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=1_000_000, help="boxes in the file that both readers read")
    parser.add_argument("--large-boxes", type=int, default=10_000_000, help="boxes in the large file; 0 skips it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reader", choices=["spr", "pycocotools"], help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reader:
        print(json.dumps(measure_here(args.reader, args.path)))
        return
    summary = compare(args.boxes, args.large_boxes, args.repeats)
    bounds = {
        f"at least {SPEEDUP_WANTED:g}× as fast": summary["speedup_cpu"] >= SPEEDUP_WANTED,
        "at most a quarter of the memory": summary["memory_share"] <= MEMORY_SHARE_WANTED,
    }
    if args.large_boxes:
        bounds["less than 3 GB for the large file"] = summary["large_peak_mib"] < LARGE_MIB_WANTED
        bounds[f"at most {LINEAR_WANTED:g}× the time per box in the large file"] = (
            summary["time_per_box_ratio"] <= LINEAR_WANTED
        )
    for bound, met in bounds.items():
        print(f"{'met   ' if met else 'MISSED'} {bound}")
    print(json.dumps({**summary, "met": all(bounds.values())}))
    sys.exit(0 if all(bounds.values()) else 1)


if __name__ == "__main__":
    main()
