"""From images to the tensors that vision models read, by the numbers of a checkpoint's own image processor.

The processors' default classes need torchvision; their PIL classes don't, but go through numpy one image at a time.
Here the bytes go to the device, and become numbers there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image


def to_bytes(image: Image.Image) -> torch.Tensor:
    """The image's RGB values, uint8 ``(3, H, W)``."""
    array = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)


def resized_bytes(image: Image.Image, size_wh: tuple[int, int], processor: Any) -> torch.Tensor:
    """The image's RGB values at this size, uint8 ``(3, H, W)``, by the processor's resampling filter."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    if image.size != size_wh:
        image = image.resize(size_wh, Image.Resampling(int(processor.resample)))
    return to_bytes(image)


def normalise(values: Sequence[torch.Tensor], processor: Any, device: torch.device) -> torch.Tensor:
    """Stack values 0..255 ``(3, H, W)``, rescale and normalise them: float32 ``(N, 3, H, W)`` on the device."""
    pixels = torch.stack(list(values)).to(device).float()
    if processor.do_rescale:
        pixels *= processor.rescale_factor
    return standardise(pixels, processor) if processor.do_normalize else pixels


def standardise(pixels: torch.Tensor, processor: Any) -> torch.Tensor:
    """``(pixels - mean) / std`` a channel, in place, for pixels of shape ``(N, 3, H, W)``."""
    mean, std = (torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in _moments(processor))
    return pixels.sub_(mean).div_(std)


def _moments(processor: Any) -> tuple[list[float], list[float]]:
    return list(processor.image_mean), list(processor.image_std)


def shrink_to_square(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Pad below and to the right with zeros to a square, and resize it as OWLv2 was trained.

    Smoothed by a Gaussian where it shrinks, then interpolated linearly. Equal to ``pad`` and ``resize`` of
    ``Owlv2ImageProcessorPil``, which needs scipy: mirrored edges, σ = (factor - 1) / 2, cut at 4 σ.

    Args:
        pixels: Float ``(C, H, W)``.
        size: The new side.

    Returns:
        ``(C, size, size)``.
    """
    height, width = pixels.shape[1:]
    # The axes don't mix, so the longer one goes first, and the padding is only made where little is left.
    tall = pixels if height >= width else pixels.transpose(1, 2)
    rows = F.pad(_resize_rows(tall, size), (0, abs(height - width)))
    square = _resize_rows(rows.transpose(1, 2), size)
    return (square.transpose(1, 2) if height >= width else square).contiguous()


def _resize_rows(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """The last axis but one, resized: ``(C, S, W)`` → ``(C, size, W)``."""
    side, device = pixels.shape[1], pixels.device
    sigma = max(0.0, (side / size - 1) / 2)
    if sigma > 0:
        radius = int(4 * sigma + 0.5)
        steps = torch.arange(-radius, radius + 1, dtype=torch.float64)
        weights = torch.exp(-0.5 * (steps / sigma) ** 2)
        kernel = (weights / weights.sum()).to(pixels).view(1, 1, -1, 1)
        around = _mirror(torch.arange(-radius, side + radius), side).to(device)
        pixels = F.conv2d(pixels[:, None, around], kernel)[:, 0]
    # The centre of each new row, in rows of the old image.
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * (side / size) - 0.5
    below = centres.floor().long()
    share = (centres - below).to(pixels).view(1, -1, 1)
    low, high = (pixels[:, _mirror(rows, side).to(device)] for rows in (below, below + 1))
    return low + (high - low) * share


def _mirror(rows: torch.Tensor, side: int) -> torch.Tensor:
    """Row numbers beyond an edge, reflected at the middle of the edge's row: -1 → 1, side → side - 2."""
    period = max(1, 2 * (side - 1))
    rows = rows % period
    return torch.minimum(rows, period - rows).clamp(max=side - 1)
