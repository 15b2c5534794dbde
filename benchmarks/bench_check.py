"""Claims: `spr check` reads one million rows of LLaVA JSON with three boxes each, and COCO JSON with as many boxes, in
under 2 minutes and 1 GB each.

    python benchmarks/bench_check.py [--rows 1000000]

The files are generated: no row of LLaVA JSON states the size of its image, or all do; answers are prose with boxes from
0 to 1. COCO JSON has segmentations of eight corners. Each check is a separate process, `spr check` as a user calls it;
the time is that of the whole process, and memory its peak resident size (`ru_maxrss`), imports included. Prints a
table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS, GIGABYTES, BOXES = 120, 1.0, 3
SIZES = ((640, 480), (480, 640), (1024, 768), (500, 375))
NOUNS = ("dog", "red cup", "man in a dark coat", "bicycle", "traffic light", "wooden table")


def scene(draw: random.Random) -> tuple[tuple[int, int], list[tuple[float, float, float, float]]]:
    """An image's size, and boxes, xyxy pixels."""
    width, height = draw.choice(SIZES)
    boxes = []
    for _ in range(BOXES):
        side = draw.uniform(0.05, 0.5) * min(width, height)
        x, y = draw.uniform(-side / 4, width - side / 2), draw.uniform(-side / 4, height - side / 2)
        boxes.append((max(x, 0.0), max(y, 0.0), min(x + side, float(width)), min(y + side, float(height))))
    return (width, height), boxes


def llava_rows(rows: int, *, sizes: bool) -> Iterator[str]:
    """Rows of LLaVA JSON with prose and boxes from 0 to 1."""
    draw = random.Random(0)
    for number in range(rows):
        (width, height), boxes = scene(draw)
        phrases = [
            f"a {draw.choice(NOUNS)} [{a / width:.3f}, {b / height:.3f}, {c / width:.3f}, {d / height:.3f}]"
            for a, b, c, d in boxes
        ]
        value = f"The image shows {phrases[0]}. Next to it there is {phrases[1]}, and in the background {phrases[2]}."
        row: dict[str, object] = {"id": f"{number:09d}", "image": f"train2017/{number:012d}.jpg"}
        if sizes:
            row |= {"width": width, "height": height}
        question = {"from": "human", "value": "<image>\nDescribe the image, with boxes."}
        yield json.dumps(row | {"conversations": [question, {"from": "gpt", "value": value}]})


def write_llava(path: Path, rows: int, *, sizes: bool) -> None:
    """A JSON list of rows."""
    with path.open("w") as file:
        for number, row in enumerate(llava_rows(rows, sizes=sizes)):
            file.write(("[" if number == 0 else ",\n") + row)
        file.write("]")


def write_coco(path: Path, images: int) -> None:
    """COCO JSON with three boxes per image.

    Nothing is kept in memory: the peak of this process would count as that of the processes it starts.
    """
    with path.open("w") as file:
        file.write('{"images": [')
        draw = random.Random(0)
        for number in range(images):
            (width, height), _ = scene(draw)
            entry = {"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height}
            file.write((", " if number else "") + json.dumps(entry))
        file.write('], "annotations": [')
        draw = random.Random(0)
        for number in range(images):
            for k, (a, b, c, d) in enumerate(scene(draw)[1]):
                box = [round(a, 2), round(b, 2), round(c - a, 2), round(d - b, 2)]
                about: dict[str, object] = {
                    "id": BOXES * number + k,
                    "image_id": number,
                    "category_id": 1 + number % 80,
                    "iscrowd": 0,
                }
                about |= {"bbox": box, "segmentation": [[a, b, c, b, c, d, a, d] * 2]}
                file.write((", " if number or k else "") + json.dumps(about))
        categories = [{"id": number, "name": f"category {number}"} for number in range(1, 81)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def measure(path: Path, *options: str) -> dict[str, float]:
    """Seconds and peak memory of one check in a separate process, which must end with exit code 0."""
    code = "import resource, sys\nfrom spr.cli import main\ntry:\n    main()\nfinally:\n"
    code += "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    started = time.monotonic()
    command = [sys.executable, "-c", code, "check", str(path), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if result.returncode:
        raise SystemExit(result.stdout + result.stderr)
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    gigabytes = int(result.stderr.split()[-1]) * 1024 / 1e9
    return {"seconds": seconds, "gigabytes": gigabytes, "cpu_of_all_so_far": cpu.ru_utime + cpu.ru_stime}


def main() -> None:
    """Measure, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of each file")
    options = parser.parse_args()
    found = {}
    print(f"{'data':<34}{'rows':>12}{'MB':>8}{'seconds':>9}{'CPU s':>8}{'rows/CPU s':>12}{'GB':>7}")
    with tempfile.TemporaryDirectory() as name:
        path, before = Path(name) / "data.json", 0.0
        cases = (
            ("LLaVA JSON, sizes unknown", "llava", False, ()),
            ("LLaVA JSON, sizes stated", "llava", True, ()),
            ("LLaVA JSON, sizes, --dialect, page", "llava", True, ("--dialect", "llava_onevision", "--out", "report")),
            ("COCO JSON", "coco", True, ()),
        )
        for title, layout, sizes, arguments in cases:
            if layout == "llava":
                write_llava(path, options.rows, sizes=sizes)
            else:
                write_coco(path, options.rows)
            where = [f"{name}/{text}" if text == "report" else text for text in arguments]
            one = measure(path, *where)
            cpu, before = one["cpu_of_all_so_far"] - before, one["cpu_of_all_so_far"]
            held = one["seconds"] < SECONDS and one["gigabytes"] < GIGABYTES
            size, rate = path.stat().st_size / 1e6, options.rows / cpu
            print(
                f"{title:<34}{options.rows:>12,}{size:>8.0f}{one['seconds']:>9.1f}{cpu:>8.1f}{rate:>10,.0f}"
                f"{one['gigabytes']:>7.2f}",
                flush=True,
            )
            found[title] = {"seconds": one["seconds"], "cpu": cpu, "gigabytes": one["gigabytes"], "held": held}
    print(json.dumps({"benchmark": "check", "rows": options.rows, "cases": found}))


if __name__ == "__main__":
    main()
