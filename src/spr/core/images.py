"""Image files: safe paths, checks against the annotations, and pixels as RGB.

`ImageSource` is the way to them. A file that can't be used raises `ImageProblem` with the reason under which the image
is dropped and counted. A file outside the image folder is never opened.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from spr.core.boxes import Size
from spr.core.errors import SprError
from spr.core.reasons import IMAGE_REASONS

Orientation: TypeAlias = Literal["auto", "apply", "ignore"]
"""How to treat the EXIF orientation, which says how a viewer should rotate or mirror the stored pixels.

- ``auto``: the annotated size decides. If only the stored size equals it, the image is not rotated; if only the rotated
  size does, it is rotated. If both do (a square image, a rotation by 180°, a mirrored image), the boxes may have been
  drawn on either, and the image is dropped as ``image_orientation_ambiguous``.
- ``apply``: the boxes were drawn on the rotated image, as viewers show it.
- ``ignore``: the boxes were drawn on the stored pixels.
"""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The image formats of Pillow that are opened. Others may run an external program (EPS) or draw vector graphics."""

MAX_PIXELS = 178_956_970
"""The largest number of pixels that Pillow opens: 0.5 GB as RGB."""

_DRIVE = re.compile(r"[A-Za-z]:")
_ORIENTATION_TAG = 0x0112
_PLAIN_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
_QUARTER_TURNS = (5, 6, 7, 8)
_filters = threading.Lock()


class ImageProblem(SprError):  # noqa: N818 - it drops an image but does not stop a run
    """An image that can't be used; ``reason`` is a key of `IMAGE_REASONS`."""

    def __init__(self, reason: str, file_name: str, *, got: object = None, expected: object = None) -> None:
        self.reason, self.file_name = reason, file_name
        super().__init__(f"Image {file_name!r}: {IMAGE_REASONS[reason]}", got=got, expected=expected)

    def __reduce__(self) -> tuple[object, ...]:
        return partial(ImageProblem, self.reason, self.file_name, got=self.got, expected=self.expected), ()


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A folder of image files and the options for reading them.

    Every method raises `ImageProblem`, with one of `spr.core.reasons.IMAGE_REASONS`, for a file that can't be used.
    File names are relative to the folder; ``size_wh`` is the annotated width and height in pixels. Images of more than
    ``max_pixels`` (width times height) are refused without being decoded.
    """

    folder: Path
    orientation: Orientation = "auto"
    max_pixels: int = MAX_PIXELS

    def path(self, file_name: str) -> Path:
        """The real path of a file name; the file need not exist. Links are followed if they stay below the folder.

        Raises:
            ImageProblem: ``path_outside_images``.
        """
        if unsafe_path(file_name):
            raise ImageProblem("path_outside_images", file_name, expected="a path relative to the image folder")
        folder = os.path.realpath(self.folder)
        path = os.path.realpath(Path(folder, file_name))
        if os.path.commonpath([folder, path]) != folder or path == folder:
            raise ImageProblem("path_outside_images", file_name, got=path, expected=f"a file below {folder}")
        return Path(path)

    def check(self, file_name: str, size_wh: Size) -> None:
        """Raise the error that `load` would raise, if any; several times faster for JPEG.

        The whole file is read and decoded, so that truncated files are found. JPEG is decoded at an eighth of its size.
        """
        with self._open(file_name) as image:
            _is_rotated(image, file_name, size_wh, self.orientation)
            image.draft(image.mode, (max(image.width // 8, 1), max(image.height // 8, 1)))
            _load(image, file_name)

    def load(self, file_name: str, size_wh: Size) -> Image.Image:
        """Load an image as RGB, in its annotated size and in the orientation in which its boxes were drawn.

        Channels of 16 bits are scaled to 8 bits. Transparent pixels become white, as in most viewers.
        """
        with self._open(file_name) as image:
            rgb = _decode(image, file_name, _is_rotated(image, file_name, size_wh, self.orientation))
            return rgb.copy() if rgb is image else rgb

    def thumbnail(self, file_name: str, size_wh: Size, side: int) -> Image.Image:
        """Load an image as `load` does, scaled down so that its longer side is at most ``side`` pixels.

        Smaller images are not enlarged. JPEG is decoded at the smallest of its scales that is still large enough, which
        makes it fast.
        """
        scale = min(1.0, side / max(size_wh))
        small_wh = max(1, round(size_wh[0] * scale)), max(1, round(size_wh[1] * scale))
        with self._open(file_name) as image:
            rotate = _is_rotated(image, file_name, size_wh, self.orientation)
            image.draft(image.mode, small_wh if image.size == tuple(size_wh) else small_wh[::-1])
            rgb = _decode(image, file_name, rotate)
            return rgb.resize(small_wh, Image.Resampling.BILINEAR, reducing_gap=2.0)

    def reads_alike(self, file_name: str) -> bool:
        """Whether any other reader that converts this file to RGB gets the same pixels as `load`.

        This is not so if EXIF rotates the image, which only some readers apply, if it has transparency, or if it has
        more than 8 bits per channel. Only the file's header is read.
        """
        with self._open(file_name) as image:
            rotated = image.getexif().get(_ORIENTATION_TAG, 1) in range(2, 9)
            return not rotated and image.mode in _PLAIN_MODES and not image.has_transparency_data

    @contextlib.contextmanager
    def _open(self, file_name: str) -> Iterator[Image.Image]:
        """Read an image's header. Errors while the block decodes the image become `ImageProblem` too."""
        path, at_most = self.path(file_name), f"at most {self.max_pixels:,} pixels"
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise ImageProblem("image_unreadable", file_name, got="not a regular file")
            with path.open("rb") as file, _read_header(file) as image:
                if image.width * image.height > self.max_pixels:
                    got = f"{image.width} × {image.height} = {image.width * image.height:,} pixels"
                    raise ImageProblem("image_too_large", file_name, got=got, expected=at_most)
                yield image
        except ImageProblem:
            raise
        except (FileNotFoundError, NotADirectoryError):
            raise ImageProblem("image_missing", file_name, expected=f"the file {path}") from None
        except Image.DecompressionBombError as error:
            raise ImageProblem("image_too_large", file_name, got=str(error), expected=at_most) from None
        except Exception as error:
            # Pillow raises many kinds of errors for damaged files: OSError, SyntaxError, ValueError, struct.error, …
            got = f"{type(error).__name__}: {error}"
            raise ImageProblem("image_unreadable", file_name, got=got) from error


def unsafe_path(file_name: str) -> bool:
    r"""Whether a file name could lead out of its folder: absolute, or with ``..``, a drive or a NUL, also on Windows.

    >>> any(unsafe_path(name) for name in ("val/1.jpg", "a..b.jpg"))
    False
    >>> all(unsafe_path(name) for name in ("/etc/passwd", "a/../../b", "..\\b", "C:x", ""))
    True
    """
    parts = file_name.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or "\0" in file_name or _DRIVE.match(file_name) is not None


def _read_header(file: IO[bytes]) -> Image.Image:
    # Pillow's warnings about large or unusual files are silenced: these files have their own reasons here. The lock is
    # needed because warning filters are global to the process.
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(file, formats=FORMATS)
        image.getexif()
        return image


def _is_rotated(image: Image.Image, file_name: str, size_wh: Size, orientation: Orientation) -> bool:
    """Whether to apply the EXIF orientation. Checks that the result has the annotated size."""
    tag = image.getexif().get(_ORIENTATION_TAG, 1)
    has_orientation = tag in range(2, 9)
    stored = image.size
    rotated = stored[::-1] if tag in _QUARTER_TURNS else stored
    if has_orientation and image.format == "TIFF":
        # Pillow rotates TIFF images itself while it loads them, so the stored size is unknown.
        raise ImageProblem("image_orientation_ambiguous", file_name, got=f"TIFF with orientation {tag}")
    candidates = {"auto": (stored, rotated), "apply": (rotated,), "ignore": (stored,)}[orientation]
    if tuple(size_wh) not in candidates:
        got = " or ".join(f"{width} × {height}" for width, height in dict.fromkeys(candidates))
        raise ImageProblem("image_size_differs", file_name, got=got, expected=f"{size_wh[0]} × {size_wh[1]}")
    if not has_orientation or orientation == "ignore":
        return False
    if orientation == "auto" and stored == rotated:
        raise ImageProblem("image_orientation_ambiguous", file_name, got=f"EXIF orientation {tag}, {stored}")
    return rotated == tuple(size_wh)


def _decode(image: Image.Image, file_name: str, rotate: bool) -> Image.Image:
    _load(image, file_name)
    return _to_rgb(ImageOps.exif_transpose(image) if rotate else image)


def _load(image: Image.Image, file_name: str) -> None:
    image.load()
    if image.mode == "F":
        raise ImageProblem("image_unreadable", file_name, got="floating-point pixels of unknown range")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
