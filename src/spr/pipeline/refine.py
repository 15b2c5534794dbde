"""Refinement: the boxes of the best description are put right against the annotations (METHOD §5.1)."""

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
"""A box stands for an object when their IoU is over this [seed: "provided their IoU … exceeds 0.5"]."""


class Refined(NamedTuple):
    """The refined text, and what became of each box, in the order of the text."""

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
    """Correct the boxes of a description (METHOD §5.1) [seed].

    A box inside the region (at least ``inside_fraction`` of its area) that matches an object takes that object's box,
    each object once, best IoU first. A box outside the region that matches any object of the image stays as it is.

    Args:
        text: The best description, boxes in pixels of the original image.
        region: The region, xyxy pixels.
        objects: All objects of the image.
        unmatched: What becomes of other boxes [ours]: ``remove_box`` removes the box and leaves the words, ``keep_box``
            keeps both, ``remove_phrase`` removes a phrase that has lost all of its boxes.
        inside_fraction: See above.

    Returns:
        The text, in which a phrase may have fewer boxes than before, and the edit of each box.

    >>> dog = ImageObject("1", "dog", (10, 10, 50, 50))
    >>> said = GroundedText("a dog", (Span("a dog", 0, 5, ((12, 10, 50, 50), (70, 70, 90, 90))),))
    >>> refine(said, (0, 0, 100, 100), [dog]).text.spans[0].boxes
    ((10.0, 10.0, 50.0, 50.0),)
    """
    boxes = bx.as_boxes(text.boxes)
    overlaps = bx.iou_matrix(boxes, bx.as_boxes([item.box for item in objects]))
    inside = bx.at_least(bx.fraction_inside(boxes, region), inside_fraction)
    taken = _assign(np.where(inside[:, None], overlaps, 0.0))
    known = np.asarray(bx.over(overlaps, MATCH_IOU).any(axis=1))
    box_edits = []
    for k, (phrase, box) in enumerate((span.phrase, box) for span in text.spans for box in span.boxes):
        if k in taken:
            box_edits.append(BoxEdit(phrase, box, objects[taken[k]].box, "replaced"))
        elif (known[k] and not inside[k]) or unmatched == "keep_box":
            box_edits.append(BoxEdit(phrase, box, box, "kept"))
        else:
            box_edits.append(BoxEdit(phrase, box, None, "box_removed"))
    return _apply(text, box_edits, remove_phrases=unmatched == "remove_phrase")


def _assign(overlaps: bx.Array) -> dict[int, int]:
    """Box → object for IoU over `MATCH_IOU`, best first, each once; ties by the order of boxes, then of objects."""
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
    gone: list[Span] = []
    final: list[BoxEdit] = []
    left = iter(box_edits)
    for span in text.spans:
        mine = [next(left) for _ in span.boxes]
        boxes = tuple(edit.box_after for edit in mine if edit.box_after is not None)
        if remove_phrases and mine and not boxes:
            gone.append(span)
            mine = [BoxEdit(edit.phrase, edit.box_before, None, "phrase_removed") for edit in mine]
        spans.append(Span(span.phrase, span.start, span.end, boxes))
        final += mine
    refined = GroundedText(text.plain_text, tuple(spans))
    return Refined(_without(refined, gone) if gone else refined, tuple(final))


_JOINT = re.compile(r"(?:\s*,)?\s*(?:\b(?:and|or|with|next to|beside|near)\s*)?$")


def _without(text: GroundedText, gone: Sequence[Span]) -> GroundedText:
    """The text without some phrases, each with the comma or connective before it."""
    removed = {(span.start, span.end) for span in gone}
    plain, spans, position = "", [], 0
    for span in text.spans:
        plain += text.plain_text[position : span.start]
        if (span.start, span.end) in removed:
            plain = _JOINT.sub("", plain)
        else:
            spans.append(Span(span.phrase, len(plain), len(plain) + len(span.phrase), span.boxes))
            plain += span.phrase
        position = span.end
    plain += text.plain_text[position:]
    return GroundedText(plain, tuple(spans))
