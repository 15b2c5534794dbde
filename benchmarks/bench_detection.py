"""Claim: `spr evaluate detection --predictions` scores at least 5,000 images per second on one core.

Measures the CPU time of everything that the command does after its imports: read COCO's annotations and the predictions
file, match the answers by id, parse the boxes, find the categories of their names, match them to the objects, compute
all figures with their intervals, and write the result and its items. About 7 objects and 7 boxes per image and 80
categories, as in COCO.

The reference is pycocotools in the same run: alone (`evaluate`, `accumulate`, `summarize`, without reading files),
beside our own part of that, and with what it needs before, the annotations and detections that are parsed already.

    python benchmarks/bench_detection.py [--images 5000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from spr.evaluation.detection.annotations import read_detection
from spr.evaluation.detection.average_precision import curves, summary
from spr.evaluation.detection.matching import Detections, match
from spr.evaluation.task import evaluate
from spr.grounding import get_dialect, render
from spr.grounding.text import GroundedText
from spr.records import Span

DIALECTS = ("qwen3_vl", "ferret")
SIZE = (640, 480)
CATEGORIES = 80


def make(folder: Path, images: int, dialect: str) -> None:
    """Write annotations, answers, and the boxes of the answers in COCO's result format.

    Four of five objects have a box, shifted by 5 %; one box in five is elsewhere. Three categories per image.
    """
    draw, own = np.random.default_rng(0), get_dialect(dialect)
    names = [f"thing {chr(97 + k % 26)}{chr(97 + k // 26)}" for k in range(CATEGORIES)]
    objects, lines, found = [], [], []
    for image in range(1, images + 1):
        here, answer = draw.choice(CATEGORIES, 3, replace=False), []
        for _ in range(int(draw.poisson(7))):
            (x, y), (w, h) = draw.uniform(0, 400, 2), np.exp(draw.uniform(2.5, 5.2, 2))
            box = np.array([x, y, min(x + w, SIZE[0]), min(y + h, SIZE[1])])
            category = int(draw.choice(here))
            sides = box[2:] - box[:2]
            row = {"id": len(objects) + 1, "image_id": image, "category_id": category + 1, "iscrowd": 0}
            bbox = [round(float(v), 2) for v in (*box[:2], *sides)]
            objects.append(row | {"bbox": bbox, "area": float(sides.prod() * 0.7), "segmentation": [[1.5] * 40]})
            if draw.random() < 0.8:
                moved = np.clip(box + draw.normal(0, 0.05, 4) * [*sides, *sides], 0, [*SIZE, *SIZE])
                if (moved[2:] > moved[:2] + 1).all():
                    answer.append((category, moved))
            if draw.random() < 0.2:
                x, y = draw.uniform(0, 400, 2)
                answer.append((int(draw.choice(here)), np.array([x, y, x + 40, y + 40])))
        spans, at = [], 0
        for category, box in answer:
            name = names[category]
            spans.append(Span(name, at, at + len(name), (tuple(map(float, box)),)))
            at += len(name) + 2
        plain = ", ".join(names[category] for category, _ in answer)
        text = render(GroundedText(plain, tuple(spans)), own, SIZE)
        lines.append(json.dumps({"id": image, "answer": text}))
        frame = own.frame(SIZE)
        for category, box in answer:
            x1, y1, x2, y2 = frame.decode(frame.encode(tuple(map(float, box))))[0]
            found.append([image, x1, y1, x2 - x1, y2 - y1, 1.0, category + 1])
    rows = [{"id": k, "file_name": f"{k:012d}.jpg", "width": 640, "height": 480} for k in range(1, images + 1)]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
    content = {"images": rows, "annotations": objects, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "answers.jsonl").write_text("\n".join(lines) + "\n")
    np.save(folder / "found.npy", np.array(found))


def command(folder: Path, dialect: str) -> tuple[float, list[float]]:
    """CPU seconds of the whole command, and COCO's twelve figures."""
    start = time.process_time()
    result = evaluate("detection", folder / "instances.json", predictions=folder / "answers.jsonl", dialect=dialect)
    result.write(folder / "result.json")
    return time.process_time() - start, [value or 0.0 for value in list(result.figures.values())[:12]]


def matching(folder: Path, _: str) -> tuple[float, list[float]]:
    """CPU seconds of matching and average precision alone."""
    data, rows = read_detection(folder / "instances.json"), np.load(folder / "found.npy")
    boxes = rows[:, 1:5].copy()
    boxes[:, 2:] += boxes[:, :2]
    found = Detections(rows[:, 0].astype(np.int64) - 1, rows[:, 6].astype(np.int64) - 1, boxes, rows[:, 5])
    start = time.process_time()
    figures = summary(data, curves(data, match(data, found)))
    return time.process_time() - start, [value or 0.0 for value in figures.values()]


def pycocotools(folder: Path, _: str) -> tuple[float, list[float]]:
    """CPU seconds of pycocotools' evaluation alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(folder / "instances.json")
        evaluation = COCOeval(truth, truth.loadRes(np.load(folder / "found.npy")), "bbox")
        start = time.process_time()
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return time.process_time() - start, evaluation.stats.tolist()


def pycocotools_with_files(folder: Path, dialect: str) -> tuple[float, list[float]]:
    """CPU seconds of reading the annotations and the parsed detections, and of pycocotools' evaluation."""
    start = time.process_time()
    _, figures = pycocotools(folder, dialect)
    return time.process_time() - start, figures


WORKS: dict[str, Callable[[Path, str], tuple[float, list[float]]]] = {
    work.__name__: work for work in (command, matching, pycocotools, pycocotools_with_files)
}


def measure(work: str, folder: Path, small: Path, dialect: str) -> tuple[float, list[float]]:
    """One measurement in its own process; the small files are evaluated first, for what is imported late."""
    arguments = [sys.executable, __file__, "--work", work, "--dialect", dialect, str(small), str(folder)]
    seconds, figures = json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    return seconds, figures


def main() -> None:
    """Measure, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--dialect", default="", help=argparse.SUPPRESS)
    parser.add_argument("folders", nargs="*", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work = WORKS[arguments.work]
        work(arguments.folders[0], arguments.dialect)
        print(json.dumps(work(arguments.folders[1], arguments.dialect)))
        return
    print(f"{arguments.images:,} images, median of {arguments.repeats}, images per second of CPU time; target 5,000")
    rows = []
    for dialect in DIALECTS:
        with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as other:
            folder, small = Path(name), Path(other)
            make(folder, arguments.images, dialect)
            make(small, 50, dialect)
            taken: dict[str, list[float]] = {work: [] for work in WORKS}
            for _ in range(arguments.repeats):
                figures = {}
                for work, seconds in taken.items():
                    one, figures[work] = measure(work, folder, small, dialect)
                    seconds.append(one)
                for own in figures.values():
                    if not np.allclose(own, figures["pycocotools"], rtol=0, atol=1e-6):
                        raise SystemExit(f"the figures differ: {figures}")
            speeds = {work: arguments.images / statistics.median(seconds) for work, seconds in taken.items()}
            print(f"{dialect:<10}" + "".join(f"  {work} {speed:,.0f}/s" for work, speed in speeds.items()))
            rows.append({"dialect": dialect, **speeds})
    print(json.dumps({"benchmark": "detection", "n": arguments.images, "rows": rows}))


if __name__ == "__main__":
    main()
