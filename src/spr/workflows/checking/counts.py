"""What is counted per reading, batch by batch, in memory that does not grow with the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spr.core.boxes import iou
from spr.workflows.checking.readings import Factors, ImageSizes, Reading
from spr.workflows.checking.rows import Batch, Floats

BEYOND = 0.01
"""A box is beyond the image if an edge is outside by more than this share of the side and one pixel, as in
`spr.core.boxes.leave`; or half of the step in which numbers are written, if that is more than a pixel."""
AT_BORDER = 0.002
"""An edge is at the border if it is within this share of the side or within a pixel, but not farther than `WIDEST`."""
WIDEST = 0.01
_BINS = 200
_SURE = 1e-9
_LARGEST = 1e12
Mask = npt.NDArray[np.bool_]


class BatchColumns(NamedTuple):
    """What all readings need of a batch's boxes; (N,) arrays.

    Attributes:
        numbers: The four columns of numbers.
        sizes: The sizes of the images.
        wide: Whether the image is at least as wide as high, or of unknown size.
        slack_x, slack_y: One pixel as a fraction of the side; 0 where the size is unknown.
        log_aspect: ln(width / height) of the image; NaN where unknown.
    """

    numbers: tuple[Floats, Floats, Floats, Floats]
    sizes: ImageSizes
    wide: Mask
    slack_x: Floats
    slack_y: Floats
    log_aspect: Floats

    @classmethod
    def of(cls, batch: Batch) -> BatchColumns:
        """The columns of a batch."""
        sizes = ImageSizes(batch.sizes)
        a, b, c, d = np.clip(np.ascontiguousarray(batch.boxes.T), -_LARGEST, _LARGEST)
        slack_x, slack_y = (np.nan_to_num(1 / side) for side in (sizes.width, sizes.height))
        aspect = np.log(sizes.width / sizes.height)
        return cls((a, b, c, d), sizes, ~(sizes.height > sizes.width), slack_x, slack_y, aspect)


@dataclass(slots=True)
class Side:
    """How boxes use one side of their images: the longer or the shorter.

    Attributes:
        histogram: Counts of the far edges by their place, in steps of 1/200 of the side.
        at_end, before_end: Far edges at the border, and in the four bands of half that width before it.
        at_start, after_start: The same of near edges.
    """

    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS + 1, np.int64))
    at_end: int = 0
    before_end: int = 0
    at_start: int = 0
    after_start: int = 0

    def add(self, near: Floats, far: Floats, band: Floats) -> None:
        """Count near and far edges, in fractions of the side; ``band``: how near the border is at the border."""
        places = np.clip(far * _BINS, 0, _BINS).astype(np.int64)
        self.histogram += np.bincount(places, minlength=_BINS + 1)
        end = 1 - far
        for distance, names in ((end, ("at_end", "before_end")), (near, ("at_start", "after_start"))):
            at = np.count_nonzero(np.abs(distance) <= band)
            inside = np.count_nonzero((distance > band) & (distance <= 5 * band))
            for name, count in zip(names, (at, inside), strict=True):
                setattr(self, name, getattr(self, name) + count)

    def reach(self, quantile: float = 0.99) -> float:
        """The place up to which this share of the far edges lie, 0..1; 0 without boxes."""
        total = np.cumsum(self.histogram)
        return float(np.searchsorted(total, quantile * total[-1]) / _BINS) if total[-1] else 0.0

    def piled(self) -> tuple[float, float]:
        """Far edges and near edges at the border, less those expected if edges were spread evenly around it."""
        return max(0.0, self.at_end - self.before_end / 2), max(0.0, self.at_start - self.after_start / 2)


@dataclass(slots=True)
class Slope:
    """Least squares of y on x, from sums."""

    n: int = 0
    sums: Floats = field(default_factory=lambda: np.zeros(5))

    def add(self, x: Floats, y: Floats) -> None:
        """Add points; those with a coordinate that is not finite are left out."""
        kept = np.isfinite(x) & np.isfinite(y)
        x, y = x[kept], y[kept]
        self.n += len(x)
        self.sums += [x.sum(), y.sum(), x @ x, x @ y, y @ y]

    def fit(self) -> tuple[float, float] | None:
        """The slope and its standard error; None for fewer than 30 points, or x with a deviation below 0.05."""
        if self.n < 30:
            return None
        sx, sy, sxx, sxy, syy = self.sums
        spread = sxx - sx * sx / self.n
        if spread < self.n * 0.05**2:
            return None
        slope = (sxy - sx * sy / self.n) / spread
        rest = max(0.0, syy - sy * sy / self.n - slope * slope * spread)
        return float(slope), float(np.sqrt(rest / (self.n - 2) / spread))


@dataclass(slots=True)
class ReadingCounts:
    """The counts of one reading.

    Attributes:
        boxes: Boxes that could be placed: those in images of known size, if the scale needs it.
        outside_numbers: Numbers below 0 or above the scale's end, by at least half of a pixel, of a
            thousandth or of a step.
        outside: Boxes with such a number.
        beyond, inverted: Boxes beyond their image (`BEYOND`), and with x2 < x1 or y2 < y1.
        wrong: Boxes that are either.
        long, short: How boxes use the longer and the shorter side; x and y where the size is unknown.
        aspect: Slope of ln(width / height) of boxes in pixels on that of their images.
        compared, iou: Boxes compared with a reference, and the sum of their IoU with it.
        first: The first place that shows each of ``beyond``, ``inverted``, ``outside``, and ``border``: a box that ends
            at the right or lower border.
    """

    boxes: int = 0
    outside_numbers: int = 0
    outside: int = 0
    beyond: int = 0
    inverted: int = 0
    wrong: int = 0
    long: Side = field(default_factory=Side)
    short: Side = field(default_factory=Side)
    aspect: Slope = field(default_factory=Slope)
    compared: int = 0
    iou: float = 0.0
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reading: Reading, batch: Batch, columns: BatchColumns, factors: Factors) -> None:
        """Count a batch's boxes under a reading; ``factors`` are those of its scale."""
        edges = reading.edges(columns.numbers, factors)
        placed = np.isfinite(edges.x1) & np.isfinite(edges.y1)
        kept = slice(None) if placed.all() else placed
        x1, y1, x2, y2 = (edge[kept] for edge in edges)
        wide = columns.wide[kept]
        low_x, high_x, low_y, high_y = np.minimum(x1, x2), np.maximum(x1, x2), np.minimum(y1, y2), np.maximum(y1, y2)
        self.boxes += len(x1)
        inverted = (x2 < x1 - _SURE) | (y2 < y1 - _SURE)
        half = 0.5 * 10.0**-reading.scale.coding.decimals
        slack_x = np.broadcast_to(np.maximum(columns.slack_x, half * factors.x), placed.shape)[kept]
        slack_y = np.broadcast_to(np.maximum(columns.slack_y, half * factors.y), placed.shape)[kept]
        far_x, far_y = BEYOND + slack_x, BEYOND + slack_y
        beyond = (low_x < -far_x) | (high_x > 1 + far_x) | (low_y < -far_y) | (high_y > 1 + far_y)
        self.inverted += int(np.count_nonzero(inverted))
        self.beyond += int(np.count_nonzero(beyond))
        self.wrong += int(np.count_nonzero(inverted | beyond))
        outside = self._outside(reading, columns, factors, kept)
        self.outside += int(np.count_nonzero(outside))
        band_x, band_y = (np.clip(slack[kept], AT_BORDER, WIDEST) for slack in (columns.slack_x, columns.slack_y))
        border = (np.abs(high_x - 1) <= band_x) | (np.abs(high_y - 1) <= band_y)
        masks = (("beyond", beyond), ("inverted", inverted), ("outside", outside), ("border", border))
        for kind, mask in masks:
            if kind not in self.first and mask.any():
                self.first[kind] = describe_box(batch, int(np.flatnonzero(placed)[np.argmax(mask)]))
        self.long.add(np.where(wide, low_x, low_y), np.where(wide, high_x, high_y), np.where(wide, band_x, band_y))
        self.short.add(np.where(wide, low_y, low_x), np.where(wide, high_y, high_x), np.where(wide, band_y, band_x))
        log_aspect = columns.log_aspect[kept]
        self.aspect.add(log_aspect, np.log((x2 - x1) / (y2 - y1)) + log_aspect)

    def _outside(self, reading: Reading, columns: BatchColumns, factors: Factors, kept: slice | Mask) -> Mask:
        """Whether a number of each box is outside the scale, by at least half of a pixel, a thousandth or a step."""
        order, half = reading.order, 0.5 * 10.0**-reading.scale.coding.decimals
        x_first = order != "yxyx"
        found: list[Mask] = []
        for k, number in enumerate(columns.numbers):
            horizontal = (k % 2 == 0) == x_first
            factor, start, slack = (
                (factors.x, factors.x0, columns.slack_x) if horizontal else (factors.y, factors.y0, columns.slack_y)
            )
            place = number * factor + (0 if k > 1 and order in ("xywh", "cxcywh") else start)
            margin = np.maximum(np.maximum(slack, 0.001) * 0.5, half * factor) - _SURE
            outside = ((place < -margin) | (place > 1 + margin))[kept]
            self.outside_numbers += int(np.count_nonzero(outside))
            found.append(outside)
        return found[0] | found[1] | found[2] | found[3]

    def compare(self, boxes_xyxy: Floats, pairs: npt.NDArray[np.int64], reference_xyxy: Floats) -> None:
        """Add the best IoU of each box with a reference box of its row; ``pairs`` are (box, reference), by box."""
        shared = iou(boxes_xyxy[pairs[:, 0]], reference_xyxy[pairs[:, 1]])
        starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
        self.compared += len(starts)
        self.iou += float(np.maximum.reduceat(np.nan_to_num(shared), starts).sum())


def describe_box(batch: Batch, box: int) -> str:
    """A box for people: its row, its numbers and the size of its image."""
    row = batch.rows[int(batch.box_rows[box])]
    numbers = ", ".join(f"{number:.10g}" for number in batch.boxes[box])
    size = "" if row.size_wh is None else f" in an image of {row.size_wh[0]} × {row.size_wh[1]} pixels"
    return f"{row.place}: [{numbers}]{size}"
