"""Looking for a category's objects in a part of an image, as the re-annotation of crowds needs it (METHOD §1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from spr.core.views import crop_window, cut, unshift
from spr.models.protocols import Detector, DetectRequest
from spr.records import Box


@dataclass(frozen=True, slots=True, eq=False)
class CategoryRequest:
    """Where, in a part of an image, are the objects of a category?

    Attributes:
        image: The whole image, RGB.
        category: The name to look for.
        box: The part, xyxy pixels of the image, within it.
    """

    image: Image.Image
    category: str
    box: Box


@dataclass(frozen=True, slots=True, eq=False)
class CategoryFinds:
    """What was found: ``boxes_xyxy`` (M, 4), float64 pixels of the whole image, and ``scores`` (M,), best first."""

    boxes_xyxy: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]


def find_categories(detector: Detector, requests: Sequence[CategoryRequest]) -> list[CategoryFinds]:
    """Ask a detector for a category's name in the crop of a box, and map what it finds back to the image.

    The crop is the box with its edges moved outwards to whole pixels, so finds may leave the box by a pixel. The
    detector's own thresholds apply; suppressing and dropping finds is left to `spr.annotations.crowd`. Underscores of
    names ("baseball_bat") are read as spaces.

    Args:
        detector: Asked once, about all requests.
        requests: Of one or several images.
    """
    windows = [crop_window(request.box, request.image.size, 1.0) for request in requests]
    asked = [
        DetectRequest(cut(request.image, window), request.category.replace("_", " "))
        for request, window in zip(requests, windows, strict=True)
    ]
    found = []
    for detections, window in zip(detector.detect(asked), windows, strict=True):
        boxes = [unshift(detection.box, window) for detection in detections]
        scores = [detection.score for detection in detections]
        found.append(CategoryFinds(np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array(scores, np.float64)))
    return found
