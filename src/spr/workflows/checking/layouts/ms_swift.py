"""ms-swift's JSON lines: ``messages``, ``images``, and perhaps ``objects`` with the boxes.

The layout is documented in modelscope/ms-swift, docs/source_en/Customization/Custom-dataset.md, "Grounding": in
``objects``, ``ref`` are names, ``bbox`` boxes (four numbers) or points (two), and ``bbox_type`` is ``real`` (pixels of
the image, the default) or ``norm1`` (from 0 to 1). They replace ``<ref-object>`` and ``<bbox>`` in the texts, in the
format of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from spr.workflows.checking.layouts.layout import (
    OPENAI,
    FieldBoxes,
    ImageName,
    RowLayout,
    Slot,
    WrongRow,
    first_image,
    turn_slots,
)
from spr.workflows.checking.rows import Numbers, Stated

TYPES: dict[str, Stated] = {"real": "xyxy_pixels", "norm1": "xyxy_norm1", "norm1000": "xyxy_norm1000"}
_PLACEHOLDER = "<bbox>"


def _fits(row: Mapping[str, Any]) -> bool:
    turns = row.get("messages")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        return False
    plain = all(isinstance(turn.get("content"), str) for turn in turns)
    has_images = isinstance(row.get("images"), (list, str)) or "rejected_response" in row or "objects" in row
    return plain and "role" in turns[0] and has_images and "chosen" not in row


def _slots(row: Mapping[str, Any]) -> list[Slot]:
    slots = list(turn_slots(row.get("messages"), OPENAI))
    rejected = row.get("rejected_response")
    if isinstance(rejected, str):
        slots.append(Slot(row, "rejected_response", "rejected"))
    return slots


def _image(row: Mapping[str, Any]) -> ImageName:
    return first_image(row, "images", "image")


def objects_of(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The field ``objects``, also if it is JSON in a text; None without boxes."""
    objects = row.get("objects")
    if isinstance(objects, str):
        try:
            objects = msgspec.json.decode(objects)
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
            raise WrongRow("`objects` is a text that is not JSON") from None
    if objects is None:
        return None
    if not isinstance(objects, dict):
        raise WrongRow("`objects` is not an object with `bbox`")
    return objects if objects.get("bbox") else None


def _boxes(row: Mapping[str, Any]) -> FieldBoxes | None:
    objects = objects_of(row)
    if objects is None:
        return None
    bbox, kind = objects.get("bbox"), objects.get("bbox_type") or "real"
    if not isinstance(kind, str) or kind not in TYPES:
        raise WrongRow(f"`bbox_type` is {str(kind)[:40]!r} instead of real or norm1")
    if not isinstance(bbox, list):
        raise WrongRow("`objects.bbox` is not a list")
    ref = objects.get("ref")
    names = ref if isinstance(ref, list) and len(ref) == len(bbox) else [""] * len(bbox)
    numbers: list[Numbers] = []
    labels: list[str] = []
    problems: list[tuple[str, str]] = []
    for place, (box, name) in enumerate(zip(bbox, names, strict=True), start=1):
        if isinstance(box, list) and len(box) == 2:
            continue  # a point
        four = numbers_of(box)
        if four is None:
            problems.append(("wrong_box", f"box {place}: {str(box)[:60]}"))
        elif not all(map(math.isfinite, four)):
            problems.append(("not_finite", f"box {place}: {str(box)[:60]}"))
        else:
            numbers.append(four)
            labels.append(name if isinstance(name, str) else "")
    written = sum(slot.text.count(_PLACEHOLDER) for slot in _slots(row))
    if written != len(bbox):
        problems.append(("placeholders", f"{written} × <bbox> for {len(bbox)} in `objects`"))
    return FieldBoxes(numbers, labels, TYPES[kind], problems)


def numbers_of(box: Any) -> Numbers | None:
    """A box as four floats; None if it is not a list of four numbers."""
    if not isinstance(box, list) or len(box) != 4:
        return None
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in box):
        return None
    try:
        a, b, c, d = map(float, box)
    except OverflowError:
        return math.inf, math.inf, math.inf, math.inf
    return a, b, c, d


LAYOUT = RowLayout(
    "ms_swift",
    "ms-swift JSON lines",
    "rows with `messages`, a list of {role, content: text}, and `images`; boxes in the texts or in `objects.bbox`",
    _fits,
    _slots,
    _image,
    _boxes,
)
