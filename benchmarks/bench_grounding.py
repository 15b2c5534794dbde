"""Measure how many descriptions per second `spr.grounding.parse` reads on one core, per dialect.

The same generated descriptions are written in every dialect. Each has 4 or 5 grounded objects and about 300 characters
in LLaVA's dialect; the table gives the length in the others. Dialects without boxes get the boxes' centres as points.
Each round measures all dialects in turn, so that a short slowdown of the machine does not affect only one of them, and
the median round counts. Times are CPU times, so that other processes matter little; the load is printed, since they
still slow it down.

    python benchmarks/bench_grounding.py [--descriptions 2000] [--rounds 7] [--answers 10000] [--beside-rounds 5]

Then `parse` and `Detections.from_vlm` of supervision, which gives boxes and labels as arrays, read the same answers of
10 boxes in turns, in the dialects that supervision reads from text. It is installed in the same environment with
``pip install supervision``; without it, this part is skipped. `parse` also gives the text and the phrases, and all
of its results are made within the measured time.

Prints the tables, then one line of JSON. The claims are at least 20,000 descriptions per second, and not slower than
supervision in any dialect.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from spr.grounding import DIALECTS, GroundedText, get_dialect, parse, render
from spr.grounding.points import centre
from spr.records import Box, Span

SIZE_WH = (1280, 853)
TARGET = 20_000
_PARTS = (
    ("In this busy street, ", "a man", " in a coat waits"),
    (" with ", "two brown dogs", ""),
    (" next to ", "a row of parked bicycles", ", which lean on a wall"),
    (". Behind him, ", "a tall woman", " looks at a phone"),
    (", and on the left ", "the wheel of a bus", " can be seen"),
)
_TAIL = "."


def describe(rng: random.Random) -> GroundedText:
    """A generated description of 4 or 5 objects; sometimes one of them has two boxes."""
    text, spans = "", []
    for before, phrase, after in _PARTS[: rng.choice((4, 5))]:
        text += before
        boxes = tuple(_box(rng) for _ in range(2 if phrase.startswith("two") and rng.random() < 0.3 else 1))
        spans.append(Span(phrase, len(text), len(text) + len(phrase), boxes))
        text += phrase + after
    return GroundedText(text + _TAIL, tuple(spans))


def _box(rng: random.Random) -> Box:
    w, h = SIZE_WH
    x1, y1 = rng.uniform(0, w - 40), rng.uniform(0, h - 40)
    return x1, y1, rng.uniform(x1 + 20, w), rng.uniform(y1 + 20, h)


def in_dialect(grounded: GroundedText, key: str) -> GroundedText:
    """The description with its boxes, or with their centres if the dialect only has points."""
    if DIALECTS[key].writes_boxes:
        return grounded
    spans = [Span(one.phrase, one.start, one.end, (), tuple(map(centre, one.boxes))) for one in grounded.spans]
    return GroundedText(grounded.plain_text, tuple(spans))


def measure(texts: list[str], dialect: str) -> float:
    """CPU seconds to parse all texts once."""
    started = time.process_time()
    for text in texts:
        parse(text, dialect, SIZE_WH)
    return time.process_time() - started


BESIDE = {
    "qwen3_vl": "qwen_3_vl",
    "qwen2_5_vl": "qwen_2_5_vl",
    "paligemma": "paligemma",
    "deepseek_vl2": "deepseek_vl_2",
    "gemini": "gemini_2_5",
}
"""The dialects that supervision reads from text, with its names."""
_LABELS = (
    *("person", "red car", "dog", "traffic light", "wheel of a bus", "tall woman", "bench", "handbag"),
    *("street sign", "bicycle", "tree", "window"),
)


def list_objects(rng: random.Random) -> GroundedText:
    """A list of 10 objects with a box each."""
    text, spans = "", []
    for _ in range(10):
        label = rng.choice(_LABELS)
        text += ", " if text else ""
        spans.append(Span(label, len(text), len(text) + len(label), (_box(rng),)))
        text += label
    return GroundedText(text, tuple(spans))


def their_reader(dialect: str) -> Callable[[str], Any]:
    """The function of supervision that reads answers in a dialect."""
    from supervision import VLM, Detections

    options: dict[str, Any] = {"resolution_wh": SIZE_WH}
    if dialect == "qwen2_5_vl":
        canvas = get_dialect(dialect).geometry.canvas(SIZE_WH)
        options["input_wh"] = canvas.seen_w, canvas.seen_h
    vlm = next(member for member in VLM if member.value.removeprefix("google_") == BESIDE[dialect])
    return lambda text: Detections.from_vlm(vlm, text, **options)


def beside(answers: int, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of CPU time per answer of 10 boxes: ours, theirs, and the median of the rounds' ratios."""
    rng = random.Random(1)
    items = [list_objects(rng) for _ in range(answers)]
    found: dict[str, dict[str, float]] = {}
    print(f"{'10 boxes':<16} {'characters':>10} {'parse, µs':>10} {'from_vlm, µs':>13} {'ratio':>6}")
    for key in BESIDE:
        texts, read = [render(item, key, SIZE_WH) for item in items], their_reader(key)
        for text in texts[:100]:
            if len(parse(text, key, SIZE_WH).boxes) != 10 or len(read(text)) != 10:
                raise SystemExit(f"{key}: not 10 boxes in {text!r}")
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(measure(texts, key))
            started = time.process_time()
            for text in texts:
                read(text)
            theirs.append(time.process_time() - started)
        ratio = statistics.median(own / other for own, other in zip(ours, theirs, strict=True))
        our_time, their_time = (statistics.median(runs) / answers * 1e6 for runs in (ours, theirs))
        length = statistics.mean(map(len, texts))
        print(f"{key:<16} {length:>10.0f} {our_time:>10.1f} {their_time:>13.1f} {ratio:>6.2f}")
        found[key] = {"ours_us": round(our_time, 1), "theirs_us": round(their_time, 1), "ratio": round(ratio, 3)}
    return found


def main() -> None:
    """Run the benchmark and print the results."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--descriptions", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--answers", type=int, default=10_000, help="answers of 10 boxes; 0 skips them")
    options.add_argument("--beside-rounds", type=int, default=5)
    args = options.parse_args()
    rng = random.Random(0)
    grounded = [describe(rng) for _ in range(args.descriptions)]
    texts = {key: [render(in_dialect(item, key), key, SIZE_WH) for item in grounded] for key in DIALECTS}
    for key, lines in texts.items():  # check that the measured work is correct
        for line, item in zip(lines, grounded, strict=True):
            again = parse(line, key, SIZE_WH, strict=True)
            if len(again.boxes) + len(again.points) != len(item.boxes):
                raise SystemExit(f"{key} lost a box of {line!r}")
    gc.collect()
    gc.freeze()
    seconds: dict[str, list[float]] = {key: [] for key in DIALECTS}
    for _ in range(args.rounds):
        for key, lines in texts.items():
            seconds[key].append(measure(lines, key))
    rates = {key: args.descriptions / statistics.median(runs) for key, runs in seconds.items()}
    boxes = statistics.mean(len(item.boxes) for item in grounded)
    print(f"{'dialect':<16} {'characters':>10} {'descriptions/s':>15} {'slowest round':>14} {'fastest round':>14}")
    for key, rate in sorted(rates.items(), key=lambda pair: pair[1]):
        length = statistics.mean(map(len, texts[key]))
        slow, fast = args.descriptions / max(seconds[key]), args.descriptions / min(seconds[key])
        print(f"{key:<16} {length:>10.0f} {rate:>15,.0f} {slow:>14,.0f} {fast:>14,.0f}")
    load = os.getloadavg()[0]
    print(f"{boxes:.2f} boxes per description; target {TARGET:,} per second; slowest {min(rates.values()):,.0f}")
    print(f"load {load:.1f} on {os.cpu_count()} cores")
    supervision = _version("supervision") if args.answers else None
    if args.answers and supervision is None:
        print("supervision is not installed: `pip install supervision` to compare with it")
    compared = beside(args.answers, args.beside_rounds) if supervision is not None else {}
    result = {
        "benchmark": "grounding",
        "descriptions": args.descriptions,
        "rounds": args.rounds,
        "boxes_per_description": round(boxes, 2),
        "descriptions_per_second": {key: round(rate) for key, rate in rates.items()},
        "slowest": round(min(rates.values())),
        "target": TARGET,
        "beside_supervision": compared,
        "supervision": supervision,
        "met": min(rates.values()) >= TARGET and all(own["ratio"] <= 1 for own in compared.values()),
        "load": round(load, 1),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(json.dumps(result))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
