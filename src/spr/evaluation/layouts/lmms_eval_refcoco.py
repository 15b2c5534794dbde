"""RefCOCO, RefCOCO+ and RefCOCOg as lmms-eval publishes them: lmms-lab/RefCOCO, lmms-lab/RefCOCOplus, ….

Columns as in the dataset's card and in lmms_eval/tasks/refcoco/utils_rec.py: ``question_id``, ``image`` (the encoded
file), ``question``, ``answer`` (a list of expressions for the same object), ``segmentation``, ``bbox`` ([x, y, width,
height] in pixels), ``iscrowd``, ``file_name``. As there, each expression is an item of its own. Its id is its number,
from 0, which is the ``doc_id`` of lmms-eval's logs. The file has no sizes, so these are read from the images.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np

from spr.core.errors import InputError
from spr.evaluation.expressions import Expressions
from spr.evaluation.layouts.layout import Layout
from spr.evaluation.layouts.mdetr import Id
from spr.evaluation.layouts.parquet import ParquetContent

_KEYS = ("question_id", "image", "answer", "bbox", "file_name")
_OF_OBJECT = re.compile(r"(?<=_\d{12})_\d+(?=\.\w+$)")


class _Row(msgspec.Struct, gc=False):
    question_id: Id
    answer: list[str]
    bbox: tuple[float, float, float, float]
    file_name: str


def image_name(file_name: str) -> str:
    """COCO's name of the image: RefCOCO's names end with the number of the object.

    >>> image_name("COCO_train2014_000000000009_3.jpg"), image_name("COCO_train2014_000000000009.jpg")
    ('COCO_train2014_000000000009.jpg', 'COCO_train2014_000000000009.jpg')
    """
    return _OF_OBJECT.sub("", file_name)


def _read(content: ParquetContent, _: Any) -> Expressions:
    rows = content.rows(_Row, ", ".join(_KEYS))
    names = [image_name(row.file_name) for row in rows]
    pictures = content.embedded("image", names)
    for row in rows:
        if not row.answer:
            raise InputError(f"Object {row.question_id} of {content.path} has no expression", got="an empty `answer`")
    objects = zip(rows, names, pictures.sizes_wh, strict=True)
    items = [(name, size_wh, text, row.bbox) for row, name, size_wh in objects for text in row.answer]
    file_names, sizes_wh, sentences, boxes = zip(*items, strict=True)
    ids = tuple(map(str, range(len(items))))
    corners = np.array(boxes, dtype=np.float64)
    corners[:, 2:] += corners[:, :2]
    return Expressions(ids, file_names, sentences, corners, sizes_wh, ("",) * len(items), pictures.images)


LAYOUT = Layout("RefCOCO in lmms-eval's Parquet", "rec", ("Parquet",), _KEYS, _read)
