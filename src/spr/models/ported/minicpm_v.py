"""How many tokens MiniCPM-V's processor writes for an image of a size, which transformers does not count."""

from __future__ import annotations

from typing import Any

import numpy as np


def count_minicpm_v_tokens(processor: Any, height: int, width: int) -> int:
    """The tokens in place of the image's placeholder: of the whole image, of its slices, and between them."""
    images = processor.image_processor
    size, side, patch = (height, width), images.scale_resolution, images.patch_size
    grid = images.get_sliced_grid(size, images.max_slice_nums, side) if images.slice_mode else None
    options = {"downsample_mode": images.downsample_mode}
    parts = [images.find_best_resize(size, side, patch, **options, allow_upscale=grid is None)]
    if grid is not None:
        rows, columns = grid
        refined = images.get_refine_size(size, grid, side, patch, **options, allow_upscale=True)
        parts += [(refined[0] // rows, refined[1] // columns)] * (rows * columns)
    processed = {
        "grids": [grid or (0, 0)],
        "num_patches_per_image": [len(parts)],
        "target_sizes": np.array(parts) // patch,
    }
    text = processor.replace_image_token(processed, 0, image_token_divisor=processor.image_token_divisor)
    if processor.default_use_image_id:
        text = f"{processor.image_id_start_token}0{processor.image_id_end_token}{text}"
    return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
