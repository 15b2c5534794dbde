"""Referring expressions from files: RefCOCO, RefCOCO+ and RefCOCOg in MDETR's JSON, and a plain JSONL form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from spr import boxes as bx
from spr.errors import InputError
from spr.evaluation.lines import read_lines
from spr.evaluation.metrics import Floats
from spr.evaluation.predictions import as_id
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
    try:
        whole = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        if b"\n" not in data.strip():
            raise InputError(f"{path} is not JSON", got=error, expected="MDETR's JSON, or JSON lines") from None
        return _from_lines(path)
    if isinstance(whole, dict) and "annotations" in whole:
        return _from_mdetr(path, whole)
    return _from_lines(path)


def _from_mdetr(path: Path, whole: dict[str, Any]) -> Expressions:
    boxes: dict[Any, list[Any]] = {}
    for entry in _rows(path, whole, "annotations"):
        boxes.setdefault(entry.get("image_id"), []).append(entry.get("bbox"))

    def box_of(row: dict[str, Any], where: str) -> tuple[float, ...]:
        found = boxes.get(row.get("id"), [])
        if len(found) != 1:
            raise InputError(f"{where} has not one annotation", got=len(found), expected="one box an expression")
        x, y, width, height = _numbers(found[0], f"bbox of {where}")
        return x, y, x + width, y + height

    rows = _rows(path, whole, "images")
    if rows and not any("caption" in row for row in rows[:10]):
        fix = "give finetune_refcoco_val.json and the like: each image row bears one expression"
        raise InputError(f"{path} has no captions", got=", ".join(rows[0]), expected="images with `caption`", fix=fix)
    return _columns(path, rows, box_of, ("file_name", "caption", "dataset_name"))


def _from_lines(path: Path) -> Expressions:
    expected = '{"image": …, "sentence": …, "box": [x1, y1, x2, y2], "width": …, "height": …}'
    rows = [{"id": number, **row} for number, row in enumerate(read_lines(path, expected))]

    def box_of(row: dict[str, Any], where: str) -> tuple[float, ...]:
        return _numbers(row.get("box"), f"box of {where}")

    return _columns(path, rows, box_of, ("image", "sentence", "dataset"))


def _columns(
    path: Path,
    rows: list[dict[str, Any]],
    box_of: Callable[[dict[str, Any], str], tuple[float, ...]],
    names: tuple[str, str, str],
) -> Expressions:
    image, sentence, dataset = names
    ids: list[str] = []
    texts: list[tuple[str, str, str]] = []
    boxes: list[tuple[float, ...]] = []
    sizes: list[Size] = []
    for k, row in enumerate(rows):
        name = as_id(row.get("id"))
        where = f"row {k} (id {name}) of {path.name}"
        if name is None:
            _wrong(where, "id", row.get("id"), "a text or a whole number")
        for field in (image, sentence):
            if not isinstance(row.get(field), str):
                _wrong(where, field, row.get(field), "a text")
        size = row.get("width"), row.get("height")
        if not all(type(side) is int and side > 0 for side in size):
            _wrong(where, "width and height", size, "pixels, whole numbers of at least 1")
        ids.append(name)
        texts.append((row[image], row[sentence], row.get(dataset) or ""))
        boxes.append(box_of(row, where))
        sizes.append((row["width"], row["height"]))
    if not ids:
        raise InputError(f"{path} holds no expressions", got="no row", expected="at least one")
    files, sentences, datasets = zip(*texts, strict=True)
    return Expressions(tuple(ids), files, sentences, np.asarray(boxes, dtype=np.float64), tuple(sizes), datasets)


def _rows(path: Path, whole: dict[str, Any], key: str) -> list[dict[str, Any]]:
    rows = whole.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"`{key}` of {path} is no list of objects", got=type(rows).__name__, expected="MDETR's JSON")
    return rows


def _numbers(value: Any, where: str) -> tuple[float, ...]:
    good = isinstance(value, list) and len(value) == 4
    if not good or not all(type(v) in (int, float) and math.isfinite(v) for v in value):
        raise InputError(f"{where} is no box", got=repr(value)[:80], expected="four finite numbers")
    return tuple(value)


def _wrong(where: str, field: str, got: Any, expected: str) -> NoReturn:
    raise InputError(f"`{field}` of {where} is wrong", got=repr(got)[:80], expected=expected)
