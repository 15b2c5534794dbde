"""Claims: 5,000 answers of 10 boxes per second and core, 30,000 of one box with `iou`, 2,000 boxes under a second.

Measures what an adapter asks of the core for one sample: decode the truth's JSON, read the generated text in its
dialect, and compute the reward. Times are CPU times of one process and a median over repetitions, since machines are
shared. The truths differ from answer to answer, and are seen once before they are timed, as a trainer sees each group
of answers to one prompt. The answers of 2,000 boxes are of several kinds, among them ones in which every box overlaps
every object. They are written in thousandths, in which many nested boxes coincide; in pixels, 2,000 nested boxes can
take longer (RESULTS.md, "Rewards under attack").

    python benchmarks/bench_rewards.py [--answers 1000] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from spr.grounding import GroundedText, render
from spr.records import Span
from spr.rewards import REWARDS, Truth, TruthObject, get_reward

DIALECTS = ("qwen3_vl", "qwen2_5_vl", "ferret", "internvl", "paligemma", "rex_omni")
SIZE = (1000, 800)
SUM = "0.6*f1@0.75 + 0.3*iou + 0.1*format"
WORDS = ("dog", "cat", "traffic light", "person", "potted plant")
Sample = tuple[str, str]
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def text_of(boxes: Array, labels: Sequence[str], dialect: str, size: tuple[int, int] = SIZE) -> str:
    """An answer that lists the boxes."""
    plain, spans = "", []
    for box, label in zip(boxes.tolist(), labels, strict=True):
        spans.append(Span(label, len(plain), len(plain) + len(label), (tuple(box),)))
        plain += label + " "
    return render(GroundedText(plain, tuple(spans)), dialect, size)


def samples(count: int, boxes: int, dialect: str, labels: str) -> list[Sample]:
    """Truths as JSON and generated texts: as many boxes as objects, each moved by up to a tenth of its sides."""
    draw = np.random.default_rng(0)
    made = []
    for _ in range(count):
        sides = draw.uniform(20, 300, (boxes, 2))
        corners = draw.uniform(0, 1, (boxes, 2)) * (np.array(SIZE) - sides)
        objects = np.hstack([corners, corners + sides])
        moved = np.clip(objects + draw.uniform(-0.1, 0.1, (boxes, 4)) * np.tile(sides, 2), 0, np.tile(SIZE, 2))
        names = draw.choice(WORDS, boxes).tolist()
        found = tuple(TruthObject(name, tuple(box)) for name, box in zip(names, objects.tolist(), strict=True))
        truth = Truth(found, dialect, SIZE, labels)  # type: ignore[arg-type]
        made.append((truth.to_json(), text_of(moved, names, dialect)))
    return made


def rate(data: Sequence[Sample], spec: str, repeats: int) -> float:
    """Answers per second of CPU time, the median of the repetitions."""
    reward = get_reward(spec)
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        for text, generated in data:
            truth = Truth.from_json(text)
            reward(truth.read(generated), truth)
        seconds.append(time.process_time() - start)
    return len(data) / statistics.median(seconds[1:])


def large(number: int = 2000) -> dict[str, tuple[Array, Array]]:
    """Boxes and objects of answers with so many boxes."""
    draw = np.random.default_rng(1)

    def random(low: float, high: float, span: float) -> Array:
        corners = draw.uniform(0, span, (number, 2))
        return np.hstack([corners, corners + draw.uniform(low, high, (number, 2))])

    apart, wide = random(10, 100, 3900), random(1500, 2400, 1500)
    chain = np.array([[k * 1.9, 0, k * 1.9 + 10, 100] for k in range(number)])
    nested = np.array([[0, 0, 1000 + k / 2, 100] for k in range(number)])
    longer = np.array([[0, 0, 2000 + k / 2, 100] for k in range(number)])
    return {
        "apart": (apart, apart),
        "all overlap": (wide + 7, wide),
        "all equal": (np.tile([[0.0, 0, 1000, 1000]], (number, 1)),) * 2,
        "a chain": (chain[::-1] + 1, chain),
        "nested": (nested[np.arange(number) * 7 % number], nested),
        "nested, with other sizes": (longer, nested[::-1]),
        "nested, with other sizes, 500 objects": (longer, nested[::-4]),
        "5 objects": (wide, wide[:5]),
    }


def seconds_of(reading: Callable[[], float]) -> float:
    """CPU time of a call."""
    start = time.process_time()
    reading()
    return time.process_time() - start


def main() -> None:
    """Print both tables, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    print(f"{'answers per second and core':<34}" + "".join(f"{name:>12}" for name in DIALECTS))
    one = {name: samples(arguments.answers, 1, name, "ignore") for name in DIALECTS}
    ten = {name: samples(arguments.answers, 10, name, "ignore") for name in DIALECTS}
    named = {name: samples(arguments.answers, 10, name, "name") for name in DIALECTS}
    rows = [("iou, 1 box", "iou", one)]
    rows += [(f"{name}, 10 boxes", name, ten) for name in REWARDS]
    rows += [("f1, 10 boxes with labels", "f1", named), (f"{SUM}, 10 boxes", SUM, ten)]
    for title, spec, data in rows:
        figures[title] = {name: round(rate(data[name], spec, arguments.repeats)) for name in DIALECTS}
        print(f"{title:<34}" + "".join(f"{figures[title][name]:>12,}" for name in DIALECTS))
    slowest: dict[str, float] = {}
    for title, (boxes, objects) in large().items():
        truth = Truth(tuple(TruthObject("dog", tuple(box)) for box in objects.tolist()), "qwen3_vl", (4000, 4000))
        generated = text_of(boxes, ["dog"] * len(boxes), "qwen3_vl", (4000, 4000))
        for name, reward in REWARDS.items():
            spent = seconds_of(lambda reward=reward, truth=truth, text=generated: reward(truth.read(text), truth))
            if spent > slowest.get(title, 0.0):
                slowest[title], slowest_name = round(spent, 3), name
        print(f"2,000 boxes, {title}: {slowest[title]:.2f} s ({slowest_name})")
    print(json.dumps({"answers_per_second": figures, "seconds_of_2000_boxes": slowest}))


if __name__ == "__main__":
    main()
