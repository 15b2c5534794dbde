"""Regions of an image (boxes, points, masks of any shape), and the points sampled from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spr.core.errors import SprError
from spr.models.ported.ferret.sampler import SEED
from spr.records import Size

Mask = npt.NDArray[np.bool_]

Region: TypeAlias = Sequence[float] | npt.NDArray[Any] | Tensor
"""A box ``(x1, y1, x2, y2)`` or a point ``(x, y)`` in pixels of the image, or a mask ``(height, width)`` of it."""

REGION_TOKEN = "<region_fea>"  # noqa: S105 (a token of text)
UNITS = 1000
"""Coordinates in Ferret's text range from 0 to this value."""
SPAN = 5
"""A point stands for the pixels within this horizontal and vertical distance."""

_NAMED = re.compile(rf"(?:\[([^\[\]]*)\]\s*)?{re.escape(REGION_TOKEN)}")
_NUMBERS = re.compile(r"\s*\d{1,6}(?:\s*,\s*\d{1,6}){1,3}\s*")


class RegionError(SprError, ValueError):
    """A region, or the number of regions, does not match the prompt or the image."""


def prompt_regions(text: str, size_wh: Size) -> list[Mask]:
    """The regions of a prompt: the coordinates right before each ``<region_fea>``, in order.

    Args:
        text: The prompt, with boxes as ``[x1, y1, x2, y2] <region_fea>`` and points as ``[x, y] <region_fea>``, in
            thousandths of the image's sides.
        size_wh: Width and height of the image in pixels.

    Returns:
        Masks ``(height, width)`` of the image.

    Raises:
        RegionError: if a token has no coordinates before it, or the region is outside the image or empty.
    """
    masks = []
    for match in _NAMED.finditer(text):
        numbers = match[1]
        if numbers is None or not _NUMBERS.fullmatch(numbers) or numbers.count(",") == 2:
            expected = f"[x1, y1, x2, y2] or [x, y] right before each {REGION_TOKEN}"
            fix = "write the coordinates into the prompt, or pass `regions`"
            got = text[max(0, match.start() - 30) : match.end()]
            raise RegionError("A region of the prompt has no coordinates", got=repr(got), expected=expected, fix=fix)
        values = [int(number) for number in numbers.split(",")]
        if max(values) > UNITS:
            raise RegionError("A region of the prompt is outside the image", got=match[0], expected=f"0 to {UNITS - 1}")
        pixels = [value * size_wh[k % 2] / UNITS for k, value in enumerate(values)]
        masks.append(_painted(pixels, size_wh, match[0]))
    return masks


def region_mask(region: Region, size_wh: Size) -> Mask:
    """A region given as an argument, as a mask ``(height, width)``.

    Raises:
        RegionError: if it is not a box, point or mask of the image, lies outside the image or has no area.
    """
    array = np.asarray(region)
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise RegionError("A region contains values that are not finite numbers", got=repr(region)[:120])
    if array.ndim == 2:
        expected_shape = size_wh[1], size_wh[0]
        if array.shape != expected_shape:
            expected = f"{expected_shape}: height and width of the image"
            raise RegionError("A region's mask does not have the image's size", got=array.shape, expected=expected)
        if not array.any():
            raise RegionError("A region's mask is empty", expected="at least one pixel in it")
        return array.astype(bool)
    if array.shape not in ((2,), (4,)):
        expected = "a point (x, y), a box (x1, y1, x2, y2) or a mask (height, width)"
        raise RegionError("A region has the wrong shape", got=f"an array of shape {array.shape}", expected=expected)
    values = [float(value) for value in array]
    if len(values) == 4 and not (values[0] < values[2] and values[1] < values[3]):
        raise RegionError("A region's box has no area", got=values, expected="x1 < x2 and y1 < y2")
    return _painted(values, size_wh, values)


def _painted(values: list[float], size_wh: Size, shown: object) -> Mask:
    """The pixels of a box (both ends included) or a point, clipped to the image, as in the published code."""
    width, height = size_wh
    mask = np.zeros((height, width), dtype=bool)
    if len(values) == 2:
        x, y = values
        inside = 0 <= x < width and 0 <= y < height
        left, right = max(0.0, x - SPAN), min(float(width), x + SPAN + 1)
        top, bottom = max(0.0, y - SPAN), min(float(height), y + SPAN + 1)
        mask[int(top) : int(bottom), int(left) : int(right)] = inside
    else:
        x1, y1, x2, y2 = values
        if x1 <= x2 and y1 <= y2 and x2 >= 0 and y2 >= 0:
            mask[max(0, int(y1)) : int(y2) + 1, max(0, int(x1)) : int(x2) + 1] = True
    if not mask.any():
        expected = f"some pixels of the image, which is {width} × {height}"
        raise RegionError("A region has no area within the image", got=shown, expected=expected)
    return mask


def draw_points(mask: Mask, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Sample pixels of a mask without replacement. If there are too few, take all of them and repeat some.

    Args:
        mask: ``(height, width)``, not empty.
        count: The number of points.
        generator: Random generator. None samples the same points from the same mask each time.

    Returns:
        Integer pixels x, y: int32 ``(count, 2)``.
    """
    generator = generator or torch.Generator().manual_seed(SEED)
    # In column order, as in the published code, so that its samples can be reproduced.
    x, y = np.nonzero(mask.T)
    pixels = torch.from_numpy(np.stack([x, y], axis=1).astype(np.int32))
    if len(pixels) < count:
        again = torch.randint(len(pixels), (count - len(pixels),), generator=generator)
        return torch.cat([pixels, pixels[again]])
    if len(pixels) == count:
        return pixels
    return pixels[torch.randperm(len(pixels), generator=generator)[:count]]
