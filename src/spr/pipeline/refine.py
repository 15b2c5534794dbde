"""Refinement: correct the boxes of the best description against the annotations (paper, Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from spr.core import boxes as bx
from spr.grounding import GroundedText, replace_boxes
from spr.records import Box, BoxEdit, ImageObject

Unmatched: TypeAlias = Literal["remove_box", "keep_box", "remove_phrase"]

MATCH_IOU = 0.5
"""A box matches an object when their IoU is over this value (paper, Sec. 3.3)."""


class Refined(NamedTuple):
    """The refined text, and what was done to each box, in the order of the text."""

    text: GroundedText
    box_edits: tuple[BoxEdit, ...]


def refine(
    text: GroundedText,
    region: Box,
    objects: Sequence[ImageObject],
    *,
    unmatched: Unmatched = "remove_box",
    inside_fraction: float = 0.5,
) -> Refined:
    """Correct the boxes of a description (paper, Sec. 3.3).

    A box inside the region that matches an object is replaced with that object's box. Each object is used once; pairs
    with a higher IoU are assigned first. A box outside the region that matches any object of the image is kept.

    Args:
        text: The description; boxes are xyxy in pixels of the original image.
        region: The region, xyxy pixels.
        objects: All objects of the image.
        unmatched: What to do with all other boxes (our choice): ``remove_box`` removes the box and keeps the words,
            ``keep_box`` keeps both, ``remove_phrase`` also removes a phrase that has lost all of its boxes.
        inside_fraction: A box is inside the region when at least this share of its area is, 0..1.

    Returns:
        The text, in which a phrase may have fewer boxes than before, and the edit of each box. If ``text`` was parsed,
        `render` writes it as it was but for the boxes that changed.

    Raises:
        GroundingError: if the text can't be written without the boxes that are removed.

    >>> from spr.grounding import parse
    >>> dog = ImageObject("1", "dog", (10, 10, 50, 50))
    >>> text = parse("a dog [120, 100, 500, 500], a cat [700, 700, 900, 900]", "ferret", (100, 100))
    >>> refine(text, (0, 0, 100, 100), [dog]).text.source.text
    'a dog [100, 100, 500, 500], a cat'
    """
    boxes = bx.as_boxes(text.boxes)
    overlaps = bx.iou_matrix(boxes, bx.as_boxes([item.box for item in objects]))
    inside = bx.at_least(bx.fraction_inside(boxes, region), inside_fraction)
    object_of = _assign(np.where(inside[:, None], overlaps, 0.0))
    matches_any = np.asarray(bx.over(overlaps, MATCH_IOU).any(axis=1))
    numbers = count()

    def edit_of(phrase: str, box: Box) -> BoxEdit:
        k = next(numbers)
        if k in object_of:
            return BoxEdit(phrase, box, objects[object_of[k]].box, "replaced")
        if (matches_any[k] and not inside[k]) or unmatched == "keep_box":
            return BoxEdit(phrase, box, box, "kept")
        return BoxEdit(phrase, box, None, "box_removed")

    box_edits = [edit_of(span.phrase, box) for span in text.spans for box in span.boxes]
    if unmatched == "remove_phrase":
        box_edits = _removed_with_phrases(text, box_edits)
    after = [edit.box_after for edit in box_edits]
    edited = replace_boxes(text, after, remove_phrases=unmatched == "remove_phrase")
    return Refined(edited, tuple(box_edits))


def _removed_with_phrases(text: GroundedText, box_edits: Sequence[BoxEdit]) -> list[BoxEdit]:
    """The edits, in which a phrase that loses all of its boxes is said to be removed."""
    renamed, rest = [], list(box_edits)
    for span in text.spans:
        own, rest = rest[: len(span.boxes)], rest[len(span.boxes) :]
        gone = all(edit.box_after is None for edit in own)
        renamed += [replace(edit, edit="phrase_removed") if gone else edit for edit in own]
    return renamed


def _assign(overlaps: bx.Array) -> dict[int, int]:
    """The index of the object assigned to each box: IoU ``(boxes, objects)`` over `MATCH_IOU`, highest first.

    Equal values are assigned in the order of boxes, then of objects.
    """
    rows, columns = np.nonzero(bx.over(overlaps, MATCH_IOU))
    best_first = np.lexsort((columns, rows, -overlaps[rows, columns]))
    taken: dict[int, int] = {}
    for k in best_first.tolist():
        box, item = int(rows[k]), int(columns[k])
        if box not in taken and item not in taken.values():
            taken[box] = item
    return taken
