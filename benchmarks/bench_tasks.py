"""Claim: every task of `spr evaluate --predictions` scores at least 5,000 answers per second on one core.

Measures the CPU time of the command after its imports, as `bench_evaluate.py` does for `rec`: read the annotations and
the predictions, match them by id, score the answers, bootstrap the intervals, write the result and its items. The items
of `phrase-grounding` and `description` are made in memory, since their layouts are folders of XML and runs; `detection`
has a script of its own. Answers have two or three boxes in Ferret's dialect, or points in Molmo's.

    python benchmarks/bench_tasks.py [TASK …] [--answers 20000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spr.evaluation.task import Task, evaluate
from spr.evaluation.tasks.amber import Amber
from spr.evaluation.tasks.description import Description, Regions
from spr.evaluation.tasks.multi_rec import MultiRec
from spr.evaluation.tasks.phrase_grounding import Phrase, PhraseGrounding, Sentence
from spr.evaluation.tasks.pointing import Pointing
from spr.evaluation.tasks.pope import Pope
from spr.evaluation.tasks.referring import Referring
from spr.grounding import get_dialect, render_box
from spr.records import RegionObject, RegionQuery

SIZE = (640, 480)
LEAST = 5_000
NOUNS = ("dog", "cat", "car", "chair", "table", "bicycle", "umbrella", "bottle")

Case = tuple[Task[Any], Any, list[str], str | None]
"""A task, its annotations (a path or items), the answers by row number, and their dialect."""


def boxes(draw: np.random.Generator, count: int) -> list[tuple[float, float, float, float]]:
    """Boxes inside the image, xyxy."""
    x, y = draw.uniform(0, 400, count), draw.uniform(0, 300, count)
    w, h = draw.uniform(20, 200, count), draw.uniform(20, 150, count)
    return [tuple(map(float, box)) for box in zip(x, y, x + w, y + h, strict=True)]


def text_of(box: Sequence[float]) -> str:
    """A box in Ferret's dialect."""
    return render_box((box[0], box[1], box[2], box[3]), get_dialect("ferret"), SIZE)


def described(draw: np.random.Generator, own: list[tuple[float, float, float, float]]) -> str:
    """A sentence of an answer that names each box."""
    names = [NOUNS[int(k)] for k in draw.integers(0, len(NOUNS), len(own))]
    return " and ".join(f"a {name} {text_of(box)}" for name, box in zip(names, own, strict=True)) + " near the wall."


def write(path: Path, rows: list[dict[str, Any]], *, lines: bool = True) -> Path:
    """Write rows as JSON lines, or as a list."""
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


def multi_rec(folder: Path, count: int) -> Case:
    """Expressions with two targets, which the answers locate."""
    draw, rows, answers = np.random.default_rng(0), [], []
    for k in range(count):
        own = boxes(draw, 2)
        more = {"width": SIZE[0], "height": SIZE[1], "id": str(k)}
        rows.append({"image": f"{k // 3}.jpg", "sentence": "the two dogs", "boxes": own, **more})
        answers.append(described(draw, own))
    return MultiRec(), write(folder / "items.jsonl", rows), answers, "ferret"


def phrase_grounding(folder: Path, count: int) -> Case:
    """Sentences with two phrases, which the answers locate."""
    draw, items, answers = np.random.default_rng(0), [], []
    for k in range(count):
        own, names = boxes(draw, 2), draw.permutation(NOUNS)[:2]
        phrases = tuple(Phrase(f"a {name}", ("animals",), (box,)) for name, box in zip(names, own, strict=True))
        items.append(Sentence(str(k), f"{k // 5}.jpg", SIZE, phrases))
        answers.append(" and ".join(f"a {name} {text_of(box)}" for name, box in zip(names, own, strict=True)) + ".")
    return PhraseGrounding(entities=folder), items, answers, "ferret"


def pointing(folder: Path, count: int) -> Case:
    """Questions with two targets, answered with two of Molmo's points."""
    draw, rows, answers = np.random.default_rng(0), [], []
    for k in range(count):
        own = boxes(draw, 2)
        more = {"width": SIZE[0], "height": SIZE[1], "id": str(k), "count": 2}
        rows.append({"image": f"{k // 3}.jpg", "question": "Point to the dogs.", "boxes": own, **more})
        places = [((x1 + x2) / 12.8, (y1 + y2) / 9.6) for x1, y1, x2, y2 in own]
        numbers = " ".join(f'x{n}="{x:.1f}" y{n}="{y:.1f}"' for n, (x, y) in enumerate(places, 1))
        answers.append(f'<points {numbers} alt="dogs">dogs</points>')
    return Pointing(), write(folder / "items.jsonl", rows), answers, "molmo"


def referring(folder: Path, count: int) -> Case:
    """Questions with two categories; a third of the answers say the wrong one."""
    draw, rows, answers = np.random.default_rng(0), [], []
    for k in range(count):
        first, second = map(str, draw.permutation(NOUNS)[:2])
        row = {"image_path": f"val/{k}.jpg", "width": SIZE[0], "height": SIZE[1], "bbox_norm": (0.1, 0.1, 0.5, 0.5)}
        rows.append({**row, "id": str(k), "name": first, "neg_class": second, "synonyms": [first], "frequency": "f"})
        answers.append(f"The object is a {first if k % 3 else second}, not a {second}.")
    return Referring(), write(folder / "items.jsonl", rows), answers, None


def pope(folder: Path, count: int) -> Case:
    """Questions, answered with yes or no in a sentence."""
    rows = [
        {"question_id": k, "image": f"{k // 6}.jpg", "text": "Is there a dog?", "label": ("yes", "no")[k % 2]}
        for k in range(count)
    ]
    answers = [("Yes, there is a dog in the image.", "No, there is not.", "Yes.")[k % 3] for k in range(count)]
    return Pope(), write(folder / "items.jsonl", rows), answers, None


def amber(folder: Path, rows: list[dict[str, Any]], queries: list[dict[str, Any]]) -> Path:
    """AMBER's folder with these annotations and queries."""
    write(folder / "annotations.json", rows, lines=False)
    (folder / "relation.json").write_text(json.dumps({name: [f"big {name}", f"{name}let"] for name in NOUNS}))
    (folder / "safe_words.txt").write_text("wall\nlight")
    return write(folder / "queries.json", queries, lines=False)


def amber_descriptions(folder: Path, count: int) -> Case:
    """Descriptions of two sentences."""
    draw, rows, answers = np.random.default_rng(0), [], []
    for k in range(count):
        names = list(map(str, draw.permutation(NOUNS)))
        rows.append({"id": k, "type": "generative", "truth": names[:3], "hallu": names[3:5]})
        words = f"In the picture, there is a {names[0]} near a wall. Two {names[1]}s stand behind a red {names[4]}"
        answers.append(f"{words}. A man walks in the background, and the light is soft, with a {names[5]} on the left.")
    queries = [{"id": k, "image": f"AMBER_{k}.jpg", "query": "Describe this image."} for k in range(count)]
    return Amber(), amber(folder, rows, queries), answers, None


def amber_questions(folder: Path, count: int) -> Case:
    """Questions, answered with yes or no."""
    rows = [
        {"id": k, "type": "discriminative-hallucination", "truth": ("yes", "no")[k % 2], "hallu": []}
        for k in range(count)
    ]
    queries = [
        {"id": k, "image": f"AMBER_{k // 8}.jpg", "query": "Is there a dog in this image?"} for k in range(count)
    ]
    return Amber(), amber(folder, rows, queries), [("Yes", "No", "Yes, a dog.")[k % 3] for k in range(count)], None


def description(_: Path, count: int) -> Case:
    """Regions with three objects, which the answers locate; their names are random."""
    draw, queries, answers = np.random.default_rng(0), [], []
    for k in range(count):
        own = boxes(draw, 3)
        objects = tuple(
            RegionObject(f"{k}-{n}", NOUNS[int(draw.integers(len(NOUNS)))], box, inside=True)
            for n, box in enumerate(own)
        )
        where = {"image_id": str(k), "file_name": f"{k}.jpg", "width": SIZE[0], "height": SIZE[1]}
        region = (0.0, 0.0, float(SIZE[0]), float(SIZE[1]))
        queries.append(RegionQuery(query_id=str(k), **where, region=region, start_object=f"{k}-0", objects=objects))
        answers.append(described(draw, own))
    return Description(), Regions(queries), answers, "ferret"


CASES: dict[str, Callable[[Path, int], Case]] = {
    "multi-rec": multi_rec,
    "phrase-grounding": phrase_grounding,
    "pointing": pointing,
    "referring": referring,
    "pope": pope,
    "amber, descriptions": amber_descriptions,
    "amber, questions": amber_questions,
    "description": description,
}


def measure(make: Callable[[Path, int], Case], count: int) -> float:
    """CPU seconds of reading, scoring and writing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task, annotations, answers, dialect = make(folder, count)
        lines = [{"id": str(k), "answer": answer} for k, answer in enumerate(answers)]
        predictions = write(folder / "answers.jsonl", lines)
        start = time.process_time()
        result = evaluate(task, annotations, predictions=predictions, dialect=dialect)
        result.write(folder / "result.json")
        return time.process_time() - start


def main() -> None:
    """Measure, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"some of {', '.join(CASES)} (default: all)")
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows = {}
    print(f"{arguments.answers:,} answers, median of {arguments.repeats}, CPU time of one core; target {LEAST:,}/s")
    for name in arguments.tasks or CASES:
        measure(CASES[name], 100)
        seconds = statistics.median(measure(CASES[name], arguments.answers) for _ in range(arguments.repeats))
        rows[name] = round(arguments.answers / seconds)
        print(f"{name:<22} {rows[name]:>10,} answers/s {'' if rows[name] >= LEAST else 'MISSED'}", flush=True)
    print(json.dumps({"benchmark": "tasks", "n": arguments.answers, "answers_per_second": rows}))


if __name__ == "__main__":
    main()
