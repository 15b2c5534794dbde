"""Reading COCO-style JSON (COCO, LVIS v1, Objects365 v1 and v2) as a stream.

Memory grows with the number of boxes (about 100 bytes each at the peak), not with the size of the file: segmentations,
captions, URLs and other fields are skipped.
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
    CODE,
    OK,
    REASONS,
    AnnotationColumns,
    ImageColumns,
    ObjectCollector,
    fast_images,
    fast_objects,
    lenient_categories,
    lenient_images,
    lenient_objects,
)
from spr.annotations.ids import CHUNK, NO_KEY, IdTable, Keys, look_up
from spr.annotations.json_stream import BLOCK_SIZE, JsonStream, Progress
from spr.annotations.table import Annotations, Dropped
from spr.core.errors import InputError

_LISTS = ("images", "annotations", "categories")
_WITHOUT_BOX = (CODE["entry_not_an_object"], CODE["object_without_id"], CODE["box_missing"])
_OTHER_KINDS = {"caption": "captions", "segments_info": "panoptic segmentation"}


def read_coco(
    path: str | os.PathLike[str], *, block_size: int = BLOCK_SIZE, progress: Progress | None = None
) -> Annotations:
    """Read a COCO-style annotations file.

    The lists `images`, `annotations` and `categories` may come in any order. Ids are integers or strings; ``12`` and
    ``"12"`` are the same id. A box ``[x, y, width, height]`` becomes ``(x1, y1, x2, y2)``, clipped to its image. The
    file name of an image without `file_name` (LVIS) is the last two parts of its `coco_url`. Malformed entries are
    dropped with one of `spr.core.reasons.ANNOTATION_REASONS`. The result does not depend on the order of the entries.

    Args:
        path: The JSON file, in UTF-8.
        block_size: Bytes per read; affects only the speed.
        progress: Called after every read with the bytes read so far and the file's size.

    Raises:
        InputError: if the file is missing, empty, truncated or not JSON (naming the byte), lacks one of the lists, has
            no boxes (captions, panoptic segmentation), gives a category id two names, or has no usable image.
    """
    ids = IdTable()
    images: list[ImageColumns] = []
    objects = ObjectCollector()
    categories: list[tuple[int, str, int]] = []
    odd_keys: dict[str, None] = {}

    def lenient(items: list[Any]) -> AnnotationColumns:
        for item in items:
            odd_keys.update(dict.fromkeys(item) if isinstance(item, dict) else {})
        return lenient_objects(items, ids)

    with JsonStream(Path(path), block_size=block_size, progress=progress) as stream:
        seen: list[str] = []
        for member in stream.members():
            seen.append(member)
            if member == "images":
                images.extend(stream.blocks(fast_images, partial(lenient_images, ids=ids)))
            elif member == "annotations":
                for block in stream.blocks(fast_objects, lenient):
                    objects.add(block)
            elif member == "categories":
                for rows in stream.blocks(lambda _: None, partial(lenient_categories, ids=ids)):
                    categories.extend(rows)
        _check_lists(seen, stream.error)
        if not images:
            raise stream.error("lists no images", got="`images` is empty")
        ids.freeze()
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
        fix="give the instances file, such as `instances_train2017.json`",
    )


def _join_images(blocks: list[ImageColumns], ids: IdTable) -> ImageColumns:
    return ImageColumns(
        names=[name for block in blocks for name in block.names],
        keys=ids.final_keys(np.concatenate([block.keys for block in blocks])),
        reasons=np.concatenate([block.reasons for block in blocks]),
        sizes_wh=np.concatenate([block.sizes_wh for block in blocks]),
    )


class _Categories:
    """The categories, sorted by id."""

    def __init__(self, rows: Sequence[tuple[int, str, int]], ids: IdTable, error: _Error) -> None:
        keys = ids.final_keys(np.array([key for key, _, _ in rows], dtype=np.int64))
        self.all_keys, self.reasons = keys, np.array([reason for _, _, reason in rows], dtype=np.uint8)
        names: dict[int, str] = {}
        for key, (_, name, reason) in zip(keys.tolist(), rows, strict=True):
            if reason == OK and names.setdefault(key, name) != name:
                (text,) = ids.texts(np.array([key]))
                got = " and ".join(repr(n) for n in sorted((name, names[key])))
                raise error(f"has two categories with the id {text}", got=got, expected="one name per id")
        self.keys = np.array(sorted(names), dtype=np.int64)
        self.names = tuple(names[key] for key in sorted(names))


def _assemble(
    images: ImageColumns, categories: _Categories, objects: AnnotationColumns, ids: IdTable, error: _Error
) -> Annotations:
    kept_images = _choose_images(images)
    if not len(kept_images):
        reasons = sorted({REASONS[code] for code in images.reasons.tolist()})
        raise error(f"has {len(images.keys)} images, none of which can be used", got=", ".join(reasons))
    for name in ("keys", "image_keys", "category_keys"):
        setattr(objects, name, ids.final_keys(getattr(objects, name)))
    image = look_up(images.keys[kept_images], objects.image_keys)
    category = look_up(categories.keys, objects.category_keys)
    _mark(objects.reasons, image < 0, CODE["object_image_unknown"])
    unknown = np.flatnonzero(objects.reasons == CODE["object_image_unknown"])
    if len(unknown):
        listed = np.isin(objects.image_keys[unknown], images.keys[images.keys != NO_KEY])
        objects.reasons[unknown[listed]] = CODE["object_image_dropped"]
    _mark(objects.reasons, category < 0, CODE["object_category_unknown"])
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


def _mark(reasons: npt.NDArray[np.uint8], where: npt.NDArray[np.bool_] | np.bool_, reason: int) -> None:
    reasons[where & (reasons == OK)] = reason


def _choose_images(images: ImageColumns) -> npt.NDArray[np.intp]:
    """Indices of the images that are kept, sorted by id; marks those whose id occurs more than once."""
    valid = np.flatnonzero(images.reasons == OK)
    order = valid[np.argsort(images.keys[valid], kind="stable")]
    keys = images.keys[order]
    conflicting: list[int] = []
    for first in np.flatnonzero(keys[1:] == keys[:-1]).tolist():
        a, b = order[first], order[first + 1]
        images.reasons[b] = CODE["image_id_repeated"]
        if images.names[a] != images.names[b] or images.sizes_wh[a].tolist() != images.sizes_wh[b].tolist():
            conflicting.append(keys[first])
    images.reasons[order[np.isin(keys, conflicting)]] = CODE["image_id_conflicting"]
    return np.asarray(order[images.reasons[order] == OK])


def _clip(
    objects: AnnotationColumns, image: npt.NDArray[np.int32], sizes_wh: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    """Clip the boxes in place, mark those of which nothing is left, and return which boxes changed."""
    sizes = sizes_wh.astype(np.float32)
    clipped = np.empty(len(image), dtype=np.bool_)
    for start in range(0, len(image), CHUNK):
        rows = slice(start, start + CHUNK)
        # Transposed to four rows, because numpy is several times faster along long axes.
        boxes = np.ascontiguousarray(objects.boxes_xyxy[rows].T)
        limits = np.ascontiguousarray(sizes.take(image[rows], axis=0).T)
        outside = np.any(boxes[:2] >= limits, axis=0) | np.any(boxes[2:] <= 0, axis=0)
        _mark(objects.reasons[rows], outside, CODE["box_outside_image"])
        inside = np.clip(boxes, 0.0, np.concatenate([limits, limits]))
        clipped[rows] = np.any(inside != boxes, axis=0)
        objects.boxes_xyxy[rows] = inside.T
        _mark(objects.reasons[rows], np.any(inside[:2] >= inside[2:], axis=0), CODE["box_without_area"])
    return clipped


def _mark_repeated(objects: AnnotationColumns, image: npt.NDArray[np.int32], category: npt.NDArray[np.int32]) -> None:
    """Mark all but one of the objects with the same id: the smallest by image, category, box and iscrowd is kept."""
    valid = np.flatnonzero(objects.reasons == OK)
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
    objects.reasons[rows[1:][keys[1:] == keys[:-1]]] = CODE["object_id_repeated"]


def _order(objects: AnnotationColumns, image: npt.NDArray[np.int32]) -> npt.NDArray[np.intp]:
    """Indices of the objects that are kept, sorted by image and id."""
    order = np.flatnonzero(objects.reasons == OK)
    keys = objects.keys[order]
    if not np.all(keys[1:] > keys[:-1]):
        order = order[np.argsort(keys)]
    # Image and rank combined in one integer: sorting integers is faster than argsort.
    image_and_rank = image[order].astype(np.int64) * len(order) + np.arange(len(order))
    image_and_rank.sort()
    return np.asarray(order[image_and_rank % max(len(order), 1)])


def _dropped(tables: Sequence[tuple[str, Keys, npt.NDArray[np.uint8]]], ids: IdTable) -> Dropped:
    dropped = Dropped([], [], [])
    for kind, keys, reasons in tables:
        rows = np.flatnonzero(reasons)
        rows = rows[np.lexsort((keys[rows], reasons[rows]))]
        dropped.ids.extend(ids.texts(keys[rows]))
        dropped.kinds.extend([kind] * len(rows))
        dropped.reasons.extend(REASONS[code] for code in reasons[rows].tolist())
    return dropped
