"""Where the bytes of images come from: the interface `ImageFiles`, and its implementation for a folder."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Protocol, TypeAlias

from spr.core.errors import SprError
from spr.core.image_names import spelling, stem
from spr.core.reasons import IMAGE_REASONS

_MOST_NAMES = 200_000
"""Names that are spelled alike are not looked for in folders with more entries."""


class ImageProblem(SprError):  # noqa: N818 - it drops an image but does not stop a run
    """An image that can't be used; ``reason`` is a key of `IMAGE_REASONS`."""

    def __init__(self, reason: str, file_name: str, *, got: object = None, expected: object = None) -> None:
        self.reason, self.file_name = reason, file_name
        super().__init__(f"Image {file_name!r}: {IMAGE_REASONS[reason]}", got=got, expected=expected)

    def __reduce__(self) -> tuple[object, ...]:
        return partial(ImageProblem, self.reason, self.file_name, got=self.got, expected=self.expected), ()


class ImageFile(Protocol):
    """One image that was found."""

    @property
    def path(self) -> Path | None:
        """The real path of the file; None for a member of a tar file."""

    def identity(self) -> tuple[int, int]:
        """Size in bytes and modification time in ns, for a member of a tar file the time of the tar file.

        Raises:
            OSError: if it can't be determined.
        """

    def open(self, most: int) -> tuple[IO[bytes], int]:
        """The content as a seekable file, and its size in bytes; any file if there are more than ``most`` bytes.

        Raises:
            OSError: if it can't be read.
            ImageProblem: if it is not a regular file, or empty.
        """


class ImageFiles(Protocol):
    """A place with images. Names that are not safe (`unsafe_path`) are given only if the user allows them."""

    def find(self, file_name: str) -> ImageFile | None:
        """The image of exactly this name, if there is one.

        Raises:
            ImageProblem: ``path_outside_images``.
        """

    def alike(self, file_name: str) -> list[str]:
        """The names, each to be given to `find`, of all images whose names are spelled alike."""

    def near(self, file_name: str) -> list[str]:
        """The names of some images of a similar name, which may be meant."""

    def expected(self, file_name: str) -> str:
        """What `find` looked for."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """An image file on a disk."""

    path: Path
    file_name: str

    def identity(self) -> tuple[int, int]:
        """Size in bytes and modification time in ns."""
        info = self.path.stat()
        return info.st_size, info.st_mtime_ns

    def open(self, most: int) -> tuple[IO[bytes], int]:  # noqa: ARG002
        """Open the file if it is a regular one that is not empty. Nothing else is opened: a FIFO would block."""
        info = self.path.stat()
        if not stat.S_ISREG(info.st_mode) or not info.st_size:
            got = "an empty file" if stat.S_ISREG(info.st_mode) else "not a regular file"
            raise ImageProblem("image_unreadable", self.file_name, got=got)
        return self.path.open("rb"), info.st_size


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """The image files below a folder. Links are followed if they stay below it, or with ``allow_outside``."""

    folder: Path
    allow_outside: bool = False

    def path(self, file_name: str) -> Path:
        """The real path of a file name; the file need not exist. Raises ``path_outside_images``."""
        folder = os.path.realpath(self.folder)
        path = os.path.realpath(Path(folder, file_name))
        if not self.allow_outside and (os.path.commonpath([folder, path]) != folder or path == folder):
            raise ImageProblem("path_outside_images", file_name, got=path, expected=f"a file below {folder}")
        return Path(path)

    def find(self, file_name: str) -> LocalFile | None:
        """The file of exactly this name, whatever it is, if its properties can be read."""
        # Before links are resolved, which takes much longer.
        try:
            Path(self.folder, file_name).stat()
        except (OSError, ValueError):
            return None
        return LocalFile(self.path(file_name), file_name)

    def alike(self, file_name: str) -> list[str]:
        r"""The names of all files that differ only in ``\`` and ``/``, escapes, accents, or the suffix's case."""
        found = _spelled_alike(os.path.realpath(self.folder), spelling(file_name)) if len(file_name) < 4096 else []
        return [name for name in found if Path(self.folder, name).is_file()]

    def near(self, file_name: str) -> list[str]:
        """The names of files beside it, in other upper and lower case or with another suffix."""
        path = self.path(file_name)
        near = _listing(str(path.parent))[1].get(stem(spelling(path.name)), [])
        return [name for name in near if (path.parent / name).is_file()]

    def expected(self, file_name: str) -> str:
        """The path.

        Raises:
            OSError: if there can't be a file of this name.
        """
        path = self.path(file_name)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
        return f"the file {path}"


_Listing: TypeAlias = tuple[dict[str, list[str]], dict[str, list[str]]]
_MOST_LISTINGS = 16
_listings: dict[str, tuple[int, _Listing]] = {}  # by folder, with its time of change


def _spelled_alike(folder: str, wanted: str) -> list[str]:
    """The names, relative to the folder, of everything in it that is spelled like this."""
    parts, found = wanted.split("/"), []
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
        by_spelling[spelling(name)].append(name)
        by_stem[stem(spelling(name))].append(name)
    return dict(by_spelling), dict(by_stem)
