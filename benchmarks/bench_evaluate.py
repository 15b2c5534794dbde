"""Claim: `spr evaluate rec --predictions` scores at least 80,000 answers per second on one core, intervals included.

Measures the CPU time of everything that the command does after its imports: read MDETR's JSON and the predictions file,
match the answers by id, parse the boxes, score them, bootstrap all metrics of all groups, and write the result and its
items. The reference is a plain Python loop with `json` and one regular expression that computes only Acc@0.5 to
Acc@0.9: no groups, intervals or problems, and no items file.

    python benchmarks/bench_evaluate.py [--answers 50000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spr.evaluation.task import evaluate
from spr.evaluation.tasks.rec import THRESHOLDS
from spr.grounding import get_dialect, render_box

PER_IMAGE = {"as RefCOCO, 7 per image": 7, "one per image": 1}
FORMS = {"box alone": "{box}", "phrase and box": "{phrase} {box}."}
PHRASES = (
    "the man on the left",
    "a woman in red",
    "the large brown dog",
    "man wearing a hat",
    "bowl behind the carrots",
)
DIALECT = "ferret"
_BOX = re.compile(r"\[(\d+), (\d+), (\d+), (\d+)\]")


def make(folder: Path, answers: int, per_image: int, form: str) -> tuple[Path, Path]:
    """Write annotations and shuffled answers: boxes are a few pixels off, and one answer in 50 has no box."""
    draw = np.random.default_rng(0)
    dialect = get_dialect(DIALECT)
    images, annotations, lines = [], [], []
    for k in range(answers):
        x, y, w, h = (float(v) for v in draw.uniform((0, 0, 30, 30), (400, 280, 240, 200)))
        name = f"COCO_train2014_{k // per_image:012d}.jpg"
        size = {"file_name": name, "width": 640, "height": 480, "original_id": k // per_image}
        row = {"id": k, "caption": "the man on the left", "dataset_name": "refcoco", "tokens_negative": [[0, 19]]}
        images.append({**row, **size})
        annotations.append(
            {"id": k, "image_id": k, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "category_id": 1}
        )
        moved = np.array([x, y, x + w, y + h]) + draw.normal(0, 8, 4)
        box = render_box(
            (min(moved[0], moved[2]), min(moved[1], moved[3]), *map(float, moved[2:])), dialect, (640, 480)
        )
        answer = (
            form.replace("{box}", box).replace("{phrase}", PHRASES[k % len(PHRASES)]) if k % 50 else "I can't see that."
        )
        lines.append(json.dumps({"id": str(k), "prompt": "What is the location of it?", "answer": answer}))
    truth, answers_file = folder / "finetune_refcoco_val.json", folder / "answers.jsonl"
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    answers_file.write_text("\n".join(lines[k] for k in draw.permutation(answers)) + "\n")
    return truth, answers_file


def ours(truth: Path, answers: Path) -> dict[str, float]:
    """The accuracies that the command computes and writes."""
    result = evaluate("rec", truth, predictions=answers, dialect=DIALECT)
    written = result.write(answers.parent / "result.json")
    return {name: written["metrics"][name]["value"] for name in written["metrics"]}


def plain(truth: Path, answers: Path) -> dict[str, float]:
    """The accuracies from a loop over the answers."""
    whole = json.loads(truth.read_text())
    boxes = {entry["image_id"]: entry["bbox"] for entry in whole["annotations"]}
    rows = {str(row["id"]): row for row in whole["images"]}
    right = dict.fromkeys(THRESHOLDS, 0)
    for line in answers.read_text().splitlines():
        prediction = json.loads(line)
        row, match = rows[prediction["id"]], _BOX.search(prediction["answer"])
        x, y, w, h = boxes[row["id"]]
        if match is None:
            continue
        width, height = row["width"], row["height"]
        x1, y1 = int(match[1]) * width / 1000, int(match[2]) * height / 1000
        x2, y2 = int(match[3]) * width / 1000, int(match[4]) * height / 1000
        shared = max(0.0, min(x2, x + w) - max(x1, x)) * max(0.0, min(y2, y + h) - max(y1, y))
        overlap = shared / ((x2 - x1) * (y2 - y1) + w * h - shared)
        for threshold in THRESHOLDS:
            right[threshold] += overlap >= threshold
    return {f"acc@{threshold}": count / len(rows) for threshold, count in right.items()}


WORKS: dict[str, Callable[[Path, Path], dict[str, float]]] = {"ours": ours, "plain": plain}


def cpu_seconds(work: str, files: tuple[Path, Path], small: tuple[Path, Path]) -> tuple[float, dict[str, float]]:
    """CPU seconds of one call in its own process, summed over threads, and the accuracies.

    The small files are evaluated first, because pyarrow imports modules when it makes its first table.
    """
    command = [sys.executable, __file__, "--work", work, *map(str, (*small, *files))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, found = json.loads(done.stdout)
    return seconds, found


def child(work: str, truth: Path, answers: Path, *files: Path) -> None:
    """Run one measurement, in the child process."""
    WORKS[work](truth, answers)
    start = time.process_time()
    found = WORKS[work](*files)
    print(json.dumps([time.process_time() - start, found]))


def main() -> None:
    """Measure, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        child(arguments.work, *arguments.files)
        return
    print(
        f"{arguments.answers:,} answers, median of {arguments.repeats}, CPU time of one core; target 80,000 answers/s"
    )
    print(f"{'answers':<16} {'images':<24} {'ours/s':>10} {'plain loop/s':>13} {'ours over plain':>16}")
    rows = []
    for form_name, form in FORMS.items():
        for name, per_image in PER_IMAGE.items():
            with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
                files = make(Path(folder), arguments.answers, per_image, form)
                small = make(Path(other), 100, per_image, form)
                taken: list[tuple[float, float]] = []
                for _ in range(arguments.repeats):
                    one, found = cpu_seconds("ours", files, small)
                    two, expected = cpu_seconds("plain", files, small)
                    taken.append((one, two))
                # The result file rounds to six digits.
                if any(abs(found[key] - value) > 1e-6 for key, value in expected.items()):
                    raise SystemExit(f"the two implementations disagree: {found} and {expected}")
            speeds = [arguments.answers / statistics.median(column) for column in zip(*taken, strict=True)]
            ratio = statistics.median(two / one for one, two in taken)
            print(f"{form_name:<16} {name:<24} {speeds[0]:>10,.0f} {speeds[1]:>13,.0f} {ratio:>16.2f}")
            rows.append({"answers": form_name, "images": name, "ours": speeds[0], "plain": speeds[1], "ratio": ratio})
    print(json.dumps({"benchmark": "evaluate", "n": arguments.answers, "rows": rows}))


if __name__ == "__main__":
    main()
