"""Converts images to input tensors with the settings of a checkpoint's image processor.

The default image processors of transformers need torchvision; the PIL ones don't, but convert one image at a time in
numpy. Here bytes are moved to the device and converted there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image

from spr.core.images import to_rgb


def to_bytes(image: Image.Image) -> torch.Tensor:
    """RGB values of the image, uint8 ``(3, H, W)``."""
    array = np.array(to_rgb(image))
    return torch.from_numpy(array).permute(2, 0, 1)


def resized_bytes(image: Image.Image, size_wh: tuple[int, int], processor: Any) -> torch.Tensor:
    """RGB values of the image resized with the processor's resampling filter, uint8 ``(3, H, W)``."""
    image = to_rgb(image)
    if image.size != size_wh:
        image = image.resize(size_wh, Image.Resampling(int(processor.resample)))
    return to_bytes(image)


def normalise(values: Sequence[torch.Tensor], processor: Any, device: torch.device) -> torch.Tensor:
    """Stack values 0..255 ``(3, H, W)``, rescale and normalize: float32 ``(N, 3, H, W)`` on the device."""
    pixels = torch.stack(list(values)).to(device).float()
    if processor.do_rescale:
        pixels *= processor.rescale_factor
    return standardise(pixels, processor) if processor.do_normalize else pixels


def standardise(pixels: torch.Tensor, processor: Any) -> torch.Tensor:
    """``(pixels - mean) / std`` per channel, in place, for pixels of shape ``(N, 3, H, W)``."""
    moments = (list(processor.image_mean), list(processor.image_std))
    mean, std = (torch.tensor(values, device=pixels.device).view(1, -1, 1, 1) for values in moments)
    return pixels.sub_(mean).div_(std)


def shrink_to_square(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Pad with zeros at the bottom and right to a square, and resize it: float ``(C, H, W)`` → ``(C, size, size)``.

    Downscaling smooths with a Gaussian first (mirrored edges, σ = (factor - 1) / 2, truncated at 4 σ), then
    interpolates linearly. The result equals that of ``Owlv2ImageProcessorPil``, which runs on the CPU.
    """
    height, width = pixels.shape[1:]
    # The axes are independent. Resizing the longer one first leaves less to pad.
    tall = pixels if height >= width else pixels.transpose(1, 2)
    rows = F.pad(_resize_rows(tall, size), (0, abs(height - width)))
    square = _resize_rows(rows.transpose(1, 2), size)
    return (square.transpose(1, 2) if height >= width else square).contiguous()


def _resize_rows(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Resize the second-to-last axis: ``(C, S, W)`` → ``(C, size, W)``."""
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
    """Mirror row indices outside of the image about its first or last row: -1 → 1, side → side - 2."""
    period = max(1, 2 * (side - 1))
    rows = rows % period
    return torch.minimum(rows, period - rows).clamp(max=side - 1)
