"""Measure how well the describer names and locates objects, on scenes that training never used."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from spr.core import boxes as bx
from spr.core.views import crop_window, cut, unshift
from spr.embedded.scenes import SIZE, Scene, choose, make_scene
from spr.evaluation.expressions import Expressions
from spr.evaluation.task import evaluate
from spr.evaluation.tasks.rec import Rec
from spr.grounding import parse
from spr.models.describers.hf import HfDescriber
from spr.models.protocols import DescribeRequest
from spr.records import Box, Size, Span
from tools.embedded.corpus import scene_regions
from tools.embedded.figures import Figure, difference, ratio
from tools.embedded.texts import PROMPTS, box_text, object_list
from tools.embedded.train_vision import CROP
from tools.embedded.views import remap

DIALECT = "llava_onevision"
_BATCH, _LONGEST = 64, 224
_EXPRESSIONS = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a window of a scene (a crop or the whole scene), and the objects that the answer should name."""

    scene: int
    kind: str
    window: Box
    prompt: str
    objects: tuple[int, ...]


def open_describer(folder: Path) -> HfDescriber:
    """The describer in a folder, with greedy decoding."""
    return HfDescriber(folder, temperature=0, batch_size=_BATCH, max_new_tokens=_LONGEST, device="cpu")


def answers_to(describer: HfDescriber, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
    """Answers to one prompt per image."""
    requests = [DescribeRequest(*row) for row in zip(images, prompts, strict=True)]
    return [answer.text for answer in describer.describe(requests)]


def region_questions(scenes: Sequence[Scene], seed: int) -> list[Asked]:
    """Questions about one region per scene, with each of the three kinds of prompts (paper, Sec. 3.1)."""
    asked: list[Asked] = []
    for index, scene in enumerate(scenes):
        found = scene_regions(scene, np.random.default_rng([seed, index, 2]), 1)
        if not found:
            continue
        region, inside = found[0]
        window = crop_window(tuple(region.tolist()), (SIZE, SIZE), CROP)
        names = [scene.category(i) for i in inside]
        size = window_size(window)
        relative = bx.clip(remap(scene.boxes_xyxy[inside], window, size), size) / np.array([*size, *size])
        whole = (0.0, 0.0, float(SIZE), float(SIZE))
        listing = PROMPTS["crop_objects"].format(objects=object_list(names, list(relative)))
        for kind, view, prompt in (
            ("full", whole, PROMPTS["full"].format(region=box_text(region / SIZE))),
            ("crop", window, PROMPTS["crop"]),
            ("crop_objects", window, listing),
        ):
            asked.append(Asked(index, kind, view, prompt, tuple(inside)))
    return asked


def view(scene: Scene, window: Box) -> Image.Image:
    """A window of a scene as an image."""
    return cut(Image.fromarray(scene.image), window)


def window_size(window: Box) -> Size:
    """Width and height of a window in whole pixels."""
    return round(window[2] - window[0]), round(window[3] - window[1])


def placed_boxes(spans: Sequence[Span], window: Box) -> list[tuple[str, Box]]:
    """Names and boxes of an answer; the boxes in pixels of the scene."""
    return [
        (span.phrase.removeprefix("a ").removeprefix("an "), unshift(box, window))
        for span in spans
        for box in span.boxes
    ]


def hits(scene: Scene, objects: Sequence[int], said: Sequence[tuple[str, Box]], threshold: float) -> int:
    """The number of objects named correctly and located with an IoU over the threshold; each box counts once."""
    free = list(said)
    count = 0
    for item in objects:
        name, box = scene.category(item), scene.boxes_xyxy[item]
        overlaps = [float(bx.iou(box, other)) if phrase == name else 0.0 for phrase, other in free]
        if overlaps and max(overlaps) > threshold:
            count += 1
            free.pop(int(np.argmax(overlaps)))
    return count


def evaluate_describer(folder: Path, n: int, seed: int) -> dict[str, Figure]:
    """All figures of the describer on ``n`` scenes of a seed."""
    describer = open_describer(folder)
    scenes = [make_scene(seed, index) for index in range(n)]
    return {**_rec(describer, scenes, seed), **_regions(describer, scenes, seed)}


def _rec(describer: HfDescriber, scenes: Sequence[Scene], seed: int) -> dict[str, Figure]:
    rows: list[tuple[int, str, list[float]]] = []
    for index, scene in enumerate(scenes):
        rng = np.random.default_rng([seed, index, 3])
        for target in rng.permutation(np.flatnonzero(scene.annotated))[:_EXPRESSIONS]:
            expression = choose(scene, int(target), rng)
            if expression is not None:
                rows.append((index, expression, scene.boxes_xyxy[target].tolist()))
    items = Expressions(
        ids=tuple(map(str, range(len(rows)))),
        file_names=tuple(str(index) for index, _, _ in rows),
        sentences=tuple(expression for _, expression, _ in rows),
        boxes_xyxy=np.array([box for _, _, box in rows], dtype=np.float64),
        sizes_wh=((SIZE, SIZE),) * len(rows),
        datasets=("scenes",) * len(rows),
    )
    task, load = Rec(prompt=PROMPTS["rec"]), lambda asked: Image.fromarray(scenes[int(asked.file_name)].image)
    result = evaluate(task, items, describer=describer, images=load)
    asked: dict[str, tuple[float | None, float | None]] = {"acc@0.5": (0.70, None), "acc@0.9": (0.05, 0.45)}
    made = {}
    for name, measured in result.metrics.items():
        shown = "rec mean IoU" if name == "mean_iou" else f"rec {name.replace('acc', 'Acc')}"
        interval = measured["ci95"]
        ci95 = None if interval is None else (interval[0], interval[1])
        made[shown] = Figure(measured["value"], ci95, *asked.get(name, (None, None)))
    return made


def _regions(describer: HfDescriber, scenes: Sequence[Scene], seed: int) -> dict[str, Figure]:
    questions = region_questions(scenes, seed)
    made: dict[str, Figure] = {}
    found: dict[tuple[str, float], np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
    counts = np.zeros(len(scenes))
    for question in questions:
        if question.kind == "full":
            counts[question.scene] = len(question.objects)
    for kind in ("full", "crop", "crop_objects"):
        mine = [q for q in questions if q.kind == kind]
        answers = answers_to(describer, [view(scenes[q.scene], q.window) for q in mine], [q.prompt for q in mine])
        said_by_scene = np.zeros(len(scenes))
        for threshold in (0.5, 0.9):
            found[kind, threshold] = np.zeros(len(scenes))
        for question, answer in zip(mine, answers, strict=True):
            size = window_size(question.window)
            said = placed_boxes(parse(answer, DIALECT, size).spans, question.window)
            said_by_scene[question.scene] = len(said)
            for threshold in (0.5, 0.9):
                scene = scenes[question.scene]
                found[kind, threshold][question.scene] = hits(scene, question.objects, said, threshold)
        asked = 0.60 if kind == "full" else None
        made[f"{kind}: named and placed at IoU > 0.5"] = ratio(found[kind, 0.5], counts, asked)
        made[f"{kind}: named and placed at IoU > 0.9"] = ratio(found[kind, 0.9], counts)
        made[f"{kind}: boxes said per object"] = ratio(said_by_scene, counts)
    made["crop_objects over full, IoU > 0.5"] = difference(
        found["crop_objects", 0.5], found["full", 0.5], counts, at_least=0.05
    )
    made["descriptions a second, sampled"] = _speed(describer, scenes, [q for q in questions if q.kind == "full"])
    return made


def _speed(describer: HfDescriber, scenes: Sequence[Scene], questions: Sequence[Asked]) -> Figure:
    """Sampled descriptions per second in batches of 256: the best of three runs, and the range of the three."""
    batch = [questions[k % len(questions)] for k in range(256)]
    images, prompts = [view(scenes[q.scene], q.window) for q in batch], [q.prompt for q in batch]
    sampled = describer.with_sampling(temperature=1, top_p=1, batch_size=256)
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        answers_to(sampled, images, prompts)
        rates.append(len(batch) / (time.perf_counter() - started))
    return Figure(max(rates), (min(rates), max(rates)), at_least=30.0)
