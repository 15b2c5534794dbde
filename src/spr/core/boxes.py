"""Batched box arithmetic in numpy.

A box is ``(x1, y1, x2, y2)`` in continuous pixels of the original image: its width is ``x2 - x1`` and the image
covers ``0..W`` by ``0..H``. Arrays are ``boxes_xyxy`` of shape ``(..., 4)``; results are float64.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Box: TypeAlias = tuple[float, float, float, float]
"""``(x1, y1, x2, y2)``, pixels of the original image."""
Point: TypeAlias = tuple[float, float]
"""``(x, y)``, pixels of the original image."""
Size: TypeAlias = tuple[int, int]
"""``(width, height)`` in pixels."""
Array: TypeAlias = npt.NDArray[np.float64]
Boxes: TypeAlias = npt.ArrayLike
"""Anything that ``np.asarray(..., dtype=float64)`` turns into an array of shape ``(..., 4)``."""


def as_boxes(boxes_xyxy: Boxes) -> Array:
    """The boxes as float64 of shape ``(..., 4)``, ``(0, 4)`` for an empty list; any other shape is a `ValueError`."""
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    if boxes.size == 0 and boxes.shape[-1:] != (4,):
        return boxes.reshape(0, 4)
    if boxes.shape[-1] != 4:
        raise ValueError(f"boxes_xyxy needs shape (..., 4), got {boxes.shape}")
    return boxes


def area(boxes_xyxy: Boxes) -> Array:
    """Area in px², 0 for boxes with a side that is not positive. Shape ``(..., 4)`` → ``(...)``.

    >>> area([[0, 0, 10, 5], [5, 5, 5, 9]]).tolist()
    [50.0, 0.0]
    """
    sides = _sides(boxes_xyxy)
    return np.asarray(sides[..., 0] * sides[..., 1])


def _sides(boxes_xyxy: Boxes) -> Array:
    boxes = as_boxes(boxes_xyxy)
    sides = boxes[..., 2:] - boxes[..., :2]
    return np.maximum(sides, 0.0, out=sides)  # `np.clip` takes several times as long for a few boxes


def _ratio(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def intersection(a_xyxy: Boxes, b_xyxy: Boxes) -> Array:
    """Area in px² of the intersection of boxes; shapes broadcast: ``(..., 4)`` and ``(..., 4)`` → ``(...)``.

    >>> float(intersection([0, 0, 10, 10], [5, 5, 20, 20]))
    25.0
    """
    a, b = as_boxes(a_xyxy), as_boxes(b_xyxy)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    np.maximum(sides, 0.0, out=sides)
    return np.asarray(sides[..., 0] * sides[..., 1])


def iou(a_xyxy: Boxes, b_xyxy: Boxes) -> Array:
    """Intersection over union of boxes, 0..1; shapes broadcast. 0 if the union has no area.

    >>> float(iou([0, 0, 10, 10], [0, 0, 10, 5]))
    0.5
    """
    shared = intersection(a_xyxy, b_xyxy)
    return _ratio(shared, area(a_xyxy) + area(b_xyxy) - shared)


def iou_matrix(a_xyxy: Boxes, b_xyxy: Boxes) -> Array:
    """IoU of every box of ``(N, 4)`` with every box of ``(M, 4)`` → ``(N, M)``.

    >>> iou_matrix([[0, 0, 2, 2]], [[0, 0, 2, 2], [1, 0, 3, 2]]).round(4).tolist()
    [[1.0, 0.3333]]
    """
    return iou(as_boxes(a_xyxy)[:, None, :], as_boxes(b_xyxy)[None, :, :])


def leave(boxes_xyxy: Boxes, sizes_wh: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Whether boxes leave their images at the right or at the bottom, by more than a pixel and 1 % of the side.

    Careless boxes leave by less; boxes of an image in another orientation by more. ``(..., 4)`` and ``(..., 2)`` →
    ``(...)``.

    >>> leave([[0, 0, 10, 205], [0, 0, 10, 202]], (100, 200)).tolist()
    [True, False]
    """
    limits = np.asarray(sizes_wh) * 1.01 + 1
    return np.asarray((as_boxes(boxes_xyxy)[..., 2:] > limits).any(axis=-1))


def fraction_inside(boxes_xyxy: Boxes, region_xyxy: Boxes) -> Array:
    """Share of each box's area that lies in the region, 0..1; 0 for boxes without area. Shapes broadcast.

    An object is inside a region if this is at least 0.5 (supplement, Sec. 1: "at least 50% of their area falling within
    the queried region").

    >>> fraction_inside([[0, 0, 10, 10], [90, 0, 110, 10]], [0, 0, 100, 100]).tolist()
    [1.0, 0.5]
    """
    return _ratio(intersection(boxes_xyxy, region_xyxy), area(boxes_xyxy))


def union(a_xyxy: Boxes, b_xyxy: Boxes) -> Array:
    """The smallest box that contains both; shapes broadcast.

    >>> union([0, 0, 1, 1], [5, 2, 6, 3]).tolist()
    [0.0, 0.0, 6.0, 3.0]
    """
    a, b = as_boxes(a_xyxy), as_boxes(b_xyxy)
    return np.concatenate([np.minimum(a[..., :2], b[..., :2]), np.maximum(a[..., 2:], b[..., 2:])], axis=-1)


def gap_distance(a_xyxy: Boxes, b_xyxy: Boxes) -> Array:
    """Distance in pixels between the nearest edges of two boxes, 0 if they touch or overlap. Shapes broadcast.

    >>> float(gap_distance([0, 0, 1, 1], [4, 5, 9, 9]))
    5.0
    """
    a, b = as_boxes(a_xyxy), as_boxes(b_xyxy)
    gaps = np.maximum(np.maximum(a[..., :2] - b[..., 2:], b[..., :2] - a[..., 2:]), 0.0)
    return np.asarray(np.hypot(gaps[..., 0], gaps[..., 1]))


def centre(boxes_xyxy: Boxes) -> Array:
    """Centres ``(x, y)`` in pixels: ``(..., 4)`` → ``(..., 2)``.

    >>> centre([0, 0, 4, 2]).tolist()
    [2.0, 1.0]
    """
    boxes = as_boxes(boxes_xyxy)
    return np.asarray((boxes[..., :2] + boxes[..., 2:]) / 2)


def centre_distance(a_xyxy: Boxes, b_xyxy: Boxes) -> Array:
    """Distance in pixels between the centres of two boxes. Shapes broadcast.

    >>> float(centre_distance([0, 0, 2, 2], [3, 4, 5, 6]))
    5.0
    """
    offset = centre(a_xyxy) - centre(b_xyxy)
    return np.asarray(np.hypot(offset[..., 0], offset[..., 1]))


def aspect(boxes_xyxy: Boxes) -> Array:
    """Short side over long side, 0..1; 0 for boxes without area (supplement, Sec. 1).

    >>> aspect([[0, 0, 30, 10], [0, 0, 0, 5]]).round(4).tolist()
    [0.3333, 0.0]
    """
    sides = _sides(boxes_xyxy)
    return _ratio(np.asarray(sides.min(axis=-1)), np.asarray(sides.max(axis=-1)))


ROUNDING = 1e-5
"""Relative tolerance of `at_least` and `over`. Tables hold float32 edges, so a ratio that should equal a threshold may
be off by a few millionths; values within this distance of the threshold count as equal to it."""


def at_least(values: npt.ArrayLike, threshold: float) -> npt.NDArray[np.bool_]:
    """``values >= threshold``, for values computed from float32 edges.

    >>> at_least([0.4999999, 0.499], 0.5).tolist()
    [True, False]
    """
    return np.asarray(np.asarray(values) >= threshold * (1 - ROUNDING))


def over(values: npt.ArrayLike, threshold: float) -> npt.NDArray[np.bool_]:
    """``values > threshold``, for values computed from float32 edges.

    >>> over([0.5000001, 0.501], 0.5).tolist()
    [False, True]
    """
    return np.asarray(np.asarray(values) > threshold * (1 + ROUNDING))


def clip(boxes_xyxy: Boxes, size_wh: tuple[float, float] | npt.ArrayLike) -> Array:
    """Boxes clipped to images of size ``(W, H)``; ``size_wh`` has shape ``(2,)`` or ``(..., 2)``.

    >>> clip([-5, 3, 20, 30], (10, 10)).tolist()
    [0.0, 3.0, 10.0, 10.0]
    """
    size = np.asarray(size_wh, dtype=np.float64)
    return np.clip(as_boxes(boxes_xyxy), 0.0, np.concatenate([size, size], axis=-1))


def grow(boxes_xyxy: Boxes, factor: float, size_wh: tuple[float, float] | None = None) -> Array:
    """Boxes with both sides scaled by ``factor`` about the centre, clipped to the image if its size is given.

    The crop of a region is ``grow(region, 1.5, size_wh)`` (supplement, Sec. 1: "we slightly expand both sides of the
    region by 1.5 times before performing the crop").

    >>> grow([10, 10, 20, 30], 1.5, (100, 32)).tolist()
    [7.5, 5.0, 22.5, 32.0]
    """
    boxes = as_boxes(boxes_xyxy)
    middle, half = centre(boxes), (boxes[..., 2:] - boxes[..., :2]) * (factor / 2)
    grown = np.concatenate([middle - half, middle + half], axis=-1)
    return grown if size_wh is None else clip(grown, size_wh)


def non_maximum_suppression(boxes_xyxy: Boxes, scores: npt.ArrayLike, threshold: float) -> npt.NDArray[np.intp]:
    """Indices of the boxes that are kept, by descending score; each removes later ones with an IoU over ``threshold``.

    Boxes ``(N, 4)`` of equal scores ``(N,)`` keep their order.

    >>> non_maximum_suppression([[0, 0, 9, 9], [0, 0, 10, 10], [50, 0, 60, 10]], [0.5, 0.9, 0.1], 0.5).tolist()
    [1, 2]
    """
    boxes = as_boxes(boxes_xyxy)
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    kept: list[int] = []
    for index in order:
        if not kept or float(iou(boxes[index], boxes[kept]).max()) <= threshold:
            kept.append(int(index))
    return np.asarray(kept, dtype=np.intp)


LARGEST = 1e9
"""The largest coordinate of an annotated box, in pixels."""


def first_without_area(boxes_xyxy: Boxes) -> int | None:
    """The position of the first box without an area, or with a coordinate that is not finite or above `LARGEST`.

    >>> first_without_area([(0, 0, 2, 2), (3, 0, 3, 2)])
    1
    """
    boxes = as_boxes(boxes_xyxy)
    right = (np.abs(boxes) <= LARGEST).all(axis=1) & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    return None if right.all() else int(np.argmin(right))
