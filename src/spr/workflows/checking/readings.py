"""Readings of four numbers as a box: a scale, which says what a number measures, and an order of the numbers.

The scales are those of the registered dialects, pixels of the original image, and pixels of resized images with the
settings of common processors. `known_readings` lists every scale in every order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from spr.core.boxes import Size
from spr.grounding.coding import Cells, Numbers
from spr.grounding.dialects import DIALECTS, Dialect
from spr.grounding.geometry import Geometry, Relative, Resized
from spr.grounding.markup import Elements
from spr.workflows.checking.rows import Floats, Stated

Order: TypeAlias = Literal["xyxy", "yxyx", "xywh", "cxcywh"]
ORDERS: tuple[Order, ...] = ("xyxy", "yxyx", "xywh", "cxcywh")
"""The corners, with x or y first; the upper left corner and the sides; the centre and the sides."""
EXCHANGED: dict[Order, Order] = {"xyxy": "yxyx", "yxyx": "xyxy"}
"""The order with x and y exchanged."""

COMMON_RESIZES = (
    Resized(max_pixels=1280 * 28 * 28),
    Resized(max_pixels=768 * 768),
    Resized(min_pixels=16 * 28 * 28, max_pixels=576 * 28 * 28),
    Resized(max_pixels=256 * 28 * 28),
    Resized(factor=32, min_pixels=256 * 256, max_pixels=4096 * 4096),
)
"""Settings of processors beside those that dialects have by default.

1280 · 28² is the ``max_pixels`` of Qwen2.5-VL's model card and of ms-swift's examples (``MAX_PIXELS=1003520``); 768²
is LLaMA-Factory's default (`spr.exports.llamafactory`), and 16 · 28² to 576 · 28² that of QwenLM/Qwen3-VL,
qwen-vl-finetune/qwenvl/train/argument.py; 256 · 28² is used where memory is short (our choice). Factor 32 with 256² to
4096² is the ``preprocessor_config.json`` of Qwen3-VL.
"""

_STATED: dict[Stated, tuple[Order, int | None]] = {
    "xywh_pixels": ("xywh", None),
    "xyxy_pixels": ("xyxy", None),
    "xyxy_norm1": ("xyxy", 1),
    "xyxy_norm1000": ("xyxy", 1000),
}
_CACHED_SIZES = 8192


class Factors(NamedTuple):
    """How numbers become fractions of the image's sides: ``x * number + x0`` and ``y * number + y0``.

    Each is an array with a value per box, NaN where the image's size is needed and unknown; or one value for all boxes.
    """

    x: Floats
    x0: Floats
    y: Floats
    y0: Floats


@dataclass(frozen=True)
class Scale:
    """What a number measures.

    Attributes:
        name: For people: ``0–1000``, ``pixels``.
        coding: The number that stands for the whole side (``units``; None for pixels of the ``geometry``), and what is
            added to numbers before they are decoded.
        geometry: What numbers are relative to.
        dialects: Keys of the dialects that write it.
    """

    name: str
    coding: Numbers
    geometry: Geometry
    dialects: tuple[str, ...] = ()

    @property
    def needs_sizes(self) -> bool:
        """Whether boxes can be placed only in images whose size is known."""
        return self.coding.units is None or self.geometry != Relative()

    @property
    def is_fine(self) -> bool:
        """Whether its numbers have decimals: one from 0 to 1 is not within the first step of the scale."""
        return self.coding.units is not None and self.coding.units < 10

    @property
    def is_grid(self) -> bool:
        """Whether a number is a column or a row of a grid of fewer than 100 cells."""
        return self.coding.units is not None and self.coding.units < 100 and self.coding.offset > 0

    @property
    def orders(self) -> tuple[Order, ...]:
        """The orders in which its numbers are written: corners only in a grid, and in resized images of no dialect."""
        if self.is_grid:
            return ORDERS[:2]
        return ORDERS if self.dialects or not isinstance(self.geometry, Resized) else ORDERS[:1]

    @property
    def whole(self) -> bool:
        """Whether dialects write it in whole numbers only."""
        return bool(self.dialects) and not self.coding.decimals

    def factors(self, sizes: ImageSizes) -> Factors:
        """How the numbers of boxes in images of these sizes become fractions of the sides."""
        if not self.needs_sizes:
            assert self.coding.units is not None  # noqa: S101 (for the type checker)
            step = np.float64(1 / self.coding.units)
            start = np.float64(self.coding.offset / self.coding.units)
            return Factors(*map(np.asarray, (step, start, step, start)))
        geometry: Any = self.geometry  # frozen, and so hashable
        known = np.array([_factors(self.coding, geometry, size) for size in sizes.unique]).reshape(-1, 4)
        table = np.concatenate([known, np.full((1, 4), np.nan)])  # the last row is that of unknown sizes
        return Factors(*np.ascontiguousarray(table[sizes.index].T))


@lru_cache(maxsize=_CACHED_SIZES)
def _factors(coding: Numbers, geometry: Geometry, size_wh: Size) -> tuple[float, float, float, float]:
    canvas = geometry.canvas(size_wh)
    units_x, units_y = coding.units or canvas.seen_w, coding.units or canvas.seen_h
    x, y = canvas.span_w / units_x / canvas.width, canvas.span_h / units_y / canvas.height
    x0, y0 = coding.offset * x - canvas.pad_x / canvas.width, coding.offset * y - canvas.pad_y / canvas.height
    return x, x0, y, y0


class ImageSizes:
    """The sizes of the images of some boxes: the different ones, and which of them each box has.

    Attributes:
        unique: Widths and heights in pixels.
        index: (N,), the index in ``unique`` of each box; ``len(unique)`` where the size is unknown.
        width, height: (N,) float64, pixels; NaN where unknown.
    """

    def __init__(self, sizes_wh: Floats) -> None:
        sizes = np.where(np.isfinite(sizes_wh) & (sizes_wh >= 1) & (sizes_wh < 2**31), np.floor(sizes_wh), np.nan)
        known = ~np.isnan(sizes).any(axis=1)
        codes = np.where(known, sizes[:, 0] * 2.0**31 + sizes[:, 1], 0).astype(np.int64)
        codes, index = np.unique(codes, return_inverse=True)
        if codes.size and codes[0] == 0:  # unknown sizes come last
            codes, index = codes[1:], np.where(index == 0, len(codes) - 1, index - 1)
        self.unique: list[Size] = [divmod(code, 2**31) for code in codes.tolist()]
        self.index: npt.NDArray[np.int64] = index.astype(np.int64).reshape(-1)
        self.width = np.where(known, sizes[:, 0], np.nan)
        self.height = np.where(known, sizes[:, 1], np.nan)


class Edges(NamedTuple):
    """The edges of ``N`` boxes, each (N,), in fractions of the image's sides; not sorted, and not clipped."""

    x1: Floats
    y1: Floats
    x2: Floats
    y2: Floats


@dataclass(frozen=True)
class Reading:
    """A scale and an order of the numbers: what is needed to place four numbers as a box."""

    scale: Scale
    order: Order = "xyxy"

    @property
    def name(self) -> str:
        """The reading for people.

        >>> print(Reading.of_dialect("paligemma").name)
        yxyx, 0–1023
        """
        return f"{self.order}, {self.scale.name}"

    @classmethod
    def of_dialect(cls, dialect: str | Dialect) -> Reading:
        """The reading of a dialect's numbers, in the order of the text.

        Raises:
            GroundingError: for an unknown dialect.
            ValueError: if the dialect has no boxes of four numbers (Molmo).
        """
        from spr.grounding import get_dialect

        dialect = get_dialect(dialect)
        scale = _scale_of(dialect)
        if scale is None or isinstance(dialect.markup, Elements):
            raise ValueError(f"dialect {dialect.key} writes no boxes of four numbers")
        places = tuple(np.argsort(dialect.markup.numbers).tolist())
        return cls(scale, "yxyx" if places == (1, 0, 3, 2) else "xyxy")

    @classmethod
    def of_stated(cls, stated: Stated) -> Reading:
        """The reading that a format states itself."""
        order, units = _STATED[stated]
        return cls(next(scale for scale in known_scales() if _key(scale) == (units, 0.0, Relative())), order)

    def edges(self, columns: Sequence[Floats], factors: Factors) -> Edges:
        """The edges of boxes from their four columns of numbers, each (N,)."""
        a, b, c, d = columns
        x, x0, y, y0 = factors
        if self.order == "xyxy":
            return Edges(a * x + x0, b * y + y0, c * x + x0, d * y + y0)
        if self.order == "yxyx":
            return Edges(b * x + x0, a * y + y0, d * x + x0, c * y + y0)
        width, height = c * x, d * y
        left, top = a * x + x0, b * y + y0
        if self.order == "cxcywh":
            left, top = left - width / 2, top - height / 2
        return Edges(left, top, left + width, top + height)

    def decode(self, numbers: npt.ArrayLike, sizes_wh: npt.ArrayLike) -> Floats:
        """Boxes as xyxy pixels of their images, (N, 4), from numbers (N, 4) and sizes (N, 2).

        They are neither sorted nor clipped. NaN where the image's size is unknown.

        >>> Reading.of_dialect("gemini").decode([[150, 100, 200, 300]], [[640, 480]]).tolist()
        [[64.0, 72.0, 192.0, 96.0]]
        """
        boxes = np.asarray(numbers, dtype=np.float64).reshape(-1, 4)
        sizes = ImageSizes(np.asarray(sizes_wh, dtype=np.float64).reshape(-1, 2))
        sides = (sizes.width, sizes.height) * 2
        with np.errstate(over="ignore", invalid="ignore"):
            edges = self.edges(list(boxes.T), self.scale.factors(sizes))
            return np.stack([edge * side for edge, side in zip(edges, sides, strict=True)], axis=1)


def known_scales(resizes: Iterable[Resized] = ()) -> list[Scale]:
    """The scales of the registered dialects, pixels, and pixels after resizing with further settings.

    >>> print(*(scale.name for scale in known_scales()), sep="; ")  # doctest: +ELLIPSIS
    pixels; 0–1000; 0–1; 0–1 of the padded square; ...
    """
    scales: dict[object, Scale] = {}
    found = [_scale(Numbers(units=None), Relative()), *(_scale_of(DIALECTS[key]) for key in DIALECTS)]
    found += [_scale(Numbers(units=None), resize) for resize in (*resizes, *COMMON_RESIZES)]
    for scale in filter(None, found):
        units, _, geometry = _key(scale)
        known = scales.setdefault((units, geometry), scale)
        if known is not scale:
            plain = min(known, scale, key=lambda one: one.coding.offset)
            scales[units, geometry] = dataclasses.replace(plain, dialects=(*known.dialects, *scale.dialects))
    usual = ("pixels", "0–1000", "0–1", "0–1 of the padded square")
    return sorted(scales.values(), key=lambda one: usual.index(one.name) if one.name in usual else len(usual))


def known_readings(resizes: Iterable[Resized] = (), given: Reading | None = None) -> list[Reading]:
    """Every known scale in every order; ``given`` comes first, and its own scale replaces the one that is alike."""
    readings = [Reading(scale, order) for scale in known_scales(resizes) for order in scale.orders]
    if given is None:
        return readings
    own = [Reading(given.scale, order) for order in given.scale.orders if order != given.order]
    return [given, *own, *(one for one in readings if _key(one.scale) != _key(given.scale))]


def _key(scale: Scale) -> tuple[int | None, float, Geometry]:
    return scale.coding.units, scale.coding.offset, scale.geometry


def _scale_of(dialect: Dialect) -> Scale | None:
    coding = dialect.coding
    if isinstance(coding, Cells):
        coding = Numbers(units=coding.side, high=coding.side - 1, floor=True, offset=0.5)
    return _scale(coding, dialect.geometry, dialect.key) if isinstance(coding, Numbers) else None


def _scale(coding: Numbers, geometry: Geometry, *dialects: str) -> Scale:
    if coding.units is None:
        name = "pixels"
        if isinstance(geometry, Resized):
            limits = f"{geometry.min_pixels:,} to {geometry.max_pixels:,} pixels"
            name = f"pixels after resizing (multiples of {geometry.factor}, {limits})"
            if geometry.resized_wh is not None:
                name = f"pixels after resizing to {geometry.resized_wh[0]} × {geometry.resized_wh[1]}"
        elif geometry != Relative():
            name = f"pixels of {type(geometry).__name__}"
    elif coding.units < 100 and coding.offset:
        name = f"cells of a grid of {coding.units} × {coding.units}"
    else:
        middle = ", read at the middle of a step" if coding.offset else ""
        name = f"0–{coding.high if coding.offset and coding.high else coding.units}{middle}"
        if geometry == Relative(padded=True):
            name += " of the padded square"
        elif geometry != Relative():
            name += f" of {type(geometry).__name__}"
    return Scale(name, coding, geometry, dialects)
