"""From answers to detections: boxes with the categories that their names mean, and their confidences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spr.core.progress import advance
from spr.evaluation.detection.annotations import DetectionData
from spr.evaluation.detection.confidence import Confidence, confidences
from spr.evaluation.detection.matching import Detections
from spr.evaluation.metrics import Ints
from spr.evaluation.predictions import Answers
from spr.grounding import parse
from spr.grounding.category_names import CategoryNames


class Asked(NamedTuple):
    """A question: its id, the index of its image, and that of its category, or -1 for all of them."""

    id: str
    image: int
    category: int = -1


class ReadAnswers(NamedTuple):
    """The detections of all answers.

    ``unnamed`` is the number of boxes of each image whose name is not a category, int64 ``(I,)``, and ``boxes`` the
    number of all boxes. ``problems`` are the ids of answers by kind (`spr.evaluation.predictions.PROBLEMS`).
    """

    detections: Detections
    unnamed: Ints
    boxes: int
    problems: dict[str, list[str]]


def read_answers(
    data: DetectionData, names: CategoryNames, asked: Sequence[Asked], answers: Answers, rule: Confidence
) -> ReadAnswers:
    """Read the answers to questions, in the same order. All boxes of an answer about one category are of this category.

    Raises:
        ConfigError: if the dialect is unknown, or the answers lack what the rule for confidences needs.
    """
    dialect = answers.resolve_dialect()
    score_of = confidences(rule, answers, dialect)
    expected = set(data.pairs(data.image, data.category).tolist())
    images_with_objects = set(data.image.tolist())
    width = len(data.categories)
    images: list[int] = []
    categories: list[int] = []
    boxes: list[tuple[float, ...]] = []
    scores: list[float] = []
    problems: dict[str, list[str]] = {kind: [] for kind in ("category", "confidence", "malformed", "scale", "no_box")}
    unnamed = np.zeros(len(data.image_ids), dtype=np.int64)
    total = 0
    for k, (question, text) in enumerate(zip(asked, answers.texts, strict=True)):
        advance()
        if text is None:
            continue
        image = question.image
        grounded = parse(text, dialect, data.sizes_wh[image])
        own = score_of(k, grounded, data.sizes_wh[image])
        if own is None:
            problems["confidence"].append(question.id)
            own = [-np.inf] * len(grounded.boxes)
        if grounded.problems:
            problems["malformed"].append(question.id)
            if grounded.other_scale:
                problems["scale"].append(question.id)
        place = 0
        for span in grounded.spans:
            if not span.boxes:
                continue
            category = question.category if question.category >= 0 else names.find(span.phrase)
            for box in span.boxes:
                if category >= 0:
                    images.append(image)
                    categories.append(category)
                    boxes.append(box)
                    scores.append(own[place])
                place += 1
            if category < 0:
                unnamed[image] += len(span.boxes)
                problems["category"].append(f"{question.id} ({span.phrase or 'no name'})")
        total += place
        if not place and (
            image in images_with_objects if question.category < 0 else image * width + question.category in expected
        ):
            problems["no_box"].append(question.id)
    detections = Detections(
        np.array(images, dtype=np.int64),
        np.array(categories, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(scores, dtype=np.float64),
    )
    return ReadAnswers(detections, unnamed, total, problems)
