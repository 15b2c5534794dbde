"""True boxes of images, from a COCO JSON file, to compare the data's boxes with."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from spr.core.boxes import Array
from spr.core.errors import InputError
from spr.workflows.checking.layouts.coco import Objects
from spr.workflows.checking.rows import Batch

_NONE = np.empty((0, 4))


class Reference:
    """The boxes of a COCO JSON file by image, xyxy pixels.

    An image is found by its name as the data write it, else by the last part of the name if only one image has it.

    Attributes:
        matched: Rows whose image was found.

    Raises:
        InputError: if the file is not COCO JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.matched, self._asked = path, 0, ""
        self._boxes: dict[str, Array] = {}
        self._by_last: dict[str, str | None] = {}
        for batch in Objects(path).batches():
            boxes = batch.boxes.copy()
            boxes[:, 2:] += boxes[:, :2]
            ends = np.searchsorted(batch.box_rows, np.arange(len(batch.rows)), side="right")
            for row, own in zip(batch.rows, np.split(boxes, ends[:-1]), strict=True):
                if row.image is not None and len(own):
                    last = _last(row.image)
                    self._boxes[row.image] = own
                    self._by_last[last] = row.image if last not in self._by_last else None
        if not self._boxes:
            raise InputError(f"Reference {path} has no boxes", got="no image with a box", expected="COCO JSON")

    def of(self, batch: Batch) -> list[Array]:
        """The true boxes of each row's image, (M, 4); M is 0 where the image is not in the file."""
        found = [_NONE if row.image is None else self._find(row.image) for row in batch.rows]
        self.matched += sum(len(boxes) > 0 for boxes in found)
        return found

    def check(self) -> None:
        """Raise `InputError` if no image of the data was in the file."""
        if not self.matched:
            got = f"the data name {self._asked!r}" if self._asked else "the data name no images"
            expected = f"names such as {next(iter(self._boxes))!r}"
            fix = "give the annotations of the same images, with the same file names"
            raise InputError(f"No image of the data is in {self.path}", got=got, expected=expected, fix=fix)

    def _find(self, name: str) -> Array:
        self._asked = self._asked or name
        boxes = self._boxes.get(name)
        if boxes is None:
            boxes = self._boxes.get(self._by_last.get(_last(name)) or "")
        return _NONE if boxes is None else boxes


def _last(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name
