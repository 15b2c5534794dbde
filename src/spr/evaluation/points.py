"""The items of the task `pointing`: questions that are answered with points, and the regions where these must lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from spr.core.errors import InputError
from spr.core.images import to_rgb
from spr.evaluation.inference import LoadImage
from spr.evaluation.lines import first_repeated
from spr.grounding.points import points_in_boxes
from spr.records import Box, Point, Size

Mask: TypeAlias = npt.NDArray[np.bool_]
"""A region of an image, ``(height, width)``."""


class Target(Protocol):
    """The regions of an item where points must lie; none if the right answer has no point."""

    def holds(self, points: Sequence[Point]) -> npt.NDArray[np.bool_]:
        """Which of R regions hold which of P points, (x, y) in pixels; bool ``(R, P)``."""


@dataclass(frozen=True, slots=True)
class BoxTarget:
    """Boxes, xyxy pixels. All edges belong to a box (`spr.grounding.points.point_in_box`)."""

    boxes: tuple[Box, ...]

    def holds(self, points: Sequence[Point]) -> npt.NDArray[np.bool_]:
        """Which boxes hold which points."""
        return points_in_boxes(points, self.boxes).T


@dataclass(frozen=True, slots=True)
class MaskTarget:
    """Masks of the image's size, which ``read`` returns when the item is scored.

    A point lies in the pixel of its coordinates rounded down, and outside of every mask if that is not in the image.
    """

    read: Callable[[], Sequence[Mask]]

    def holds(self, points: Sequence[Point]) -> npt.NDArray[np.bool_]:
        """Which masks hold which points."""
        masks = self.read()
        found = np.zeros((len(masks), len(points)), dtype=bool)
        for row, mask in zip(found, masks, strict=True):
            height, width = mask.shape
            for k, (x, y) in enumerate(points):
                row[k] = 0 <= x < width and 0 <= y < height and mask[int(y), int(x)]
        return found


@dataclass(frozen=True, slots=True)
class PointItem:
    """A question that is answered with points.

    Attributes:
        id: The id of its answer.
        file_name: The image, relative to the image folder.
        size_wh: Width and height of the image in pixels.
        question: What to point at, as a whole question.
        target: Where the points must lie.
        group: The subset of the benchmark, or empty.
        count: How many points the answer must have; None if its first point decides (Point-Bench).
        places: A point (x, y) of each region of the target, by which an answer's points are assigned to the regions;
            None if the regions are not counted one by one.
        label: What to point at, if the file names it: it is asked about in the wording of the model's family.
    """

    id: str
    file_name: str
    size_wh: Size
    question: str
    target: Target
    group: str = ""
    count: int | None = None
    places: tuple[Point, ...] | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class PointItems:
    """The items of a file, with its images if it contains them. Raises `InputError` if an id is repeated."""

    rows: list[PointItem] = field(default_factory=list)
    images: LoadImage | None = None

    def __post_init__(self) -> None:
        repeated = first_repeated(row.id for row in self.rows)
        if repeated is not None:
            raise InputError("Two questions have the same id", got=repeated, expected="unique ids")


def mask_of(image: Image.Image) -> Mask:
    """The region of a mask image: the pixels of which a channel is over 127 (Point-Bench's rule)."""
    if "A" in image.getbands():  # `to_rgb` would make what is transparent white
        image = (
            Image.merge("RGB", (image.split()[0],) * 3) if image.mode == "LA" else Image.merge("RGB", image.split()[:3])
        )
    return np.asarray(np.asarray(to_rgb(image)).max(axis=2) > 127)
