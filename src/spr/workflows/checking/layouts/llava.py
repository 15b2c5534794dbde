"""LLaVA's JSON: ``conversations`` of ``human`` and ``gpt``, and the path of an image.

The layout is documented in haotian-liu/LLaVA, docs/Finetune_Custom_Data.md. InternVL's JSON lines add ``width`` and
``height`` of the image (OpenGVLab/InternVL, docs on fine-tuning), which are read as its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spr.workflows.checking.layouts.layout import SHAREGPT, ImageName, RowLayout, Slot, first_image, turn_slots


def _fits(row: Mapping[str, Any]) -> bool:
    turns = row.get("conversations")
    has_image = "images" not in row or "image" in row
    return isinstance(turns, list) and has_image and all(isinstance(turn, dict) and "from" in turn for turn in turns)


def _slots(row: Mapping[str, Any]) -> list[Slot]:
    return list(turn_slots(row.get("conversations"), SHAREGPT))


def _image(row: Mapping[str, Any]) -> ImageName:
    return first_image(row, "image")


LAYOUT = RowLayout(
    "llava",
    "LLaVA or ShareGPT JSON",
    "rows with `conversations`, a list of {from: human or gpt, value: text}, and `image`, a path",
    _fits,
    _slots,
    _image,
)
