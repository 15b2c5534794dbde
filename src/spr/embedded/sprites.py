"""The objects of scenes: eight shapes in eight colours, drawn so that they fill their boxes exactly."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
RGB: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "green": (40, 165, 60),
    "blue": (40, 75, 225),
    "yellow": (240, 220, 40),
    "purple": (150, 50, 190),
    "orange": (245, 135, 25),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
COLOURS: tuple[str, ...] = tuple(RGB)
CATEGORIES: tuple[str, ...] = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""Category names. Colour ``c`` with shape ``s`` has index ``c * len(SHAPES) + s``; its COCO id is one more."""

_OVERSAMPLING = 4


def _star() -> list[tuple[float, float]]:
    angles = [math.pi * (k / 5 - 0.5) for k in range(10)]
    points = [(math.cos(a) * r, math.sin(a) * r) for k, a in enumerate(angles) for r in [0.42 if k % 2 else 1.0]]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return [((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in points]


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "star": _star(),
}


@functools.cache
def sprite(shape: str, width: int, height: int) -> npt.NDArray[np.float32]:
    """The shape's coverage of each pixel, 0–1, float32 ``(height, width, 1)``. The shape touches all four sides.

    >>> sprite("circle", 9, 7).shape
    (7, 9, 1)
    """
    w, h = width * _OVERSAMPLING, height * _OVERSAMPLING
    image = Image.new("L", (w, h), 0)
    draw = ImageDraw.Draw(image)
    right, bottom = w - 1, h - 1
    if shape in _POLYGONS:
        draw.polygon([(x * right, y * bottom) for x, y in _POLYGONS[shape]], fill=255)
    elif shape == "square":
        draw.rectangle([0, 0, right, bottom], fill=255)
    elif shape == "circle":
        draw.ellipse([0, 0, right, bottom], fill=255)
    elif shape == "ring":
        draw.ellipse([0, 0, right, bottom], fill=255)
        draw.ellipse([w * 0.28, h * 0.28, w * 0.72 - 1, h * 0.72 - 1], fill=0)
    elif shape == "cross":
        draw.rectangle([w * 0.33, 0, w * 0.67 - 1, bottom], fill=255)
        draw.rectangle([0, h * 0.33, right, h * 0.67 - 1], fill=255)
    elif shape == "heart":
        draw.ellipse([0, 0, w * 0.53, h * 0.6], fill=255)
        draw.ellipse([w * 0.47 - 1, 0, right, h * 0.6], fill=255)
        draw.polygon([(w * 0.03, h * 0.42), (w * 0.97 - 1, h * 0.42), (w * 0.5, bottom)], fill=255)
    else:
        raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(SHAPES)}")
    fine = np.asarray(image, dtype=np.float32).reshape(height, _OVERSAMPLING, width, _OVERSAMPLING)
    coverage: npt.NDArray[np.float32] = (fine.mean(axis=(1, 3)) / np.float32(255))[..., None]
    coverage.setflags(write=False)
    return coverage
