"""Views of scenes: the whole image or a window of it, resized to the models' input, with its objects' boxes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that all torch code uses

from spr.embedded.scenes import SIZE

_VISIBLE = 0.25  # share of an object's box that a view must hold for the object to count


class ImageBank:
    """Images that batches are cut from: on a GPU all of them lie there, else they are read as they are needed.

    Args:
        images: uint8 ``(N, SIZE, SIZE, 3)``, perhaps a memory map.
        device: Where the views go.
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
        """Views as the models take them, float32 ``(B, 3, SIZE, SIZE)`` in −1..1.

        Args:
            rows: ``(B,)``: which images.
            windows_xyxy: ``(B, 4)`` pixels, stretched to the models' square input; what lies outside an image is grey
                (0). None: the whole images.
            kept_xyxy: ``(B, 4)`` pixels: what lies outside these is grey too, as the padding of a crop is.
        """
        if self._resident is not None:
            pixels = self._resident[torch.from_numpy(rows).to(self.device)]
        else:
            pixels = torch.from_numpy(self._host[rows]).to(self.device)
        pixels = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        if windows_xyxy is None:
            return pixels
        kept = None if kept_xyxy is None else torch.from_numpy(kept_xyxy).float().to(self.device)
        return cut(pixels, torch.from_numpy(windows_xyxy).float().to(self.device), kept)


def cut(pixels: Tensor, windows_xyxy: Tensor, kept_xyxy: Tensor | None = None) -> Tensor:
    """Windows of images, resized bilinearly to the images' size; zeros outside of them, and of the kept boxes.

    ``(B, 3, S, S)``, ``(B, 4)`` pixels and perhaps ``(B, 4)`` pixels → ``(B, 3, S, S)``.
    """
    size = pixels.shape[-1]
    steps = (torch.arange(size, device=pixels.device) + 0.5) / size
    x1, y1, x2, y2 = (windows_xyxy * (2 / size) - 1).unbind(-1)  # grid_sample: the image spans −1..1
    xs = x1[:, None] + steps * (x2 - x1)[:, None]
    ys = y1[:, None] + steps * (y2 - y1)[:, None]
    grid = torch.stack([xs[:, None, :].expand(-1, size, -1), ys[:, :, None].expand(-1, -1, size)], dim=-1)
    made = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if kept_xyxy is None:
        return made
    left, top, right, bottom = (kept_xyxy * (2 / size) - 1)[..., None].unbind(1)
    across, down = (xs >= left) & (xs <= right), (ys >= top) & (ys <= bottom)
    return made * (down[:, None, :, None] & across[:, None, None, :])


def square_window(window_xyxy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The smallest square about a window's centre that holds it: cutting it out pads the window to a square.

    >>> square_window(np.array([10.0, 10.0, 30.0, 20.0])).tolist()
    [10.0, 5.0, 30.0, 25.0]
    """
    centre = (window_xyxy[..., :2] + window_xyxy[..., 2:]) / 2
    half = (window_xyxy[..., 2:] - window_xyxy[..., :2]).max(axis=-1, keepdims=True) / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def boxes_in_view(
    boxes_xyxy: npt.NDArray[np.float64], window_xyxy: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Boxes as numbers 0–1 of a window, clipped to it, and which of them are visible enough to count.

    Args:
        boxes_xyxy: ``(N, 4)`` pixels of the image.
        window_xyxy: ``(4,)`` pixels of the image.

    >>> boxes, seen = boxes_in_view(np.array([[0.0, 0, 20, 20], [50, 50, 60, 60]]), np.array([10.0, 0, 50, 40]))
    >>> boxes[0].tolist(), seen.tolist()
    ([0.0, 0.0, 0.25, 0.5], [True, False])
    """
    origin, size = window_xyxy[:2], window_xyxy[2:] - window_xyxy[:2]
    relative = (boxes_xyxy - np.tile(origin, 2)) / np.tile(size, 2)
    clipped = np.clip(relative, 0, 1)

    def area(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))

    return clipped, area(clipped) >= _VISIBLE * np.maximum(area(relative), 1e-9)


WHOLE: npt.NDArray[np.float64] = np.array([0.0, 0.0, SIZE, SIZE])
