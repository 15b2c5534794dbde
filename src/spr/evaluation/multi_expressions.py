"""Referring expressions with any number of targets, none included: the items of `multi-rec`, and their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec

from spr.core.boxes import first_without_area
from spr.core.errors import InputError
from spr.evaluation.inference import LoadImage
from spr.evaluation.lines import decode_json, first_repeated, read_bytes, read_lines, unique_ids
from spr.records import Box, Size

EXPECTED = '{"id", "image", "sentence", "boxes": [[x1, y1, x2, y2], …], "width", "height", "group"}'


@dataclass(frozen=True, slots=True)
class MultiExpression:
    """A referring expression and everything in the image that it refers to.

    Attributes:
        id: The id of its answer.
        file_name: The image, relative to the image folder.
        size_wh: Width and height of the image in pixels.
        sentence: The expression, as in the dataset.
        boxes: The targets, xyxy pixels; empty if what it describes is not in the image.
        groups: The subsets of the benchmark that it belongs to, such as ``("Rejection", "Rejection/Color")``.
    """

    id: str
    file_name: str
    size_wh: Size
    sentence: str
    boxes: tuple[Box, ...]
    groups: tuple[str, ...] = ()


class PicturedExpressions(list[MultiExpression]):
    """Expressions from a file that contains their images, which ``images`` loads."""

    def __init__(self, rows: Iterable[MultiExpression], images: LoadImage) -> None:
        super().__init__(rows)
        self.images = images


def check_expressions(rows: list[MultiExpression]) -> list[MultiExpression]:
    """Return the expressions, or raise `InputError` if an id is repeated or a box has no area."""
    repeated = first_repeated(row.id for row in rows)
    if repeated is not None:
        raise InputError("Two expressions have the same id", got=repeated, expected="unique ids")
    for row in rows:
        wrong = first_without_area(row.boxes)
        if wrong is not None:
            what = f"A box of expression {row.id} has no area"
            raise InputError(
                what,
                got=list(row.boxes[wrong]),
                expected="x1 < x2, y1 < y2, in pixels; no box at all if there is no target",
            )
    return rows


def read_multi_expressions(path: Path) -> list[MultiExpression]:
    """Read JSON lines, or MDETR's JSON with any number of annotations per expression; the content decides which.

    JSON lines: ``{"id", "image", "sentence", "boxes": [[x1, y1, x2, y2], …], "width", "height", "group"}``. ``boxes``
    is empty if what the sentence describes is not in the image; ``group`` is optional, a text or a list of texts; a
    missing ``id`` is the line's number, from 0.

    MDETR's JSON, as RefDrone is published in: each row of ``images`` is one expression (``id``, ``file_name``,
    ``width``, ``height``, ``caption``), and the rows of ``annotations`` with its ``image_id`` have its boxes, ``[x, y,
    width, height]`` in pixels. An expression without a target has none, or one that is marked ``"empty": true``.

    Raises:
        InputError: if the file is empty, has another layout, repeats an id, or has a box without area.
    """
    return parse_multi_expressions(path, read_bytes(path, f"MDETR's JSON, or JSON lines such as {EXPECTED}"))


def parse_multi_expressions(path: Path, data: bytes) -> list[MultiExpression]:
    """`read_multi_expressions` of the content of a file."""
    if b'"annotations"' in data:
        return check_expressions(_from_mdetr(path, data))
    if b'"answer_boxes"' in data and b'"referring"' in data:
        fix = "write JSON lines with the sizes of the images: docs/evaluation.md, section multi-rec, shows how"
        what = f"{path} is HumanRef's file, which lacks the sizes of the images"
        raise InputError(what, got="`referring`, `answer_boxes`", expected=EXPECTED, fix=fix)
    rows = read_lines(path, _Line, EXPECTED, data)
    ids = unique_ids(path, "id", [row.id for row in rows])
    return check_expressions(
        [
            MultiExpression(
                name,
                row.image,
                (row.width, row.height),
                row.sentence,
                row.boxes,
                (row.group,) if isinstance(row.group, str) else row.group,
            )
            for name, row in zip(ids, rows, strict=True)
        ]
    )


_Side: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class _Line(msgspec.Struct, gc=False):
    image: str
    sentence: str
    boxes: tuple[tuple[float, float, float, float], ...]
    width: _Side
    height: _Side
    id: Any = None
    group: str | tuple[str, ...] = ()


class _Image(msgspec.Struct, gc=False):
    id: str | int
    file_name: str
    caption: str
    width: _Side
    height: _Side
    dataset_name: str = ""


class _Annotation(msgspec.Struct, gc=False):
    image_id: str | int
    bbox: tuple[float, float, float, float]
    empty: bool = False


class _Mdetr(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]


def _from_mdetr(path: Path, data: bytes) -> list[MultiExpression]:
    expected = "images with id, file_name, caption, width, height; annotations with image_id, bbox, empty"
    fix = "give a file such as RefDrone_test_mdetr.json, where each row of `images` is one expression"
    content = decode_json(data, _Mdetr, f"{path} is not MDETR's JSON", expected=expected, fix=fix)
    if not content.images:
        raise InputError(f"{path} is empty", got="no rows in `images`", expected="at least one")
    boxes: dict[str | int, list[Box]] = {row.id: [] for row in content.images}
    unknown = Counter(entry.image_id for entry in content.annotations if entry.image_id not in boxes)
    if unknown:
        what = f"An annotation of {path} belongs to no row of `images`"
        raise InputError(what, got=f"image_id {next(iter(unknown))}", expected="the id of an expression")
    for entry in content.annotations:
        if not entry.empty:
            x, y, width, height = entry.bbox
            boxes[entry.image_id].append((x, y, x + width, y + height))
    return [
        MultiExpression(
            str(row.id),
            row.file_name,
            (row.width, row.height),
            row.caption,
            tuple(boxes[row.id]),
            (row.dataset_name,) if row.dataset_name else (),
        )
        for row in content.images
    ]
