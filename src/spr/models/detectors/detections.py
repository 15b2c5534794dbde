"""From a detector's raw outputs to detections: boxes in pixels of the image, best first."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from spr.models.loading import ModelError
from spr.records import Box, Detection, Size


def pixel_boxes(boxes_cxcywh: torch.Tensor, canvas_wh: Size, size_wh: Size) -> list[Box | None]:
    """Boxes in pixels of the image, clipped to it; None for those of which nothing is left.

    Args:
        boxes_cxcywh: ``(N, 4)``, centre, width and height, relative to the canvas, 0..1.
        canvas_wh: What the model saw, in pixels of the image: the image, with padding below and to the right.
        size_wh: The image.

    >>> pixel_boxes(torch.tensor([[0.5, 0.5, 0.5, 1.0], [0.9, 0.5, 0.1, 0.1]]), (100, 100), (60, 100))
    [(25.0, 0.0, 60.0, 100.0), None]
    """
    centres, sides = torch.split(boxes_cxcywh.float().cpu(), 2, dim=-1)
    canvas, limit = (torch.tensor(size, dtype=torch.float32) for size in (canvas_wh, size_wh))
    corners = [((centres + sign * sides / 2) * canvas).clamp(min=0).minimum(limit) for sign in (-1, 1)]
    return [(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None for x1, y1, x2, y2 in torch.cat(corners, dim=-1).tolist()]


def best_first(detections: Sequence[Detection]) -> list[Detection]:
    """The detections by falling score; those of equal score keep their order."""
    return sorted(detections, key=lambda detection: -detection.score)


def check_finite(name: str, boxes: torch.Tensor) -> None:
    """Raise `ModelError` if a model's boxes are no numbers, as happens in float16: nothing would seem to be found."""
    if not bool(torch.isfinite(boxes).all()):
        fix = "use dtype float32 or bfloat16"
        raise ModelError(f"The boxes of {name} are not finite", got=boxes.dtype, expected="finite numbers", fix=fix)
