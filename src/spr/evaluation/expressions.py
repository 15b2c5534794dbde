"""Referring expressions from files: RefCOCO, RefCOCO+ and RefCOCOg in MDETR's JSON, and a plain JSONL form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
import numpy as np

from spr.core import boxes as bx
from spr.core.errors import InputError
from spr.evaluation.metrics import Floats
from spr.records import Size


@dataclass(frozen=True, slots=True, eq=False)
class Expressions:
    """N referring expressions, column by column.

    Attributes:
        ids: Texts that differ.
        file_names: Of the images, relative to the images' folder.
        sentences: The expressions.
        boxes_xyxy: float64 ``(N, 4)``: what each refers to, pixels of the image.
        sizes_wh: Width and height of each image in pixels.
        datasets: Such as ``refcoco``, ``refcoco+``, ``refcocog``; empty where the file doesn't say.

    Raises:
        InputError: for an id that comes twice, or a box without area.
    """

    ids: tuple[str, ...]
    file_names: tuple[str, ...]
    sentences: tuple[str, ...]
    boxes_xyxy: Floats
    sizes_wh: tuple[Size, ...]
    datasets: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.ids)) != len(self.ids):
            seen: set[str] = set()
            twice = next(name for name in self.ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise InputError("Two expressions have one id", got=twice, expected="ids that differ")
        empty = np.flatnonzero(~(bx.area(self.boxes_xyxy) > 0))
        if len(empty):
            k = int(empty[0])
            got = self.boxes_xyxy[k].tolist()
            raise InputError(f"The box of expression {self.ids[k]} has no area", got=got, expected="x1 < x2, y1 < y2")

    def __len__(self) -> int:
        return len(self.ids)


def read_expressions(path: Path) -> Expressions:
    """Expressions of a file: MDETR's JSON, or JSON lines; which it is shows in its content.

    MDETR's: each of ``images`` is one expression (``id``, ``file_name``, ``width``, ``height``, ``caption``,
    ``dataset_name``), and one of ``annotations`` with its ``image_id`` has the box, ``[x, y, width, height]``, pixels.
    Lines: ``{"id", "image", "sentence", "box": [x1, y1, x2, y2], "width", "height"}``, ``dataset`` if wanted; without
    ``id``, the line's number from 0.

    Raises:
        InputError: naming the file and the row, if it is neither.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else error
        raise InputError(f"Annotations {path} can't be read", got=got, expected="MDETR's JSON, or JSON lines") from None
    # A JSON text has its quotes escaped: only a key, or a value that is this one word, looks so.
    return _from_mdetr(path, data) if b'"annotations"' in data else _from_lines(path, data)


_Id: TypeAlias = str | int
_Side: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
_Box: TypeAlias = tuple[float, float, float, float]


class _Image(msgspec.Struct, gc=False):
    id: _Id
    file_name: str
    caption: str
    width: _Side
    height: _Side
    dataset_name: str = ""


class _Annotation(msgspec.Struct, gc=False):
    image_id: _Id
    bbox: _Box


class _Mdetr(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]


class _Line(msgspec.Struct, gc=False):
    image: str
    sentence: str
    box: _Box
    width: _Side
    height: _Side
    id: _Id | None = None
    dataset: str = ""


def _from_mdetr(path: Path, data: bytes) -> Expressions:
    try:
        whole = msgspec.json.decode(data, type=_Mdetr)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        fix = "give finetune_refcoco_val.json and the like: each row of `images` bears one expression"
        raise InputError(f"{path} is not MDETR's JSON", got=error, expected=_MDETR, fix=fix) from None
    boxes: dict[_Id, _Box] = {}
    twice: set[_Id] = set()
    for entry in whole.annotations:
        if entry.image_id in boxes:
            twice.add(entry.image_id)
        boxes[entry.image_id] = entry.bbox
    rows = whole.images
    for row in rows:
        if row.id not in boxes or row.id in twice:
            got = "several" if row.id in twice else "none"
            raise InputError(f"Expression {row.id} of {path} has not one annotation", got=got, expected="one box each")
    xywh = np.array([boxes[row.id] for row in rows], dtype=np.float64).reshape(-1, 4)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    ids, names = [str(row.id) for row in rows], [row.file_name for row in rows]
    sizes, sentences = [(row.width, row.height) for row in rows], [row.caption for row in rows]
    return _made(path, ids, names, sentences, corners, sizes, [row.dataset_name for row in rows])


def _from_lines(path: Path, data: bytes) -> Expressions:
    decoder, rows = msgspec.json.Decoder(_Line), []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line and not line.isspace():
            try:
                rows.append(decoder.decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise InputError(f"Line {number} of {path} is no expression", got=error, expected=_LINES) from None
    ids = [str(number) if row.id is None else str(row.id) for number, row in enumerate(rows)]
    corners = np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4)
    sizes, sentences = [(row.width, row.height) for row in rows], [row.sentence for row in rows]
    return _made(path, ids, [row.image for row in rows], sentences, corners, sizes, [row.dataset for row in rows])


_MDETR = "images with id, file_name, caption, width, height; annotations with image_id, bbox"
_LINES = '{"image": …, "sentence": …, "box": [x1, y1, x2, y2], "width": …, "height": …}'


def _made(
    path: Path,
    ids: list[str],
    names: list[str],
    sentences: list[str],
    corners: Floats,
    sizes: list[Size],
    datasets: list[str],
) -> Expressions:
    if not ids:
        raise InputError(f"{path} holds no expressions", got="no row", expected="at least one")
    return Expressions(tuple(ids), tuple(names), tuple(sentences), corners, tuple(sizes), tuple(datasets))
