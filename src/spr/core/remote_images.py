"""Images in object storage: an object per image, read in one request, and tar files that are read by ranges."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from spr.core.image_files import ImageFiles, ImageProblem
from spr.core.image_names import unsafe_path
from spr.core.remote import RemotePath
from spr.core.tar_files import TarFiles, sort_tars
from spr.core.tar_index import SUFFIXES

_known: dict[RemotePath, TarFiles] = {}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An object that may exist: only reading it shows that."""

    path: RemotePath
    file_name: str

    def identity(self) -> tuple[int, int]:
        """Size in bytes and modification time in ns."""
        info = self.path.info()
        return info.size, info.mtime_ns

    def open(self, most: int) -> tuple[IO[bytes], int]:
        """The object in memory, and its size; one that is too large is not transferred."""
        data, info = self.path.read(most=most)
        if not info.size:
            raise ImageProblem("image_unreadable", self.file_name, got="an empty object")
        return io.BytesIO(data), info.size


@dataclass(frozen=True, slots=True)
class RemoteFiles:
    """The objects below a URL. Names that are spelled alike are not looked for: that would need listings.

    With ``check``, `find` asks whether there is an object, because it may be somewhere else.
    """

    folder: RemotePath
    check: bool = False

    def find(self, file_name: str) -> RemoteFile | None:
        """The object of exactly this name."""
        path = self.folder / file_name
        return None if self.check and not path.is_file() else RemoteFile(path, file_name)

    def alike(self, file_name: str) -> list[str]:  # noqa: ARG002
        """Empty."""
        return []

    def near(self, file_name: str) -> list[str]:  # noqa: ARG002
        """Empty."""
        return []

    def expected(self, file_name: str) -> str:
        """The URL."""
        return f"the object {self.folder / file_name}"


def remote_places(folder: RemotePath, file_name: str) -> Iterator[ImageFiles]:
    """Where an image may be: an object, or a member of a tar file.

    Raises:
        ImageProblem: ``path_outside_images``, which no option allows in object storage.
    """
    if unsafe_path(file_name):
        raise ImageProblem("path_outside_images", file_name, expected="a path relative to the image folder")
    tars = remote_tars(folder)
    if not is_tar(folder):
        yield RemoteFiles(folder, check=bool(tars.tars))
    if tars.tars:
        yield tars


def is_tar(path: RemotePath) -> bool:
    """Whether a URL is that of a tar file, by its name: no request is made."""
    return path.name.lower().endswith(SUFFIXES)


def remote_tars(folder: RemotePath) -> TarFiles:
    """The tar file at a URL, or those directly in a folder; a process looks for them once.

    A folder has tar files if one is among the first objects that a listing returns, which takes one request.
    """
    if folder not in _known:
        paths = [folder] if is_tar(folder) else [path for path in folder.first_objects() if is_tar(path)]
        if paths and paths != [folder]:
            paths = [path for path in folder.iterdir() if is_tar(path)]
        _known[folder] = sort_tars(paths)
    return _known[folder]
