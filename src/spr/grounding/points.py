"""Points: whether they lie in boxes, the points of an answer, and their assignment to objects.

Rewards and evaluation count with the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from spr.core import boxes as bx
from spr.records import Box, Point

if TYPE_CHECKING:
    from spr.grounding.text import GroundedText


def point_in_box(point: Sequence[float], box: Sequence[float]) -> bool:
    """Whether a point (x, y) lies in a box (x1, y1, x2, y2), all in pixels of the original image.

    All four edges belong to the box, as in the evaluation of GUI pointing (ScreenSpot): ``x1 ≤ x ≤ x2`` and
    ``y1 ≤ y ≤ y2``. A point that is not finite lies in no box.

    >>> point_in_box((10, 20), (10, 0, 30, 20)), point_in_box((9.99, 20), (10, 0, 30, 20))
    (True, False)
    """
    (x, y), (x1, y1, x2, y2) = point, box
    return bool(x1 <= x <= x2 and y1 <= y <= y2)


def points_in_boxes(points: npt.ArrayLike, boxes_xyxy: bx.Boxes) -> npt.NDArray[np.bool_]:
    """`point_in_box` of every point of ``(P, 2)`` and every box of ``(B, 4)``; bool ``(P, B)``.

    >>> points_in_boxes([(1, 1), (5, 5)], [(0, 0, 2, 2), (0, 0, 9, 9)]).tolist()
    [[True, True], [False, True]]
    """
    xy, boxes = np.asarray(points, dtype=np.float64).reshape(-1, 1, 2), bx.as_boxes(boxes_xyxy)[None]
    return np.asarray(((boxes[..., :2] <= xy) & (xy <= boxes[..., 2:])).all(-1))


def assign_points(points: npt.ArrayLike, boxes_xyxy: bx.Boxes) -> list[tuple[int, int]]:
    """Assign points to boxes one to one: as many pairs ``(point, box)`` as possible, by point.

    A point is assigned only to a box that it lies in (`point_in_box`).

    >>> assign_points([(1, 1), (5, 5)], [(0, 0, 9, 9), (0, 0, 2, 2)])  # the first point lies in both boxes
    [(0, 1), (1, 0)]
    """
    # Slow to import, and needed here only: reading and writing texts with boxes does without it.
    from scipy.optimize import linear_sum_assignment

    allowed = points_in_boxes(points, boxes_xyxy)
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if allowed[row, column]]


def centre(box: Box) -> Point:
    """The centre of a box.

    >>> centre((0, 0, 10, 5))
    (5.0, 2.5)
    """
    x1, y1, x2, y2 = box
    return (x1 + x2) / 2, (y1 + y2) / 2


def without_points(grounded: GroundedText) -> GroundedText:
    """The text without its points, whose words stay: what a dialect without points can write.

    >>> from spr.grounding import parse, render
    >>> found = parse('[{"point_2d": [100, 200], "label": "a dog"}]', "qwen3_vl", (1000, 1000))
    >>> render(without_points(found), "ferret", (1000, 1000))
    'a dog'
    """
    spans = tuple([replace(span, points=()) for span in grounded.spans])
    return replace(grounded, spans=spans, source=grounded.source if not grounded.points else None)


def without_boxes(grounded: GroundedText) -> GroundedText:
    """The text without its boxes, whose words stay: what a dialect without boxes can write."""
    spans = tuple([replace(span, boxes=()) for span in grounded.spans])
    return replace(grounded, spans=spans, source=grounded.source if not grounded.boxes else None)


def points_of(grounded: GroundedText, *, centres: bool = False) -> tuple[Point, ...]:
    """All points of a text, in its order; with ``centres``, the centres of its boxes if it has no points.

    The centre of a box as the answer of a model that only writes boxes is a convention of pointing benchmarks
    (ScreenSpot); a result that uses it should say so.
    """
    points = grounded.points
    return tuple(map(centre, grounded.boxes)) if centres and not points else points
