"""The rewards, all built on IoU between the boxes of an answer and the annotated objects.

`recall`, `precision`, `f1` and `iou` assign boxes to objects one to one, so that repeating a good box earns nothing.
`s_loc` is the localization score of the paper, in which one box may serve several objects. `points` is for answers with
points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from scipy.optimize import linear_sum_assignment

from spr.core import boxes as bx
from spr.core.errors import RecordError
from spr.grounding import Dialect, GroundedText, Problem, final_answer, parse
from spr.grounding.matching import THRESHOLD, localization_score
from spr.grounding.points import assign_points
from spr.records import ImageObject, RegionQuery, Size


@dataclass(frozen=True, slots=True)
class Truth:
    """The objects that an answer should place.

    Attributes:
        objects: At least one object; boxes are xyxy pixels of the original image.

    Raises:
        RecordError: if there are no objects.
    """

    objects: tuple[ImageObject, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))
        if not self.objects:
            raise RecordError("A truth has no objects", got="()", expected="at least one object")

    @classmethod
    def from_query(cls, query: RegionQuery) -> Truth:
        """The objects inside the region of a query.

        Raises:
            RecordError: if no object is inside.
        """
        return cls(query.inside)


def read_answer(generated: str, dialect: str | Dialect, size_wh: Size) -> GroundedText:
    """What a reward is given: the answer in a generated text, without the reasoning before it, parsed.

    `final_answer` says what the answer is; only its boxes count, and offsets of problems are in it. Reasoning that is
    not closed is an empty answer with a problem, so its rewards are 0.

    Args:
        generated: What the model generated.
        dialect: How the model writes boxes: a key of `DIALECTS` or a `Dialect`.
        size_wh: Width and height of the original image in pixels.

    Raises:
        GroundingError: for an unknown dialect or a wrong image size.

    >>> text = "<think>Left? [0, 0, 99, 99]</think><answer>a dog [100, 150, 300, 200]</answer>"
    >>> read_answer(text, "ferret", (1000, 1000)).boxes
    ((100.0, 150.0, 300.0, 200.0),)
    >>> print(*read_answer("<think>Left? [0, 0,", "ferret", (1000, 1000)).problems)
    offset 0: '': reasoning is not closed: no answer
    """
    text, problem = final_answer(generated)
    answer = parse(text, dialect, size_wh)
    return answer if problem is None else replace(answer, problems=(Problem(0, text, problem),))


class Reward(Protocol):
    """The signature of a reward."""

    def __call__(self, answer: GroundedText, truth: Truth) -> float:
        """Return the reward of one answer, from 0 to 1. Higher is better.

        Args:
            answer: The parsed answer (`read_answer`); boxes are xyxy pixels of the original image.
            truth: The objects that it should place.
        """
        ...


class Assignment(NamedTuple):
    """Boxes assigned to objects one to one.

    Attributes:
        objects: Indices of the assigned objects, in ascending order.
        boxes: Index of the box that each of them got.
        ious: IoU of each pair, 0 to 1.
        box_count: The number of boxes in the answer.
    """

    objects: tuple[int, ...]
    boxes: tuple[int, ...]
    ious: tuple[float, ...]
    box_count: int


def assign(answer: GroundedText, truth: Truth, threshold: float = 0.0) -> Assignment:
    """Assign the boxes of an answer to the objects, each box and each object at most once.

    Only pairs with an IoU over ``threshold`` (0 to 1) are allowed. Among all assignments this is one with the most
    pairs and, among those, with the largest sum of IoUs.

    >>> from spr.records import Span
    >>> cups = Truth((ImageObject("1", "cup", (0, 0, 10, 10)), ImageObject("2", "cup", (2, 0, 12, 10))))
    >>> answer = GroundedText("two cups", (Span("two cups", 0, 8, ((1, 0, 11, 10), (0, 0, 8, 10))),))
    >>> assign(answer, cups, 0.5).boxes  # the second box fits only the first object
    (1, 0)
    """
    boxes, objects = bx.as_boxes(answer.boxes), bx.as_boxes([item.box for item in truth.objects])
    overlaps = bx.iou_matrix(objects, boxes)
    allowed = bx.over(overlaps, threshold)
    # A sum of IoUs is at most `most`, so that one more pair always outweighs it.
    most = min(overlaps.shape)
    rows, columns = linear_sum_assignment(np.where(allowed, overlaps + most, 0.0), maximize=True)
    used = allowed[rows, columns]
    rows, columns = rows[used], columns[used]
    ious = overlaps[rows, columns].tolist()
    return Assignment(tuple(rows.tolist()), tuple(columns.tolist()), tuple(ious), len(boxes))


def s_loc(answer: GroundedText, truth: Truth) -> float:
    """The localization score of the answer's own boxes (paper, Sec. 3.2): the mean over the objects of the best IoU.

    An IoU of 0.5 or less counts as 0. One box may count for several objects, and extra boxes cost nothing.
    """
    return localization_score(truth.objects, answer.boxes).score


def recall(answer: GroundedText, truth: Truth) -> float:
    """Share of the objects that are placed by a box of their own with an IoU over 0.5."""
    return len(assign(answer, truth, THRESHOLD).objects) / len(truth.objects)


def precision(answer: GroundedText, truth: Truth) -> float:
    """Share of the boxes that place an object of their own with an IoU over 0.5; 0 for an answer without boxes."""
    assignment = assign(answer, truth, THRESHOLD)
    return len(assignment.boxes) / assignment.box_count if assignment.box_count else 0.0


def f1(answer: GroundedText, truth: Truth) -> float:
    """Harmonic mean of `precision` and `recall`: ``2 · pairs / (boxes + objects)``."""
    assignment = assign(answer, truth, THRESHOLD)
    return 2 * len(assignment.boxes) / (assignment.box_count + len(truth.objects))


def points(answer: GroundedText, truth: Truth) -> float:
    """F1 of the points: a point places an object if it lies in its box (`spr.grounding.points.point_in_box`).

    Points and objects are assigned one to one, as many as possible: ``2 · pairs / (points + objects)``. Boxes don't
    count, and an answer without points is 0.
    """
    pairs = assign_points(answer.points, [item.box for item in truth.objects])
    return 2 * len(pairs) / (len(answer.points) + len(truth.objects))


def iou(answer: GroundedText, truth: Truth) -> float:
    """Sum of the IoUs of the assigned pairs, divided by the larger of the numbers of boxes and objects.

    No threshold applies: a box that comes closer to its object always earns more. An object without a box and a box
    without an object count as 0.
    """
    assignment = assign(answer, truth)
    return sum(assignment.ious) / max(assignment.box_count, len(truth.objects))
