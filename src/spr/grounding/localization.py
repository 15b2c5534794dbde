"""The localization score: how well a description locates the objects of its region (paper, Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spr.core import boxes as bx
from spr.records import Box, ImageObject, Match

THRESHOLD = 0.5
"""A match counts if its IoU is above this (paper, Sec. 3.2)."""


class Localization(NamedTuple):
    """S_loc in 0–1, and the best predicted box of each object."""

    score: float
    matches: tuple[Match, ...]


def localization_score(
    objects: Sequence[ImageObject], text_boxes: Sequence[Box], detected_boxes: Sequence[Box] = ()
) -> Localization:
    """S_loc = (1/|G|) Σ_i max_j p[i,j], where p[i,j] = IoU(g_i, b_j) if that is above 0.5, else 0 (paper, Sec. 3.2).

    Args:
        objects: G, the objects inside the region.
        text_boxes: The boxes in the description, in pixels of the original image.
        detected_boxes: The detector's boxes for the description's text; added to ``text_boxes``.

    Returns:
        The score, 0 for an empty G, and for each object the IoU (also if it is not above 0.5) and the source (``text``,
        ``detector``, ``none``) of its best prediction. Ties are resolved in favour of ``text``.

    >>> cup = ImageObject("1", "cup", (0, 0, 10, 10))
    >>> plate = ImageObject("2", "plate", (50, 50, 60, 60))
    >>> localization_score([cup, plate], [(0, 0, 10, 8), (0, 0, 10, 9)]).score
    0.45
    """
    predictions = bx.as_boxes([*text_boxes, *detected_boxes])
    if not len(predictions) or not objects:
        matches = tuple(Match(item.id, 0.0, "none") for item in objects)
        return Localization(0.0, matches)
    overlaps = bx.iou_matrix(bx.as_boxes([item.box for item in objects]), predictions)
    best = overlaps.argmax(axis=1)
    values = overlaps.max(axis=1)
    sources = np.where(best < len(text_boxes), "text", "detector")
    sources[values == 0] = "none"
    rows = zip(objects, values.tolist(), sources.tolist(), strict=True)
    matches = tuple(Match(item.id, value, source) for item, value, source in rows)
    return Localization(float(np.where(bx.over(values, THRESHOLD), values, 0.0).mean()), matches)
