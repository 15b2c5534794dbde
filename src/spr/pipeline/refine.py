"""Refinement: correct the boxes of the best description against the annotations (paper, Sec. 3.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from spr.core import boxes as bx
from spr.grounding import GroundedText
from spr.records import Box, BoxEdit, ImageObject, Span

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
        The text, in which a phrase may have fewer boxes than before, and the edit of each box.

    >>> dog = ImageObject("1", "dog", (10, 10, 50, 50))
    >>> text = GroundedText("a dog", (Span("a dog", 0, 5, ((12, 10, 50, 50), (70, 70, 90, 90))),))
    >>> refine(text, (0, 0, 100, 100), [dog]).text.spans[0].boxes
    ((10.0, 10.0, 50.0, 50.0),)
    """
    boxes = bx.as_boxes(text.boxes)
    overlaps = bx.iou_matrix(boxes, bx.as_boxes([item.box for item in objects]))
    inside = bx.at_least(bx.fraction_inside(boxes, region), inside_fraction)
    object_of = _assign(np.where(inside[:, None], overlaps, 0.0))
    matches_any = np.asarray(bx.over(overlaps, MATCH_IOU).any(axis=1))
    box_edits = []
    for k, (phrase, box) in enumerate((span.phrase, box) for span in text.spans for box in span.boxes):
        if k in object_of:
            box_edits.append(BoxEdit(phrase, box, objects[object_of[k]].box, "replaced"))
        elif (matches_any[k] and not inside[k]) or unmatched == "keep_box":
            box_edits.append(BoxEdit(phrase, box, box, "kept"))
        else:
            box_edits.append(BoxEdit(phrase, box, None, "box_removed"))
    return _apply(text, box_edits, remove_phrases=unmatched == "remove_phrase")


def _assign(overlaps: bx.Array) -> dict[int, int]:
    """Assign boxes to objects whose IoU is over `MATCH_IOU`, highest first, each at most once.

    Args:
        overlaps: IoU, ``(boxes, objects)``. Equal values are assigned in the order of boxes, then of objects.

    Returns:
        The object's index by the box's index.
    """
    rows, columns = np.nonzero(bx.over(overlaps, MATCH_IOU))
    best_first = np.lexsort((columns, rows, -overlaps[rows, columns]))
    taken: dict[int, int] = {}
    for k in best_first.tolist():
        box, item = int(rows[k]), int(columns[k])
        if box not in taken and item not in taken.values():
            taken[box] = item
    return taken


def _apply(text: GroundedText, box_edits: list[BoxEdit], *, remove_phrases: bool) -> Refined:
    spans: list[Span] = []
    removed: list[Span] = []
    final: list[BoxEdit] = []
    remaining = iter(box_edits)
    for span in text.spans:
        own = [next(remaining) for _ in span.boxes]
        boxes = tuple(edit.box_after for edit in own if edit.box_after is not None)
        if remove_phrases and own and not boxes:
            removed.append(span)
            own = [BoxEdit(edit.phrase, edit.box_before, None, "phrase_removed") for edit in own]
        spans.append(Span(span.phrase, span.start, span.end, boxes))
        final += own
    refined = GroundedText(text.plain_text, tuple(spans))
    return Refined(_without(refined, removed) if removed else refined, tuple(final))


_CONNECTIVE = re.compile(r"(?:\s*,)?\s*(?:\b(?:and|or|with|next to|beside|near)\s*)?$")


def _without(text: GroundedText, phrases: Sequence[Span]) -> GroundedText:
    """The text without these phrases and the comma or connective before each of them."""
    removed = {(span.start, span.end) for span in phrases}
    plain, spans, position = "", [], 0
    for span in text.spans:
        plain += text.plain_text[position : span.start]
        if (span.start, span.end) in removed:
            plain = _CONNECTIVE.sub("", plain)
        else:
            spans.append(Span(span.phrase, len(plain), len(plain) + len(span.phrase), span.boxes))
            plain += span.phrase
        position = span.end
    plain += text.plain_text[position:]
    return GroundedText(plain, tuple(spans))
