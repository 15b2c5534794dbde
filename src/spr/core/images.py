"""Image files: safe paths, checks against the annotations, and pixels as RGB.

Every image of SPR is opened by `ImageSource`. A file that can't be used raises `ImageProblem` with the reason under
which the image is dropped and counted. A file outside the image folder is not opened, unless the user allows it.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image, UnidentifiedImageError

from spr.core.boxes import Size
from spr.core.errors import InputError, SprError
from spr.core.image_files import FolderFiles, ImageFile, ImageFiles, ImageProblem
from spr.core.image_names import unsafe_path
from spr.core.image_pixels import ORIENTATION_TAG, Orientation, decode, is_quarter_turn, is_rotated, load_pixels, to_rgb
from spr.core.paths import exists, is_dir, is_file
from spr.core.remote import RemotePath
from spr.core.remote_images import remote_places, remote_tars
from spr.core.tar_files import TarFiles, only_tars, tars_of
from spr.core.tar_index import check_is_tar, compressed_error

__all__ = ["FORMATS", "MAX_PIXELS", "ImageProblem", "ImageSource", "Orientation", "to_rgb"]

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
_PLAIN_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
_filters = threading.Lock()

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A folder of image files, or a tar file, and the options for reading them.

    ``folder`` may hold tar files, too, in which images are found as `spr.core.tar_files` says; a file has precedence.
    Every method raises `ImageProblem`, with one of `spr.core.reasons.IMAGE_REASONS`, for a file that can't be used, and
    `InputError` if a tar file that is looked into is damaged, or changes while it is read.
    File names are relative to the folder; ``size_wh`` is the annotated width and height in pixels, or None if it is not
    known. Images of more than ``max_pixels`` (width times height) are refused without being decoded. With
    ``allow_outside``, file names may be absolute, contain ``..``, and lead out of the folder through links.
    """

    folder: Path
    orientation: Orientation = "auto"
    max_pixels: int = MAX_PIXELS
    allow_outside: bool = False

    def prepare(self) -> None:
        """Index the tar files if there are only such; otherwise this is done when an image is not found as a file.

        Raises:
            InputError: if there is neither a folder nor a tar file, or a tar file that is compressed or damaged.
        """
        if (tars := self.only_tars()) is not None:
            tars.load()

    def only_tars(self) -> TarFiles | None:
        """The tar file, or those in the folder if it holds no images and no other folders; None otherwise.

        Raises:
            InputError: if there is neither a folder nor a tar file, or a tar file that is compressed.
        """
        remote = self.folder if isinstance(self.folder, RemotePath) else None
        if not exists(self.folder) and not (remote is not None and remote.lists_nothing):
            fix = "set annotations.images to the folder"
            raise InputError(f"There is no image folder {self.folder}", got="nothing there", fix=fix)
        try:
            if remote is None and is_dir(self.folder) and not only_tars(self.folder):
                return None
            tars = self._found_tars()
            if remote is not None and not tars.tars and not tars.compressed:
                return None
        except OSError as error:
            raise InputError(f"{self.folder} can't be read", got=error.strerror or error) from None
        for suffix in {suffix for _, suffix in tars.compressed}:
            raise compressed_error([path for path, its in tars.compressed if its == suffix], suffix)
        for tar in tars.tars[:1]:
            check_is_tar(tar)
        return tars

    def path(self, file_name: str) -> Path:
        r"""The real path of a file name; the file need not exist. Links are followed if they stay below the folder.

        If there is no such file, but exactly one whose name is spelled alike, it is that one. Spelled alike are names
        with ``\` and ``/``, ``%20`` and a space, composed and decomposed accents, ``.JPG`` and ``.jpg``.

        Raises:
            ImageProblem: ``path_outside_images``.
            InputError: if the image is in a tar file.
        """
        found = self._find(file_name)[1]
        if found is None:
            remote = isinstance(self.folder, RemotePath)
            return self.folder / file_name if remote else FolderFiles(self.folder, self.allow_outside).path(file_name)
        if found.path is None:
            fix = "copy or embed the images (`spr export --images copy` or `embed`), or unpack the tar files"
            raise InputError("An image in a tar file has no path of its own", got=file_name, fix=fix)
        return found.path

    def has(self, file_name: str) -> bool:
        """Whether there is an image file, or a member of a tar file, of exactly this name."""
        try:
            found = next(filter(None, (files.find(file_name) for files in self._places(file_name))), None)
            return found is not None and (found.path is None or found.path.is_file())
        except ImageProblem:
            return False

    def identity(self, file_name: str) -> tuple[int, int] | None:
        """Size in bytes and modification time in ns, of the tar file for an image in it; None for a missing image."""
        try:
            if not unsafe_path(file_name) and not isinstance(self.folder, RemotePath) and is_dir(self.folder):
                # Much faster than to resolve links first.
                with contextlib.suppress(FileNotFoundError):
                    info = Path(self.folder, file_name).stat()
                    return info.st_size, info.st_mtime_ns
            found = self._find(file_name)[1]
            return None if found is None else found.identity()
        except (OSError, ValueError, ImageProblem):
            return None

    def spelled_alike(self, file_name: str) -> str:
        """The name under which an image is found: ``file_name`` itself if there is such an image, or none alike."""
        return self._find(file_name)[0]

    def read_bytes(self, file_name: str) -> bytes:
        """The content of a regular file of a size that an image of `max_pixels` can have."""
        with self._file(file_name) as (file, size):
            return file.read(size)

    def _places(self, file_name: str) -> Iterator[ImageFiles]:
        """Where an image may be, in the order of preference."""
        if isinstance(self.folder, RemotePath):
            yield from remote_places(self.folder, file_name)
            return
        if unsafe_path(file_name) and (not self.allow_outside or "\0" in file_name):
            raise ImageProblem("path_outside_images", file_name, expected="a path relative to the image folder")
        if not is_file(self.folder):
            yield FolderFiles(self.folder, self.allow_outside)
        yield self._tars()

    def _tars(self) -> TarFiles:
        try:
            return self._found_tars()
        except OSError:
            return TarFiles([])

    def _found_tars(self) -> TarFiles:
        if isinstance(self.folder, RemotePath):
            return remote_tars(self.folder)
        return tars_of(self.folder, allow_outside=self.allow_outside)

    def _find(self, file_name: str) -> tuple[str, ImageFile | None]:
        """The name under which an image is found, and the image."""
        for files in self._places(file_name):
            if (found := files.find(file_name)) is not None:
                return file_name, found
        alike = [(files, name) for files in self._places(file_name) for name in files.alike(file_name)]
        if len(alike) == 1:
            files, name = alike[0]
            try:
                return name, files.find(name)
            except ImageProblem as problem:
                raise _of(file_name, problem) from None
        return file_name, None

    def _missing(self, file_name: str) -> ImageProblem:
        """Why there is no such image: what was looked for, and what may be meant; an OSError if it can't be there."""
        places = list(self._places(file_name))
        expected = "; or ".join(filter(None, [files.expected(file_name) for files in places]))
        if names := [name for files in places for name in files.alike(file_name)]:
            got = f"{len(names)} files whose names are spelled alike: {', '.join(map(repr, names[:3]))}"
        elif names := [name for files in places for name in files.near(file_name)]:
            folder = ", in another folder" if self._tars().tars else ""
            got = f"{', '.join(map(repr, names[:3]))}, in other upper and lower case{folder} or with another suffix"
        else:
            got = None
        return ImageProblem("image_missing", file_name, got=got, expected=expected)

    def check(self, file_name: str, size_wh: Size) -> Size:
        """The size of what `load` would return, or the error that it would raise; several times faster for JPEG.

        The whole file is read and decoded, so that truncated files are found. JPEG is decoded at an eighth of its size.
        """
        with self._open(file_name) as image:
            rotate, seen_wh = is_rotated(image, file_name, size_wh, self.orientation), image.size
            image.draft(image.mode, (max(image.width // 8, 1), max(image.height // 8, 1)))
            load_pixels(image, file_name)
        return seen_wh[::-1] if rotate and is_quarter_turn(image) else seen_wh

    def header(self, file_name: str, *, data: bytes | None = None) -> tuple[Size, bool]:
        """The size of what `load` returns without a size, and whether EXIF orients the image; no pixels are decoded.

        ``data`` is as for `load`.
        """
        with self._open(file_name, data) as image:
            rotate = is_rotated(image, file_name, None, self.orientation)
            size_wh = image.size[::-1] if rotate and is_quarter_turn(image) else image.size
            return size_wh, image.getexif().get(ORIENTATION_TAG, 1) in range(2, 9)

    def load(self, file_name: str, size_wh: Size | None = None, *, data: bytes | None = None) -> Image.Image:
        """Load an image as RGB, in the orientation in which its boxes were drawn and in its annotated size.

        With ``apply``, the size may be the annotated one with width and height exchanged. Channels of 16 bits are
        scaled to 8 bits, and transparent pixels become white, as in most viewers. ``data`` is the content of an image
        that is not a file; ``file_name`` then only names it in errors.
        """
        with self._open(file_name, data) as image:
            rgb = decode(image, file_name, is_rotated(image, file_name, size_wh, self.orientation))
            return rgb.copy() if rgb is image else rgb

    def thumbnail(self, file_name: str, size_wh: Size, side: int) -> Image.Image:
        """Load an image as `load` does, scaled down so that its longer side is at most ``side`` pixels.

        Smaller images are not enlarged. JPEG is decoded at the smallest of its scales that is still large enough, which
        makes it fast.
        """
        scale = min(1.0, side / max(size_wh))
        with self._open(file_name) as image:
            rotate = is_rotated(image, file_name, size_wh, self.orientation)
            width, height = (max(1, round(length * scale)) for length in image.size)
            image.draft(image.mode, (width, height))
            small_wh = (height, width) if rotate and is_quarter_turn(image) else (width, height)
            rgb = decode(image, file_name, rotate)
            if rgb.size == small_wh:
                return rgb  # of a size that is right already, a copy would take as long as decoding
            return rgb.resize(small_wh, Image.Resampling.BILINEAR, reducing_gap=2.0)

    def reads_alike(self, file_name: str) -> bool:
        """Whether any other reader that converts this file to RGB gets the same pixels as `load`.

        This is not so if EXIF rotates the image, which only some readers apply, if it has transparency, or if it has
        more than 8 bits per channel.
        """
        with self._open(file_name) as image:
            rotated = image.getexif().get(ORIENTATION_TAG, 1) in range(2, 9)
            return not rotated and image.mode in _PLAIN_MODES and not image.has_transparency_data

    @contextlib.contextmanager
    def _file(self, file_name: str) -> Iterator[tuple[IO[bytes], int]]:
        """Open an image, which has a size that it may have; returns it with its size in bytes."""
        try:
            found = self._find(file_name)[1]
            if found is None:
                raise self._missing(file_name)
            opened, size = found.open(self._most_bytes)
            with opened as file:
                self._check_bytes(file_name, size)
                yield file, size
        except ImageProblem as problem:
            raise _of(file_name, problem) from None
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(file_name) from None
        except OSError as error:
            raise ImageProblem("image_unreadable", file_name, got=_about(error)) from error

    @property
    def _most_bytes(self) -> int:
        return self.max_pixels * _BYTES_PER_PIXEL + _METADATA

    def _check_bytes(self, file_name: str, size: int) -> None:
        most = self._most_bytes
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
        except SprError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageProblem("image_too_large", file_name, got=str(error), expected=at_most) from None
        except Exception as error:
            # Pillow raises many kinds of errors for damaged files: OSError, SyntaxError, ValueError, struct.error, …
            raise ImageProblem("image_unreadable", file_name, got=_about(error)) from error


def _about(error: Exception) -> str:
    # The text of UnidentifiedImageError ends with an object of Python.
    unknown = isinstance(error, UnidentifiedImageError)
    return f"{type(error).__name__}: {str(error).split(' <')[0] if unknown else error}"


def _of(file_name: str, problem: ImageProblem) -> ImageProblem:
    """The problem of an image that was asked for by another name."""
    if problem.file_name == file_name:
        return problem
    return ImageProblem(problem.reason, file_name, got=problem.got, expected=problem.expected)


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


def _quietly(work: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    # Pillow's warnings about large or unusual files are silenced: these files have their own reasons here. The lock is
    # needed because warning filters are global to the process.
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work(*arguments, **options)
