"""Expressions with any number of targets: SPR's JSON lines, MDETR's JSON (RefDrone), and HumanRef's JSON lines."""

from __future__ import annotations

from typing import Any

from spr.evaluation.layouts.content import JsonContent
from spr.evaluation.layouts.layout import Layout
from spr.evaluation.layouts.mdetr import IMAGE_KEYS
from spr.evaluation.multi_expressions import MultiExpression, parse_multi_expressions


def _read(content: JsonContent, _: Any) -> list[MultiExpression]:
    return parse_multi_expressions(content.path, content.data)


_KEYS = ("image", "sentence", "boxes", "width", "height")
LINES = Layout("SPR's JSON lines of expressions with targets", "multi-rec", ("JSON lines",), _KEYS, _read)
MDETR = Layout(
    "MDETR's JSON with any number of targets", "multi-rec", ("a JSON object",), (*IMAGE_KEYS, "annotations"), _read
)
HUMANREF = Layout("HumanRef's JSON lines", "multi-rec", ("JSON lines",), ("referring", "answer_boxes"), _read)
