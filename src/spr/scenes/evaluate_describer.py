"""How well the describer finds, names and places, through its processor, on scenes that training never saw."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import LlavaOnevisionForConditionalGeneration

from spr import boxes as bx
from spr.grounding import parse
from spr.records import Box, Span
from spr.scenes.corpus import scene_regions
from spr.scenes.expressions import choose
from spr.scenes.figures import Figure, difference, ratio
from spr.scenes.generate import SIZE, Scene, make_scene
from spr.scenes.processor import SceneProcessor
from spr.scenes.texts import PROMPTS, box_text, object_list
from spr.scenes.train_vision import CROP

DIALECT = "llava_onevision"
_BATCH = 64
_EXPRESSIONS = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about an image (a crop's box in its scene, or the whole scene), and the objects that answer it."""

    scene: int
    kind: str
    window: tuple[int, int, int, int]
    prompt: str
    objects: tuple[int, ...]


class Describer:
    """The describer with its processor."""

    def __init__(self, folder: Path) -> None:
        self.model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder).eval()
        self.processor = SceneProcessor.from_pretrained(folder)

    @torch.no_grad()
    def answer(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, batch_size: int = _BATCH, sample: bool = False
    ) -> list[str]:
        """Answers to one prompt an image, greedy or sampled at temperature 1."""
        answers: list[str] = []
        order = sorted(range(len(prompts)), key=lambda k: len(prompts[k]))  # little padding
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            inputs = self.processor([images[k] for k in batch], [self.processor.prompt(prompts[k]) for k in batch])
            generated = self.model.generate(**inputs, do_sample=sample, top_k=0 if sample else None, max_new_tokens=224)
            answers += self.processor.answers(generated, inputs["input_ids"].shape[1])
        placed = [""] * len(order)
        for k, answer in zip(order, answers, strict=True):
            placed[k] = answer
        return placed


def crop_window(region_xyxy: Sequence[float]) -> tuple[int, int, int, int]:
    """The crop of a region in whole pixels: grown 1.5 times, clipped to the scene."""
    x1, y1, x2, y2 = bx.grow(region_xyxy, CROP, (SIZE, SIZE))
    return int(np.floor(x1)), int(np.floor(y1)), int(np.ceil(x2)), int(np.ceil(y2))


def region_questions(scenes: Sequence[Scene], seed: int) -> list[Asked]:
    """A region a scene, asked about in the three ways of METHOD §3.1."""
    asked: list[Asked] = []
    for index, scene in enumerate(scenes):
        found = scene_regions(scene, np.random.default_rng([seed, index, 2]), 1)
        if not found:
            continue
        region, inside = found[0]
        window = crop_window(region.tolist())
        names = [scene.category(i) for i in inside]
        size = (window[2] - window[0], window[3] - window[1])
        relative = bx.clip(bx.remap(scene.boxes_xyxy[inside], window, size), size) / np.array([*size, *size])
        whole = (0, 0, SIZE, SIZE)
        listing = PROMPTS["crop_objects"].format(objects=object_list(names, list(relative)))
        for kind, view, prompt in (
            ("full", whole, PROMPTS["full"].format(region=box_text(region / SIZE))),
            ("crop", window, PROMPTS["crop"]),
            ("crop_objects", window, listing),
        ):
            asked.append(Asked(index, kind, view, prompt, tuple(inside)))
    return asked


def view(scene: Scene, window: tuple[int, int, int, int]) -> Image.Image:
    """A window of a scene as an image."""
    return Image.fromarray(scene.image).crop(window)


def placed_boxes(spans: Sequence[Span], window: tuple[int, int, int, int]) -> list[tuple[str, Box]]:
    """Names and boxes of an answer, the boxes in the scene's pixels."""
    return [
        (
            span.phrase.removeprefix("a ").removeprefix("an "),
            (x1 + window[0], y1 + window[1], x2 + window[0], y2 + window[1]),
        )
        for span in spans
        for x1, y1, x2, y2 in span.boxes
    ]


def hits(scene: Scene, objects: Sequence[int], said: Sequence[tuple[str, Box]], threshold: float) -> int:
    """How many of the objects are named rightly and placed at an IoU over the threshold; each box counts once."""
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
    """The figures of the issue's table, of ``n`` scenes of a seed."""
    describer = Describer(folder)
    scenes = [make_scene(seed, index) for index in range(n)]
    return {**_rec(describer, scenes, seed), **_regions(describer, scenes, seed)}


def _rec(describer: Describer, scenes: Sequence[Scene], seed: int) -> dict[str, Figure]:
    questions: list[tuple[int, int, str]] = []
    for index, scene in enumerate(scenes):
        rng = np.random.default_rng([seed, index, 3])
        for target in rng.permutation(np.flatnonzero(scene.annotated))[:_EXPRESSIONS]:
            expression = choose(scene, int(target), rng)
            if expression is not None:
                questions.append((index, int(target), expression))
    images = [Image.fromarray(scenes[index].image) for index, _, _ in questions]
    answers = describer.answer(images, [PROMPTS["rec"].format(expression=e) for _, _, e in questions])
    overlaps = np.zeros(len(questions))
    for k, ((index, target, _), answer) in enumerate(zip(questions, answers, strict=True)):
        boxes = [box for span in parse(answer, DIALECT, (SIZE, SIZE)).spans for box in span.boxes]
        overlaps[k] = float(bx.iou(scenes[index].boxes_xyxy[target], boxes[0])) if boxes else 0.0
    owner = np.array([index for index, _, _ in questions])
    counts = np.bincount(owner, minlength=len(scenes))
    asked: dict[float, tuple[float | None, float | None]] = {0.5: (0.70, None), 0.9: (0.05, 0.45)}
    made = {}
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        right = np.bincount(owner, weights=overlaps >= threshold, minlength=len(scenes))
        made[f"rec Acc@{threshold}"] = ratio(right, counts, *asked.get(threshold, (None, None)))
    made["rec mean IoU"] = ratio(np.bincount(owner, weights=overlaps, minlength=len(scenes)), counts)
    return made


def _regions(describer: Describer, scenes: Sequence[Scene], seed: int) -> dict[str, Figure]:
    questions = region_questions(scenes, seed)
    made: dict[str, Figure] = {}
    found: dict[tuple[str, float], np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
    counts = np.zeros(len(scenes))
    for question in questions:
        if question.kind == "full":
            counts[question.scene] = len(question.objects)
    for kind in ("full", "crop", "crop_objects"):
        mine = [q for q in questions if q.kind == kind]
        answers = describer.answer([view(scenes[q.scene], q.window) for q in mine], [q.prompt for q in mine])
        said_by_scene = np.zeros(len(scenes))
        for threshold in (0.5, 0.9):
            found[kind, threshold] = np.zeros(len(scenes))
        for question, answer in zip(mine, answers, strict=True):
            size = (question.window[2] - question.window[0], question.window[3] - question.window[1])
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


def _speed(describer: Describer, scenes: Sequence[Scene], questions: Sequence[Asked]) -> Figure:
    """Sampled descriptions a second in batches of 256, the best of three; the interval is of the three."""
    batch = [questions[k % len(questions)] for k in range(256)]
    images, prompts = [view(scenes[q.scene], q.window) for q in batch], [q.prompt for q in batch]
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        describer.answer(images, prompts, batch_size=256, sample=True)
        rates.append(len(batch) / (time.perf_counter() - started))
    return Figure(max(rates), min(rates), max(rates), at_least=30.0)
