"""RefCOCO, RefCOCO+ and RefCOCOg in VLMEvalKit's TSV: ``RefCOCO.tsv`` of mjuicem/RefCOCO-VLMEvalKit.

Columns as in vlmeval/dataset/refcoco.py: ``index``, ``image`` (base64), ``question`` (a whole question with the
expression in ``<ref>…</ref>``), ``answer`` (``[x1, y1, x2, y2]`` as shares of the image) and ``category`` (such as
``RefCOCO testA``). The evaluator there guesses the scale of the answer's numbers from their size; here a box with
numbers above 1 is an error. Ids are VLMEvalKit's: ``RefCOCO_testA_<index>``.
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
from spr.evaluation.layouts.tsv import TsvContent

_KEYS = ("index", "image", "question", "answer", "category")
_REF = re.compile(r"<ref>(.*?)</ref>", re.DOTALL)


class _Row(msgspec.Struct, gc=False):
    index: Id
    question: str
    answer: str
    category: str


def _read(content: TsvContent, _: Any) -> Expressions:
    rows = content.rows(_Row, ", ".join(_KEYS))
    splits = [row.category.strip().replace(" ", "_") for row in rows]
    pictures = content.embedded("image")
    shares = np.array([_box(content, row) for row in rows], dtype=np.float64)
    return Expressions(
        tuple(f"{split}_{row.index}" for split, row in zip(splits, rows, strict=True)),
        pictures.names,
        tuple(_expression(content, row) for row in rows),
        shares * np.tile(np.array(pictures.sizes_wh, dtype=np.float64), 2),
        pictures.sizes_wh,
        tuple(splits),
        pictures.images,
    )


def _expression(content: TsvContent, row: _Row) -> str:
    match = _REF.search(row.question)
    if match is None:
        what, expected = f"The question {row.index} of {content.path} is not valid", "an expression in <ref>…</ref>"
        raise InputError(what, got=row.question[:80], expected=expected)
    return match[1].strip()


def _box(content: TsvContent, row: _Row) -> tuple[float, float, float, float]:
    try:
        box = msgspec.json.decode(row.answer, type=tuple[float, float, float, float])
    except msgspec.MsgspecError:
        box = None
    if box is None or not all(0 <= number <= 1 for number in box):
        what, expected = f"The answer {row.index} of {content.path} is not valid", "[x1, y1, x2, y2] from 0 to 1"
        raise InputError(what, got=row.answer[:80], expected=expected)
    return box


LAYOUT = Layout("RefCOCO in VLMEvalKit's TSV", "rec", ("TSV",), _KEYS, _read)
