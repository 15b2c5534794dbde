"""Molmo2's image processor without torchvision, which gives the same pixels.

transformers has it for torchvision only. Of torchvision it needs two functions, which are a few operations of torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor as WithTorchvision

from spr.models.loading import Source, load_part

_MODES = {PILImageResampling.BILINEAR: "bilinear", PILImageResampling.BICUBIC: "bicubic"}


class Molmo2ImageProcessor(WithTorchvision):  # type: ignore[misc]
    """One view of the whole image and overlapping crops of it, as patches ``(crops, patches, values)``."""

    def resize(self, image: Tensor, size: SizeDict, resample: Any = None, antialias: bool = True, **_: Any) -> Tensor:
        """Resize images ``(n, channels, height, width)`` of floats to a height and a width."""
        mode = _MODES[PILImageResampling.BILINEAR if resample is None else PILImageResampling(resample)]
        return interpolate(image, (size.height, size.width), mode=mode, align_corners=False, antialias=antialias)

    def normalize(self, image: Tensor, mean: Any, std: Any, **_: Any) -> Tensor:
        """Subtract the mean of each channel, and divide by its standard deviation."""
        mean, std = (torch.as_tensor(values, dtype=image.dtype).view(-1, 1, 1) for values in (mean, std))
        return image.sub(mean).div_(std)


def load_molmo2_image_processor(source: Source, *, revision: str | None = None) -> Molmo2ImageProcessor:
    """Load the settings of a model's folder or repository."""
    loaded: Molmo2ImageProcessor = load_part(Molmo2ImageProcessor, source, revision=revision)
    return loaded
