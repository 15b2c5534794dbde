"""The JSON that the fine-tuning scripts of Qwen-VL and of Qwen2-VL to Qwen3-VL read.

Qwen-VL (QwenLM/Qwen-VL, README.md, "Data preparation"): ``conversations`` of ``user`` and ``assistant``; the image's
path is in the text, between ``<img>`` tags; boxes are ``<ref>…</ref><box>(x1,y1),(x2,y2)</box>``. Later models
(QwenLM/Qwen3-VL, qwen-vl-finetune/README.md): LLaVA's turns with ``image`` or ``images``, and answers in JSON with
``bbox_2d``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from spr.workflows.checking.layouts.layout import (
    SHAREGPT,
    ImageName,
    RowLayout,
    Slot,
    WrongRow,
    first_image,
    turn_slots,
)

_IMAGE = re.compile(r"<img>([^<]*+)</img>")
_MARKUP = re.compile(r"<box>\s*\(|<\|box_start\|>|\"bbox_2d\"|\"point_2d\"")


def _fits(row: Mapping[str, Any]) -> bool:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        return False
    if turns[0].get("from") in ("user", "assistant"):
        return True
    texts = [turn.get("value") for turn in turns]
    return any(isinstance(text, str) and _MARKUP.search(text) is not None for text in texts)


def _slots(row: Mapping[str, Any]) -> list[Slot]:
    return list(turn_slots(row.get("conversations"), SHAREGPT))


def _image(row: Mapping[str, Any]) -> ImageName:
    named = first_image(row, "image", "images")
    if named.name is not None:
        return named
    try:
        found = next(filter(None, (_IMAGE.search(slot.text) for slot in _slots(row))), None)
    except WrongRow:
        return named
    return named if found is None else ImageName(found[1])


LAYOUT = RowLayout(
    "qwen_vl",
    "Qwen-VL JSON",
    "rows with `conversations`, a list of {from: user or assistant, value: text} with the image in `<img>` tags, or as "
    'LLaVA\'s with boxes in `<box>(x1,y1),(x2,y2)</box>` or {"bbox_2d": […]}',
    _fits,
    _slots,
    _image,
)
