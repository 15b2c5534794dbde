"""GroundingME (Li et al. 2025): lirang04/GroundingME, in Parquet and in VLMEvalKit's TSV (``groundingme.tsv``).

Parquet, as in the dataset's card: ``id``, ``description``, ``image``, ``bbox`` ([x1, y1, x2, y2] in pixels),
``subtask_l1`` (Discriminative, Spatial, Limited, Rejection), ``subtask_l2``, ``width``, ``height``. TSV, as in
vlmeval/dataset/groundingme.py: ``index``, ``image`` in base64, ``question``, ``answer`` (the box), and the same others.
An expression of Rejection has no target, whatever its box is, as in the publisher's evaluate.py. That evaluator keeps
the best of several scalings of an answer's box; here, the dialect determines the scale.
"""

from __future__ import annotations

from typing import Any

import msgspec

from spr.core.errors import InputError
from spr.evaluation.layouts.content import Content
from spr.evaluation.layouts.layout import Layout
from spr.evaluation.layouts.mdetr import Id, Side
from spr.evaluation.multi_expressions import MultiExpression, PicturedExpressions, check_expressions
from spr.records import Box

_REJECTION = "rejection"  # in any case
_SHARED = ("image", "subtask_l1", "subtask_l2", "width", "height")


class _Task(msgspec.Struct, gc=False, kw_only=True):
    subtask_l1: str
    subtask_l2: str | None = None
    width: Side
    height: Side


class _Row(_Task, gc=False, kw_only=True):
    id: Id
    description: str
    bbox: list[float] | None = None


class _TsvRow(_Task, gc=False, kw_only=True):
    index: Id
    question: str
    answer: str


def _read(content: Content, _: Any) -> PicturedExpressions:
    rows = content.rows(_Row, "id, description, image, bbox, subtask_l1, subtask_l2, width, height")
    return _expressions(content, [(row.id, row.description, row.bbox, row) for row in rows])


def _read_tsv(content: Content, _: Any) -> PicturedExpressions:
    rows = content.rows(_TsvRow, "index, image, question, answer, subtask_l1, subtask_l2, width, height")
    return _expressions(content, [(row.index, row.question, _box(content, row), row) for row in rows])


def _box(content: Content, row: _TsvRow) -> list[float] | None:
    if row.subtask_l1.lower() == _REJECTION:
        return None
    try:
        return msgspec.json.decode(row.answer, type=list[float])
    except msgspec.MsgspecError:
        what = f"The answer {row.index} of {content.path} is not valid"
        raise InputError(what, got=row.answer[:80], expected="[x1, y1, x2, y2] in pixels") from None


def _expressions(
    content: Content, rows: list[tuple[Id, str, list[float] | None, _Row | _TsvRow]]
) -> PicturedExpressions:
    pictures = content.embedded("image")
    items = []
    for (name, sentence, box, row), image in zip(rows, pictures.names, strict=True):
        boxes: tuple[Box, ...] = ()
        if row.subtask_l1.lower() != _REJECTION:
            if box is None or len(box) != 4:
                raise InputError(f"Expression {name} of {content.path} has no box", got=box, expected="four numbers")
            boxes = ((box[0], box[1], box[2], box[3]),)
        groups = (row.subtask_l1, *([f"{row.subtask_l1}/{row.subtask_l2}"] if row.subtask_l2 else []))
        items.append(MultiExpression(str(name), image, (row.width, row.height), sentence, boxes, groups))
    return PicturedExpressions(check_expressions(items), pictures.images)


PARQUET = Layout("GroundingME's Parquet", "multi-rec", ("Parquet",), ("id", "description", "bbox", *_SHARED), _read)
TSV = Layout(
    "GroundingME in VLMEvalKit's TSV", "multi-rec", ("TSV",), ("index", "question", "answer", *_SHARED), _read_tsv
)
