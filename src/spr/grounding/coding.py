"""Encode boxes and points as the numbers of a dialect, and decode them.

`Numbers` writes a box as four numbers and a point as two, `Cells` as two cells of a grid and as one. Each creates a
frame for one image's `Canvas`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from spr.grounding.geometry import Canvas
from spr.records import Box, Point

Decoded: TypeAlias = tuple[Box | None, str | None]  # the box, or None if it was dropped; the problem, or None
DecodedPoint: TypeAlias = tuple[Point | None, str | None]  # the same of a point

IMPLAUSIBLE_SCALE = "implausible_scale"
"""How the reason of a problem starts if a box is read whose numbers fit another scale than the dialect's."""
OUTSIDE = "outside the range"
"""How the reason starts if a box is dropped because no part of it is within the dialect's numbers."""

_LARGEST = 1e15
SNAP = 1 / 1024
"""Where numbers are rounded down and decoded to the lower edge, a coordinate this little below a number is rounded up.
Otherwise a decoded box that was stored as float32 could become smaller with each conversion."""


@dataclass(frozen=True)
class Numbers:
    """Four numbers, one per edge.

    Attributes:
        units: The number that stands for the whole side of the canvas; None if numbers are pixels of the model's input.
        high: The largest number written; None for ``units``. With pixels, it is the last pixel.
        decimals: Number of decimals.
        floor: Whether numbers are rounded down instead of to the nearest.
        offset: Added to a number before it is decoded.
    """

    units: int | None = 1000
    high: int | None = None
    decimals: int = 0
    floor: bool = False
    offset: float = 0.0

    def frame(self, canvas: Canvas) -> NumberFrame:
        """The frame of one image."""
        return NumberFrame(self, canvas)


class NumberFrame:
    """Encodes and decodes the boxes of one image as four numbers x1, y1, x2, y2, and its points as x, y."""

    __slots__ = ("canvas", "coding", "limit_x", "limit_y", "padded", "units_x", "units_y")

    def __init__(self, coding: Numbers, canvas: Canvas) -> None:
        self.coding, self.canvas = coding, canvas
        self.units_x, self.units_y = coding.units or canvas.seen_w, coding.units or canvas.seen_h
        # Numbers that decode to the canvas are accepted, even if the dialect never writes them (1000 of 1000).
        self.limit_x, self.limit_y = self.units_x - coding.offset, self.units_y - coding.offset
        self.padded = canvas.span_w != canvas.width or canvas.span_h != canvas.height

    def max_error(self) -> tuple[float, float]:
        """Largest error in pixels of a vertical and of a horizontal edge within the image."""
        c = self.canvas
        return self._error(self.units_x) * c.span_w / self.units_x, self._error(self.units_y) * c.span_h / self.units_y

    def _error(self, units: int) -> float:
        step: float = 10.0**-self.coding.decimals
        rounding = max(self.coding.offset, step - self.coding.offset) if self.coding.floor else step / 2
        return max(rounding, units - self._high(units) - self.coding.offset)

    def _high(self, units: int) -> int:
        if self.coding.units is None:
            return units - 1
        return units if self.coding.high is None else self.coding.high

    def encode(self, box: Box) -> tuple[float, ...]:
        """The numbers of a box in pixels, clipped to the image."""
        return tuple(self._number(edge, *axis) for edge, axis in zip(box, self._axes() * 2, strict=True))

    def encode_point(self, point: Point) -> tuple[float, ...]:
        """The numbers of a point in pixels, clipped to the image."""
        return tuple(self._number(value, *axis) for value, axis in zip(point, self._axes(), strict=True))

    def _axes(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        c = self.canvas
        return (c.width, c.pad_x, c.span_w, self.units_x), (c.height, c.pad_y, c.span_h, self.units_y)

    def _number(self, edge: float, size: int, pad: int, span: int, units: int, *, clip: bool = True) -> float:
        value = ((min(max(edge, 0.0), size) if clip else edge) + pad) * units / span
        if self.coding.decimals:
            return round(value, self.coding.decimals)
        if self.coding.floor and not self.coding.offset:
            value += SNAP
        number = math.floor(value) if self.coding.floor else round(value)
        return min(number, self._high(units)) if clip else number

    def can_move(self, numbers: Sequence[float]) -> bool:
        """Whether `move` accepts the numbers: none is so large that its pixels could exceed a float."""
        return all(abs(number) <= _LARGEST for number in numbers)

    def move(self, numbers: Sequence[float], to: NumberFrame, dx: float, dy: float) -> tuple[float, ...]:
        """The numbers of the same edges in the frame of another image, in which this image starts at ``(dx, dy)``.

        Swapped corners stay swapped. Edges beyond this image are not clipped.
        """
        error = self.max_error() if self.padded else (0.0, 0.0)
        moved = []
        for k, number in enumerate(numbers):
            size, pad, span, units = self._axes()[k % 2]
            edge, shift, slack = (number + self.coding.offset) * span / units - pad, (dx, dy)[k % 2], 2 * error[k % 2]
            clip = -slack <= edge <= size + slack
            edge = min(max(edge, 0.0), size) if clip else edge
            moved.append(to._number(edge + shift, *to._axes()[k % 2], clip=clip))
        return tuple(moved)

    def decode(self, numbers: Sequence[float]) -> Decoded:
        """The box in pixels of four numbers, clipped to the image, with sorted corners; and the problem, if any."""
        x1, y1, x2, y2 = numbers
        reason = None
        if not (0 <= x1 <= x2 <= self.limit_x and 0 <= y1 <= y2 <= self.limit_y):
            if not all(map(math.isfinite, numbers)):
                return None, "not a finite number: dropped"
            if x1 > x2 or y1 > y2:
                x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
                reason = "corners swapped: sorted"
            if min(x1, y1) < 0 or x2 > self.limit_x or y2 > self.limit_y:
                high_x, high_y = math.floor(self.limit_x), math.floor(self.limit_y)
                high = str(high_x) if high_x == high_y else f"{high_x} (x), {high_y} (y)"
                if x2 < 0 or y2 < 0 or x1 > self.limit_x or y1 > self.limit_y:
                    return None, f"{OUTSIDE} 0 to {high}: dropped"
                x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, self.limit_x), min(y2, self.limit_y)
                reason = f"out of the range 0 to {high}: clipped"
        if x2 <= 1 and y2 <= 1 and self.coding.units != 1 and any(map(self._is_finer, numbers)):
            largest = math.floor(min(self.limit_x, self.limit_y))
            reason = f"{IMPLAUSIBLE_SCALE}: numbers from 0 to 1 instead of 0 to {largest}: read as they are"
        # Multiply before dividing, so that the largest number decodes exactly to the image's edge.
        offset, span_w, span_h = self.coding.offset, self.canvas.span_w, self.canvas.span_h
        box = (
            (x1 + offset) * span_w / self.units_x,
            (y1 + offset) * span_h / self.units_y,
            (x2 + offset) * span_w / self.units_x,
            (y2 + offset) * span_h / self.units_y,
        )
        return self._off_the_padding(box, reason) if self.padded else (box, reason)

    def decode_all(self, numbers: Iterable[Sequence[float]]) -> list[Box] | None:
        """The boxes that `decode` gives for each four numbers; None if it reports a problem with one."""
        offset, limit_x, limit_y = self.coding.offset, float(self.limit_x), float(self.limit_y)
        span_w, span_h = float(self.canvas.span_w), float(self.canvas.span_h)
        units_x, units_y = float(self.units_x), float(self.units_y)
        smallest = -1.0 if self.coding.units == 1 else 1.0  # boxes from 0 to this may be on another scale
        boxes: list[Box] = []
        for x1, y1, x2, y2 in numbers:
            if not (0.0 <= x1 <= x2 <= limit_x and 0.0 <= y1 <= y2 <= limit_y) or (x2 <= smallest and y2 <= smallest):
                return None
            boxes.append(
                (
                    (x1 + offset) * span_w / units_x,
                    (y1 + offset) * span_h / units_y,
                    (x2 + offset) * span_w / units_x,
                    (y2 + offset) * span_h / units_y,
                )
            )
        return self._all_off_the_padding(boxes) if self.padded else boxes

    def _all_off_the_padding(self, boxes: Sequence[Box]) -> list[Box] | None:
        moved: list[Box] = []
        for padded in boxes:
            box, reason = self._off_the_padding(padded, None)
            if box is None or reason is not None:
                return None
            x1, y1, x2, y2 = map(float, box)
            moved.append((x1, y1, x2, y2))
        return moved

    def _is_finer(self, number: float) -> bool:
        """Whether a number has more decimals than the dialect writes."""
        return round(number, self.coding.decimals) != number

    def decode_point(self, numbers: Sequence[float]) -> DecodedPoint:
        """The point in pixels of two numbers, or None if it lies outside of the image; and the problem, if any."""
        x, y = numbers
        if 1 < x <= self.limit_x and 1 < y <= self.limit_y and not self.padded:
            c, offset = self.canvas, self.coding.offset
            return ((x + offset) * c.span_w / self.units_x, (y + offset) * c.span_h / self.units_y), None
        box, reason = self.decode((x, y, x, y))
        return (None if box is None else box[:2]), reason

    def _off_the_padding(self, box: Box, reason: str | None) -> Decoded:
        w, h, pad_x, pad_y = self.canvas.width, self.canvas.height, self.canvas.pad_x, self.canvas.pad_y
        x1, y1, x2, y2 = box = box[0] - pad_x, box[1] - pad_y, box[2] - pad_x, box[3] - pad_y
        if x1 >= 0 and y1 >= 0 and x2 <= w and y2 <= h:
            return box, reason
        # Rounding can move an edge of the image into the padding, but not by more than one step.
        ex, ey = (2 * error for error in self.max_error())
        if x2 < -ex or y2 < -ey or x1 > w + ex or y1 > h + ey:
            return None, "in the padding beside the image: dropped"
        if x1 < -ex or y1 < -ey or x2 > w + ex or y2 > h + ey:
            reason = reason or "reaches into the padding beside the image: clipped"
        return (min(max(x1, 0.0), w), min(max(y1, 0.0), h), min(max(x2, 0.0), w), min(max(y2, 0.0), h)), reason


@dataclass(frozen=True)
class Cells:
    """Two cells of a grid of ``side`` by ``side``, numbered row by row: the upper left and lower right corner."""

    side: int = 32

    def frame(self, canvas: Canvas) -> CellFrame:
        """The frame of one image."""
        return CellFrame(self.side, canvas)


@dataclass(frozen=True, slots=True)
class CellFrame:
    """Encodes and decodes the boxes of one image as two cells.

    Cells in different rows and columns decode to their centres. Cells in the same row or column decode to the outer
    edges of both, on both axes, so that the box has an area.
    """

    side: int
    canvas: Canvas

    def max_error(self) -> tuple[float, float]:
        """The size of a cell in pixels; boxes of several rows and several columns have at most half of this error."""
        return self.canvas.width / self.side, self.canvas.height / self.side

    def encode(self, box: Box) -> tuple[int, ...]:
        """The two cells of a box in pixels, clipped to the image."""
        x1, y1, x2, y2 = box
        left, right = self._cells(x1, x2, self.canvas.width)
        top, bottom = self._cells(y1, y2, self.canvas.height)
        return top * self.side + left, bottom * self.side + right

    def encode_point(self, point: Point) -> tuple[int, ...]:
        """The cell of a point in pixels, clipped to the image."""
        return self.encode((*point, *point))[:1]

    def decode_point(self, numbers: Sequence[float]) -> DecodedPoint:
        """The centre of a cell in pixels; and the problem, if any."""
        box, reason = self.decode((*numbers, *numbers))
        return (None if box is None else ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)), reason

    def _cells(self, low: float, high: float, size: int) -> tuple[int, int]:
        first = math.floor(low * self.side / size + SNAP)
        last = math.ceil(high * self.side / size - SNAP) - 1
        if last < first:  # a single edge: the cell that contains it
            first = last = math.floor(low * self.side / size)
        first = min(max(first, 0), self.side - 1)
        return first, min(max(last, first), self.side - 1)

    def can_move(self, numbers: Sequence[float]) -> bool:
        """Whether `move` accepts the numbers: two cells of the grid."""
        return max(numbers) < self.side**2

    def move(self, numbers: Sequence[float], to: CellFrame, dx: float, dy: float) -> tuple[int, ...]:
        """The cells of the same box in the frame of another image, in which this image starts at ``(dx, dy)``.

        Swapped corners stay swapped.
        """
        box, _ = self.decode(numbers)
        if box is None:
            raise ValueError("not two cells of the grid")
        x1, y1, x2, y2 = box
        upper, lower = to.encode((x1 + dx, y1 + dy, x2 + dx, y2 + dy))
        (top, left), (bottom, right) = divmod(upper, to.side), divmod(lower, to.side)
        (first_row, first_column), (last_row, last_column) = (divmod(int(number), self.side) for number in numbers)
        if first_row > last_row:
            top, bottom = bottom, top
        if first_column > last_column:
            left, right = right, left
        return top * to.side + left, bottom * to.side + right

    def decode(self, numbers: Sequence[float]) -> Decoded:
        """The box in pixels of two cells, with sorted corners; and the problem, if any."""
        upper, lower = numbers
        if max(upper, lower) >= self.side**2:
            return None, f"not a cell of the {self.side} × {self.side} grid: dropped"
        (top, left), (bottom, right) = divmod(int(upper), self.side), divmod(int(lower), self.side)
        reason = None
        if left > right or top > bottom:
            left, right, top, bottom = min(left, right), max(left, right), min(top, bottom), max(top, bottom)
            reason = "corners swapped: sorted"
        inner, outer = (0.0, 1.0) if left == right or top == bottom else (0.5, 0.5)
        w, h, side = self.canvas.width, self.canvas.height, self.side
        x1, y1 = (left + inner) * w / side, (top + inner) * h / side
        return (x1, y1, (right + outer) * w / side, (bottom + outer) * h / side), reason


Coding: TypeAlias = Numbers | Cells
Frame: TypeAlias = NumberFrame | CellFrame
