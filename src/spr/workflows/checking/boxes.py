"""What is wrong with boxes under a reading: beyond the image, inverted, without area, tiny, as large as the image.

Boxes and rows that are there twice need no reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spr.workflows.checking.counts import BEYOND, BatchColumns, Mask, describe_box
from spr.workflows.checking.findings import KEPT_ROWS, Finding, Tally
from spr.workflows.checking.readings import Factors, Reading
from spr.workflows.checking.rows import Batch, DataRow

TINY_PIXELS = 1.0
"""A box is tiny if a side is shorter than this, in pixels of the original image."""
TINY_SHARE = 0.001
"""A box in an image of unknown size is tiny if a side is shorter than this share of the image's."""
WHOLE = 0.99
"""A box is as large as the image if it covers this share of both sides."""
KEPT_EXAMPLES = 3
"""Rows that are kept per kind, to be shown."""

MESSAGES = {
    "duplicate_box": "are there twice in their row, with the same label",
    "repeated_row": "are there before: the same image, texts and boxes",
    "beyond": f"reach beyond their image by more than {100 * BEYOND:.0f} % of the side and 1 pixel",
    "inverted": "have x2 < x1 or y2 < y1",
    "no_area": "have no width or no height",
    "tiny": "are narrower or lower than 1 pixel, or than 0.1 % of an image of unknown size",
    "whole_image": "are as large as their image (99 % of both sides)",
}
"""The kinds of findings, with what is wrong as a clause whose subject is the boxes or rows."""
READ_KINDS = tuple(MESSAGES)[2:]
"""The kinds that depend on the reading."""


@dataclass(slots=True)
class _Found:
    tally: Tally = field(default_factory=Tally)
    rows: list[DataRow] = field(default_factory=list)


class BoxChecks:
    """Counts what is wrong with boxes, batch by batch.

    Memory does not grow with the data, but for about 70 bytes per row, in a set that finds rows that are there before.
    Two different rows are taken for the same if their 64-bit hashes are equal, which a million rows show with a
    probability of 3 · 10⁻⁸.

    Args:
        readings: The readings that may be asked for; the given one alone, if there is one.
        repeated: Whether to look for rows that are there before.
    """

    def __init__(self, readings: Sequence[Reading], *, repeated: bool = True) -> None:
        self.readings = list(readings)
        self._by_reading = [{kind: _Found() for kind in READ_KINDS} for _ in self.readings]
        self._placed = [0] * len(self.readings)
        self._duplicates, self._repeated = _Found(), _Found()
        self._seen: set[int] | None = set() if repeated else None
        self._rows = self._boxes = 0

    def add(self, batch: Batch) -> None:
        """Count the boxes of a batch."""
        self._rows += len(batch.rows)
        self._boxes += len(batch.boxes)
        self._find_twice(batch.rows)
        if not len(batch.boxes):
            return
        columns = BatchColumns.of(batch)
        factors: dict[Any, Factors] = {}
        with np.errstate(all="ignore"):
            for k, reading in enumerate(self.readings):
                if reading.scale not in factors:
                    factors[reading.scale] = reading.scale.factors(columns.sizes)
                masks = box_masks(reading, columns, factors[reading.scale])
                self._placed[k] += int(np.count_nonzero(masks.pop("placed")))
                for kind, mask in masks.items():
                    self._note(self._by_reading[k][kind], batch, mask)

    def _note(self, found: _Found, batch: Batch, mask: Mask) -> None:
        count = int(np.count_nonzero(mask))
        if not count:
            return
        first = np.flatnonzero(mask)[:KEPT_ROWS].tolist() if len(found.tally.places) < KEPT_ROWS else []
        found.tally.add([describe_box(batch, box) for box in first], count)
        for box in first[: max(0, KEPT_EXAMPLES - len(found.rows))]:
            row = batch.rows[int(batch.box_rows[box])]
            if not found.rows or found.rows[-1] is not row:
                found.rows.append(row)

    def _find_twice(self, rows: Sequence[DataRow]) -> None:
        for row in rows:
            if len(row.numbers) - row.prompt_boxes > 1:
                boxes = list(zip(row.numbers, row.labels, strict=False))[row.prompt_boxes :]
                extra = len(boxes) - len(set(boxes))
                if extra:
                    box, label = next(one for k, one in enumerate(boxes) if one in boxes[:k])
                    place = f"{row.place}: [{', '.join(f'{number:.10g}' for number in box)}] {label}".rstrip()
                    self._keep(self._duplicates, row, place, extra)
            if self._seen is not None:
                code = hash((row.image, row.prompt, row.answer, row.numbers, row.labels))
                if code in self._seen:
                    self._keep(self._repeated, row, row.place, 1)
                else:
                    self._seen.add(code)

    def _keep(self, found: _Found, row: DataRow, place: str, count: int) -> None:
        found.tally.add([place], count)
        if len(found.rows) < KEPT_EXAMPLES:
            found.rows.append(row)

    def findings(self, reading: Reading | None) -> list[Finding]:
        """What was found; without a reading, only boxes and rows that are there twice.

        Raises:
            ValueError: if the reading is not one of those that are counted.
        """
        found = self._found(reading)
        of = {"repeated_row": self._rows, "duplicate_box": self._boxes}
        placed = 0 if reading is None else self._placed[self.readings.index(reading)]
        return [
            one.tally.finding(kind, MESSAGES[kind], of.get(kind, placed), "rows" if kind in _OF_ROWS else "boxes")
            for kind, one in found.items()
            if one.tally.count
        ]

    def examples(self, reading: Reading | None) -> dict[str, list[DataRow]]:
        """Some rows per kind of finding, the first ones."""
        return {kind: list(one.rows) for kind, one in self._found(reading).items() if one.rows}

    def _found(self, reading: Reading | None) -> dict[str, _Found]:
        twice = {"duplicate_box": self._duplicates, "repeated_row": self._repeated}
        return twice if reading is None else {**twice, **self._by_reading[self.readings.index(reading)]}


_OF_ROWS = ("repeated_row",)
_SURE = 1e-9


def box_masks(reading: Reading, columns: BatchColumns, factors: Factors) -> dict[str, Mask]:
    """Which of ``N`` boxes show each of `READ_KINDS`, and which are ``placed``: (N,) each."""
    x1, y1, x2, y2 = reading.edges(columns.numbers, factors)
    width, height = x2 - x1, y2 - y1
    placed = np.isfinite(width) & np.isfinite(height)
    half = 0.5 * 10.0**-reading.scale.coding.decimals
    far_x = BEYOND + np.maximum(columns.slack_x, half * factors.x)
    far_y = BEYOND + np.maximum(columns.slack_y, half * factors.y)
    low_x, high_x, low_y, high_y = np.minimum(x1, x2), np.maximum(x1, x2), np.minimum(y1, y2), np.maximum(y1, y2)
    inverted = (width < -_SURE) | (height < -_SURE)
    no_area = ~inverted & ((width <= _SURE) | (height <= _SURE)) & placed
    known = np.isfinite(columns.log_aspect)
    least_x = np.where(known, TINY_PIXELS * columns.slack_x, TINY_SHARE)
    least_y = np.where(known, TINY_PIXELS * columns.slack_y, TINY_SHARE)
    return {
        "placed": placed,
        "beyond": (low_x < -far_x) | (high_x > 1 + far_x) | (low_y < -far_y) | (high_y > 1 + far_y),
        "inverted": inverted,
        "no_area": no_area,
        "tiny": ~inverted & ~no_area & ((width < least_x - _SURE) | (height < least_y - _SURE)),
        "whole_image": (low_x <= 1 - WHOLE) & (low_y <= 1 - WHOLE) & (high_x >= WHOLE) & (high_y >= WHOLE),
    }
