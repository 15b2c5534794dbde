"""What a dialect's numbers are relative to: a geometry maps the size of an image to a `Canvas`."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from spr.core.errors import GroundingError
from spr.records import Size


class Canvas(NamedTuple):
    """The area that numbers cover: ``span`` pixels of the original image, starting ``pad`` pixels before its corner.

    ``seen_w`` by ``seen_h`` is its size in pixels of the model's input, for dialects that use these.
    """

    width: int
    height: int
    span_w: int
    span_h: int
    pad_x: int
    pad_y: int
    seen_w: int
    seen_h: int


@dataclass(frozen=True)
class Relative:
    """Numbers are relative to the image's width and height.

    Attributes:
        padded: Numbers are instead relative to a square of the longer side with the image in its centre, as LLaVA-1.5
            and Shikra pad it.

    >>> Relative(padded=True).canvas((640, 427))[2:6]  # span_w, span_h, pad_x, pad_y; (640 - 427) // 2 = 106
    (640, 640, 0, 106)
    """

    padded: bool = False

    def canvas(self, size_wh: Size) -> Canvas:
        """The canvas of an image of ``size_wh`` pixels."""
        w, h = size_wh
        side_w, side_h = (max(size_wh),) * 2 if self.padded else size_wh
        return Canvas(w, h, side_w, side_h, (side_w - w) // 2, (side_h - h) // 2, side_w, side_h)


@dataclass(frozen=True)
class Resized:
    """Numbers are pixels of the image after resizing by Qwen2.5-VL's processor.

    Attributes:
        factor: Both sides become multiples of this.
        min_pixels, max_pixels: Settings of the processor.
        resized_wh: The size of one image after resizing, if known; overrides the other settings.

    Raises:
        GroundingError: if ``min_pixels`` is above ``max_pixels``, or ``resized_wh`` is not a size.
    """

    factor: int = 28
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 16384
    resized_wh: Size | None = None

    def __post_init__(self) -> None:
        if self.resized_wh is not None:
            object.__setattr__(self, "resized_wh", check_size(self.resized_wh))
        if self.min_pixels > self.max_pixels:
            what, fix = "Options `min_pixels` and `max_pixels` leave no size", "set both as in the processor's config"
            got = f"min_pixels={self.min_pixels}, max_pixels={self.max_pixels}"
            raise GroundingError(what, got=got, expected="min_pixels ≤ max_pixels", fix=fix)

    def canvas(self, size_wh: Size) -> Canvas:
        """The canvas of an image of ``size_wh`` pixels."""
        w, h = size_wh
        seen = self.resized_wh or smart_resize(size_wh, self.factor, self.min_pixels, self.max_pixels)
        return Canvas(w, h, w, h, 0, 0, *seen)


class Geometry(Protocol):
    """What a dialect's numbers are relative to: a frozen dataclass that gives each image its canvas."""

    def canvas(self, size_wh: Size) -> Canvas:
        """The canvas of an image of ``size_wh`` pixels."""


def smart_resize(size_wh: Size, factor: int = 28, min_pixels: int = 56 * 56, max_pixels: int = 28 * 28 * 16384) -> Size:
    """The size (width, height) to which the processor of Qwen2-VL and Qwen2.5-VL resizes an image.

    Each side is rounded to the nearest multiple of ``factor``. If the area is then out of bounds, both sides are scaled
    to keep the shape, rounding towards the inside of the bounds. The same rule applies to images whose sides differ by
    a factor of more than 200, which the processor refuses, so that their text can still be parsed.

    >>> smart_resize((640, 428), max_pixels=28 * 28 * 1280)  # 640 / 28 = 22.9, 428 / 28 = 15.3
    (644, 420)
    >>> smart_resize((10, 10))  # 10 px would round to 0: scaled up to 56 × 56
    (56, 56)
    """
    w, h = size_wh
    new_w, new_h = round(w / factor) * factor, round(h / factor) * factor
    if new_w * new_h > max_pixels:
        scale = math.sqrt(w * h / max_pixels)
        new_w = max(factor, math.floor(w / scale / factor) * factor)
        new_h = max(factor, math.floor(h / scale / factor) * factor)
    elif new_w * new_h < min_pixels:
        scale = math.sqrt(min_pixels / (w * h))
        new_w, new_h = math.ceil(w * scale / factor) * factor, math.ceil(h * scale / factor) * factor
    return new_w, new_h


def check_size(size_wh: Size) -> Size:
    """The size as two ints; raises a GroundingError unless it is two integers of at least 1."""
    try:
        w, h = map(operator.index, size_wh)
    except (TypeError, ValueError):
        w = h = 0
    if w < 1 or h < 1:
        expected = "(width, height) in pixels, both ≥ 1"
        raise GroundingError("Size of the image is wrong", got=repr(size_wh), expected=expected)
    return w, h
