"""Your own referring expressions: a JSON line or row of a list each, in pixels."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from spr.evaluation.expressions import Expressions
from spr.evaluation.layouts.content import Content
from spr.evaluation.layouts.layout import Layout
from spr.evaluation.layouts.mdetr import Id, Side

_EXPECTED = '{"image": …, "sentence": …, "box": [x1, y1, x2, y2], "width": …, "height": …}'


class _Line(msgspec.Struct, gc=False):
    image: str
    sentence: str
    box: tuple[float, float, float, float]
    width: Side
    height: Side
    id: Id | None = None
    dataset: str = ""


def _read(content: Content, _: Any) -> Expressions:
    """A missing ``id`` is the row's number, from 0; ``dataset`` is optional."""
    rows = content.rows(_Line, _EXPECTED)
    return Expressions(
        tuple(str(number if row.id is None else row.id) for number, row in enumerate(rows)),
        tuple(row.image for row in rows),
        tuple(row.sentence for row in rows),
        np.array([row.box for row in rows], dtype=np.float64),
        tuple((row.width, row.height) for row in rows),
        tuple(row.dataset for row in rows),
    )


_KEYS = ("image", "sentence", "box", "width", "height")
LAYOUT = Layout("SPR's rows of expressions", "rec", ("JSON lines", "a JSON list"), _KEYS, _read)
