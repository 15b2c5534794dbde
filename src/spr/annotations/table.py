"""The content of an annotations file as columns: images, categories, objects, and the dropped entries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spr.annotations.ids import IdColumn
from spr.records import ImageObject, ImageObjects


@dataclass(frozen=True, slots=True)
class Dropped:
    """Dropped entries as columns of equal length, sorted by kind, reason and id.

    Attributes:
        ids: Ids as strings; empty for entries without an id.
        kinds: ``category``, ``image`` or ``object``.
        reasons: Keys of `spr.core.reasons.ANNOTATION_REASONS`.
    """

    ids: list[str]
    kinds: list[str]
    reasons: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def counts(self) -> dict[str, int]:
        """The number of entries per reason."""
        return dict(Counter(self.reasons))


@dataclass(frozen=True, eq=False, slots=True)
class Annotations:
    """The ``I`` images, ``C`` categories and ``N`` objects of an annotations file, as columns.

    Images are sorted by id, and objects by image and id: integers by value, then strings by code point. The order of
    the file does not matter. ``isfake`` and ``isreflected`` of Objects365 v2 are not kept: the paper does not filter by
    them.

    Attributes:
        image_ids: (I,) int64, or strings (dtype object) if not all are integers.
        file_names: I names, relative to the image folder.
        sizes_wh: (I, 2) int32, width and height in pixels.
        categories: C names, sorted by the categories' ids.
        offsets: (I + 1,) int64; objects ``offsets[i]`` to ``offsets[i + 1]`` belong to image ``i``.
        object_ids: (N,), like ``image_ids``.
        category: (N,) int32, index into ``categories``.
        boxes_xyxy: (N, 4) float32, pixels of the image, clipped to it, with a positive area.
        crowd: (N,) bool, ``iscrowd``: the box contains several objects; see `spr.annotations.replace_crowds`.
        clipped: Number of objects whose box was clipped, because a part of it lay outside the image.
        dropped: The dropped entries.
    """

    image_ids: IdColumn
    file_names: list[str]
    sizes_wh: npt.NDArray[np.int32]
    categories: tuple[str, ...]
    offsets: npt.NDArray[np.int64]
    object_ids: IdColumn
    category: npt.NDArray[np.int32]
    boxes_xyxy: npt.NDArray[np.float32]
    crowd: npt.NDArray[np.bool_]
    clipped: int
    dropped: Dropped

    def rows(self, image: int) -> slice:
        """The rows of an image's objects in the object columns, given the image's index (0 to I − 1)."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    def record(self, image: int) -> ImageObjects:
        """The image at this index with all its objects, including crowds, as a record."""
        rows = self.rows(image)
        columns = zip(
            self.object_ids[rows].tolist(),
            self.category[rows].tolist(),
            self.boxes_xyxy[rows].tolist(),
            strict=True,
        )
        width, height = self.sizes_wh[image].tolist()
        return ImageObjects(
            image_id=str(self.image_ids[image]),
            file_name=self.file_names[image],
            width=width,
            height=height,
            objects=tuple(ImageObject(str(id_), self.categories[category], box) for id_, category, box in columns),
        )

    def crowd_ids(self, image: int) -> frozenset[str]:
        """The ids of the image's crowds, for `replace_crowds`."""
        rows = self.rows(image)
        return frozenset(map(str, self.object_ids[rows][self.crowd[rows]].tolist()))
