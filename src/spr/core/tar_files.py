"""Images in tar files, read by offset and never unpacked: a tar file, or all that are directly in a folder.

A member is found by its name, by its name with the tar file's before it (``000000/a.jpg``, ``000000.tar/a.jpg``), or by
the end of the path. Objects365 names ``images/v2/patch16/a.jpg`` what its tar files hold as ``patch16/a.jpg``.
"""

from __future__ import annotations

import io
import os
import threading
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from spr.core.errors import InputError
from spr.core.image_files import ImageProblem
from spr.core.image_names import spelling, unsafe_path
from spr.core.tar_headers import SPARSE, clean_name, name_hash, stem_key
from spr.core.tar_index import SUFFIXES, TarFile, compressed_error, indexes
from spr.core.terminal import count_text, size_text

_MOST_ALIKE = 1000
"""Members are not compared by their spelling if more have the same last part of the name."""
_MOST_OPEN = 64
_AT_ONCE = 2**22
"""Members of up to so many bytes are read at once."""
_BUFFER = 2**18
_IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


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

    def open(self) -> tuple[IO[bytes], int]:
        """The member's content as a file, and its size.

        Raises:
            InputError: if the tar file has changed since it was indexed.
        """
        if self.offset < 0 or not self.size:
            link = "a link to something that is not in the tar file"
            got = "an empty file" if self.offset >= 0 else "a sparse file" if self.offset == SPARSE else link
            raise ImageProblem("image_unreadable", self.name, got=got)
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


# ── open files, per process ───────────────────────────────────────────────────────────────────────────────────────────


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


# ── finding members ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Members:
    """The members of several tar files by the hashes of their names: 24 bytes per member, and the mapped indexes."""

    def __init__(self, tars: Sequence[TarFile]) -> None:
        self.tars = tars
        tables = indexes(tars)
        self._starts = [0, *accumulate(map(len, tables))]
        self._names = [table["name"].combine_chunks() for table in tables]
        self._offsets = [table["offset"].to_numpy() for table in tables]
        self._sizes = [table["size"].to_numpy() for table in tables]
        self._by_name = _sorted([table["name_hash"].to_numpy() for table in tables])
        self._by_stem = _sorted([table["stem_hash"].to_numpy() for table in tables])

    def __len__(self) -> int:
        return self._starts[-1]

    def named(self, name: bytes) -> list[int]:
        """The members of this name; of several in one tar file only the last, which ``tar -x`` would leave."""
        found = [row for row in _equal(self._by_name, name_hash(name)) if self.name(row) == name]
        if len(found) < 2:
            return found
        return list({self.tar_number(row): row for row in sorted(found)}.values())

    def of_stem(self, name: str) -> list[int]:
        """The members whose name ends like this one, apart from spelling, case and suffix; none if they are many."""
        rows = _equal(self._by_stem, name_hash(stem_key(name)))
        if len(rows) > _MOST_ALIKE:
            return []
        return list({(self.tar_number(row), self.name(row)): row for row in sorted(rows)}.values())

    def ending(self, name: bytes, file_name: str) -> list[int]:
        """The members in some folder whose path ends with this name."""
        end = b"/" + name
        if rows := self.of_stem(file_name):
            return [row for row in rows if self.name(row).endswith(end)]
        if len(_equal(self._by_stem, name_hash(stem_key(file_name)))) <= _MOST_ALIKE:
            return []
        found = [np.flatnonzero(pc.ends_with(names, pattern=end)) for names in self._names]  # 10 ns per member
        rows = [int(row) for rows, start in zip(found, self._starts, strict=False) for row in rows + start]
        return list({(self.tar_number(row), self.name(row)): row for row in rows[:_MOST_ALIKE]}.values())

    def tar_number(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def name(self, row: int) -> bytes:
        number = self.tar_number(row)
        name: bytes = self._names[number][row - self._starts[number]].as_py()
        return name

    def member(self, row: int) -> TarMember:
        number = self.tar_number(row)
        place = row - self._starts[number]
        offset, size = int(self._offsets[number][place]), int(self._sizes[number][place])
        return TarMember(self.tars[number], _text(self.name(row)), offset, size)


def _sorted(hashes: Sequence[npt.NDArray[np.uint64]]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    values = np.concatenate([np.zeros(0, np.uint64), *hashes])
    order = np.argsort(values, kind="stable").astype(np.uint32)
    return values[order], order


def _equal(table: tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]], value: int) -> list[int]:
    values, order = table
    wanted = np.uint64(value)
    first = int(values.searchsorted(wanted))
    if first == len(values) or values[first] != wanted:
        return []
    rows: list[int] = order[first : values.searchsorted(wanted, "right")].tolist()
    return rows


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


@dataclass(slots=True)
class _Loaded:
    lock: threading.Lock
    members: _Members | None = None


class TarFiles:
    """The images in some tar files; see `spr.core.image_files.ImageFiles`.

    ``compressed`` are tar files that can't be read. The members are indexed when the first one is looked for.
    """

    def __init__(self, tars: Sequence[TarFile], compressed: Sequence[tuple[Path, str]] = ()) -> None:
        self.tars, self.compressed = tuple(tars), tuple(compressed)
        self._loaded = _Loaded(threading.Lock())

    def load(self) -> _Members:
        """Index the tar files, unless the cache or this process has their index.

        Raises:
            InputError: as `spr.core.tar_index.indexes`.
        """
        with self._loaded.lock:
            if self._loaded.members is None:
                self._loaded.members = _Members(self.tars)
            return self._loaded.members

    def __str__(self) -> str:
        size = size_text(sum(tar.size for tar in self.tars))
        return f"{count_text(len(self.tars), 'tar files')}, {size}"

    def find(self, file_name: str) -> TarMember | None:
        """The member of this name: whole, with the tar file's before it, or by the end of either path.

        None if there are several; then `alike` has their names.
        """
        name = _bytes(file_name)
        if name is None or not self.tars:
            return None
        members = self.load()
        parts = name.split(b"/")
        for count in range(len(parts)):
            if rows := members.named(b"/".join(parts[count:])):
                if len(rows) > 1:
                    before = _text(b"/".join(parts[:count]))
                    own = [row for row in rows if _names_tar(before, members.tars[members.tar_number(row)].path)]
                    rows = own or rows
                return members.member(rows[0]) if len(rows) == 1 else None
        rows = members.ending(name, file_name)
        return members.member(rows[0]) if len(rows) == 1 else None

    def alike(self, file_name: str) -> list[str]:
        """The names, with that of the tar file before them, of members that are spelled alike."""
        if not self.tars or _bytes(file_name) is None:
            return []
        members, wanted = self.load(), f"/{spelling(file_name).removeprefix('./')}"
        found = []
        for row in members.of_stem(file_name):
            own = f"/{spelling(_text(members.name(row)))}"
            if own.endswith(wanted) or wanted.endswith(own):
                found.append(self._full_name(members, row))
        return found

    def near(self, file_name: str) -> list[str]:
        """The names of members that differ in upper and lower case, in the suffix, or in the folder."""
        if not self.tars or _bytes(file_name) is None:
            return []
        members = self.load()
        return [self._full_name(members, row) for row in members.of_stem(file_name)]

    def _full_name(self, members: _Members, row: int) -> str:
        return f"{members.tars[members.tar_number(row)].path.name}/{_text(members.name(row))}"

    def expected(self, file_name: str) -> str:  # noqa: ARG002
        """What was looked for, and which tar files could not be."""
        if len(self.tars) == 1:
            wanted = f"a member of {self.tars[0].path.name}"
        else:
            wanted = f"a member of one of {count_text(len(self.tars), 'tar files')}" if self.tars else ""
        if self.compressed:
            path, suffix = self.compressed[0]
            error = compressed_error([path], suffix)
            others = f" (and {len(self.compressed) - 1:,} more)" if len(self.compressed) > 1 else ""
            skipped = f"{path.name} is compressed{others}, so it is not looked into: {error.fix}"
            wanted = f"{wanted}; {skipped}" if wanted else skipped
        return wanted


def _bytes(file_name: str) -> bytes | None:
    """A name as a member has it; None if no member can have it."""
    if unsafe_path(file_name):
        return None
    try:
        return clean_name(file_name.encode("utf-8", "surrogateescape")) or None
    except UnicodeEncodeError:
        return None


def _names_tar(before: str, path: Path) -> bool:
    last = before.rpartition("/")[2]
    return bool(last) and last in (path.name, path.name.partition(".")[0], path.stem)


# ── finding tar files ─────────────────────────────────────────────────────────────────────────────────────────────────

_MOST_PLACES = 16
_places: dict[tuple[str, bool], tuple[int, TarFiles]] = {}  # with the time of change of the folder or file
_places_lock = threading.Lock()


def tars_of(place: Path, *, allow_outside: bool = False) -> TarFiles:
    """The tar files directly in a folder, or the one at a path; listed again once the folder or the file changes.

    A link to a tar file outside the folder is followed only with ``allow_outside``.

    Raises:
        OSError: if the place can't be read.
        InputError: for such a link.
    """
    key = str(place if place.is_absolute() else place.absolute()), allow_outside
    changed = place.stat().st_mtime_ns
    with _places_lock:
        known = _places.get(key)
        if known is None or known[0] != changed:
            found = _sort(_tars_in(place, allow_outside) if place.is_dir() else [place])
            if known is not None and (known[1].tars, known[1].compressed) == (found.tars, found.compressed):
                found = known[1]
            if len(_places) >= _MOST_PLACES:
                _places.clear()
            known = _places[key] = (changed, found)
        return known[1]


def _tars_in(folder: Path, allow_outside: bool) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES) and entry.is_file())
    root = os.path.realpath(folder)
    for name in names if not allow_outside else ():
        if os.path.commonpath([root, real := os.path.realpath(folder / name)]) != root:
            fix = "set annotations.images to the folder of the tar files, or annotations.allow_outside_images: true"
            raise InputError(f"{folder / name} is a link that leaves the image folder", got=real, fix=fix)
    return [folder / name for name in names]


def _sort(paths: Sequence[Path]) -> TarFiles:
    """The tar files among some files, and those that are compressed and not also there without compression."""
    tars, compressed = [], []
    for path in paths:
        tar, usual = TarFile.at(path), path.suffix.lower() == ".tar"
        # With many tar files, those of the usual name are opened only when they are indexed.
        suffix = tar.compression() if len(paths) == 1 or not usual else None
        if suffix is None:
            tars.append(tar)
        elif usual or path.with_name(f"{path.stem.removesuffix('.tar')}.tar") not in paths:
            compressed.append((path, suffix))
    return TarFiles(tars, compressed)


def only_tars(folder: Path) -> bool:
    """Whether a folder has tar files, and beside them no images and no folders."""
    found = False
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name.lower()
            if name.endswith(SUFFIXES):
                found = True
            elif not name.startswith(".") and (name.endswith(_IMAGES) or entry.is_dir()):
                return False
    return found
