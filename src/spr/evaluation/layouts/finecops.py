"""FineCops-Ref (Liu et al. 2024): the annotations "in COCO format", which are MDETR's JSON with more keys.

As in the repository's evaluation/eval_metric.py, each row of ``images`` is an expression with one row of
``annotations``, whose ``level`` (1 to 3) is the difficulty. An annotation with a ``negative_type`` belongs to an
expression, or an edited image, for which the object is not there; ``negative_level`` and ``negative_cate`` (``text`` or
``image``) say how it was made. The task `rec` reads positive expressions, as the publisher's Precision@1; the task
`multi-rec` reads both.
"""

from __future__ import annotations

from typing import Any

import msgspec

from spr.core.errors import InputError
from spr.core.terminal import count_text
from spr.evaluation.expressions import Expressions
from spr.evaluation.layouts.content import JsonContent
from spr.evaluation.layouts.layout import Layout
from spr.evaluation.layouts.mdetr import ANNOTATION_KEYS, IMAGE_KEYS, MdetrAnnotation, MdetrImage, boxes_of
from spr.evaluation.multi_expressions import MultiExpression, check_expressions

_KEYS = (*IMAGE_KEYS, *ANNOTATION_KEYS, "annotations[].level", "annotations[].tuple_type")
_EXPECTED = "images with id, file_name, caption, width, height; annotations with image_id, bbox, level"


class _Annotation(MdetrAnnotation, gc=False, kw_only=True):
    level: int
    negative_type: str | None = None
    negative_level: int | None = None
    negative_cate: str | None = None


class _FineCops(msgspec.Struct):
    images: list[MdetrImage]
    annotations: list[_Annotation]


def _decode(content: JsonContent) -> _FineCops:
    found = content.decode(_FineCops, f"{content.path} is not FineCops-Ref's JSON", expected=_EXPECTED)
    if not found.images:
        raise InputError(f"{content.path} is empty", got="no rows in `images`", expected="at least one")
    return found


def _read(content: JsonContent, _: Any) -> Expressions:
    found = _decode(content)
    negative = sum(entry.negative_type is not None for entry in found.annotations)
    if negative:
        got, fix = count_text(negative, "negative expressions"), "use `spr evaluate multi-rec`, or the positive file"
        raise InputError(f"{content.path} has expressions without an object", got=got, expected="none", fix=fix)
    rows = found.images
    boxes = boxes_of(content.path, rows, found.annotations)
    levels = {entry.image_id: f"level {entry.level}" for entry in found.annotations}
    return Expressions(
        tuple(str(row.id) for row in rows),
        tuple(row.file_name for row in rows),
        tuple(row.caption for row in rows),
        boxes,
        tuple((row.width, row.height) for row in rows),
        tuple(levels[row.id] for row in rows),
    )


LAYOUT = Layout("FineCops-Ref's JSON", "rec", ("a JSON object",), _KEYS, _read)


def _read_all(content: JsonContent, _: Any) -> list[MultiExpression]:
    """Groups: positive or negative, and inside of these the level, and how a negative expression was made."""
    found = _decode(content)
    rows, boxes = found.images, boxes_of(content.path, found.images, found.annotations)
    about = {entry.image_id: entry for entry in found.annotations}
    items = []
    for row, box in zip(rows, boxes.tolist(), strict=True):
        entry = about[row.id]
        groups, targets = _groups(entry), () if entry.negative_type is not None else (tuple(box),)
        items.append(MultiExpression(str(row.id), row.file_name, (row.width, row.height), row.caption, targets, groups))
    return check_expressions(items)


def _groups(entry: _Annotation) -> tuple[str, ...]:
    if entry.negative_type is None:
        return "positive", f"positive/level {entry.level}"
    made = f"negative/{entry.negative_cate}/{entry.negative_type}/level {entry.negative_level}"
    return "negative", f"negative/{entry.negative_cate}", made


MULTI_REC = Layout("FineCops-Ref's JSON", "multi-rec", ("a JSON object",), _KEYS, _read_all)
