"""Converts a model's outputs to detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from spr.models.errors import ModelError
from spr.records import Box, Detection, Size


def pixel_boxes(boxes_cxcywh: torch.Tensor, canvas_wh: Size, size_wh: Size) -> list[Box | None]:
    """Convert boxes ``(N, 4)`` to pixels of the image and clip them to it; None for boxes outside of the image.

    They are relative, 0..1, to the canvas: the model's input in pixels of the image, padded at the bottom and right.

    >>> pixel_boxes(torch.tensor([[0.5, 0.5, 0.5, 1.0], [0.9, 0.5, 0.1, 0.1]]), (100, 100), (60, 100))
    [(25.0, 0.0, 60.0, 100.0), None]
    """
    centres, sides = torch.split(boxes_cxcywh.float().cpu(), 2, dim=-1)
    canvas, limit = torch.tensor([canvas_wh, size_wh], dtype=torch.float32)
    corners = [((centres + sign * sides / 2) * canvas).clamp(min=0).minimum(limit) for sign in (-1, 1)]
    return [(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None for x1, y1, x2, y2 in torch.cat(corners, dim=-1).tolist()]


def best_first(detections: Sequence[Detection]) -> list[Detection]:
    """Sort detections by descending score. The sort is stable."""
    return sorted(detections, key=lambda detection: -detection.score)


def check_finite(name: str, boxes: torch.Tensor) -> None:
    """Raise `ModelError` for non-finite boxes, as happens in float16: they would look like an image without objects."""
    if not bool(torch.isfinite(boxes).all()):
        fix = "use dtype float32" + (" or bfloat16" if boxes.dtype == torch.float16 else "")
        raise ModelError(f"The boxes of {name} are not finite", got=boxes.dtype, expected="finite numbers", fix=fix)
