"""Boxes of an answer assigned to objects, one to one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from spr.core import boxes as bx
from spr.grounding.matching import reaches
from spr.rewards.answer import Answer
from spr.rewards.truth import Truth


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


def overlaps(answer: Answer, truth: Truth) -> bx.Array:
    """IoU of every object with every box, ``(G, B)``, 0 where the label does not allow the pair (`Truth.labels`)."""
    known = answer.cache.get("overlaps")
    if isinstance(known, tuple) and known[0] is truth:
        return np.asarray(known[1])
    boxes = bx.as_boxes(answer.boxes)
    found = bx.iou_matrix(truth.boxes, boxes)
    if truth.labels != "ignore":
        found = np.where(truth.same_label(answer.phrases), found, 0.0)
    answer.cache["overlaps"] = truth, found
    return found


def assign(answer: Answer, truth: Truth, threshold: float = 0.0, *, power: int = 1) -> Assignment:
    """Assign the boxes of an answer to the objects, each box and each object at most once.

    Among all assignments of pairs with an IoU of at least ``threshold`` (0 to 1) and above 0, this is one with the
    largest sum of IoUs, or of their powers.

    >>> from spr.grounding import GroundedText
    >>> from spr.records import ImageObject, Span
    >>> cups = Truth((ImageObject("1", "cup", (0, 0, 10, 10)), ImageObject("2", "cup", (2, 0, 12, 10))))
    >>> text = GroundedText("two cups", (Span("two cups", 0, 8, ((1, 0, 11, 10), (0, 0, 8, 10))),))
    >>> assign(Answer.of(text), cups, 0.5).boxes  # the second box fits only the first object
    (1, 0)
    """
    ious = overlaps(answer, truth)
    values = np.where(reaches(ious, threshold), ious, 0.0) if threshold > 0 else ious
    rows, columns = best_pairs(values**power if power != 1 else values)
    return Assignment(tuple(rows.tolist()), tuple(columns.tolist()), tuple(ious[rows, columns].tolist()), ious.shape[1])


def best_pairs(values: bx.Array) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows and columns of a one-to-one assignment with the largest sum of values ``(N, M)``, all at least 0.

    Pairs of value 0 are left out; rows ascend.
    """
    rows, columns = linear_sum_assignment(values, maximize=True)
    used = values[rows, columns] > 0
    return rows[used], columns[used]


def count_pairs(allowed: npt.NDArray[np.bool_]) -> int:
    """The largest number of rows and columns that can be assigned one to one where ``allowed`` ``(N, M)`` is true.

    >>> count_pairs(np.array([[True, True], [True, False]])), count_pairs(np.array([[True, True]]))
    (2, 1)
    """
    # Not `scipy.sparse.csgraph.maximum_bipartite_matching`, which takes 25 s for 2,000 nested boxes.
    used = allowed[np.ix_(allowed.any(axis=1), allowed.any(axis=0))]
    rows, columns = linear_sum_assignment(used, maximize=True)
    return int(used[rows, columns].sum())
