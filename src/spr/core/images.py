"""Image files: safe paths, checks against the annotations, and pixels as RGB.

Every image of SPR is opened by `ImageSource`. A file that can't be used raises `ImageProblem` with the reason under
which the image is dropped and counted. A file outside the image folder is not opened, unless the user allows it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import threading
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, TypeVar
from urllib.parse import unquote

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from spr.core.boxes import Size
from spr.core.errors import SprError, StorageError
from spr.core.reasons import IMAGE_REASONS
from spr.core.remote import RemotePath

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

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The image formats of Pillow that are opened. Others may run an external program (EPS) or draw vector graphics."""

MAX_PIXELS = 178_956_970
"""The largest number of pixels that Pillow opens: 0.5 GB as RGB."""

_METADATA = 64 * 2**20
_BYTES_PER_PIXEL = 8
"""A file has at most so many bytes per allowed pixel (four uncompressed channels of 16 bits), and `_METADATA` more."""
_FREE_READS = 100_000
_BYTES_PER_READ = 256
"""Pillow reads a header in pieces. After `_FREE_READS` pieces, a file must have so many bytes per piece: comments that
are read byte by byte, and millions of empty chunks, take no more time than pixels."""
_JPEG_PIXELS_PER_BYTE = 512
"""The highest compression of JPEG with Huffman codes: at least one bit per block of 64 pixels."""
_MOST_NAMES = 200_000
"""Names that are spelled alike are not looked for in folders with more entries."""
_DRIVE = re.compile(r"[A-Za-z]:")
_ORIENTATION_TAG = 0x0112
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
_PLAIN_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
_QUARTER_TURNS = (5, 6, 7, 8)
_filters = threading.Lock()

Result = TypeVar("Result")


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
    File names are relative to the folder; ``size_wh`` is the annotated width and height in pixels, or None if it is not
    known. Images of more than ``max_pixels`` (width times height) are refused without being decoded. With
    ``allow_outside``, file names may be absolute, contain ``..``, and lead out of the folder through links.
    """

    folder: Path
    orientation: Orientation = "auto"
    max_pixels: int = MAX_PIXELS
    allow_outside: bool = False

    def path(self, file_name: str) -> Path:
        r"""The real path of a file name; the file need not exist. Links are followed if they stay below the folder.

        If there is no such file, but exactly one whose name is spelled alike, it is that one. Spelled alike are names
        with ``\`` and ``/``, ``%20`` and a space, composed and decomposed accents, ``.JPG`` and ``.jpg``.

        Raises:
            ImageProblem: ``path_outside_images``.
        """
        return self._path(file_name, self.spelled_alike(file_name))

    def spelled_alike(self, file_name: str) -> str:
        """The name under which `path` finds a file: ``file_name`` itself if there is such a file, or none alike."""
        if isinstance(self.folder, RemotePath):
            return file_name
        with contextlib.suppress(OSError):
            self._path(file_name).stat()
            return file_name
        names = self._alike(file_name)
        return names[0] if len(names) == 1 else file_name

    def _alike(self, file_name: str) -> list[str]:
        found = _spelled_alike(os.path.realpath(self.folder), _spelling(file_name)) if len(file_name) < 4096 else []
        return [name for name in found if Path(self.folder, name).is_file()]

    def _difference(self, file_name: str) -> str | None:
        """What distinguishes a missing file from those that may be meant."""
        if isinstance(self.folder, RemotePath):
            return None
        if names := self._alike(file_name):
            return f"{len(names)} files whose names are spelled alike: {', '.join(map(repr, names[:3]))}"
        path = self._path(file_name)
        near = _listing(str(path.parent))[1].get(_stem(_spelling(path.name)), [])
        names = [name for name in near if (path.parent / name).is_file()]
        return (
            f"{', '.join(map(repr, names[:3]))}, in other upper and lower case or with another suffix"
            if names
            else None
        )

    def _path(self, file_name: str, found: str | None = None) -> Path:
        if isinstance(self.folder, RemotePath):
            return _remote_path(self.folder, file_name)
        if unsafe_path(file_name) and (not self.allow_outside or "\0" in file_name):
            raise ImageProblem("path_outside_images", file_name, expected="a path relative to the image folder")
        folder = os.path.realpath(self.folder)
        path = os.path.realpath(Path(folder, found or file_name))
        if not self.allow_outside and (os.path.commonpath([folder, path]) != folder or path == folder):
            raise ImageProblem("path_outside_images", file_name, got=path, expected=f"a file below {folder}")
        return Path(path)

    def read_bytes(self, file_name: str) -> bytes:
        """The content of a regular file of a size that an image of `max_pixels` can have."""
        with self._file(file_name) as (file, size):
            return file.read(size)

    def check(self, file_name: str, size_wh: Size) -> Size:
        """The size of what `load` would return, or the error that it would raise; several times faster for JPEG.

        The whole file is read and decoded, so that truncated files are found. JPEG is decoded at an eighth of its size.
        """
        with self._open(file_name) as image:
            rotate, seen_wh = _is_rotated(image, file_name, size_wh, self.orientation), image.size
            image.draft(image.mode, (max(image.width // 8, 1), max(image.height // 8, 1)))
            _load(image, file_name)
        return seen_wh[::-1] if rotate and _is_quarter_turn(image) else seen_wh

    def header(self, file_name: str, *, data: bytes | None = None) -> tuple[Size, bool]:
        """The size of what `load` returns without a size, and whether EXIF orients the image; no pixels are decoded.

        ``data`` is as for `load`.
        """
        with self._open(file_name, data) as image:
            rotate = _is_rotated(image, file_name, None, self.orientation)
            size_wh = image.size[::-1] if rotate and _is_quarter_turn(image) else image.size
            return size_wh, image.getexif().get(_ORIENTATION_TAG, 1) in range(2, 9)

    def load(self, file_name: str, size_wh: Size | None = None, *, data: bytes | None = None) -> Image.Image:
        """Load an image as RGB, in the orientation in which its boxes were drawn and in its annotated size.

        With ``apply``, the size may be the annotated one with width and height exchanged. Channels of 16 bits are
        scaled to 8 bits, and transparent pixels become white, as in most viewers. ``data`` is the content of an image
        that is not a file; ``file_name`` then only names it in errors.
        """
        with self._open(file_name, data) as image:
            rgb = _decode(image, file_name, _is_rotated(image, file_name, size_wh, self.orientation))
            return rgb.copy() if rgb is image else rgb

    def thumbnail(self, file_name: str, size_wh: Size, side: int) -> Image.Image:
        """Load an image as `load` does, scaled down so that its longer side is at most ``side`` pixels.

        Smaller images are not enlarged. JPEG is decoded at the smallest of its scales that is still large enough, which
        makes it fast.
        """
        scale = min(1.0, side / max(size_wh))
        with self._open(file_name) as image:
            rotate = _is_rotated(image, file_name, size_wh, self.orientation)
            width, height = (max(1, round(length * scale)) for length in image.size)
            image.draft(image.mode, (width, height))
            small_wh = (height, width) if rotate and _is_quarter_turn(image) else (width, height)
            rgb = _decode(image, file_name, rotate)
            return rgb.resize(small_wh, Image.Resampling.BILINEAR, reducing_gap=2.0)

    def reads_alike(self, file_name: str) -> bool:
        """Whether any other reader that converts this file to RGB gets the same pixels as `load`.

        This is not so if EXIF rotates the image, which only some readers apply, if it has transparency, or if it has
        more than 8 bits per channel.
        """
        with self._open(file_name) as image:
            rotated = image.getexif().get(_ORIENTATION_TAG, 1) in range(2, 9)
            return not rotated and image.mode in _PLAIN_MODES and not image.has_transparency_data

    @contextlib.contextmanager
    def _file(self, file_name: str) -> Iterator[tuple[IO[bytes], int]]:
        """Open a regular file; returns it with its size in bytes. Nothing else is opened: a FIFO would block."""
        path = self.path(file_name)
        if isinstance(path, RemotePath):
            yield self._fetch(path, file_name)
            return
        try:
            info = path.stat()
            if not stat.S_ISREG(info.st_mode) or not info.st_size:
                got = "an empty file" if stat.S_ISREG(info.st_mode) else "not a regular file"
                raise ImageProblem("image_unreadable", file_name, got=got)
            self._check_bytes(file_name, info.st_size)
            with path.open("rb") as file:
                yield file, info.st_size
        except (FileNotFoundError, NotADirectoryError):
            differs = self._difference(file_name)
            raise ImageProblem("image_missing", file_name, got=differs, expected=f"the file {path}") from None
        except OSError as error:
            raise ImageProblem("image_unreadable", file_name, got=_about(error)) from error

    def _fetch(self, path: RemotePath, file_name: str) -> tuple[IO[bytes], int]:
        """An object and its size, in one request; one that is too large for an image is not transferred."""
        most = self.max_pixels * _BYTES_PER_PIXEL + _METADATA
        try:
            data, info = path.read(most=most)
        except FileNotFoundError:
            raise ImageProblem("image_missing", file_name, expected=f"the object {path}") from None
        self._check_bytes(file_name, info.size)
        if not data:
            raise ImageProblem("image_unreadable", file_name, got="an empty object")
        return io.BytesIO(data), len(data)

    def _check_bytes(self, file_name: str, size: int) -> None:
        most = self.max_pixels * _BYTES_PER_PIXEL + _METADATA
        if size > most:
            raise ImageProblem("image_too_large", file_name, got=f"{size:,} bytes", expected=f"at most {most:,} bytes")

    @contextlib.contextmanager
    def _open(self, file_name: str, data: bytes | None = None) -> Iterator[Image.Image]:
        """Read an image's header. Errors while the block decodes the image become `ImageProblem` too."""
        at_most = f"at most {self.max_pixels:,} pixels"
        try:
            if data is not None:
                self._check_bytes(file_name, len(data))
            opened = self._file(file_name) if data is None else contextlib.nullcontext((io.BytesIO(data), len(data)))
            with opened as (file, size), _quietly(Image.open, pieces := _Pieces(file, size), formats=FORMATS) as image:
                pixels = image.width * image.height
                if pixels > self.max_pixels:
                    got = f"{image.width} × {image.height} = {pixels:,} pixels"
                    raise ImageProblem("image_too_large", file_name, got=got, expected=at_most)
                if image.format in ("JPEG", "MPO") and pixels > size * _JPEG_PIXELS_PER_BYTE:
                    got = f"{size:,} bytes for {image.width} × {image.height} pixels"
                    raise ImageProblem("image_unreadable", file_name, got=got, expected="a complete file")
                if image.format == "PNG" and "exif" not in image.info:
                    image.load()  # EXIF may follow the pixels; done here, because `_quietly` lets no two threads decode
                _quietly(image.getexif)
                if image.format in ("BMP", "PPM"):
                    pieces.left += size  # Pillow decodes some of these pixel by pixel
                yield image
        except (ImageProblem, StorageError):  # a store that can't be reached says nothing about the image
            raise
        except Image.DecompressionBombError as error:
            raise ImageProblem("image_too_large", file_name, got=str(error), expected=at_most) from None
        except Exception as error:
            # Pillow raises many kinds of errors for damaged files: OSError, SyntaxError, ValueError, struct.error, …
            raise ImageProblem("image_unreadable", file_name, got=_about(error)) from error


def _remote_path(folder: RemotePath, file_name: str) -> RemotePath:
    if unsafe_path(file_name):
        raise ImageProblem("path_outside_images", file_name, expected="a path relative to the image folder")
    return folder / file_name


def _about(error: Exception) -> str:
    # The text of UnidentifiedImageError ends with an object of Python.
    unknown = isinstance(error, UnidentifiedImageError)
    return f"{type(error).__name__}: {str(error).split(' <')[0] if unknown else error}"


def file_key(file_name: str) -> str:
    r"""A name by which file names that may lead to the same file agree.

    >>> file_key("./val/a%20b.JPG") == file_key("val\\a b.jpg")
    True
    """
    return os.path.normpath(_spelling(file_name))


def _spelling(name: str) -> str:
    """A name as it is compared: with ``/``, without ``%`` escapes, composed, and with suffixes in lower case."""
    name = unicodedata.normalize("NFC", unquote(name).replace("\\", "/"))
    return "/".join(
        f"{stem}{dot}{suffix.lower()}" for stem, dot, suffix in (p.rpartition(".") for p in name.split("/"))
    )


def _stem(name: str) -> str:
    return (name.rpartition(".")[0] or name).casefold()


_Listing: TypeAlias = tuple[dict[str, list[str]], dict[str, list[str]]]
_MOST_LISTINGS = 16
_listings: dict[str, tuple[int, _Listing]] = {}  # by folder, with its time of change


def _spelled_alike(folder: str, spelling: str) -> list[str]:
    """The names, relative to the folder, of everything in it that is spelled like this."""
    parts, found = spelling.split("/"), []
    for count in range(1, len(parts) + 1):
        for name in _listing(folder)[0].get("/".join(parts[:count]), []):
            below = [""] if count == len(parts) else _spelled_alike(f"{folder}/{name}", "/".join(parts[count:]))
            found += [f"{name}/{rest}" if rest else name for rest in below]
    return found


def _listing(folder: str) -> _Listing:
    """The names in a folder by their spelling, and by its stem in lower case; read again once the folder changes."""
    try:
        changed = Path(folder).stat().st_mtime_ns
        known = _listings.get(folder)
        if known is None or known[0] != changed:
            if len(_listings) >= _MOST_LISTINGS:
                _listings.clear()
            known = _listings[folder] = (changed, _list(folder))
        return known[1]
    except OSError:
        return {}, {}


def _list(folder: str) -> _Listing:
    by_spelling, by_stem = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    with os.scandir(folder) as entries:
        names = [entry.name for entry in islice(entries, _MOST_NAMES + 1)]
    for name in names if len(names) <= _MOST_NAMES else ():
        by_spelling[_spelling(name)].append(name)
        by_stem[_stem(_spelling(name))].append(name)
    return dict(by_spelling), dict(by_stem)


class _Pieces:
    """A file for Pillow that ends with an error if it is read in too many small pieces."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self.left = file, _FREE_READS + size // _BYTES_PER_READ
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ValueError("the header is longer than an image needs")
        return self._file.read(size)


def unsafe_path(file_name: str) -> bool:
    r"""Whether a file name could lead out of its folder: absolute, or with ``..``, a drive or a NUL, also on Windows.

    >>> any(unsafe_path(name) for name in ("val/1.jpg", "a..b.jpg"))
    False
    >>> all(unsafe_path(name) for name in ("/etc/passwd", "a/../../b", "..\\b", "C:x", ""))
    True
    """
    parts = file_name.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or "\0" in file_name or _DRIVE.match(file_name) is not None


def _quietly(work: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    # Pillow's warnings about large or unusual files are silenced: these files have their own reasons here. The lock is
    # needed because warning filters are global to the process.
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work(*arguments, **options)


def _is_rotated(image: Image.Image, file_name: str, size_wh: Size | None, orientation: Orientation) -> bool:
    """Whether to apply the EXIF orientation. Checks that the result has the annotated size."""
    tag = image.getexif().get(_ORIENTATION_TAG, 1)
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


def _is_quarter_turn(image: Image.Image) -> bool:
    return image.getexif().get(_ORIENTATION_TAG) in _QUARTER_TURNS


def _decode(image: Image.Image, file_name: str, rotate: bool) -> Image.Image:
    _load(image, file_name)
    rgb = to_rgb(image)
    return rgb.transpose(_TURNS[image.getexif()[_ORIENTATION_TAG]]) if rotate else rgb


def _load(image: Image.Image, file_name: str) -> None:
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
