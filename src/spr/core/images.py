"""Image files: where they may lie, whether they are what the annotations say, and their pixels as RGB.

A file that can't be used raises `ImageProblem` with the reason under which the image is dropped and counted; nothing
that lies outside the images' folder is ever opened.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from spr.core.errors import SprError
from spr.core.reasons import IMAGE_REASONS

Orientation: TypeAlias = Literal["auto", "apply", "ignore"]
"""What an EXIF orientation does, which says how to turn the stored pixels before they are shown.

- ``auto``: the annotated size tells on which of the two the boxes were drawn. Where only the stored size equals it, the
  pixels stay; where only the turned one does, they are turned. Where both do (a square, half a turn, a mirror image) it
  can't be told, and the image is dropped as ``image_orientation_ambiguous``.
- ``apply``: boxes were drawn on the turned image, as viewers show it.
- ``ignore``: boxes were drawn on the stored pixels.
"""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The formats that are opened. Some others would start a program (EPS) or draw vectors."""

MAX_PIXELS = 178_956_970
"""Above this Pillow refuses to open an image, too: 0.5 GB as RGB."""

_DRIVE = re.compile(r"[A-Za-z]:")
_ORIENTATION_TAG = 0x0112
_PLAIN_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
_QUARTER_TURNS = (5, 6, 7, 8)
_DRAFT_SCALE = 8
_WHITE = (255, 255, 255, 255)
# Pillow warns about large or odd files, which have their own reasons here. Warning filters are global to the process.
_filters = threading.Lock()


class ImageProblem(SprError):  # noqa: N818 - it names a record's fate, which stops nothing
    """An image that can't be used.

    Args:
        reason: A key of `IMAGE_REASONS`.
        file_name: The image, as the annotations name it.
        got: What is wrong with it.
        expected: What was expected.
    """

    def __init__(self, reason: str, file_name: str, *, got: object = None, expected: object = None) -> None:
        self.reason, self.file_name = reason, file_name
        super().__init__(f"Image {file_name!r}: {IMAGE_REASONS[reason]}", got=got, expected=expected)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.reason, self.file_name, self.got, self.expected)


def _rebuild(reason: str, file_name: str, got: object, expected: object) -> ImageProblem:
    return ImageProblem(reason, file_name, got=got, expected=expected)


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A folder of image files and how they are read; every image of the project comes through one.

    Attributes:
        folder: The folder that file names are relative to.
        orientation: What an EXIF orientation does, see `Orientation`.
        max_pixels: Images with more pixels, width times height, are refused without being decoded.
    """

    folder: Path
    orientation: Orientation = "auto"
    max_pixels: int = MAX_PIXELS

    def path(self, file_name: str) -> Path:
        """See `resolve_image`."""
        return resolve_image(self.folder, file_name)

    def load(self, file_name: str, size_wh: tuple[int, int]) -> Image.Image:
        """See `load_image`."""
        settings = {"orientation": self.orientation, "max_pixels": self.max_pixels}
        return load_image(self.folder, file_name, size_wh, **settings)  # type: ignore[arg-type]

    def check(self, file_name: str, size_wh: tuple[int, int]) -> None:
        """See `check_image`."""
        settings = {"orientation": self.orientation, "max_pixels": self.max_pixels}
        check_image(self.folder, file_name, size_wh, **settings)  # type: ignore[arg-type]

    def thumbnail(self, file_name: str, size_wh: tuple[int, int], side: int) -> Image.Image:
        """See `load_thumbnail`."""
        settings = {"orientation": self.orientation, "max_pixels": self.max_pixels}
        return load_thumbnail(self.folder, file_name, size_wh, side=side, **settings)  # type: ignore[arg-type]

    def reads_alike(self, file_name: str) -> bool:
        """See `reads_alike`."""
        return reads_alike(self.folder, file_name, max_pixels=self.max_pixels)


def unsafe_path(file_name: str) -> bool:
    r"""Whether a file name could lead out of its folder: absolute, with ``..``, a drive or a NUL (Windows' ways too).

    >>> any(unsafe_path(name) for name in ("val/1.jpg", "a..b.jpg"))
    False
    >>> all(unsafe_path(name) for name in ("/etc/passwd", "a/../../b", "..\\b", "C:x", ""))
    True
    """
    parts = file_name.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or "\0" in file_name or _DRIVE.match(file_name) is not None


def resolve_image(root: Path, file_name: str) -> Path:
    """The real path of an image in the folder ``root``; opens nothing and need not exist.

    ``root`` may itself be or lie behind a link; a link below it is followed only as far as it stays below it.

    Raises:
        ImageProblem: ``path_outside_images``.
    """
    if unsafe_path(file_name):
        raise ImageProblem("path_outside_images", file_name, expected="a path relative to the images' folder")
    folder = os.path.realpath(root)
    path = os.path.realpath(Path(folder, file_name))
    if os.path.commonpath([folder, path]) != folder or path == folder:
        raise ImageProblem("path_outside_images", file_name, got=path, expected=f"a file below {folder}")
    return Path(path)


def check_image(
    root: Path,
    file_name: str,
    size_wh: tuple[int, int],
    *,
    orientation: Orientation = "auto",
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Find out whether `load_image` would give this image, several times faster for JPEG.

    All of the file is read and decoded, so that a truncated one is found, but JPEG at an eighth of its size.

    Args:
        root: The images' folder.
        file_name: The image in it, a relative path.
        size_wh: Annotated width and height in pixels.
        orientation: What an EXIF orientation does.
        max_pixels: The most pixels, width times height, that are decoded.

    Raises:
        ImageProblem: with one of `IMAGE_REASONS`.
    """
    with ExitStack() as stack:
        image = _open(root, file_name, max_pixels, stack)
        _turn(image, file_name, size_wh, orientation)
        try:
            image.draft(image.mode, (max(image.width // _DRAFT_SCALE, 1), max(image.height // _DRAFT_SCALE, 1)))
            image.load()
        except Exception as error:
            raise _unreadable(file_name, error) from error
        _check_mode(image, file_name)


def load_image(
    root: Path,
    file_name: str,
    size_wh: tuple[int, int],
    *,
    orientation: Orientation = "auto",
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """The image as RGB, of the annotated size, turned as the boxes were drawn.

    Sixteen bits a channel are scaled to eight, and what is transparent shows white, as in most viewers.

    Args:
        root: The images' folder.
        file_name: The image in it, a relative path.
        size_wh: Annotated width and height in pixels.
        orientation: What an EXIF orientation does.
        max_pixels: The most pixels, width times height, that are decoded.

    Raises:
        ImageProblem: with one of `IMAGE_REASONS`.
    """
    with ExitStack() as stack:
        image = _open(root, file_name, max_pixels, stack)
        turn = _turn(image, file_name, size_wh, orientation)
        try:
            image.load()
            _check_mode(image, file_name)
            turned = ImageOps.exif_transpose(image) if turn else image
            rgb = _to_rgb(turned)
        except ImageProblem:
            raise
        except Exception as error:
            raise _unreadable(file_name, error) from error
        return rgb.copy() if rgb is image else rgb


def load_thumbnail(
    root: Path,
    file_name: str,
    size_wh: tuple[int, int],
    *,
    side: int,
    orientation: Orientation = "auto",
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """The image of `load_image`, its longer side at most ``side`` pixels; never enlarged.

    JPEG is decoded at the smallest of its scales that is no smaller than that, which is what makes it fast.

    Args:
        root: The images' folder.
        file_name: The image in it, a relative path.
        size_wh: Annotated width and height in pixels.
        side: The longer side's most pixels.
        orientation: What an EXIF orientation does.
        max_pixels: The most pixels, width times height, that are decoded.

    Raises:
        ImageProblem: with one of `IMAGE_REASONS`.
    """
    scale = min(1.0, side / max(size_wh))
    small_wh = max(1, round(size_wh[0] * scale)), max(1, round(size_wh[1] * scale))
    with ExitStack() as stack:
        image = _open(root, file_name, max_pixels, stack)
        turn = _turn(image, file_name, size_wh, orientation)
        stored_wh = small_wh if image.size == tuple(size_wh) else small_wh[::-1]
        try:
            image.draft(image.mode, stored_wh)
            image.load()
            _check_mode(image, file_name)
            rgb = _to_rgb(ImageOps.exif_transpose(image) if turn else image)
            return rgb.resize(small_wh, Image.Resampling.BILINEAR, reducing_gap=2.0)
        except ImageProblem:
            raise
        except Exception as error:
            raise _unreadable(file_name, error) from error


def reads_alike(root: Path, file_name: str, *, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether any reader that opens this file and converts it to RGB gets the pixels that `load_image` gives.

    Not so where EXIF turns the image (some readers heed that, some don't), nor with transparency or more than eight
    bits a channel. Reads the file's header only.

    Args:
        root: The images' folder.
        file_name: The image in it, a relative path.
        max_pixels: The most pixels, width times height.

    Raises:
        ImageProblem: with one of `IMAGE_REASONS`.
    """
    with ExitStack() as stack:
        image = _open(root, file_name, max_pixels, stack)
        turned = image.getexif().get(_ORIENTATION_TAG, 1) in range(2, 9)
        return not turned and image.mode in _PLAIN_MODES and not image.has_transparency_data


def _open(root: Path, file_name: str, max_pixels: int, stack: ExitStack) -> Image.Image:
    """The image with its header read, to be closed by the stack."""
    path = resolve_image(root, file_name)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageProblem("image_unreadable", file_name, got="not a regular file")
        file = stack.enter_context(path.open("rb"))
    except (FileNotFoundError, NotADirectoryError):
        raise ImageProblem("image_missing", file_name, expected=f"the file {path}") from None
    except OSError as error:
        raise _unreadable(file_name, error) from error
    try:
        with _filters, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = stack.enter_context(Image.open(file, formats=FORMATS))
            image.getexif()
    except Image.DecompressionBombError as error:
        raise ImageProblem("image_too_large", file_name, got=str(error), expected=f"at most {max_pixels:,}") from None
    except Exception as error:
        raise _unreadable(file_name, error) from error
    if image.width * image.height > max_pixels:
        got = f"{image.width} × {image.height} = {image.width * image.height:,} pixels"
        raise ImageProblem("image_too_large", file_name, got=got, expected=f"at most {max_pixels:,}")
    return image


def _unreadable(file_name: str, error: Exception) -> ImageProblem:
    # Pillow's decoders raise almost anything on damaged files: OSError, SyntaxError, ValueError, struct.error, …
    return ImageProblem("image_unreadable", file_name, got=f"{type(error).__name__}: {error}")


def _turn(image: Image.Image, file_name: str, size_wh: tuple[int, int], orientation: Orientation) -> bool:
    """Whether to turn the pixels as EXIF says; the annotated size must be that of the result."""
    tag = image.getexif().get(_ORIENTATION_TAG, 1)
    turnable = tag in range(2, 9)
    stored = image.size
    turned = stored[::-1] if tag in _QUARTER_TURNS else stored
    if turnable and image.format == "TIFF":
        # Pillow turns TIFF itself while it loads, and says so nowhere: what is stored can't be told.
        raise ImageProblem("image_orientation_ambiguous", file_name, got=f"TIFF with orientation {tag}")
    candidates = {"auto": (stored, turned), "apply": (turned,), "ignore": (stored,)}[orientation]
    if tuple(size_wh) not in candidates:
        got = " or ".join(f"{width} × {height}" for width, height in dict.fromkeys(candidates))
        raise ImageProblem("image_size_differs", file_name, got=got, expected=f"{size_wh[0]} × {size_wh[1]}")
    if not turnable or orientation == "ignore":
        return False
    if orientation == "auto" and stored == turned:
        raise ImageProblem("image_orientation_ambiguous", file_name, got=f"EXIF orientation {tag}, {stored}")
    return turned == tuple(size_wh)


def _check_mode(image: Image.Image, file_name: str) -> None:
    if image.mode == "F":
        raise ImageProblem("image_unreadable", file_name, got="floating-point pixels, whose range is not known")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    return image.convert("RGB")
