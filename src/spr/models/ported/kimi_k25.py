"""The image processor of Kimi K2.5 without torchvision: an image at its own size, padded to whole pairs of patches.

transformers has it for torchvision only. Resizing is PIL's here, as in the processor that the publisher ships with the
weights (``kimi_k25_vision_processing.py``, ``media_utils.py``), so that the pixels are the same as there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from spr.models.loading import Source, load_part

_PUBLISHED_NAMES = {
    "in_patch_limit": "max_patches",
    "merge_kernel_size": "merge_size",
    "patch_size": "patch_size",
    "image_mean": "image_mean",
    "image_std": "image_std",
}


class KimiK25ImageOptions(ImagesKwargs, total=False):  # type: ignore[call-arg, misc]
    """Options of `KimiK25ImageProcessor` beside those that all image processors have."""

    max_patches: int
    patch_size: int
    merge_size: int


class KimiK25ImageProcessor(PilBackend):  # type: ignore[misc]
    """Images as patches ``(n, 3, patch_size, patch_size)``, row by row, and their grids ``image_grid_thw``.

    An image that has at most ``max_patches`` patches, and at most ``size["max_height"]`` of them along a side, keeps
    its size; a larger one is scaled down. Black is added on the right and below, up to a multiple of ``merge_size``
    patches.

    Its settings are those of transformers' ``Kimi_K25ImageProcessor``, or the publisher's ``media_proc_cfg``.
    """

    do_resize = True
    resample = PILImageResampling.BICUBIC
    size = {"max_height": 512, "max_width": 512}  # noqa: RUF012 (transformers reads it from the class)
    max_patches = 16384
    do_rescale = True
    do_normalize = True
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    do_convert_rgb = True
    patch_size = 14
    merge_size = 2
    valid_kwargs = KimiK25ImageOptions
    model_input_names = ["pixel_values", "image_grid_thw"]  # noqa: RUF012

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make one from the settings of a folder."""
        settings = {k: v for k, v in image_processor_dict.items() if k not in ("image_processor_type", "auto_map")}
        published = settings.pop("media_proc_cfg", {})
        settings |= {name: published[key] for key, name in _PUBLISHED_NAMES.items() if key in published}
        if isinstance(settings.get("merge_size"), list | tuple):
            settings["merge_size"] = settings["merge_size"][0]
        if (side := published.get("patch_limit_on_one_side")) is not None:
            settings["size"] = {"max_height": side, "max_width": side}
        return super().from_dict(settings, **kwargs)

    def resized(self, height: int, width: int, **options: Any) -> tuple[int, int]:
        """The size in pixels, height and width, to which an image is scaled before it is padded."""
        patch = options.get("patch_size", self.patch_size)
        most = options.get("max_patches", self.max_patches)
        side = options.get("size", self.size)["max_height"] * patch
        patches = max(1, height // patch) * max(1, width // patch)
        scale = min(1.0, math.sqrt(most / patches), side / height, side / width)
        return min(side, max(1, int(height * scale))), min(side, max(1, int(width * scale)))

    def padded(self, height: int, width: int, **options: Any) -> tuple[int, int]:
        """The size in pixels, height and width, of an image that was scaled to ``height`` and ``width``."""
        unit = options.get("patch_size", self.patch_size) * options.get("merge_size", self.merge_size)
        return math.ceil(height / unit) * unit, math.ceil(width / unit) * unit

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """The number of patches of an image of this size in pixels."""
        options, patch = images_kwargs or {}, self.patch_size
        rows, columns = self.padded(*self.resized(height, width, **options), **options)
        return (rows // patch) * (columns // patch)

    def _preprocess(
        self,
        images: list[NDArray[Any]],
        do_resize: bool,
        resample: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        patch_size: int,
        return_tensors: Any,
        **options: Any,
    ) -> BatchFeature:
        patches, grids = [], []
        for pixels in images:
            if do_resize:
                height, width = self.resized(*pixels.shape[-2:], patch_size=patch_size, **options)
                pixels = self.resize(pixels, SizeDict(height=height, width=width), resample)
                height, width = self.padded(height, width, patch_size=patch_size, **options)
                (pixels,) = self.pad([pixels], SizeDict(height=height, width=width))
            if do_rescale:
                pixels = self.rescale(pixels, rescale_factor)
            if do_normalize:
                pixels = self.normalize(pixels, image_mean, image_std)
            rows, columns = pixels.shape[-2] // patch_size, pixels.shape[-1] // patch_size
            grid = np.asarray(pixels, np.float32).reshape(3, rows, patch_size, columns, patch_size)
            patches.append(grid.transpose(1, 3, 0, 2, 4).reshape(-1, 3, patch_size, patch_size))
            grids.append([1, rows, columns])
        data = {"pixel_values": np.concatenate(patches), "image_grid_thw": np.array(grids)}
        return BatchFeature(data=data, tensor_type=return_tensors)


def load_kimi_k25_images(source: Source, *, revision: str | None = None) -> KimiK25ImageProcessor:
    """Load the image processor of a folder or Hub id; a folder without its settings is a `ModelError`."""
    loaded: KimiK25ImageProcessor = load_part(KimiK25ImageProcessor, source, revision=revision)
    return loaded
