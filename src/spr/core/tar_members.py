"""An image in a tar file: its bytes, read from their place. Threads and processes share nothing but open files."""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from spr.core.errors import InputError
from spr.core.image_files import ImageProblem
from spr.core.remote import RemotePath
from spr.core.tar_headers import SPARSE
from spr.core.tar_index import TarFile

_MOST_OPEN = 64
_AT_ONCE = 2**22
"""Members of up to so many bytes are read at once."""
_BUFFER = 2**18


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member of a tar file; ``offset`` is that of its data, or a negative number of `spr.core.tar_headers`."""

    tar: TarFile
    name: str
    offset: int
    size: int
    path: None = None

    def identity(self) -> tuple[int, int]:
        """The member's size, and the modification time of the tar file: members may all have the same time."""
        return self.size, self.tar.mtime_ns

    def open(self, most: int) -> tuple[IO[bytes], int]:
        """The member's content as a file, and its size.

        Raises:
            InputError: if the tar file has changed since it was indexed.
        """
        if self.offset < 0 or not self.size:
            link = "a link to something that is not in the tar file"
            got = "an empty file" if self.offset >= 0 else "a sparse file" if self.offset == SPARSE else link
            raise ImageProblem("image_unreadable", self.name, got=got)
        if self.size > most:
            return io.BytesIO(), self.size
        if self.size <= _AT_ONCE:
            return io.BytesIO(_read(self.tar, self.offset, self.size)), self.size
        return io.BufferedReader(_Part(self), _BUFFER), self.size


class _Part(io.RawIOBase):
    """A large member as a file that is read piece by piece."""

    def __init__(self, member: TarMember) -> None:
        self._member, self._position = member, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._member.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._member.size - self._position))
        buffer[:count] = _read(self._member.tar, self._member.offset + self._position, count)
        self._position += count
        return count


class _Descriptor:
    """An open file, closed once nobody has this object, so that no thread reads from one that another has closed."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)

    def belongs_to(self, tar: TarFile) -> bool:
        """Whether the file is still as it was when it was indexed."""
        info = os.fstat(self.number)
        return (info.st_size, info.st_mtime_ns) == (tar.size, tar.mtime_ns)


_open: OrderedDict[TarFile, _Descriptor] = OrderedDict()
_open_lock = threading.Lock()


def _read(tar: TarFile, offset: int, length: int) -> bytes:
    if isinstance(tar.path, RemotePath):
        return tar.path.read_range(offset, length, version=tar.version)
    file = _opened(tar)
    data = os.pread(file.number, length, offset)
    while 0 < len(data) < length and (more := os.pread(file.number, length - len(data), offset + len(data))):
        data += more
    if len(data) < length or not file.belongs_to(tar):
        raise InputError(f"{tar.path} has changed while it is read", fix="run the command again when it is complete")
    return data


def _opened(tar: TarFile) -> _Descriptor:
    with _open_lock:
        file = _open.pop(tar, None) or _Descriptor(tar.path)
        _open[tar] = file
        if len(_open) > _MOST_OPEN:
            _open.popitem(last=False)
        return file
