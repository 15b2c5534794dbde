"""Claim: a report of 10,000 pairs is written in under 20 seconds on two cores, and first paint takes under 1 second.

The run uses the fake models on 250 generated images and is repeated with new ids until there are enough pairs; every
pair has its own image file. Paint times are those that headless Chromium reports for the page opened from disk, each
time in a new profile. "First pair" is the time until the first pair is on the page. The report is written by a process
of its own; CPU time and memory (proportional set size) are those of this process and all that it starts.

    python benchmarks/bench_report.py [--pairs 10000] [--size 640x480] [--opens 5] [--no-images]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageFilter

from process_tree import ProcessTree
from spr.config import make_config
from spr.pipeline.runner import run
from spr.report.page import write_report
from spr.runs.store import Manifest, StageOutput, StageStore, dropped_table, read_table

BASE = 250
"""Number of distinct images; the others are hard links to them."""
IDS = ("query_id", "image_id", "candidate_id", "chosen_candidate", "rejected_candidate", "file_name")
WATCH = """
new MutationObserver((_, observer) => {
  if (document.querySelector(".card")) { window.firstCard = performance.now(); observer.disconnect(); }
}).observe(document, {childList: true, subtree: true});
"""


def make_photograph(number: int, size_wh: tuple[int, int]) -> Image.Image:
    """Blurred blocks with noise: as slow to decode as a photograph, about 60 kB at 640 × 480."""
    draw = np.random.default_rng(number)
    blocks = Image.fromarray(draw.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize(
        size_wh, Image.Resampling.BICUBIC
    )
    picture = np.asarray(blocks.filter(ImageFilter.GaussianBlur(3))).astype(np.int16)
    return Image.fromarray(np.clip(picture + draw.integers(-9, 10, picture.shape), 0, 255).astype(np.uint8))


def make_run(folder: Path, pairs: int, size_wh: tuple[int, int]) -> Path:
    """A run folder with at least ``pairs`` pairs, each with its own image file."""
    images, out = folder / "images", folder / "run"
    images.mkdir()
    coco: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": k, "name": f"category {k}"} for k in range(80)]
    draw = np.random.default_rng(0)
    for k in range(BASE):
        make_photograph(k, size_wh).save(images / f"0-{k}.jpg", quality=88)
        coco["images"].append({"id": k, "file_name": f"0-{k}.jpg", "width": size_wh[0], "height": size_wh[1]})
        for j in range(14):
            sides = draw.uniform(40, 160, 2)
            corner = draw.uniform(0, 1, 2) * (np.array(size_wh) - sides)
            box = [float(v) for v in (*corner, *sides)]
            entry = {"id": 100 * k + j, "image_id": k, "category_id": int(draw.integers(80)), "bbox": box, "iscrowd": 0}
            coco["annotations"].append(entry)
    (folder / "instances.json").write_text(json.dumps(coco), encoding="utf-8")
    config = make_config(
        {
            "annotations": {"path": str(folder / "instances.json"), "images": str(images)},
            "describer": {"backend": "fake"},
            "scorer": {"backend": "fake"},
            "detector": {"backend": "none"},
        }
    )
    run(config, out)
    for stage in ("regions", "candidates", "scores", "pairs"):
        repeat(StageStore(out / stage), -(-pairs // read_table(out / "pairs" / "part-00000.parquet").num_rows))
    for copy in range(1, len(StageStore(out / "pairs").finished().shards)):
        for k in range(BASE):
            os.link(images / f"0-{k}.jpg", images / f"{copy}-{k}.jpg")
    return out


def repeat(store: StageStore, times: int) -> None:
    """Write the stage's only shard ``times`` times, each with its own ids and file names."""
    table = read_table(store.part(0))
    before = store.finished()
    manifest = Manifest(before.stage, before.fingerprint, source=before.source, complete=True)
    for index in range(times):
        copied = table
        for position, name in enumerate(table.schema.names):
            if name in IDS:
                old = pc.replace_substring_regex(table[name], r"^0-", "") if name == "file_name" else table[name]
                renamed = pc.binary_join_element_wise(pa.scalar(str(index)), old, "-")
                copied = copied.set_column(position, table.schema.field(name), renamed)
        nothing = dropped_table(before.stage, "image", [])
        manifest.shards.append(store.write_shard(index, StageOutput(copied, nothing), inputs=len(copied)))
    store.save(manifest)


def child(run: str, pairs: int, images: bool) -> None:
    """Write the report, in a process of its own; prints the seconds that it took after the imports."""
    started = time.perf_counter()
    write_report(Path(run), max_pairs=pairs, images=images)
    print(time.perf_counter() - started)


def measure(run: Path, pairs: int, images: bool) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak memory in MB of a report; the last two with the imports."""
    command = [sys.executable, __file__, "--run", str(run), "--pairs", str(pairs), *([] if images else ["--no-images"])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with ProcessTree(process.pid, every=0.1) as tree:
        seconds = process.communicate()[0]
    if process.returncode:
        raise SystemExit(process.returncode)
    return float(seconds), tree.samples[-1].cpu, max(sample.pss for sample in tree.samples) / 1e6


def paint(page: Path, opens: int) -> tuple[list[float], list[float]]:
    """Milliseconds to the first contentful paint and to the first pair, for each of ``opens`` fresh profiles."""
    from playwright.sync_api import sync_playwright

    painted, drawn = [], []
    with sync_playwright() as playwright:
        for _ in range(opens):
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tab.add_init_script(WATCH)
            tab.goto(page.absolute().as_uri())
            tab.wait_for_selector(".card")
            # The browser reports a paint a short time after it.
            tab.wait_for_timeout(500)
            painted.append(tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            drawn.append(tab.evaluate("window.firstCard"))
            browser.close()
    return painted, drawn


def main() -> None:
    """Measure, print the results, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--opens", type=int, default=5)
    parser.add_argument("--no-images", action="store_true", help="write no thumbnails")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        child(arguments.run, arguments.pairs, not arguments.no_images)
        return
    width, height = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        out = make_run(Path(name), arguments.pairs, (width, height))
        pairs = StageStore(out / "pairs").finished().rows
        seconds, cpu, memory = measure(out, arguments.pairs, not arguments.no_images)
        index = out / "report" / "index.html"
        files = [path for path in index.parent.rglob("*") if path.is_file()]
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        painted, drawn = paint(index, arguments.opens)
    shown = min(pairs, arguments.pairs)
    rate = shown / seconds
    print(f"{shown:,} of {pairs:,} pairs shown, images of {width}×{height}: {seconds:.1f} s ({rate:.0f} pairs/s)")
    print(f"{cpu:.1f} s of CPU time over all processes, {memory:,.0f} MB of memory at most")
    print(f"{len(files):,} files, {megabytes:,.0f} MB")
    print(f"first paint {statistics.median(painted):.0f} ms, first pair {statistics.median(drawn):.0f} ms (medians)")
    result = {"pairs": shown, "size": arguments.size, "seconds": seconds, "cpu_seconds": cpu, "megabytes": megabytes}
    result |= {"memory_mb": memory}
    print(json.dumps({"benchmark": "report", **result, "paint_ms": painted, "first_pair_ms": drawn}))


if __name__ == "__main__":
    main()
