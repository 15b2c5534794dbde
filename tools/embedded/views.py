"""Views of scenes: the whole image or a window of it, resized to the models' input size, with the objects' boxes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that all torch code uses

from spr.core import boxes as bx
from spr.embedded.scenes import SIZE

_MIN_VISIBLE = 0.25  # an object counts in a view that contains at least this share of its box


class ImageBank:
    """The images that views are cut from: resident in memory on a GPU, else read when they are needed.

    Args:
        images: uint8 ``(N, SIZE, SIZE, 3)``; may be a memory map.
        device: The device of the views.
    """

    def __init__(self, images: npt.NDArray[np.uint8], device: torch.device) -> None:
        self.device = device
        self._host = images
        self._resident = torch.from_numpy(np.array(images)).to(device) if device.type == "cuda" else None

    def views(
        self,
        rows: npt.NDArray[np.int64],
        windows_xyxy: npt.NDArray[np.float64] | None = None,
        kept_xyxy: npt.NDArray[np.float64] | None = None,
    ) -> Tensor:
        """Views as model inputs: float32 ``(B, 3, SIZE, SIZE)`` in −1..1.

        Args:
            rows: ``(B,)``, the indices of the images.
            windows_xyxy: ``(B, 4)`` pixels, stretched to the models' square input; pixels outside the image are grey
                (0). None for the whole images.
            kept_xyxy: ``(B, 4)`` pixels; pixels outside these boxes are grey too, like the padding of a crop.
        """
        if self._resident is not None:
            pixels = self._resident[torch.from_numpy(rows).to(self.device)]
        else:
            pixels = torch.from_numpy(self._host[rows]).to(self.device)
        pixels = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        if windows_xyxy is None:
            return pixels
        kept = None if kept_xyxy is None else torch.from_numpy(kept_xyxy).float().to(self.device)
        return resample(pixels, torch.from_numpy(windows_xyxy).float().to(self.device), kept)


def resample(pixels: Tensor, windows_xyxy: Tensor, kept_xyxy: Tensor | None = None) -> Tensor:
    """Windows of images, resized bilinearly to the images' size; pixels outside the image and the kept boxes are 0.

    Args:
        pixels: ``(B, 3, S, S)``.
        windows_xyxy: ``(B, 4)`` pixels.
        kept_xyxy: ``(B, 4)`` pixels, or None to keep everything.

    Returns:
        ``(B, 3, S, S)``.
    """
    size = pixels.shape[-1]
    steps = (torch.arange(size, device=pixels.device) + 0.5) / size
    x1, y1, x2, y2 = (windows_xyxy * (2 / size) - 1).unbind(-1)  # grid_sample: the image spans −1..1
    xs = x1[:, None] + steps * (x2 - x1)[:, None]
    ys = y1[:, None] + steps * (y2 - y1)[:, None]
    grid = torch.stack([xs[:, None, :].expand(-1, size, -1), ys[:, :, None].expand(-1, -1, size)], dim=-1)
    views = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if kept_xyxy is None:
        return views
    left, top, right, bottom = (kept_xyxy * (2 / size) - 1)[..., None].unbind(1)
    across, down = (xs >= left) & (xs <= right), (ys >= top) & (ys <= bottom)
    return views * (down[:, None, :, None] & across[:, None, None, :])


def padded_window(window_xyxy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The smallest square that contains a window and has its centre: resampling it pads the window to a square.

    >>> padded_window(np.array([10.0, 10.0, 30.0, 20.0])).tolist()
    [10.0, 5.0, 30.0, 25.0]
    """
    centre = bx.centre(window_xyxy)
    half = (window_xyxy[..., 2:] - window_xyxy[..., :2]).max(axis=-1, keepdims=True) / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def boxes_in_view(
    boxes_xyxy: npt.NDArray[np.float64], window_xyxy: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Boxes relative to a window and clipped to it, and which of them are visible enough to count.

    Args:
        boxes_xyxy: ``(N, 4)`` pixels of the image.
        window_xyxy: ``(4,)`` pixels of the image.

    Returns:
        ``(N, 4)`` in 0–1 of the window, and bool ``(N,)``.

    >>> boxes, visible = boxes_in_view(np.array([[0.0, 0, 20, 20], [50, 50, 60, 60]]), np.array([10.0, 0, 50, 40]))
    >>> boxes[0].tolist(), visible.tolist()
    ([0.0, 0.0, 0.25, 0.5], [True, False])
    """
    relative = bx.clip(remap(boxes_xyxy, window_xyxy, (1, 1)), (1, 1))
    return relative, bx.at_least(bx.fraction_inside(boxes_xyxy, window_xyxy), _MIN_VISIBLE)


def remap(boxes_xyxy: npt.NDArray[np.generic], window_xyxy: bx.Boxes, size_wh: tuple[float, float]) -> bx.Array:
    """Map boxes ``(N, 4)`` from pixels of the image to pixels of a window of it that was resized to ``size_wh``.

    >>> remap(np.array([[20.0, 20, 30, 40]]), [10, 10, 60, 110], (100, 100)).tolist()
    [[20.0, 10.0, 40.0, 30.0]]
    """
    window = bx.as_boxes(window_xyxy)
    scale = np.tile(np.asarray(size_wh, dtype=np.float64) / (window[2:] - window[:2]), 2)
    return np.asarray((bx.as_boxes(boxes_xyxy) - np.tile(window[:2], 2)) * scale)


WHOLE: npt.NDArray[np.float64] = np.array([0.0, 0.0, SIZE, SIZE])
"""The window of a whole scene."""
