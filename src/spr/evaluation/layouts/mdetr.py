"""RefCOCO, RefCOCO+ and RefCOCOg in MDETR's JSON (``finetune_refcoco_val.json`` of ``mdetr_annotations.tar.gz``).

Each row of ``images`` is one expression; the row of ``annotations`` with its ``image_id`` has the box, ``[x, y, width,
height]`` in pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np

from spr.core.errors import InputError
from spr.evaluation.expressions import Expressions
from spr.evaluation.layouts.content import JsonContent
from spr.evaluation.layouts.layout import Layout
from spr.evaluation.metrics import Floats

Side: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Id: TypeAlias = str | int
IMAGE_KEYS = tuple(f"images[].{key}" for key in ("id", "file_name", "caption", "width", "height"))
ANNOTATION_KEYS = ("annotations[].image_id", "annotations[].bbox")


class MdetrImage(msgspec.Struct, gc=False):
    """An expression: a row of ``images``."""

    id: Id
    file_name: str
    caption: str
    width: Side
    height: Side
    dataset_name: str = ""


class MdetrAnnotation(msgspec.Struct, gc=False):
    """The box of an expression: a row of ``annotations``."""

    image_id: Id
    bbox: tuple[float, float, float, float]


class _Mdetr(msgspec.Struct):
    images: list[MdetrImage]
    annotations: list[MdetrAnnotation]


def boxes_of(path: Path, images: Sequence[MdetrImage], annotations: Sequence[Any]) -> Floats:
    """The boxes of the expressions, xyxy; raises `InputError` unless each has exactly one."""
    boxes = {entry.image_id: entry.bbox for entry in annotations}
    if len(boxes) < len(annotations) or not boxes.keys() >= {row.id for row in images}:
        counts = Counter(entry.image_id for entry in annotations)
        wrong = next((row.id for row in images if counts[row.id] != 1), None)
        if wrong is not None:
            what = f"Expression {wrong} of {path} does not have exactly one box"
            fix = "expressions with several boxes or none are read by `spr evaluate multi-rec`"
            raise InputError(what, got=f"{counts[wrong]} annotations with this image_id", expected="one", fix=fix)
    found = np.array([boxes[row.id] for row in images], dtype=np.float64)
    found[:, 2:] += found[:, :2]
    return found


def _read(content: JsonContent, _: Any) -> Expressions:
    path = content.path
    expected = "images with id, file_name, caption, width, height; annotations with image_id, bbox"
    fix = "give a file such as finetune_refcoco_val.json, where each row of `images` is one expression"
    found = content.decode(_Mdetr, f"{path} is not MDETR's JSON", expected=expected, fix=fix)
    rows = found.images
    if not rows:
        raise InputError(f"{path} is empty", got="no rows in `images`", expected="at least one")
    return Expressions(
        tuple([str(row.id) for row in rows]),
        tuple([row.file_name for row in rows]),
        tuple([row.caption for row in rows]),
        boxes_of(path, rows, found.annotations),
        tuple([(row.width, row.height) for row in rows]),
        tuple([row.dataset_name for row in rows]),
    )


LAYOUT = Layout("MDETR's JSON", "rec", ("a JSON object",), (*IMAGE_KEYS, *ANNOTATION_KEYS), _read)
