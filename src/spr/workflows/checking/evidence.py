"""Which scale and which order of numbers the data fit, with the counts that show it.

`Evidence` counts batch by batch. `Evidence.candidates` then compares all readings (`spr.workflows.checking.verdicts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from spr.core.boxes import Boxes, as_boxes
from spr.grounding.geometry import Resized
from spr.workflows.checking.counts import BatchColumns, Mask, ReadingCounts, Slope
from spr.workflows.checking.readings import EXCHANGED, Factors, ImageSizes, Reading, Scale, known_readings
from spr.workflows.checking.rows import Batch, Floats
from spr.workflows.checking.verdicts import MANY, SAME, Candidate, Totals, judge

COMPARED = 20_000
"""Boxes that are compared with reference boxes, the first ones."""
NEAR_SLOPE = 0.5
"""How near a slope of the boxes' aspect is to 0, or to 2 with x and y exchanged, to show which is which."""
_SMALL = 10
"""Pixels of a side below which numbers from 0 to 1 may well be pixels."""
_DECIMALS = 100_000
"""Boxes whose decimals are counted, the first ones."""


class Evidence:
    """Counts what the numbers of the data show about every reading, in constant memory.

    Args:
        given: The reading that the user states; it is listed first among equals, and added if it is not a known one.
        resizes: Settings of image processors beside the known ones: the trainer's.

    >>> from spr.workflows.checking.rows import DataRow
    >>> box = (180.0, 150.0, 900.0, 990.0)
    >>> row = DataRow(1, "train.jsonl, line 1", "a.jpg", (640, 480), "", "", (box,), ("dog",))
    >>> evidence = Evidence(Reading.of_dialect("qwen3_vl"))
    >>> evidence.add(Batch([row]))
    >>> best = evidence.candidates()[0]
    >>> print(best.reading.name, best.verdict, sep=": ")
    xyxy, 0–1000: fits
    >>> next(one.first for one in evidence.candidates() if one.reading.name == "xyxy, pixels")
    'train.jsonl, line 1: [180, 150, 900, 990] in an image of 640 × 480 pixels'
    """

    def __init__(self, given: Reading | None = None, resizes: Iterable[Resized] = ()) -> None:
        self.given = given
        self.readings = known_readings(resizes, given)
        self._counts = [ReadingCounts() for _ in self.readings]
        self._scales: list[Scale] = list(dict.fromkeys(reading.scale for reading in self.readings))
        self._apart = np.zeros((len(self._scales),) * 2)
        self._boxes = self._within_one = self._counted = self._with_decimals = 0
        self._places = self._compared = 0

    @property
    def boxes(self) -> int:
        """Number of boxes seen."""
        return self._boxes

    @property
    def without_size(self) -> int:
        """Number of boxes in images of unknown size."""
        return self._boxes - self._places

    @property
    def is_within_one(self) -> bool:
        """Whether all boxes have only numbers from 0 to 1."""
        return self._within_one == self._boxes

    @property
    def with_decimals(self) -> float:
        """Share of numbers that are not whole, 0..1, in the first 100,000 boxes."""
        return self._with_decimals / self._counted if self._counted else 0.0

    def add(self, batch: Batch, reference: Sequence[Boxes] | None = None) -> None:
        """Count the boxes of a batch.

        ``reference`` has boxes per row, xyxy pixels of the original image, of shape (M, 4), M ≥ 0: what is known to be
        in the image. Each box is compared with the one that it overlaps most.
        """
        if not len(batch.boxes):
            return
        columns = BatchColumns.of(batch)
        self._count_numbers(batch.boxes, columns)
        pairs, references = (None, np.empty((0, 4))) if reference is None else self._pairs(batch, reference)
        factors = [scale.factors(columns.sizes) for scale in self._scales]
        unique = ImageSizes(np.array(columns.sizes.unique, dtype=np.float64).reshape(-1, 2))
        self._compare_scales([scale.factors(unique) for scale in self._scales])
        with np.errstate(all="ignore"):
            for reading, counts in zip(self.readings, self._counts, strict=True):
                its = factors[self._scales.index(reading.scale)]
                counts.add(reading, batch, columns, its)
                if pairs is not None:
                    boxes = sort_corners(reading.decode(batch.boxes, batch.sizes))
                    placed = pairs[np.isfinite(boxes[pairs[:, 0]]).all(axis=1)]
                    if len(placed):
                        counts.compare(boxes, placed, references)

    def _count_numbers(self, boxes: Floats, columns: BatchColumns) -> None:
        self._boxes += len(boxes)
        self._places += int(np.count_nonzero(columns.sizes.index < len(columns.sizes.unique)))
        large = ~((columns.sizes.width < _SMALL) | (columns.sizes.height < _SMALL))
        self._within_one += int(np.count_nonzero(((boxes >= 0) & (boxes <= 1)).all(axis=1) & large))
        if self._counted < 4 * _DECIMALS:
            self._counted += boxes.size
            self._with_decimals += int(np.count_nonzero(boxes != np.floor(boxes)))

    def _pairs(self, batch: Batch, reference: Sequence[Boxes]) -> tuple[npt.NDArray[np.int64] | None, Floats]:
        """Pairs of a box and a reference box of the same row, by box, and all reference boxes."""
        lists = [as_boxes(boxes) for boxes in reference]
        counts = np.array([len(boxes) for boxes in lists], dtype=np.int64)
        starts = np.cumsum(counts) - counts
        boxes = np.flatnonzero(counts[batch.box_rows] > 0)[: COMPARED - self._compared]
        self._compared += len(boxes)
        if not len(boxes):
            return None, np.empty((0, 4))
        per_box = counts[batch.box_rows[boxes]]
        first = np.repeat(np.cumsum(per_box) - per_box, per_box)
        others = np.repeat(starts[batch.box_rows[boxes]], per_box) + np.arange(per_box.sum()) - first
        return np.stack([np.repeat(boxes, per_box), others], axis=1), np.concatenate(lists)

    def _compare_scales(self, factors: Sequence[Factors]) -> None:
        """Note how far apart two scales place a number, as a share of the side."""
        for i, one in enumerate(factors):
            for j, other in enumerate(factors[:i]):
                for k in (0, 2):
                    apart = np.abs(one[k] / other[k] - 1) + np.abs(one[k + 1] - other[k + 1])
                    known = apart[np.isfinite(apart)]
                    if known.size:
                        self._apart[i, j] = self._apart[j, i] = max(self._apart[i, j], known.max())

    def is_exchanged(self, reading: Reading) -> bool:
        """Whether a reading of corners keeps the boxes' shape in images of any shape, and the one with x and y
        exchanged turns it with that of the image: slopes near 0 and near 2 (`Candidate.aspect`).
        """
        other = Reading(reading.scale, EXCHANGED[reading.order])
        own, exchanged = (
            self._counts[self.readings.index(one)].aspect if one in self.readings else Slope()
            for one in (reading, other)
        )
        flat, turned = own.fit(), exchanged.fit()
        if flat is None or turned is None or own.n < MANY:
            return False
        return (
            abs(flat[0]) < NEAR_SLOPE and turned[0] > 2 - NEAR_SLOPE and turned[0] - flat[0] > 3 * (turned[1] + flat[1])
        )

    def candidates(self, is_usual: Callable[[Reading], bool] = lambda _: True) -> list[Candidate]:
        """All readings, the most plausible first; those that are refuted come last, and those not placed at all.

        ``is_usual``: whether data in this form may have a reading. Others make none less likely, unless all usual ones
        are refuted.
        """
        totals = Totals(self._boxes, self._within_one, self.with_decimals)
        same = self._apart <= SAME
        scales = self._scales
        return judge(
            totals,
            self.readings,
            self._counts,
            lambda one, other: (
                one.order == other.order and bool(same[scales.index(one.scale), scales.index(other.scale)])
            ),
            is_usual,
        )


def sort_corners(boxes_xyxy: Floats) -> Floats:
    """The boxes, (N, 4), with x1 ≤ x2 and y1 ≤ y2."""
    return np.concatenate(
        [np.minimum(boxes_xyxy[:, :2], boxes_xyxy[:, 2:]), np.maximum(boxes_xyxy[:, :2], boxes_xyxy[:, 2:])], axis=1
    )


def chosen_candidate(candidates: Sequence[Candidate], given: Reading | None) -> Candidate | None:
    """The candidate of the given reading; without one, the first if it fits and none of another kind does."""
    if given is not None:
        return next((one for one in candidates if one.reading == given), None)
    return candidates[0] if candidates and candidates[0].verdict == "fits" else None


__all__ = ["COMPARED", "Candidate", "Evidence", "Mask", "chosen_candidate", "sort_corners"]
