"""The pixels of an opened image: its orientation, and its conversion to RGB of 8 bits."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from spr.core.boxes import Size
from spr.core.image_files import ImageProblem

Orientation: TypeAlias = Literal["auto", "apply", "ignore"]
"""How to treat the EXIF orientation, which says how a viewer should rotate or mirror the stored pixels.

- ``auto``: the annotated size decides. If only the stored size equals it, the image is not rotated; if only the rotated
  size does, it is rotated. If both do (a square image, a rotation by 180°, a mirrored image), the boxes may have been
  drawn on either, and the image is dropped as ``image_orientation_ambiguous``.
- ``apply``: the boxes were drawn on the rotated image, as viewers show it. The annotated size may also be the stored
  one, as Label Studio writes it; the image's size is then that after the rotation.
- ``ignore``: the boxes were drawn on the stored pixels.

Without an annotated size, ``auto`` rotates the image, as viewers do.
"""

ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_QUARTER_TURNS = (5, 6, 7, 8)


def is_rotated(image: Image.Image, file_name: str, size_wh: Size | None, orientation: Orientation) -> bool:
    """Whether to apply the EXIF orientation. Checks that the result has the annotated size."""
    tag = image.getexif().get(ORIENTATION_TAG, 1)
    has_orientation = tag in range(2, 9)
    stored = image.size
    rotated = stored[::-1] if tag in _QUARTER_TURNS else stored
    if has_orientation and image.format == "TIFF":
        # Pillow rotates TIFF images itself while it loads them: nothing to do without a size, otherwise ambiguous.
        if size_wh is None and orientation != "ignore":
            return False
        raise ImageProblem("image_orientation_ambiguous", file_name, got=f"TIFF with orientation {tag}")
    if size_wh is None:
        return has_orientation and orientation != "ignore"
    candidates = (stored,) if orientation == "ignore" else (stored, rotated)
    if tuple(size_wh) not in candidates:
        got = " or ".join(f"{width} × {height}" for width, height in dict.fromkeys(candidates))
        raise ImageProblem("image_size_differs", file_name, got=got, expected=f"{size_wh[0]} × {size_wh[1]}")
    if not has_orientation or orientation == "ignore":
        return False
    if orientation == "auto" and stored == rotated:
        raise ImageProblem("image_orientation_ambiguous", file_name, got=f"EXIF orientation {tag}, {stored}")
    return orientation == "apply" or rotated == tuple(size_wh)


def is_quarter_turn(image: Image.Image) -> bool:
    """Whether EXIF exchanges the image's width and height."""
    return image.getexif().get(ORIENTATION_TAG) in _QUARTER_TURNS


def decode(image: Image.Image, file_name: str, rotate: bool) -> Image.Image:
    """The pixels as RGB, turned as EXIF says if ``rotate``; raises as `load_pixels`."""
    load_pixels(image, file_name)
    rgb = to_rgb(image)
    return rgb.transpose(_TURNS[image.getexif()[ORIENTATION_TAG]]) if rotate else rgb


def load_pixels(image: Image.Image, file_name: str) -> None:
    """Decode an opened image.

    Raises:
        ImageProblem: ``image_unreadable``, if the range of its values is unknown.
    """
    image.load()
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if image.mode == "F" or tags.get(_BITS, (16,))[0] > 16 or 2 in tags.get(_SAMPLE_FORMAT, ()):
        got = "floating-point, signed or 32-bit pixels, whose range is unknown"
        raise ImageProblem("image_unreadable", file_name, got=got, expected="8 or 16 bits per channel")


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB: greys of 16 bits scaled to 8, transparent pixels white. An RGB image is returned itself."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
        values = np.asarray(image).astype(np.int64)
        white = 2 ** tags.get(_BITS, (16,))[0] - 1
        grey = (values * 255 + white // 2) // white
        if tags.get(_PHOTOMETRIC) == 0:  # white is zero
            grey = 255 - grey
        grey[values == image.info.get("transparency")] = 255
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
