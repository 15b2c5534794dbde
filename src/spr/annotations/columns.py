"""Blocks of entries of an annotations file as columns of numbers, with the reason why an entry is dropped.

Each kind of entry has two decoders with equal results. The fast one decodes a block into typed structs, and returns
None unless every entry has the expected fields and types. The lenient one then takes the block's entries one by one,
whatever they contain. Few blocks have malformed entries, so most of a file is read at the speed of the fast decoder.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeGuard
from urllib.parse import unquote, urlsplit

import msgspec
import numpy as np
import numpy.typing as npt

from spr.annotations.ids import NO_KEY, TEXT_BASE, IdTable, Keys, ShortKeys, is_unicode
from spr.core.image_names import unsafe_path
from spr.core.reasons import ANNOTATION_REASONS
from spr.grounding.names import is_readable

REASONS = ("", *ANNOTATION_REASONS)
"""Drop reasons by code, uint8; code 0, `OK`, keeps the entry. Of several reasons, the first is used."""
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
    flickr_url: Any = None
    license: Any = None
    neg_category_ids: list[int] | None = None


class _Object(msgspec.Struct, gc=False, kw_only=True):
    # In the order of Objects365, where each field is found at the first try. Ids are floats and `iscrowd` is 0 or 1, so
    # that all packed objects have the same length.
    id: float
    iscrowd: int = 0
    bbox: tuple[float, float, float, float]
    image_id: float
    category_id: float


class _Ids(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int


_decode_images = msgspec.json.Decoder(list[_Image]).decode
_decode_objects = msgspec.json.Decoder(list[_Object]).decode
_decode_ids = msgspec.json.Decoder(list[_Ids]).decode
_pack = msgspec.msgpack.Encoder().encode
_NUMBERS = ("id", "image_id", "category_id", "x", "y", "width", "height")
_PACKED = _pack(_Object(id=1.0, image_id=2.0, category_id=3.0, bbox=(4.0, 5.0, 6.0, 7.0), iscrowd=0))
_RECORD = np.dtype(
    {
        "names": [*_NUMBERS, "iscrowd"],
        "formats": [">f8"] * len(_NUMBERS) + ["u1"],
        "offsets": [_PACKED.index(struct.pack(">d", n)) for n in range(1, 8)] + [_PACKED.index(b"iscrowd") + 7],
        "itemsize": len(_PACKED),
    }
)
_EXACT = 2**53
"""Integers below this are exact as floats."""


@dataclass(slots=True)
class ImageColumns:
    """Images in the order of the file: ``keys`` int64 (N,), ``reasons`` uint8 (N,), ``sizes_wh`` int32 (N, 2).

    ``licenses`` are ids of the member `licenses`, and ``source_urls`` where the images are from; both may be None.
    ``looked_for`` are the keys of the categories that LVIS's annotators looked for and did not find
    (``neg_category_ids``); None if an image does not list them.
    """

    names: list[str]
    licenses: list[str | None]
    source_urls: list[str | None]
    looked_for: list[list[int] | None]
    keys: Keys
    reasons: npt.NDArray[np.uint8]
    sizes_wh: npt.NDArray[np.int32]


@dataclass(slots=True)
class AnnotationColumns:
    """Annotations in the order of the file, before their boxes are clipped.

    ``keys``, ``image_keys`` and ``category_keys`` are int64 or int32 (N,), ``reasons`` uint8 (N,), ``crowd`` bool (N,),
    ``boxes_xyxy`` float32 (N, 4). A missing key is `NO_KEY`.
    """

    keys: ShortKeys
    image_keys: ShortKeys
    category_keys: ShortKeys
    reasons: npt.NDArray[np.uint8]
    crowd: npt.NDArray[np.bool_]
    boxes_xyxy: npt.NDArray[np.float32]


_DTYPES = {"keys": "i8", "image_keys": "i8", "category_keys": "i8", "reasons": "u1", "crowd": "?", "boxes_xyxy": "f4"}


def join_images(blocks: Sequence[ImageColumns]) -> ImageColumns:
    """All blocks as one; at least one block."""
    lists = ("names", "licenses", "source_urls", "looked_for")
    columns: dict[str, Any] = {
        name: list(chain.from_iterable(getattr(block, name) for block in blocks)) for name in lists
    }
    for name in ("keys", "reasons", "sizes_wh"):
        columns[name] = np.concatenate([getattr(block, name) for block in blocks])
    return ImageColumns(**columns)


def join_objects(blocks: Iterable[AnnotationColumns]) -> AnnotationColumns:
    """All blocks as one, with keys as int32 where they fit.

    Columns grow in place: joining a list of blocks at the end would need twice the memory.
    """
    buffers = {name: bytearray() for name in _DTYPES}
    dtypes = {name: "i4" if dtype == "i8" else dtype for name, dtype in _DTYPES.items()}
    for block in blocks:
        for name, buffer in buffers.items():
            values = getattr(block, name)
            if dtypes[name] == "i4" and values.dtype != np.int32:
                narrow = values.astype(np.int32)
                if not np.array_equal(narrow, values):
                    dtypes[name] = "i8"
                    buffers[name] = buffer = bytearray(np.frombuffer(buffer, "i4").astype("i8").data)
            buffer.extend(values.astype(dtypes[name], copy=False).data)
    columns: dict[str, Any] = {name: np.frombuffer(buffers[name], dtype) for name, dtype in dtypes.items()}
    return AnnotationColumns(**{**columns, "boxes_xyxy": columns["boxes_xyxy"].reshape(-1, 4)})


def fast_images(block: memoryview) -> ImageColumns | None:
    """Columns of a JSON list of images, which is not empty, or None if it needs the lenient decoder."""
    try:
        items = _decode_images(block)
        keys = _array("q", [item.id for item in items])
        width, height = _array("q", [item.width for item in items]), _array("q", [item.height for item in items])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, struct.error):
        return None
    names = [item.file_name or name_of_url(item.coco_url) for item in items]
    lines = "\n" + "\n".join(names)
    if not all(names) or any(sign in lines for sign in _SUSPECT):
        return None
    sizes = np.stack([width, height], axis=1)
    if keys.max() >= TEXT_BASE or sizes.min() < 1 or sizes.max() > _MAX_SIDE:
        return None
    licenses = _license_ids([item.license for item in items])
    urls = [_source_url(item.flickr_url, item.coco_url) if item.flickr_url or item.coco_url else None for item in items]
    looked_for = [item.neg_category_ids for item in items]
    if any(not -(2**63) <= key < TEXT_BASE for own in looked_for if own for key in own):
        return None
    reasons = np.zeros(len(items), dtype=np.uint8)
    return ImageColumns(names, licenses, urls, looked_for, keys, reasons, sizes.astype(np.int32))


def lenient_images(items: Sequence[Any], ids: IdTable) -> ImageColumns:
    """Columns of decoded images, whatever they contain; at least one."""
    names, keys, reasons, sizes = zip(*(_image(item, ids) for item in items), strict=True)
    known = [item if isinstance(item, dict) else {} for item in items]
    return ImageColumns(
        list(names),
        _license_ids([item.get("license") for item in known]),
        [_source_url(item.get("flickr_url"), item.get("coco_url")) for item in known],
        [_keys(item.get("neg_category_ids"), ids) for item in known],
        np.array(keys, np.int64),
        np.array(reasons, np.uint8),
        np.array(sizes, np.int32),
    )


def _keys(value: Any, ids: IdTable) -> list[int] | None:
    return [key for key in map(ids.key, value) if key != NO_KEY] if isinstance(value, list) else None


def fast_objects(block: memoryview) -> AnnotationColumns | None:
    """Columns of a JSON list of annotations, which is not empty, or None if it needs the lenient decoder."""
    try:
        items = _decode_objects(block)
        packed, count = _pack(items), len(items)
    except (msgspec.DecodeError, OverflowError, RecursionError):
        return None
    # Packed as MessagePack, where a float takes nine bytes and 0 or 1 takes one, the objects are records of the same
    # length. This takes a third of the time of collecting the attributes of the objects in lists.
    start = 1 if count < 16 else 3 if count < 2**16 else 5  # the length of the list takes this many bytes
    if len(packed) != start + count * _RECORD.itemsize:
        return None
    records = np.frombuffer(packed, _RECORD, offset=start)
    numbers = np.empty((len(_NUMBERS), count))
    for row, name in zip(numbers, _NUMBERS, strict=True):
        row[:] = records[name]
    keys = _exact_keys(numbers[:3], block)
    if keys is None:
        return None
    sizes_wh = numbers[5:]
    reasons = np.zeros(count, dtype=np.uint8)
    if sizes_wh.min() <= 0:
        reasons[(sizes_wh == 0).any(axis=0)] = CODE["box_size_zero"]
        reasons[(sizes_wh < 0).any(axis=0)] = CODE["box_size_negative"]
    return AnnotationColumns(keys[0], keys[1], keys[2], reasons, records["iscrowd"] != 0, _corners(numbers[3:].T))


def _exact_keys(numbers: npt.NDArray[np.float64], block: memoryview) -> ShortKeys | None:
    """Keys (3, N) from ids as floats, or from the JSON if the floats are not exact; None if they need `IdTable`."""
    largest = max(numbers.max(), -numbers.min())
    if largest < _EXACT:
        keys: ShortKeys = numbers.astype(np.int32) if largest < 2**31 else numbers.astype(np.int64)
        return keys if np.array_equal(keys, numbers) else None
    try:
        ids = _decode_ids(block)
        columns = [[item.id for item in ids], [item.image_id for item in ids], [item.category_id for item in ids]]
        keys = np.stack([_array("q", column) for column in columns])
    except (msgspec.DecodeError, struct.error):
        return None
    return keys if keys.max() < TEXT_BASE else None


def lenient_objects(items: Sequence[Any], ids: IdTable) -> AnnotationColumns:
    """Columns of decoded annotations, whatever they contain; at least one."""
    *keys, reasons, crowd, boxes = zip(*(_object(item, ids) for item in items), strict=True)
    key, image_key, category_key = (np.array(column, np.int64) for column in keys)
    corners = _corners(np.array(boxes, np.float64))
    return AnnotationColumns(
        key, image_key, category_key, np.array(reasons, np.uint8), np.array(crowd, np.bool_), corners
    )


def lenient_category(item: Any, ids: IdTable) -> tuple[int, str, int]:
    """Key, name and reason of a decoded category."""
    if not isinstance(item, dict):
        return NO_KEY, "", CODE["entry_not_an_object"]
    key, name = ids.key(item.get("id")), item.get("name")
    if key == NO_KEY:
        return key, "", CODE["category_without_id"]
    if not isinstance(name, str) or not name.strip() or not is_unicode(name):
        return key, "", CODE["category_without_name"]
    return key, name, OK if is_readable(name) else CODE["category_name_not_words"]


def license_text(item: Any) -> tuple[str, str] | None:
    """Id and text, ``name (url)``, of a decoded license; None for one that has no id, or neither name nor URL."""
    if not isinstance(item, dict) or (key := _license_id(item.get("id"))) is None:
        return None
    name, url = (_one_line(item.get(field)) for field in ("name", "url"))
    return (key, f"{name} ({url})" if name and url else name or url) if name or url else None


def _license_ids(values: Sequence[Any]) -> list[str | None]:
    if set(map(type, values)) == {int}:  # almost always, and few different ones
        texts = {value: _license_id(value) for value in set(values)}
        return list(map(texts.__getitem__, values))
    return list(map(_license_id, values))


def _license_id(value: Any) -> str | None:
    """As text, so that 4 and "4" are the same; None for what is not an id."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 64:
        return sys.intern(str(value))
    return sys.intern(_one_line(value)) or None


def _source_url(*urls: Any) -> str | None:
    """The first web address. Flickr's shows author and license, so it comes before the copy that COCO serves."""
    return next((url for url in map(_one_line, filter(None, urls)) if url.startswith(("http://", "https://"))), None)


def _one_line(value: Any) -> str:
    return " ".join(value.split())[:1000] if isinstance(value, str) and is_unicode(value) else ""


def _array(code: str, numbers: Sequence[float]) -> npt.NDArray[Any]:
    # 1.5 times as fast as np.array or np.fromiter. Raises struct.error for integers beyond int64.
    return np.frombuffer(struct.pack(f"={len(numbers)}{code}", *numbers), dtype=f"={code}")


def _corners(boxes_xywh: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    x, y, width, height = boxes_xywh.T
    boxes_xyxy = np.empty(boxes_xywh.shape, dtype=np.float32)
    with np.errstate(over="ignore"):  # edges too large for float32 become infinite, and are clipped to the image later
        for column, values in enumerate((x, y, x + width, y + height)):
            boxes_xyxy[:, column] = values
    boxes_xyxy += 0.0  # -0.0 becomes 0.0
    return boxes_xyxy


def name_of_url(url: str | None) -> str:
    """The file name in LVIS, which only gives URLs: folder and file, the last two parts; empty if there is none.

    >>> name_of_url("http://images.cocodataset.org/train2017/000000391895.jpg"), name_of_url("http://host/1%202.jpg?v=1")
    ('train2017/000000391895.jpg', '1 2.jpg')
    """
    try:
        path = urlsplit(url or "").path
    except ValueError:
        return ""
    return unquote("/".join(part for part in path.split("/")[-2:] if part))


def _image(item: Any, ids: IdTable) -> tuple[str, int, int, tuple[int, int]]:
    if not isinstance(item, dict):
        return "", NO_KEY, CODE["entry_not_an_object"], (0, 0)
    key, name, url = ids.key(item.get("id")), item.get("file_name"), item.get("coco_url")
    if not isinstance(name, str) or not name:
        name = name_of_url(url) if isinstance(url, str) else ""
    width, height = _side(item.get("width")), _side(item.get("height"))
    reason = OK
    if key == NO_KEY:
        reason = CODE["image_without_id"]
    elif not (width and height):
        reason = CODE["image_size_invalid"]
    elif not name:
        reason = CODE["image_without_file_name"]
    elif unsafe_path(name) or not is_unicode(name):
        reason = CODE["image_file_name_unsafe"]
    return name, key, reason, (width, height)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _side(value: object) -> int:
    """Width or height in pixels; 0 if the value is not valid."""
    return int(value) if _is_number(value) and 1 <= value <= _MAX_SIDE and value == int(value) else 0


_NO_BOX = (0.0, 0.0, 0.0, 0.0)


def _object(item: Any, ids: IdTable) -> tuple[int, int, int, int, bool, tuple[float, ...]]:
    if not isinstance(item, dict):
        return NO_KEY, NO_KEY, NO_KEY, CODE["entry_not_an_object"], False, _NO_BOX
    key, image_key, category_key = (ids.key(item.get(name)) for name in ("id", "image_id", "category_id"))
    box, reason = _box(item.get("bbox"))
    crowd = item.get("iscrowd")
    if crowd is not None and not isinstance(crowd, bool | int | float):
        reason = CODE["object_crowd_invalid"]
    return key, image_key, category_key, reason, bool(crowd), box


def _box(value: Any) -> tuple[tuple[float, ...], int]:
    if value is None:
        return _NO_BOX, CODE["box_missing"]
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        return _NO_BOX, CODE["box_not_four_numbers"]
    try:
        box = tuple(map(float, value))
    except OverflowError:
        return _NO_BOX, CODE["box_not_finite"]
    if not all(map(math.isfinite, box)):
        return _NO_BOX, CODE["box_not_finite"]
    smaller = min(box[2:])
    return box, CODE["box_size_negative"] if smaller < 0 else CODE["box_size_zero"] if smaller == 0 else OK
