"""COCO's average precision of one answer, equal to pycocotools' for boxes of equal confidence in the order of the text.

The definition is that of `cocoeval.py`: detections take the free object with the highest IoU, category by category;
precision at 101 levels of recall, each the highest at this recall or above; means over levels, the IoU thresholds 0.5,
0.55, …, 0.95, and the categories that have objects. At most 100 boxes of a category count.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from spr.core import boxes as bx

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
LIMIT = 100
"""Boxes of a category that count."""
_LEVELS = np.linspace(0.0, 1.0, 101)


def average_precision(ious: bx.Array) -> float:
    """The average precision of boxes of one category, 0 to 1.

    Args:
        ious: IoU of every object with every box, ``(G, B)`` with at least one object; boxes in the order of the text.

    >>> round(average_precision(np.array([[1.0, 0.0], [0.0, 0.7]])), 4)  # 5 thresholds: both; 5: one
    0.7525
    """
    ious = ious[:, :LIMIT]
    objects = len(ious)
    near: list[list[tuple[float, int]]] = [[] for _ in range(ious.shape[1])]
    rows, columns = np.nonzero(ious >= THRESHOLDS[0])
    for row, column, value in zip(rows.tolist(), columns.tolist(), ious[rows, columns].tolist(), strict=True):
        near[column].append((value, row))
    for candidates in near:
        # The highest IoU first; of equal ones the last object, as in COCO's loop.
        candidates.sort(reverse=True)
    total = own = 0.0
    least = -1.0  # the lowest IoU of a pair
    for threshold in THRESHOLDS:
        if least < threshold:  # else the pairs stay as they are
            least = 2.0
            taken: set[int] = set()
            precisions: list[float] = []
            for place, candidates in enumerate(near, start=1):
                for value, row in candidates:
                    if value < threshold:
                        break
                    if row not in taken:
                        taken.add(row)
                        least = min(least, value)
                        precisions.append(len(taken) / place)
                        break
            own = _at_levels(precisions, objects)
        total += own
    return total / len(THRESHOLDS)


def _at_levels(precisions: list[float], objects: int) -> float:
    """Mean of the precision over the levels of recall, from the precision at each box that finds an object."""
    levels, best, total = _reached(objects), 0.0, 0.0
    for k in range(len(precisions), 0, -1):
        best = max(best, precisions[k - 1])
        total += best * (levels[k] - levels[k - 1])
    return total / len(_LEVELS)


@lru_cache(maxsize=1024)
def _reached(objects: int) -> tuple[int, ...]:
    """How many levels are at most the recall of 0, 1, …, all objects; the level 0 counts for the first object."""
    recall: npt.NDArray[np.float64] = np.arange(1, objects + 1) / objects
    return (0, *np.searchsorted(_LEVELS, recall, side="right").tolist())
