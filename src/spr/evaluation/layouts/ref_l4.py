"""Ref-L4 (Chen et al. 2024): ``ref-l4-val.parquet`` and ``ref-l4-test.parquet`` of JierunChen/Ref-L4.

Columns as in the dataset's card: ``id``, ``caption``, ``bbox`` ([x, y, width, height] in pixels), ``bbox_area``,
``bbox_id``, ``ori_category_id`` (``o365_…`` or ``refcoco_…``), ``image_id``, ``height``, ``width``, ``file_name``,
``is_rewrite``, ``split``. The publisher's evaluator (ref_l4/evaluation.py) counts an IoU that is greater than the
threshold, where `rec` counts one that equals it, too.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from spr.evaluation.expressions import Expressions
from spr.evaluation.layouts.content import Content
from spr.evaluation.layouts.layout import Layout
from spr.evaluation.layouts.mdetr import Id, Side

_KEYS = ("id", "caption", "bbox", "ori_category_id", "height", "width", "file_name")


class _Row(msgspec.Struct, gc=False):
    id: Id
    caption: str
    bbox: tuple[float, float, float, float]
    ori_category_id: str
    height: Side
    width: Side
    file_name: str


def _read(content: Content, _: Any) -> Expressions:
    """The datasets are those that the objects come from: ``o365`` and ``refcoco``."""
    rows = content.rows(_Row, ", ".join(_KEYS))
    boxes = np.array([row.bbox for row in rows], dtype=np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return Expressions(
        tuple(str(row.id) for row in rows),
        tuple(row.file_name for row in rows),
        tuple(row.caption for row in rows),
        boxes,
        tuple((row.width, row.height) for row in rows),
        tuple(row.ori_category_id.split("_")[0] for row in rows),
    )


LAYOUT = Layout("Ref-L4", "rec", ("Parquet", "a JSON list"), _KEYS, _read)
