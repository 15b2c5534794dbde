"""COCO-style JSON (COCO, LVIS v1, Objects365 v1 and v2) → columns, read as a stream (METHOD §1.1).

Memory follows the number of boxes (some 100 bytes each at the peak), not the size of the file: segmentations, captions,
URLs and the like are passed over without being kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spr.annotations.columns import (
    ImageColumns,
    ObjectCollector,
    ObjectColumns,
    careful_categories,
    careful_images,
    careful_objects,
    quick_images,
    quick_objects,
)
from spr.annotations.ids import CHUNK, NO_KEY, IdTable, Keys, look_up
from spr.annotations.json_stream import BLOCK_SIZE, JsonStream, Progress
from spr.annotations.reasons import Reason
from spr.annotations.table import Annotations, Dropped
from spr.core.errors import InputError

_LISTS = ("images", "annotations", "categories")
_WITHOUT_BOX = (Reason.ENTRY_NOT_AN_OBJECT, Reason.OBJECT_WITHOUT_ID, Reason.BOX_MISSING)
_OTHER_KINDS = {"caption": "captions", "segments_info": "panoptic segmentation"}


def read_coco(
    path: str | os.PathLike[str], *, block_size: int = BLOCK_SIZE, progress: Progress | None = None
) -> Annotations:
    """Read a COCO-style annotations file.

    The lists `images`, `annotations` and `categories` may come in any order. Ids are integers or texts, and ``12`` and
    ``"12"`` are the same. A box ``[x, y, width, height]`` becomes ``(x1, y1, x2, y2)``, clipped to its image. An image
    without `file_name` (LVIS) takes the last two parts of `coco_url`. What is wrong in itself falls out, with one of
    `spr.core.reasons.ANNOTATION_REASONS`; the columns and what fell out are the same for every order of the file's entries.

    Args:
        path: The JSON file, in UTF-8.
        block_size: Bytes to read at once; changes nothing but the speed.
        progress: Called with the bytes read so far and the file's size, after every read.

    Raises:
        InputError: if the file is missing, empty, truncated or not JSON (naming the byte), lacks one of the lists or
            all boxes (captions, panoptic segmentation), names one category id twice, or no image of it can be used.
    """
    ids = IdTable()
    images: list[ImageColumns] = []
    objects = ObjectCollector()
    categories: list[tuple[int, str, Reason]] = []
    odd_keys: dict[str, None] = {}

    def careful(items: list[Any]) -> ObjectColumns:
        for item in items:
            odd_keys.update(dict.fromkeys(item) if isinstance(item, dict) else {})
        return careful_objects(items, ids)

    with JsonStream(Path(path), block_size=block_size, progress=progress) as stream:
        seen: list[str] = []
        for member in stream.members():
            seen.append(member)
            if member == "images":
                images.extend(stream.blocks(quick_images, partial(careful_images, ids=ids)))
            elif member == "annotations":
                for block in stream.blocks(quick_objects, careful):
                    objects.add(block)
            elif member == "categories":
                for rows in stream.blocks(lambda _: None, partial(careful_categories, ids=ids)):
                    categories.extend(rows)
        _check_lists(seen, stream.error)
        if not images:
            raise stream.error("lists no images", got="`images` is empty")
        ids.settle()
        joined = objects.finish()
        if odd_keys and "bbox" not in odd_keys and np.isin(joined.reasons, _WITHOUT_BOX).all():
            raise _no_boxes(list(odd_keys), stream.error)
        return _assemble(
            _join_images(images, ids), _Categories(categories, ids, stream.error), joined, ids, stream.error
        )


_Error = Callable[..., InputError]


def _check_lists(seen: Sequence[str], error: _Error) -> None:
    missing = [name for name in _LISTS if name not in seen]
    if missing:
        names = " and ".join(f"`{name}`" for name in missing)
        got = "the keys " + ", ".join(f"`{name}`" for name in seen[:8]) if seen else "an object without keys"
        raise error(f"has no {names}", got=got, expected="an object with `images`, `annotations` and `categories`")


def _no_boxes(keys: Sequence[str], error: _Error) -> InputError:
    kind = next((kind for key, kind in _OTHER_KINDS.items() if key in keys), None)
    return error(
        f"looks like a {kind} file: no annotation has a box" if kind else "has no boxes: no annotation has a `bbox`",
        got="annotations with the keys " + ", ".join(f"`{key}`" for key in keys[:8]),
        expected="annotations with a `bbox`",
        fix="give the file with instances, e.g. `instances_train2017.json`",
    )


def _join_images(blocks: list[ImageColumns], ids: IdTable) -> ImageColumns:
    return ImageColumns(
        names=[name for block in blocks for name in block.names],
        keys=ids.settled(np.concatenate([block.keys for block in blocks])),
        reasons=np.concatenate([block.reasons for block in blocks]),
        sizes_wh=np.concatenate([block.sizes_wh for block in blocks]),
    )


class _Categories:
    """The categories in the order of their ids."""

    def __init__(self, rows: Sequence[tuple[int, str, Reason]], ids: IdTable, error: _Error) -> None:
        keys = ids.settled(np.array([key for key, _, _ in rows], dtype=np.int64))
        self.all_keys, self.reasons = keys, np.array([reason for _, _, reason in rows], dtype=np.uint8)
        names: dict[int, str] = {}
        for key, (_, name, reason) in zip(keys.tolist(), rows, strict=True):
            if reason == Reason.OK and names.setdefault(key, name) != name:
                (text,) = ids.texts(np.array([key]))
                got = " and ".join(repr(n) for n in sorted((name, names[key])))
                raise error(f"has two categories with the id {text}", got=got, expected="one name for an id")
        self.keys = np.array(sorted(names), dtype=np.int64)
        self.names = tuple(names[key] for key in sorted(names))


def _assemble(
    images: ImageColumns, categories: _Categories, objects: ObjectColumns, ids: IdTable, error: _Error
) -> Annotations:
    kept_images = _choose_images(images)
    if not len(kept_images):
        reasons = sorted({Reason(code).name.lower() for code in images.reasons.tolist()})
        raise error(f"has {len(images.keys)} images, none of which can be used", got=", ".join(reasons))
    for name in ("keys", "image_keys", "category_keys"):
        setattr(objects, name, ids.settled(getattr(objects, name)))
    image = look_up(images.keys[kept_images], objects.image_keys)
    category = look_up(categories.keys, objects.category_keys)
    _mark(objects.reasons, image < 0, Reason.OBJECT_IMAGE_UNKNOWN)
    unknown = np.flatnonzero(objects.reasons == Reason.OBJECT_IMAGE_UNKNOWN)
    if len(unknown):
        listed = np.isin(objects.image_keys[unknown], images.keys[images.keys != NO_KEY])
        objects.reasons[unknown[listed]] = Reason.OBJECT_IMAGE_DROPPED
    _mark(objects.reasons, category < 0, Reason.OBJECT_CATEGORY_UNKNOWN)
    sizes_wh = images.sizes_wh[kept_images]
    clipped = _clip(objects, image, sizes_wh)
    _mark_repeated(objects, image, category)
    order = _order(objects, image)
    return Annotations(
        image_ids=ids.column(images.keys[kept_images]),
        file_names=[images.names[index] for index in kept_images.tolist()],
        sizes_wh=sizes_wh,
        categories=categories.names,
        offsets=np.concatenate([[0], np.cumsum(np.bincount(image[order], minlength=len(sizes_wh)))]).astype(np.int64),
        object_ids=ids.column(objects.keys[order]),
        category=category[order],
        boxes_xyxy=objects.boxes_xyxy.take(order, axis=0),
        crowd=objects.crowd[order],
        clipped=int(np.count_nonzero(clipped[order])),
        dropped=_dropped(
            [
                ("category", categories.all_keys, categories.reasons),
                ("image", images.keys, images.reasons),
                ("object", objects.keys, objects.reasons),
            ],
            ids,
        ),
    )


def _mark(reasons: npt.NDArray[np.uint8], where: npt.NDArray[np.bool_] | np.bool_, reason: Reason) -> None:
    reasons[where & (reasons == Reason.OK)] = reason


def _choose_images(images: ImageColumns) -> npt.NDArray[np.intp]:
    """Indices of the images that stay, by id; marks those whose id comes more than once."""
    valid = np.flatnonzero(images.reasons == Reason.OK)
    order = valid[np.argsort(images.keys[valid], kind="stable")]
    keys = images.keys[order]
    conflicting: list[int] = []
    for first in np.flatnonzero(keys[1:] == keys[:-1]).tolist():
        a, b = order[first], order[first + 1]
        images.reasons[b] = Reason.IMAGE_ID_REPEATED
        if images.names[a] != images.names[b] or images.sizes_wh[a].tolist() != images.sizes_wh[b].tolist():
            conflicting.append(keys[first])
    images.reasons[order[np.isin(keys, conflicting)]] = Reason.IMAGE_ID_CONFLICTING
    return np.asarray(order[images.reasons[order] == Reason.OK])


def _clip(
    objects: ObjectColumns, image: npt.NDArray[np.int32], sizes_wh: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    """Clip the boxes in place, mark those of which nothing is left, return which ones changed."""
    sizes = sizes_wh.astype(np.float32)
    clipped = np.empty(len(image), dtype=np.bool_)
    for start in range(0, len(image), CHUNK):
        rows = slice(start, start + CHUNK)
        # Four rows of coordinates: numpy is several times faster along long axes.
        boxes = np.ascontiguousarray(objects.boxes_xyxy[rows].T)
        limits = np.ascontiguousarray(sizes.take(image[rows], axis=0).T)
        outside = np.any(boxes[:2] >= limits, axis=0) | np.any(boxes[2:] <= 0, axis=0)
        _mark(objects.reasons[rows], outside, Reason.BOX_OUTSIDE_IMAGE)
        inside = np.clip(boxes, 0.0, np.concatenate([limits, limits]))
        clipped[rows] = np.any(inside != boxes, axis=0)
        objects.boxes_xyxy[rows] = inside.T
        _mark(objects.reasons[rows], np.any(inside[:2] >= inside[2:], axis=0), Reason.BOX_WITHOUT_AREA)
    return clipped


def _mark_repeated(objects: ObjectColumns, image: npt.NDArray[np.int32], category: npt.NDArray[np.int32]) -> None:
    """Of the objects with one id, mark all but the least by image, category, box and iscrowd."""
    valid = np.flatnonzero(objects.reasons == Reason.OK)
    keys = objects.keys[valid]
    if np.all(keys[1:] > keys[:-1]):
        return
    keys = np.sort(keys)
    repeated = keys[1:][keys[1:] == keys[:-1]]
    if not len(repeated):
        return
    rows = valid[np.isin(objects.keys[valid], repeated)]
    by = (objects.crowd[rows], *objects.boxes_xyxy[rows].T[::-1], category[rows], image[rows], objects.keys[rows])
    rows = rows[np.lexsort(by)]
    keys = objects.keys[rows]
    objects.reasons[rows[1:][keys[1:] == keys[:-1]]] = Reason.OBJECT_ID_REPEATED


def _order(objects: ObjectColumns, image: npt.NDArray[np.int32]) -> npt.NDArray[np.intp]:
    """Indices of the objects that stay, by image and id."""
    order = np.flatnonzero(objects.reasons == Reason.OK)
    keys = objects.keys[order]
    if not np.all(keys[1:] > keys[:-1]):
        order = order[np.argsort(keys)]
    # Image and rank as one number: sorting numbers is faster than finding the order that sorts them.
    image_and_rank = image[order].astype(np.int64) * len(order) + np.arange(len(order))
    image_and_rank.sort()
    return np.asarray(order[image_and_rank % max(len(order), 1)])


def _dropped(tables: Sequence[tuple[str, Keys, npt.NDArray[np.uint8]]], ids: IdTable) -> Dropped:
    dropped = Dropped([], [], [])
    for kind, keys, reasons in tables:
        rows = np.flatnonzero(reasons)
        rows = rows[np.lexsort((keys[rows], reasons[rows]))]
        names = {int(code): Reason(int(code)).name.lower() for code in np.unique(reasons[rows])}
        dropped.ids.extend(ids.texts(keys[rows]))
        dropped.kinds.extend([kind] * len(rows))
        dropped.reasons.extend(names[code] for code in reasons[rows].tolist())
    return dropped
