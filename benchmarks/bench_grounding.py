"""Measure how many descriptions per second `spr.grounding.parse` reads on one core, per dialect.

The same generated descriptions are written in every dialect. Each has 4 or 5 grounded objects and about 300 characters
in LLaVA's dialect; the table gives the length in the others. Dialects without boxes get the boxes' centres as points.
Each round measures all dialects in turn, so that a short slowdown of the machine does not affect only one of them, and
the median round counts. Times are CPU times, so that other processes matter little; the load is printed, since they
still slow it down.

    python benchmarks/bench_grounding.py [--descriptions 2000] [--rounds 7]

Prints a table, then one line of JSON. The claim is at least 20,000 descriptions per second.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import time

from spr.grounding import DIALECTS, GroundedText, parse, render
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


def main() -> None:
    """Run the benchmark and print the results."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--descriptions", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=7)
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
    result = {
        "benchmark": "grounding",
        "descriptions": args.descriptions,
        "rounds": args.rounds,
        "boxes_per_description": round(boxes, 2),
        "descriptions_per_second": {key: round(rate) for key, rate in rates.items()},
        "slowest": round(min(rates.values())),
        "target": TARGET,
        "met": min(rates.values()) >= TARGET,
        "load": round(load, 1),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
