"""The parts of an image that models see: the crop around a region, and squares for CLIP (supplement, Sec. 1)."""

from __future__ import annotations

import math

from PIL import Image

from spr.core.boxes import Box, Size, grow

CLIP_MEAN = (122, 116, 104)
"""CLIP's mean colour, RGB 0..255: (0.4815, 0.4578, 0.4082) in its preprocessing. Padding has this colour."""


def crop_window(region: Box, size_wh: Size, factor: float = 1.5) -> Box:
    """The region enlarged ``factor`` times about its centre and clipped to the image (supplement, Sec. 1).

    Edges are rounded outwards to whole pixels, so that a crop of these pixels is exactly this box.

    >>> crop_window((10.0, 10.0, 20.0, 30.5), (100, 33))
    (7.0, 4.0, 23.0, 33.0)
    """
    x1, y1, x2, y2 = grow(region, factor, size_wh).tolist()
    return float(math.floor(x1)), float(math.floor(y1)), float(math.ceil(x2)), float(math.ceil(y2))


def square_window(region: Box, size_wh: Size) -> Box:
    """The square for S_local: it contains the region and is as close to the image's centre as possible.

    Its side is ``max(min(W, H), longer side of the region)`` (supplement, Sec. 1). It extends beyond the image if the
    region is longer than the image's short side. Edges are whole pixels, so it may be up to a pixel larger than that.

    >>> square_window((0, 20, 30, 60), (200, 100))
    (0.0, 0.0, 100.0, 100.0)
    >>> square_window((20, 40, 170, 60), (200, 100))
    (20.0, -25.0, 170.0, 125.0)
    """
    x1, y1 = math.floor(region[0]), math.floor(region[1])
    x2, y2 = math.ceil(region[2]), math.ceil(region[3])
    side = max(min(size_wh), x2 - x1, y2 - y1)
    left = min(max(math.floor((size_wh[0] - side) / 2), x2 - side), x1)
    top = min(max(math.floor((size_wh[1] - side) / 2), y2 - side), y1)
    return float(left), float(top), float(left + side), float(top + side)


def cut(image: Image.Image, window: Box, fill: tuple[int, int, int] = CLIP_MEAN) -> Image.Image:
    """Cut out a window with edges on whole pixels; parts outside the image get the colour ``fill``, RGB 0..255."""
    left, top, right, bottom = (round(v) for v in window)
    if left >= 0 and top >= 0 and right <= image.width and bottom <= image.height:
        return image.crop((left, top, right, bottom))
    canvas = Image.new("RGB", (right - left, bottom - top), fill)
    canvas.paste(image, (-left, -top))
    return canvas


def padded_window(size_wh: Size) -> Box:
    """The smallest square that contains an image of this size in its centre, in pixels of the image.

    >>> padded_window((100, 60))
    (0.0, -20.0, 100.0, 80.0)
    """
    side = max(size_wh)
    left, top = (side - size_wh[0]) // 2, (side - size_wh[1]) // 2
    return float(-left), float(-top), float(side - left), float(side - top)


def pad_to_square(image: Image.Image, fill: tuple[int, int, int] = CLIP_MEAN) -> Image.Image:
    """Centre the image in the smallest square that contains it, and fill the rest (supplement, Sec. 1)."""
    return cut(image, padded_window(image.size), fill)


def shift(box: Box, window: Box) -> Box:
    """Map a box from pixels of the original image to pixels of the window, which is not resized."""
    return box[0] - window[0], box[1] - window[1], box[2] - window[0], box[3] - window[1]


def unshift(box: Box, window: Box) -> Box:
    """Map a box from pixels of the window back to pixels of the original image."""
    return box[0] + window[0], box[1] + window[1], box[2] + window[0], box[3] + window[1]
