"""The images of an export: the pixels that the pipeline saw, whatever a reader does with EXIF, alpha or 16 bits."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from spr.config import AnnotationsConfig
from spr.core.errors import RunError
from spr.core.images import ImageProblem
from spr.exports.rows import ImageFile, ImageMode
from spr.records import PreferencePair

NEEDS_REWRITING = "image_needs_rewriting"
"""With ``path``: readers would not agree on this file's pixels, and the file itself is not ours to change."""
THREADS = 4
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class ExportImages:
    """Gives each pair its image, checked, and written upright where the file alone would mislead a reader.

    A file that every reader opens to the same pixels goes as it is, byte for byte. Others (an EXIF orientation,
    transparency, 16 bits) are written as PNG from the pixels that the pipeline saw; ``path`` refuses them.

    Args:
        settings: The run's: the images' folder, and what an EXIF orientation does.
        mode: Where the images go.
        folder: The export's folder, for ``copy``.
    """

    def __init__(self, settings: AnnotationsConfig, mode: ImageMode, folder: Path) -> None:
        self.settings, self.mode, self.folder = settings, mode, folder

    def of_pairs(self, pairs: Sequence[PreferencePair]) -> list[ImageFile | str]:
        """For each pair its image, or the reason why it can't be used (see `spr.core.reasons`)."""
        # Equal images of one call are read once, which also keeps two threads from writing one file.
        distinct = list({(pair.file_name, pair.width, pair.height): None for pair in pairs})
        with ThreadPoolExecutor(THREADS) as pool:
            found = dict(zip(distinct, pool.map(self._one, distinct), strict=True))
        return [found[pair.file_name, pair.width, pair.height] for pair in pairs]

    def _one(self, image: tuple[str, int, int]) -> ImageFile | str:
        file_name, width, height = image
        source = self.settings.image_source
        try:
            source.check(file_name, (width, height))
            as_it_is = source.reads_alike(file_name)
            if self.mode == "path":
                return ImageFile(str(source.path(file_name)), None) if as_it_is else NEEDS_REWRITING
            name = safe_name(file_name, rewritten=not as_it_is)
            if self.mode == "embed":
                return ImageFile(Path(name).name, self._bytes(image, as_it_is))
            if not (self.folder / "images" / name).exists():
                self._copy(name, self._bytes(image, as_it_is))
            return ImageFile(f"images/{name}", None)
        except ImageProblem as problem:
            return problem.reason

    def _copy(self, name: str, data: bytes) -> None:
        target = self.folder / "images" / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        except OSError as error:
            raise RunError(f"{self.folder} can't be written", got=error, fix="make room, or another --out") from None

    def _bytes(self, image: tuple[str, int, int], as_it_is: bool) -> bytes:
        source, (file_name, width, height) = self.settings.image_source, image
        if as_it_is:
            try:
                return source.path(file_name).read_bytes()
            except OSError as error:
                raise ImageProblem("image_unreadable", file_name, got=error) from error
        sink = io.BytesIO()
        source.load(file_name, (width, height)).save(sink, "PNG")
        return sink.getvalue()


def safe_name(file_name: str, *, rewritten: bool = False) -> str:
    """The name of a copy: the same, unless it has characters that some reader, shell or file system trips over.

    Then these become ``_`` and a hash keeps names apart; so it is, with ``.png``, for images that are rewritten.

    >>> safe_name("train/patch16/objects365_v2_00908726.jpg")
    'train/patch16/objects365_v2_00908726.jpg'
    >>> safe_name("my photo.jpg"), safe_name("a.jpg", rewritten=True)
    ('my_photo-e555a890.jpg', 'a-509b0d46.png')
    """
    path = PurePosixPath(file_name)
    parts = [_UNSAFE.sub("_", part) for part in path.parts]
    plain = "/".join(parts)
    if plain == str(path) and not rewritten:
        return plain
    digest = hashlib.sha256(file_name.encode()).hexdigest()[:8]
    made = PurePosixPath(plain)
    return str(made.with_name(f"{made.stem}-{digest}{'.png' if rewritten else made.suffix}"))
