"""How a trainer must resize images so that a dialect's numbers fit what its model sees."""

from __future__ import annotations

from spr.grounding import Dialect
from spr.grounding.geometry import Relative, Resized

TOKEN_PIXELS = 28 * 28  # pixels of one image token of Qwen2.5-VL
_TEXT_TOKENS = 1024  # room for the text of a prompt, beside its image
_IMAGE_TOKENS = 4096  # of an image of a family whose limits the dialect doesn't know


def pixel_limits(dialect: Dialect) -> dict[str, int]:
    """The processor's ``min_pixels`` and ``max_pixels`` if the numbers are pixels of its output, otherwise empty.

    >>> from spr.grounding import get_dialect
    >>> pixel_limits(get_dialect("qwen2_5_vl:max_pixels=1003520")), pixel_limits(get_dialect("qwen3_vl"))
    ({'min_pixels': 3136, 'max_pixels': 1003520}, {})
    """
    geometry = dialect.geometry
    if not isinstance(geometry, Resized):
        return {}
    return {"min_pixels": geometry.min_pixels, "max_pixels": geometry.max_pixels}


def prompt_tokens(dialect: Dialect) -> int:
    """How many tokens a prompt with its image may need: what trainers that cut or refuse longer ones must allow.

    >>> from spr.grounding import get_dialect
    >>> prompt_tokens(get_dialect("qwen2_5_vl:max_pixels=1003520")), prompt_tokens(get_dialect("qwen3_vl"))
    (2304, 5120)
    """
    limits = pixel_limits(dialect)
    return (limits["max_pixels"] // TOKEN_PIXELS if limits else _IMAGE_TOKENS) + _TEXT_TOKENS


def geometry_note(dialect: Dialect) -> str:
    """What the numbers are relative to, and what the trainer must do about it, for the dataset card."""
    geometry = dialect.geometry
    if isinstance(geometry, Resized):
        return (
            "The numbers are pixels of the image as Qwen2.5-VL's processor resizes it with "
            f"`min_pixels: {geometry.min_pixels}` and `max_pixels: {geometry.max_pixels}`. **Train with the same "
            "limits**: a trainer that resizes differently moves every box, without an error."
        )
    if isinstance(geometry, Relative) and geometry.padded:
        return (
            "The numbers are relative to the image padded to a square. **The trainer must pad, too** (LLaVA: "
            "`--image_aspect_ratio pad`; transformers: `LlavaImageProcessor` with `do_pad=True`). The image processor "
            "of the checkpoints converted for transformers crops instead, which moves every box."
        )
    if isinstance(geometry, Relative):
        return "The numbers are relative to the whole image, so any resizing that doesn't crop or pad it keeps them."
    return "A trainer must resize images as the model's own processor does, or the boxes move."
