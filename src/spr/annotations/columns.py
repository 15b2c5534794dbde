"""Blocks of entries of an annotations file as columns of numbers, with the reason why an entry is dropped.

Each kind of entry has two decoders with equal results. The fast one decodes a block into typed structs, and returns
None unless every entry has the expected fields and types. The lenient one then takes the block's entries one by one,
whatever they contain. Few blocks have malformed entries, so most of a file is read at the speed of the fast decoder.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from spr.annotations.ids import NO_KEY, TEXT_BASE, IdTable, Keys, is_unicode
from spr.core.images import unsafe_path
from spr.core.reasons import ANNOTATION_REASONS

REASONS = ("", *ANNOTATION_REASONS)
"""Drop reasons by code, uint8; code 0, `OK`, means that the entry is kept. Of several reasons, the first is used."""
OK = 0
CODE = {reason: code for code, reason in enumerate(REASONS)}

_MAX_SIDE = 2**31 - 1
_SUSPECT = ("..", "\\", ":", "\0", "\n/")
"""Every unsafe file name contains one of these strings, if each name is preceded by a newline."""


class _Image(msgspec.Struct, gc=False):
    id: int
    width: int
    height: int
    file_name: str | None = None
    coco_url: str | None = None


class _Object(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


_decode_images = msgspec.json.Decoder(list[_Image]).decode
_decode_objects = msgspec.json.Decoder(list[_Object]).decode


@dataclass(slots=True)
class ImageColumns:
    """Images in the order of the file: ``keys`` int64 (N,), ``reasons`` uint8 (N,), ``sizes_wh`` int32 (N, 2)."""

    names: list[str]
    keys: Keys
    reasons: npt.NDArray[np.uint8]
    sizes_wh: npt.NDArray[np.int32]


@dataclass(slots=True)
class AnnotationColumns:
    """Annotations in the order of the file, before their boxes are clipped.

    ``keys``, ``image_keys`` and ``category_keys`` are int64 (N,), ``reasons`` uint8 (N,), ``crowd`` bool (N,),
    ``boxes_xyxy`` float32 (N, 4). A missing key is `NO_KEY`.
    """

    keys: Keys
    image_keys: Keys
    category_keys: Keys
    reasons: npt.NDArray[np.uint8]
    crowd: npt.NDArray[np.bool_]
    boxes_xyxy: npt.NDArray[np.float32]


class ObjectCollector:
    """Columns that grow in place. Joining a list of blocks at the end would need twice the memory."""

    def __init__(self) -> None:
        self._count = 0
        self._columns: dict[str, npt.NDArray[Any]] = {
            "keys": np.empty(1024, dtype=np.int64),
            "image_keys": np.empty(1024, dtype=np.int64),
            "category_keys": np.empty(1024, dtype=np.int64),
            "reasons": np.empty(1024, dtype=np.uint8),
            "crowd": np.empty(1024, dtype=np.bool_),
            "boxes_xyxy": np.empty((1024, 4), dtype=np.float32),
        }

    def add(self, block: AnnotationColumns) -> None:
        """Append a block."""
        start, self._count = self._count, self._count + len(block.keys)
        for name, column in self._columns.items():
            if len(column) < self._count:
                larger = np.empty((2 * self._count, *column.shape[1:]), dtype=column.dtype)
                larger[:start] = column[:start]
                self._columns[name] = column = larger
            column[start : self._count] = getattr(block, name)

    def finish(self) -> AnnotationColumns:
        """All blocks as one."""
        return AnnotationColumns(**{name: column[: self._count] for name, column in self._columns.items()})


def fast_images(block: memoryview) -> ImageColumns | None:
    """Columns of a JSON list of images, or None if it needs the lenient decoder."""
    try:
        items = _decode_images(block)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    names = [item.file_name or _name_of_url(item.coco_url) for item in items]
    lines = "\n" + "\n".join(names)
    if not all(names) or any(sign in lines for sign in _SUSPECT):
        return None
    try:
        keys = _array("q", [item.id for item in items])
        width, height = _array("q", [item.width for item in items]), _array("q", [item.height for item in items])
    except struct.error:
        return None
    sizes = np.stack([width, height], axis=1)
    if items and (keys.max() >= TEXT_BASE or sizes.min() < 1 or sizes.max() > _MAX_SIDE):
        return None
    return ImageColumns(names, keys, np.zeros(len(items), dtype=np.uint8), sizes.astype(np.int32))


def lenient_images(items: Sequence[Any], ids: IdTable) -> ImageColumns:
    """Columns of decoded images, whatever they contain."""
    rows = [_image(item, ids) for item in items]
    names, keys, reasons, sizes = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [], [])
    return ImageColumns(
        names,
        np.array(keys, dtype=np.int64),
        np.array(reasons, dtype=np.uint8),
        np.array(sizes, dtype=np.int32).reshape(-1, 2),
    )


def fast_objects(block: memoryview) -> AnnotationColumns | None:
    """Columns of a JSON list of annotations, or None if it needs the lenient decoder."""
    try:
        items = _decode_objects(block)
        keys = _array("q", [item.id for item in items])
        image_keys = _array("q", [item.image_id for item in items])
        category_keys = _array("q", [item.category_id for item in items])
    except (msgspec.DecodeError, struct.error, RecursionError):
        return None
    if items and max(keys.max(), image_keys.max(), category_keys.max()) >= TEXT_BASE:
        return None
    crowd = _array("?", [item.iscrowd for item in items])
    flat: list[float] = []
    for item in items:
        flat += item.bbox
    boxes = _array("d", flat).reshape(-1, 4)
    reasons = np.zeros(len(items), dtype=np.uint8)
    if not ((boxes[:, 2] > 0).all() and (boxes[:, 3] > 0).all()):
        reasons[(boxes[:, 2:] == 0).any(axis=1)] = CODE["box_size_zero"]
        reasons[(boxes[:, 2:] < 0).any(axis=1)] = CODE["box_size_negative"]
    return AnnotationColumns(keys, image_keys, category_keys, reasons, crowd, _corners(boxes))


def lenient_objects(items: Sequence[Any], ids: IdTable) -> AnnotationColumns:
    """Columns of decoded annotations, whatever they contain."""
    rows = [_object(item, ids) for item in items]
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], [], [], [], []]
    keys, image_keys, category_keys = (np.array(column, dtype=np.int64) for column in columns[:3])
    reasons, crowd = np.array(columns[3], dtype=np.uint8), np.array(columns[4], dtype=np.bool_)
    boxes = np.array(columns[5], dtype=np.float64).reshape(-1, 4)
    return AnnotationColumns(keys, image_keys, category_keys, reasons, crowd, _corners(boxes))


def lenient_categories(items: Sequence[Any], ids: IdTable) -> list[tuple[int, str, int]]:
    """Key, name and reason of decoded categories."""
    return [_category(item, ids) for item in items]


def _array(code: str, numbers: Sequence[float]) -> npt.NDArray[Any]:
    # 1.5 times as fast as np.array or np.fromiter. Raises struct.error for integers beyond int64.
    return np.frombuffer(struct.pack(f"={len(numbers)}{code}", *numbers), dtype=f"={code}")


def _corners(boxes_xywh: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    x, y, width, height = boxes_xywh.T
    boxes_xyxy = np.empty(boxes_xywh.shape, dtype=np.float32)
    with np.errstate(over="ignore"):  # edges too large for float32 become infinite, and are clipped to the image later
        for column, values in enumerate((x, y, x + width, y + height)):
            boxes_xyxy[:, column] = values
    return boxes_xyxy


def _name_of_url(url: str | None) -> str:
    """The file name in LVIS, which only gives URLs: folder and file are the last two parts."""
    return "/".join(url.split("/")[-2:]) if url else ""


def _image(item: Any, ids: IdTable) -> tuple[str, int, int, tuple[int, int]]:
    if not isinstance(item, dict):
        return "", NO_KEY, CODE["entry_not_an_object"], (0, 0)
    key = ids.key(item.get("id"))
    name, url = item.get("file_name"), item.get("coco_url")
    if not isinstance(name, str) or not name:
        name = _name_of_url(url) if isinstance(url, str) else ""
    width, height = _side(item.get("width")), _side(item.get("height"))
    reason = OK
    if key is None:
        reason = CODE["image_without_id"]
    elif not (width and height):
        reason = CODE["image_size_invalid"]
    elif not name:
        reason = CODE["image_without_file_name"]
    elif unsafe_path(name) or not is_unicode(name):
        reason = CODE["image_file_name_unsafe"]
    return name, NO_KEY if key is None else key, reason, (width, height)


def _side(value: object) -> int:
    """Width or height in pixels; 0 if the value is not valid."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _MAX_SIDE:
        return 0
    return int(value) if value == int(value) else 0


def _category(item: Any, ids: IdTable) -> tuple[int, str, int]:
    if not isinstance(item, dict):
        return NO_KEY, "", CODE["entry_not_an_object"]
    key, name = ids.key(item.get("id")), item.get("name")
    if key is None:
        return NO_KEY, "", CODE["category_without_id"]
    if not isinstance(name, str) or not name.strip() or not is_unicode(name):
        return key, "", CODE["category_without_name"]
    return key, name, OK


_NO_BOX = (0.0, 0.0, 0.0, 0.0)


def _object(item: Any, ids: IdTable) -> tuple[int, int, int, int, bool, tuple[float, ...]]:
    if not isinstance(item, dict):
        return NO_KEY, NO_KEY, NO_KEY, CODE["entry_not_an_object"], False, _NO_BOX
    found = [ids.key(item.get(name)) for name in ("id", "image_id", "category_id")]
    key, image_key, category_key = (NO_KEY if k is None else k for k in found)
    box, reason = _box(item.get("bbox"))
    crowd = item.get("iscrowd")
    if crowd is not None and not isinstance(crowd, bool | int | float):
        reason = CODE["object_crowd_invalid"]
    if key == NO_KEY:
        reason = CODE["object_without_id"]
    return key, image_key, category_key, reason, bool(crowd), box


def _box(value: Any) -> tuple[tuple[float, ...], int]:
    if value is None:
        return _NO_BOX, CODE["box_missing"]
    is_box = isinstance(value, list) and len(value) == 4
    if not is_box or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
        return _NO_BOX, CODE["box_not_four_numbers"]
    try:
        x, y, width, height = (float(v) for v in value)
    except OverflowError:
        return _NO_BOX, CODE["box_not_finite"]
    if not all(map(math.isfinite, (x, y, width, height))):
        return _NO_BOX, CODE["box_not_finite"]
    if width < 0 or height < 0:
        return (x, y, width, height), CODE["box_size_negative"]
    if width == 0 or height == 0:
        return (x, y, width, height), CODE["box_size_zero"]
    return (x, y, width, height), OK
