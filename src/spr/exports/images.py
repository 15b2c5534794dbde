"""The images of an export: every trainer must see the pixels that the pipeline saw, or all boxes are wrong."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from spr.core.errors import RunError
from spr.core.images import ImageProblem, ImageSource
from spr.core.ordered_map import ordered_map
from spr.exports.formats import ImageFile, ImageMode
from spr.records import PreferencePair

NEEDS_REWRITING = "image_needs_rewriting"
"""Reason to leave out a pair with ``path``: readers disagree about the file's pixels, and SPR doesn't change it."""
THREADS = 4
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_Image: TypeAlias = tuple[str, int, int]


class ExportImages:
    """Checks the image of each pair and makes it available to the trainer.

    A file that every reader opens with the same pixels is exported unchanged, byte for byte. Other files (EXIF
    orientation, transparency, 16 bits per channel) are written as PNG with the pixels that the pipeline saw; with
    ``path`` they are refused.

    Args:
        source: The run's images.
        mode: Where the images go.
        folder: The export's folder, for ``copy``.
    """

    def __init__(self, source: ImageSource, mode: ImageMode, folder: Path) -> None:
        self.source, self.mode, self.folder = source, mode, folder

    def of_pairs(self, pairs: Sequence[PreferencePair]) -> Iterator[ImageFile | str]:
        """For each pair its image, or the reason why the image can't be used (see `spr.core.reasons`)."""
        # An image of several pairs is read once, so that no two threads write one file.
        distinct = dict.fromkeys((pair.file_name, pair.width, pair.height) for pair in pairs)
        images = dict(ordered_map(self._export, distinct, threads=THREADS, ahead=len(distinct) + 1))
        return (images[pair.file_name, pair.width, pair.height] for pair in pairs)

    def _export(self, image: _Image) -> ImageFile | str:
        file_name, *size_wh = image
        try:
            self.source.check(file_name, (size_wh[0], size_wh[1]))
            unchanged = self.source.reads_alike(file_name)
            if self.mode == "path":
                return ImageFile(str(self.source.path(file_name)), None) if unchanged else NEEDS_REWRITING
            name = safe_name(file_name, rewritten=not unchanged)
            if self.mode == "embed":
                return ImageFile(Path(name).name, self._bytes(image, unchanged))
            if not (self.folder / "images" / name).exists():
                self._copy(name, self._bytes(image, unchanged))
            return ImageFile(f"images/{name}", None)
        except ImageProblem as problem:
            return problem.reason

    def _copy(self, name: str, data: bytes) -> None:
        target = self.folder / "images" / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        except OSError as error:
            fix = "free some disk space, or choose another --out"
            raise RunError(f"{target} can't be written", got=error, fix=fix) from None

    def _bytes(self, image: _Image, unchanged: bool) -> bytes:
        file_name, width, height = image
        if unchanged:
            try:
                return self.source.path(file_name).read_bytes()
            except OSError as error:
                raise ImageProblem("image_unreadable", file_name, got=error) from error
        sink = io.BytesIO()
        self.source.load(file_name, (width, height)).save(sink, "PNG")
        return sink.getvalue()


def safe_name(file_name: str, *, rewritten: bool = False) -> str:
    """The name of a copied image, with only the characters ``A-Z a-z 0-9 . _ -`` and ``/``.

    A name that has other characters, or whose image is rewritten as PNG, gets a hash that keeps names distinct.

    >>> safe_name("train/patch16/objects365_v2_00908726.jpg")
    'train/patch16/objects365_v2_00908726.jpg'
    >>> safe_name("my photo.jpg"), safe_name("a.jpg", rewritten=True)
    ('my_photo-e555a890.jpg', 'a-509b0d46.png')
    """
    path = PurePosixPath(file_name)
    plain = "/".join(_UNSAFE.sub("_", part) for part in path.parts)
    if plain == str(path) and not rewritten:
        return plain
    digest = hashlib.sha256(file_name.encode()).hexdigest()[:8]
    safe = PurePosixPath(plain)
    return str(safe.with_name(f"{safe.stem}-{digest}{'.png' if rewritten else safe.suffix}"))
