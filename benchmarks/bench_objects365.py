"""Claim: objects and regions of a dataset like Objects365 take at most 6 minutes and 4 GB on 2 cores.

Generates a COCO JSON with the keys, the number format and the shuffled order of Objects365 v2: 1.7 million images with
25 million boxes (median 12 per image, up to hundreds), 365 categories, and some crowds. Then runs
`spr run … --until regions --workers 2` on all of its images, which are not opened, and reports seconds and CPU seconds
per stage, the peak memory of all processes together (sum of PSS, so that shared pages count once), and the files of the
run. Everything is written into a temporary folder that is deleted at the end, unless `--keep FOLDER` names one: a file
that is there is used again.

    python benchmarks/bench_objects365.py [--images 1700000] [--workers 2] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from process_tree import ProcessTree

BOXES_PER_IMAGE = 25 / 1.7
MEDIAN, SPREAD = 11.5, 0.70
"""Median and standard deviation of the logarithm of the number of boxes per image; the mean is `BOXES_PER_IMAGE`."""
CATEGORIES = 365
CROWDS = 0.005
SIZES = np.array([(1024, 683), (769, 512), (500, 333), (480, 640), (1280, 720), (640, 480)])
AT_ONCE = 50_000
SECONDS_WANTED, BYTES_WANTED = 360, 4e9
OPTIONS = ("annotations.check_images=false", "annotations.max_images=null", "annotations.crowds=drop", "describer=null")

_IMAGE = '{"height": %d, "id": %d, "license": 5, "width": %d, "file_name": "images/v2/patch%d/objects365_v2_%08d.jpg"'
_IMAGE += ', "url": ""}'
_BOX = '{"id": %d, "iscrowd": %d, "isfake": %d, "area": %.10f, "isreflected": %d, '
_BOX += '"bbox": [%.10f, %.10f, %.10f, %.10f], "image_id": %d, "category_id": %d}'


def counts_per_image(draw: np.random.Generator, images: int) -> npt.NDArray[np.int64]:
    """The number of boxes of each image, at least one, with the wanted mean."""
    counts = np.maximum(draw.lognormal(np.log(MEDIAN), SPREAD, images).astype(np.int64), 1)
    missing = round(images * BOXES_PER_IMAGE) - int(counts.sum())
    while missing:
        chosen = draw.choice(images, min(abs(missing), images), replace=False)
        chosen = chosen[counts[chosen] > 1] if missing < 0 else chosen
        counts[chosen] += 1 if missing > 0 else -1
        missing -= len(chosen) if missing > 0 else -len(chosen)
    return counts


def write_annotations(path: Path, images: int, seed: int = 0) -> int:
    """Write the file in pieces, and return the number of boxes."""
    draw = np.random.default_rng(seed)
    ids = draw.permutation(2 * images)[:images] + 1
    sizes = SIZES[draw.integers(0, len(SIZES), images)]
    owner = draw.permutation(np.repeat(np.arange(images, dtype=np.int32), counts_per_image(draw, images)))
    with path.open("w", encoding="utf-8", buffering=2**20) as file:
        file.write('{"images": [')
        for start in range(0, images, AT_ONCE):
            own = slice(start, start + AT_ONCE)
            number = np.arange(start, min(start + AT_ONCE, images))
            rows = np.stack([sizes[own, 1], ids[own], sizes[own, 0], number % 51, ids[own]], axis=1)
            file.write((", " if start else "") + _formatted(_IMAGE, rows))
        file.write('], "annotations": [')
        for start in range(0, len(owner), AT_ONCE):
            own = owner[start : start + AT_ONCE]
            file.write((", " if start else "") + _boxes(draw, start, sizes[own], ids[own]))
        names = ", ".join(f'{{"name": "{name}", "id": {n}}}' for n, name in enumerate(_names(), 1))
        file.write(f'], "categories": [{names}], "licenses": [{{"name": "", "id": 5, "url": ""}}]}}')
    return len(owner)


def _boxes(draw: np.random.Generator, start: int, sizes: npt.NDArray[np.int64], images: npt.NDArray[np.int64]) -> str:
    count = len(sizes)
    sides = np.clip(draw.lognormal(np.log(0.1), 0.9, (count, 2)), 0.004, 0.98) * sizes
    corners = draw.random((count, 2)) * (sizes - sides)
    rare = draw.random(count)
    rows: list[npt.NDArray[Any]] = [
        np.arange(start + 1, start + count + 1),
        rare < CROWDS,
        (rare > 0.5) & (rare < 0.52),
        sides.prod(axis=1),
        rare > 0.99,
        *corners.T,
        *sides.T,
        images,
        1 + (CATEGORIES * draw.random(count) ** 3).astype(np.int64),
    ]
    # One format of all rows is several times faster than one per row.
    values = [value for row in zip(*(column.tolist() for column in rows), strict=True) for value in row]
    return ", ".join([_BOX] * count) % tuple(values)


def _formatted(line: str, rows: npt.NDArray[np.int64]) -> str:
    return ", ".join([line] * len(rows)) % tuple(rows.reshape(-1).tolist())


def _names() -> list[str]:
    words = ("red", "small", "round", "wooden", "street", "kitchen", "garden", "toy", "glass", "old")
    things = ("dog", "lamp", "chair", "bottle", "car", "boat", "cup", "person", "bag", "clock")
    kinds = ("rack", "stand", "cover", "holder")
    names = [f"{word} {thing} {kind}" for kind in kinds for word in words for thing in things]
    return [*things, *names][:CATEGORIES]


def run(folder: Path, workers: int, config: Path) -> tuple[ProcessTree, float, float]:
    """Run both stages in a new process; its samples, and when it started and ended."""
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "spr", "run", str(config), "--out", str(out), "--until", "regions"]
    command += ["--workers", str(workers), *OPTIONS]
    started = time.time()
    process = subprocess.Popen(command)
    with ProcessTree(process.pid) as tree:
        if process.wait():
            raise SystemExit(process.returncode)
    return tree, started, time.time()


def phases(out: Path, started: float, ended: float) -> list[tuple[str, float, float]]:
    """Name, start and end of what the command did, from the log of the run."""
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    found, last = [], started
    for event in events:
        at = datetime.fromisoformat(event["time"]).timestamp()
        name = event["stage"] if event["event"] == "stage finished" else f"before {event['stage']}"
        found.append((name, last, at))
        last = at
    return [*found, ("after the last stage", last, ended)]


def main() -> None:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_700_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for the generated file and the run, which are not deleted")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"objects365-{arguments.images}.json"
        if not path.is_file():
            unfinished = path.with_suffix(".part")
            write_annotations(unfinished, arguments.images)
            unfinished.rename(path)
        (folder / "images").mkdir(exist_ok=True)
        config = folder / "config.yaml"
        content = {"annotations": {"path": str(path), "images": str(folder / "images")}}
        config.write_text(json.dumps(content))
        tree, started, ended = run(folder, arguments.workers, config)
        size, out = path.stat().st_size, folder / "run"
        files = [entry for entry in out.rglob("*") if entry.is_file()]
        total = sum(entry.stat().st_size for entry in files)
        print(f"{arguments.images:,} images, {size / 1e9:.2f} GB of JSON, {arguments.workers} workers")
        print(f"load average {os.getloadavg()[0]:.1f}")
        print(f"{'':24}{'seconds':>9}{'CPU s':>9}{'peak GB':>9}")
        table = {}
        for name, start, end in phases(out, started, ended):
            cpu, peak = tree.between(start, end)
            table[name] = {"seconds": end - start, "cpu": cpu, "peak": peak}
            print(f"{name:24}{end - start:>9.1f}{cpu:>9.1f}{peak / 1e9:>9.2f}")
        cpu, peak = tree.between(started, ended)
        print(f"{'all':24}{ended - started:>9.1f}{cpu:>9.1f}{peak / 1e9:>9.2f}  (PSS of all processes)")
        print(f"{len(files):,} files, {total / 1e9:.2f} GB; wanted: {SECONDS_WANTED} s, {BYTES_WANTED / 1e9:.0f} GB")
        figures = {"seconds": ended - started, "cpu": cpu, "peak": peak, "files": len(files), "bytes": total}
        print(json.dumps({"benchmark": "objects365", "images": arguments.images, **figures, "phases": table}))


if __name__ == "__main__":
    main()
