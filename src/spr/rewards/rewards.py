"""The rewards: each a number from 0 to 1 for an answer and the objects that it should place.

Where a truth has no objects, nothing that the prompt asks for is in the image. The rewards of boxes and points are then
1 for an answer that says so (`rejects`) and 0 for any other. docs/rewards.md lists how each can be exploited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from spr.core import boxes as bx
from spr.grounding.matching import THRESHOLD, reaches
from spr.grounding.points import assign_points
from spr.rewards.answer import Answer
from spr.rewards.average_precision import average_precision as _average_precision
from spr.rewards.matching import assign, count_pairs, overlaps
from spr.rewards.truth import Truth

LENGTH = 2000
"""Characters up to which `length` is 1, by default."""


class Reward(Protocol):
    """The signature of a reward."""

    def __call__(self, answer: Answer, truth: Truth, /) -> float:
        """Return the reward of one answer, from 0 to 1; higher is better. Never raises because of an answer.

        A reward may have one keyword-only number with a default, which is what follows ``@`` in `get_reward`.

        Args:
            answer: The answer; boxes are xyxy pixels of the original image.
            truth: The objects that it should place.
        """
        ...


@dataclass(frozen=True, slots=True)
class Measures:
    """What rewards are made from, for one answer.

    Attributes:
        precision: Share of the boxes with an object of their own; 0 without boxes.
        recall: Share of the objects with a box of their own.
        f1: Their harmonic mean, ``2 · pairs / (boxes + objects)``.
        mean_iou: Mean over the objects of the IoU with the box assigned to them, 0 without a box.
        s_loc: The localization score of the paper (`s_loc`).
        duplicates: The number of boxes that fit an object which another box already has.
        valid: Whether the answer is well formed (`format_`).
        boxes, objects: Their numbers.

    Without objects, the first five are 1 for an answer that rejects, else 0. ``nan`` does not occur.
    """

    precision: float
    recall: float
    f1: float
    mean_iou: float
    s_loc: float
    duplicates: int
    valid: bool
    boxes: int
    objects: int


def measure(answer: Answer, truth: Truth, threshold: float = THRESHOLD) -> Measures:
    """Measure an answer; an IoU of at least ``threshold`` (0 to 1) counts for precision, recall and duplicates."""
    boxes, objects = len(answer.boxes), len(truth.objects)
    valid = bool(format_(answer, truth))
    if not objects:
        right = float(rejects(answer))
        return Measures(right, right, right, right, right, 0, valid, boxes, 0)
    return Measures(
        precision(answer, truth, threshold=threshold),
        recall(answer, truth, threshold=threshold),
        f1(answer, truth, threshold=threshold),
        sum(assign(answer, truth).ious) / objects,
        s_loc(answer, truth),
        duplicates(answer, truth, threshold),
        valid,
        boxes,
        objects,
    )


def duplicates(answer: Answer, truth: Truth, threshold: float = THRESHOLD) -> int:
    """The number of boxes that fit an object, by an IoU of at least ``threshold``, which another box already has."""
    found = overlaps(answer, truth)
    if not found.size:
        return 0
    return int((reaches(found, threshold) & (found > 0)).any(axis=0).sum()) - _pairs(answer, truth, threshold)


def rejects(answer: Answer) -> bool:
    """Whether an answer says that nothing is there: some text, nothing cut, and no coordinates, read or not."""
    return (
        answer.is_finished
        and not answer.is_blank
        and not answer.boxes
        and not answer.points
        and not answer.has_unread_coordinates
        and not answer.is_cut
    )


def _pairs(answer: Answer, truth: Truth, threshold: float) -> int:
    """The largest number of boxes that can have an object of their own with an IoU of at least ``threshold``."""
    key = "pairs", threshold
    known = answer.cache.get(key)
    if isinstance(known, tuple) and known[0] is truth:
        return int(known[1])
    found = overlaps(answer, truth)
    count = count_pairs(reaches(found, threshold) & (found > 0)) if found.size else 0
    answer.cache[key] = truth, count
    return count


def recall(answer: Answer, truth: Truth, *, threshold: float = THRESHOLD) -> float:
    """``pairs / objects``: share of the objects with a box of their own, of an IoU of at least ``threshold``."""
    if not truth.objects:
        return float(rejects(answer))
    return _pairs(answer, truth, threshold) / len(truth.objects)


def precision(answer: Answer, truth: Truth, *, threshold: float = THRESHOLD) -> float:
    """``pairs / boxes``: share of the boxes with an object of their own, of an IoU of at least ``threshold``."""
    if not truth.objects:
        return float(rejects(answer))
    count = len(answer.boxes)
    return _pairs(answer, truth, threshold) / count if count else 0.0


def f1(answer: Answer, truth: Truth, *, threshold: float = THRESHOLD) -> float:
    """``2 · pairs / (boxes + objects)``: harmonic mean of `precision` and `recall`."""
    if not truth.objects:
        return float(rejects(answer))
    return 2 * _pairs(answer, truth, threshold) / (len(answer.boxes) + len(truth.objects))


def iou(answer: Answer, truth: Truth) -> float:
    """``Σ IoU / max(boxes, objects)`` over the one-to-one assignment with the largest sum.

    No threshold applies: a box that comes closer to its object always earns more. An object without a box and a box
    without an object count as 0.
    """
    return _mean_of_pairs(answer, truth, 1)


def iou_squared(answer: Answer, truth: Truth) -> float:
    """``Σ IoU² / max(boxes, objects)`` over the one-to-one assignment with the largest sum.

    The last tenth of the IoU earns twice as much as in `iou`, the first next to nothing.
    """
    return _mean_of_pairs(answer, truth, 2)


def _mean_of_pairs(answer: Answer, truth: Truth, power: int) -> float:
    if not truth.objects:
        return float(rejects(answer))
    boxes = answer.boxes
    if len(boxes) == len(truth.objects) == 1 and truth.labels == "ignore":
        return _iou_of_two(boxes[0], truth.objects[0].box) ** power
    if not boxes:
        return 0.0
    return sum(value**power for value in assign(answer, truth, power=power).ious) / max(len(boxes), len(truth.objects))


def _iou_of_two(one: bx.Box, other: bx.Box) -> float:
    """`spr.core.boxes.iou` of two boxes, without arrays."""
    x1, y1, x2, y2 = one
    u1, v1, u2, v2 = other
    w, h = min(x2, u2) - max(x1, u1), min(y2, v2) - max(y1, v1)
    if not (w > 0 and h > 0):
        return 0.0
    shared = w * h
    whole = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
    return shared / whole if whole > 0 else 0.0


def s_loc(answer: Answer, truth: Truth, *, threshold: float = THRESHOLD) -> float:
    """``mean over objects of the best IoU``, 0 where it is not over ``threshold``: the paper's S_loc (Sec. 3.2).

    Of the answer's own boxes. One box may count for several objects, and extra boxes cost nothing.
    """
    if not truth.objects:
        return float(rejects(answer))
    found = overlaps(answer, truth)
    if not found.size:
        return 0.0
    best = found.max(axis=1)
    return float(np.where(bx.over(best, threshold), best, 0.0).mean())


def average_precision(answer: Answer, truth: Truth) -> float:
    """COCO's AP of the answer's boxes, in the order of the text (`spr.rewards.average_precision`).

    Each label of the truth is a category, or all are one where labels are ignored. As in COCO, boxes with other labels
    don't count.
    """
    if not truth.objects:
        return float(rejects(answer))
    found = overlaps(answer, truth)
    if truth.labels == "ignore":
        return _average_precision(found)
    same = truth.same_label(answer.phrases)
    values = []
    for name in truth.names:
        rows = np.array([row for row, item in enumerate(truth.objects) if item.label == name])
        values.append(_average_precision(found[np.ix_(rows, np.flatnonzero(same[rows[0]]))]))
    return sum(values) / len(values)


def count(answer: Answer, truth: Truth) -> float:
    """``1 − |boxes − objects| / max(boxes, objects)``: whether the number of boxes is right, wherever they are."""
    boxes, objects = len(answer.boxes), len(truth.objects)
    if not objects:
        return float(rejects(answer))
    return 1 - abs(boxes - objects) / max(boxes, objects)


def point_in_box(answer: Answer, truth: Truth) -> float:
    """``2 · pairs / (points + objects)``: F1 of the points, each with an object of its own in whose box it lies.

    As many pairs as possible are made (`spr.grounding.points.assign_points`). Boxes and labels don't count; an answer
    without points is 0.
    """
    if not truth.objects:
        return float(rejects(answer))
    points = answer.points
    return 2 * len(assign_points(points, truth.boxes)) / (len(points) + len(truth.objects)) if points else 0.0


def format_(answer: Answer, truth: Truth) -> float:
    """1 if the answer is well formed in its dialect, else 0; its name is ``format``.

    Nothing in it is malformed or out of the image, its reasoning is closed, and it has a box or a point where the truth
    has an object. Without objects, it says so (`rejects`) or has well-formed boxes.
    """
    if not answer.is_finished or answer.is_blank or answer.problems or answer.has_unread_coordinates:
        return 0.0
    return float(not truth.objects or bool(answer.boxes) or bool(answer.points))


def length(answer: Answer, truth: Truth, *, limit: float = LENGTH) -> float:  # noqa: ARG001 - a reward's signature
    """1 up to ``limit`` characters of the whole generated text, then falling linearly to 0 at twice that."""
    return min(1.0, max(0.0, 2 - len(answer.generated) / limit))


def rejection(answer: Answer, truth: Truth) -> float:
    """Whether absence is said where it is true: without objects 1 if the answer `rejects`, with objects 1 if it does
    not and has a box or a point.
    """
    if not truth.objects:
        return float(rejects(answer))
    return float(bool(answer.boxes) or bool(answer.points))
