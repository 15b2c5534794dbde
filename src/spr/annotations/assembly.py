"""Joining images, categories and objects read from annotations into columns, sorted by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spr.annotations.columns import (
    CODE,
    OK,
    REASONS,
    AnnotationColumns,
    ImageColumns,
)
from spr.annotations.ids import (
    CHUNK,
    NO_KEY,
    NO_KEYS,
    IdColumn,
    IdTable,
    Keys,
    Matches,
    Places,
    ShortKeys,
    is_unicode,
    look_up,
)
from spr.core.boxes import leave
from spr.core.errors import InputError
from spr.core.terminal import count_text

_Error = Callable[..., InputError]
_Reasons = npt.NDArray[np.uint8]
_Rows = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Dropped entries as columns of equal length, sorted by kind, reason, id and file name.

    ``ids`` are strings, empty for entries without an id; ``kinds`` are ``category``, ``image`` or ``object``;
    ``reasons`` are keys of `spr.core.reasons.ANNOTATION_REASONS`. ``file_names`` are those of images and of the images
    of objects; None where there is none, or one that is not valid Unicode, or several.
    """

    ids: list[str]
    kinds: list[str]
    reasons: list[str]
    file_names: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False, slots=True)
class Annotations:
    """The ``I`` images, ``C`` categories and ``N`` objects of an annotations file, as columns.

    Images are sorted by id, and objects by image and id: integers by value, then strings by code point.
    ``isfake`` and ``isreflected`` of Objects365 v2 are not kept: the paper does not filter by them.

    Attributes:
        image_ids: (I,) int64, or strings (dtype object) if not all are integers.
        file_names: I names, relative to the image folder.
        sizes_wh: (I, 2) int32, width and height in pixels.
        licenses: I texts, ``name (url)`` of the license that the file states, or None; its id if `licenses` lacks it.
        source_urls: I web addresses, `flickr_url` or else `coco_url`, or None.
        categories: C names, sorted by the categories' ids.
        offsets: (I + 1,) int64; objects ``offsets[i]`` to ``offsets[i + 1]`` belong to image ``i``.
        object_ids: (N,), like ``image_ids``.
        category: (N,) int32, index into ``categories``.
        boxes_xyxy: (N, 4) float32, pixels of the image, clipped to it, with a positive area.
        crowd: (N,) bool, ``iscrowd``: the box contains several objects; see `spr.annotations.replace_crowds`.
        clipped: Number of objects whose box was clipped, because a part of it lay outside the image.
        numbered: Number of objects whose id is missing or not unique. If there is one, the ids of all annotations, also
            of dropped ones, are numbers from 1, in the order of image, id, category and box.
        turned: Number of images that some boxes leave, although all boxes fit if width and height are exchanged.
        dropped: The dropped entries.
        unusable: (M, 2) int32, rows of image and category: what is annotated in the image, but by a dropped entry.
        looked_for: Per image, indices into ``categories`` of what annotators looked for and did not find (LVIS's
            ``neg_category_ids``), or None if its entry has no such list. None if no image has one.
    """

    image_ids: IdColumn
    file_names: list[str]
    sizes_wh: npt.NDArray[np.int32]
    licenses: list[str | None]
    source_urls: list[str | None]
    categories: tuple[str, ...]
    offsets: npt.NDArray[np.int64]
    object_ids: IdColumn
    category: npt.NDArray[np.int32]
    boxes_xyxy: npt.NDArray[np.float32]
    crowd: npt.NDArray[np.bool_]
    clipped: int
    numbered: int
    turned: int
    dropped: Dropped
    unusable: npt.NDArray[np.int32]
    looked_for: list[npt.NDArray[np.int32] | None] | None

    def rows(self, image: int) -> slice:
        """The rows of an image's objects in the object columns, given the image's index (0 to I − 1)."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))


def assemble(
    images: ImageColumns,
    categories: Sequence[tuple[int, str, int]],
    objects: AnnotationColumns,
    ids: IdTable,
    error: _Error,
    clip_to_square: bool,
) -> Annotations:
    """Match objects with their images and categories, and sort out what can't be used.

    Args:
        images: One row per entry of `images`.
        categories: Key, name and reason of each entry of `categories`.
        objects: One row per entry of `annotations`; its columns are freed as they are replaced.
        ids: Where the keys of ids that are not small integers come from.
        error: Makes an `InputError` that names the file.
        clip_to_square: See `spr.annotations.coco.read_coco`.

    Raises:
        InputError: if two names are given to a category, or no image can be used.
    """
    images.keys = ids.final_keys(images.keys)
    for name in ("keys", "image_keys", "category_keys"):
        setattr(objects, name, ids.final_keys(getattr(objects, name)))
    category_keys = ids.final_keys(np.array([key for key, _, _ in categories], dtype=np.int64))
    category_reasons = np.array([reason for _, _, reason in categories], dtype=np.uint8)
    names: dict[int, str] = {}
    for key, (_, name, reason) in zip(category_keys.tolist(), categories, strict=True):
        if reason == OK and names.setdefault(key, name) != name:
            (text,) = ids.texts(np.array([key]))
            got = " and ".join(repr(n) for n in sorted((name, names[key])))
            raise error(f"has two categories with the id {text}", got=got, expected="one name per id")
    kept_images = _choose_images(images)
    if not len(kept_images):
        reasons = sorted({REASONS[code] for code in images.reasons.tolist()})
        raise error(f"has {count_text(len(images.keys), 'images')}, none of which can be used", got=", ".join(reasons))
    # Columns are replaced by smaller ones, and freed as soon as possible: there may be tens of millions of objects.
    categories_kept = np.array(sorted(names), dtype=np.int64)
    matches = []
    for field, kept, listed, prefix in (
        ("image_keys", images.keys[kept_images], images.keys, "object_image"),
        ("category_keys", categories_kept, category_keys, "object_category"),
    ):
        match = Matches(kept, getattr(objects, field))
        setattr(objects, field, NO_KEYS)
        _mark_unmatched(objects.reasons, match, listed, prefix)
        matches.append(match)
    image, category = (match.places for match in matches)
    sizes_wh = images.sizes_wh[kept_images]
    overhanging = _overhanging(objects, image, sizes_wh)
    turned = _count_turned(objects, image, sizes_wh, overhanging)
    limits_wh = sizes_wh.max(axis=1, keepdims=True).repeat(2, 1) if clip_to_square else sizes_wh
    clipped = overhanging[_clip(objects, image, limits_wh, overhanging)]
    order, offsets, numbered = _order(objects, matches[0], matches[1], len(sizes_wh))
    clipped_count = int(np.count_nonzero(objects.reasons[clipped] == OK))
    dropped = _dropped(
        [
            ("category", category_keys, category_reasons, lambda rows: [None] * len(rows)),
            ("image", images.keys, images.reasons, lambda rows: [_shown(images.names[row]) for row in rows]),
            ("object", objects.keys, objects.reasons, lambda rows: _names_of(matches[0].keys(rows), images)),
        ],
        ids,
    )
    unusable = _unusable(objects.reasons, image, category)
    del image, overhanging, clipped
    matches.clear()
    category = _gather(category, order)
    crowd = _gather(objects.crowd, order)
    boxes_xyxy = _gather_boxes(objects.boxes_xyxy, order)
    object_ids, objects.keys = ids.column(_gather(objects.keys, order, np.int64)), NO_KEYS
    rows = kept_images.tolist()
    return Annotations(
        image_ids=ids.column(images.keys[kept_images]),
        file_names=list(map(images.names.__getitem__, rows)),
        sizes_wh=sizes_wh,
        licenses=list(map(images.licenses.__getitem__, rows)),
        source_urls=list(map(images.source_urls.__getitem__, rows)),
        categories=tuple(names[key] for key in sorted(names)),
        offsets=offsets,
        object_ids=object_ids,
        category=category,
        boxes_xyxy=boxes_xyxy,
        crowd=crowd,
        clipped=clipped_count,
        numbered=numbered,
        turned=turned,
        dropped=dropped,
        unusable=unusable,
        looked_for=_looked_for(list(map(images.looked_for.__getitem__, rows)), names, ids),
    )


def _gather(values: npt.NDArray[Any], rows: _Rows, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """``values[rows]``, without the copy of all rows as int64 that numpy makes."""
    found = np.empty(len(rows), dtype=dtype or values.dtype)
    for start in range(0, len(rows), CHUNK):
        found[start : start + CHUNK] = values[rows[start : start + CHUNK]]
    return found


def _gather_boxes(boxes_xyxy: npt.NDArray[np.float32], rows: _Rows) -> npt.NDArray[np.float32]:
    """``boxes_xyxy[rows]``, in the memory of the boxes: one corner at a time, which takes half of it again."""
    corners = boxes_xyxy.view(np.int64)
    for column in corners.T:
        column[: len(rows)] = _gather(column, rows)
    return boxes_xyxy[: len(rows)]


def _unusable(reasons: _Reasons, image: Places, category: Places) -> Places:
    """`Annotations.unusable`."""
    rows = np.flatnonzero(reasons)
    pairs: Places = np.stack([image[rows], category[rows]], axis=1)
    pairs = pairs[(pairs >= 0).all(axis=1)]
    pairs = pairs[np.lexsort(pairs.T[::-1])]
    is_first = np.append(True, (pairs[1:] != pairs[:-1]).any(axis=1))[: len(pairs)]
    return np.asarray(pairs[is_first])


def _looked_for(
    lists: Sequence[list[int] | None], names: dict[int, str], ids: IdTable
) -> list[npt.NDArray[np.int32] | None] | None:
    if lists.count(None) == len(lists):
        return None
    flat = ids.final_keys(np.array([key for own in lists for key in own or ()], dtype=np.int64))
    ends = np.cumsum([len(own or ()) for own in lists])
    found = np.split(look_up(np.array(sorted(names), dtype=np.int64), flat), ends[:-1])
    return [None if own is None else np.unique(rows[rows >= 0]) for own, rows in zip(lists, found, strict=True)]


def _mark(reasons: _Reasons, where: npt.NDArray[np.bool_] | np.bool_, reason: int) -> None:
    reasons[where & (reasons == OK)] = reason


def _mark_unmatched(reasons: _Reasons, match: Matches, listed: Keys, prefix: str) -> None:
    """Mark objects without image or category, as ``…_dropped`` if the file lists it and as ``…_unknown`` if not."""
    unmarked = reasons[match.missing] == OK
    known = np.isin(match.others[unmarked], listed[listed != NO_KEY])
    reasons[match.missing[unmarked]] = np.where(known, CODE[f"{prefix}_dropped"], CODE[f"{prefix}_unknown"])


def _choose_images(images: ImageColumns) -> _Rows:
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


def _overhanging(objects: AnnotationColumns, image: Places, sizes_wh: npt.NDArray[np.int32]) -> _Rows:
    """Indices of the boxes that are not inside their images with a positive area: few in most files."""
    sizes, found = sizes_wh.astype(np.float32), [np.empty(0, dtype=np.int64)]
    for start in range(0, len(image), CHUNK):
        rows = slice(start, start + CHUNK)
        x1, y1, x2, y2 = objects.boxes_xyxy[rows].T
        width, height = sizes.take(image[rows], axis=0).T
        inside = (x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)
        found.append(start + np.flatnonzero(~inside))
    return np.concatenate(found)


def _count_turned(
    objects: AnnotationColumns, image: Places, sizes_wh: npt.NDArray[np.int32], overhanging: _Rows
) -> int:
    """The number of images that a box leaves, and that all boxes fit if width and height are exchanged."""
    leaves, misfits = np.zeros(len(sizes_wh), np.bool_), np.zeros(len(sizes_wh), np.bool_)
    for start in range(0, len(overhanging), CHUNK):
        rows = overhanging[start : start + CHUNK]
        outside = leave(objects.boxes_xyxy[rows], sizes_wh[image[rows]])
        leaves[image[rows[outside & (objects.reasons[rows] == OK)]]] = True
    if leaves.any():
        boxes = np.flatnonzero((objects.reasons == OK) & leaves[image])
        misfits[image[boxes][leave(objects.boxes_xyxy[boxes], sizes_wh[image[boxes], ::-1])]] = True
    return int(np.count_nonzero(leaves & ~misfits))


def _clip(
    objects: AnnotationColumns, image: Places, sizes_wh: npt.NDArray[np.int32], overhanging: _Rows
) -> npt.NDArray[np.bool_]:
    """Clip these boxes in place, mark those of which nothing is left, and return which of them changed."""
    sizes = sizes_wh.astype(np.float32)
    clipped = np.empty(len(overhanging), dtype=np.bool_)
    for start in range(0, len(overhanging), CHUNK):
        rows = overhanging[start : start + CHUNK]
        # Transposed to four rows, because numpy is several times faster along long axes.
        boxes = np.ascontiguousarray(objects.boxes_xyxy[rows].T)
        limits = np.ascontiguousarray(sizes.take(image[rows], axis=0).T)
        outside = np.any(boxes[:2] >= limits, axis=0) | np.any(boxes[2:] <= 0, axis=0)
        inside = np.clip(boxes, 0.0, np.concatenate([limits, limits]))
        empty = np.any(inside[:2] >= inside[2:], axis=0)
        clipped[start : start + CHUNK] = np.any(inside != boxes, axis=0)
        objects.boxes_xyxy[rows] = inside.T
        reasons = objects.reasons[rows]
        _mark(reasons, outside, CODE["box_outside_image"])
        _mark(reasons, empty, CODE["box_without_area"])
        objects.reasons[rows] = reasons
    return clipped


def _order(
    objects: AnnotationColumns, images: Matches, categories: Matches, count: int
) -> tuple[_Rows, npt.NDArray[np.int64], int]:
    """Indices of the objects that are kept, sorted by image and id, `Annotations.offsets` and `Annotations.numbered`.

    Marks entries that are listed again.
    """
    image, category = images.places, categories.places
    order, numbered = _kept(objects.reasons), 0
    keys = _gather(objects.keys, order)
    is_sorted = bool(np.all(keys[1:] > keys[:-1])) and NO_KEY not in keys[-1:]
    if not is_sorted:
        order = order[np.argsort(keys)]
        keys = objects.keys[order]
        equal = np.flatnonzero((keys[1:] == keys[:-1]) & (keys[1:] != NO_KEY))
        places = np.union1d(equal, equal + 1)
        rows = order[places]
        by = (objects.crowd[rows], *objects.boxes_xyxy[rows].T[::-1], category[rows], image[rows], objects.keys[rows])
        order[places] = rows[np.lexsort(by)]
        first, second = order[equal], order[equal + 1]
        same = (image[first] == image[second]) & (category[first] == category[second])
        same &= objects.crowd[first] == objects.crowd[second]
        same &= (objects.boxes_xyxy[first] == objects.boxes_xyxy[second]).all(axis=1)
        objects.reasons[second[same]] = CODE["object_id_repeated"]
        order = np.delete(order, equal[same] + 1)
        numbered = _number(objects, objects.keys[order], images, categories)
        order = order[np.argsort(objects.keys[order])]
    del keys
    # Image and rank combined in one integer: sorting integers is faster than argsort. Rows that are sorted by their ids
    # are ranks.
    chunks = [slice(start, start + CHUNK) for start in range(0, len(order), CHUNK)]
    combined, most = np.empty(len(order), dtype=np.int64), max(len(image), 1)
    for chunk in chunks:
        rows = order[chunk]
        ranks = rows if is_sorted else np.arange(chunk.start, chunk.start + len(rows))
        combined[chunk] = image[rows].astype(np.int64) * most + ranks
    combined.sort()
    offsets = np.searchsorted(combined, np.arange(count + 1) * most).astype(np.int64)
    found = order if is_sorted else np.empty_like(order)
    for chunk in chunks:
        ranks = combined[chunk] % most
        found[chunk] = ranks if is_sorted else order[ranks]
    return found, offsets, numbered


def _kept(reasons: _Reasons) -> _Rows:
    """The rows that are kept, as int32 if they fit."""
    rows: _Rows = np.empty(np.count_nonzero(reasons == OK), dtype=np.int32 if len(reasons) < 2**31 else np.int64)
    done = 0
    for start in range(0, len(reasons), CHUNK):
        found = start + np.flatnonzero(reasons[start : start + CHUNK] == OK)
        rows[done : done + len(found)] = found
        done += len(found)
    return rows


def _number(objects: AnnotationColumns, sorted_keys: ShortKeys, images: Matches, categories: Matches) -> int:
    """Number all entries if kept ones, whose keys are given, lack an id or share it; returns how many those are."""
    not_unique = sorted_keys == NO_KEY
    equal = sorted_keys[1:] == sorted_keys[:-1]
    not_unique[1:] |= equal
    not_unique[:-1] |= equal
    if not_unique.any():
        by = (objects.reasons, objects.crowd, *objects.boxes_xyxy.T[::-1], categories.keys(), objects.keys)
        places = np.lexsort((*by, images.keys()))
        objects.keys = np.empty(len(places), dtype=np.int64)
        objects.keys[places] = np.arange(1, len(places) + 1)
    return int(np.count_nonzero(not_unique))


def _dropped(
    tables: Sequence[tuple[str, ShortKeys, _Reasons, Callable[[_Rows], list[str | None]]]], ids: IdTable
) -> Dropped:
    dropped = Dropped([], [], [], [])
    for kind, keys, reasons, names_of in tables:
        rows = np.flatnonzero(reasons)
        names = names_of(rows)
        ranks = {name: rank for rank, name in enumerate(sorted({name or "" for name in names}))}
        by_name = np.array([ranks[name or ""] for name in names], dtype=np.int64)
        order = np.lexsort((by_name, keys[rows], reasons[rows]))
        rows = rows[order]
        dropped.ids.extend(ids.texts(keys[rows]))
        dropped.kinds.extend([kind] * len(rows))
        dropped.reasons.extend(REASONS[code] for code in reasons[rows].tolist())
        dropped.file_names.extend(names[place] for place in order.tolist())
    return dropped


def _shown(name: str) -> str | None:
    return name if name and is_unicode(name) else None


def _names_of(image_keys: Keys, images: ImageColumns) -> list[str | None]:
    """The file names of these images; None for an image that has no id, is not listed, or has several names."""
    names: dict[int, str | None] = {NO_KEY: None}
    for row in np.flatnonzero(np.isin(images.keys, image_keys)).tolist():
        key, name = int(images.keys[row]), _shown(images.names[row])
        names[key] = name if names.setdefault(key, name) == name else None
    return [names.get(key) for key in image_keys.tolist()]
