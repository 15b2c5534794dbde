"""Images in tar files, read by offset and never unpacked: a tar file, or all that are directly in a folder.

A member is found by its name, by its name with the tar file's before it (``000000/a.jpg``, ``000000.tar/a.jpg``), or by
the end of the path. Objects365 names ``images/v2/patch16/a.jpg`` what its tar files hold as ``patch16/a.jpg``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spr.core.errors import InputError
from spr.core.image_names import spelling, unsafe_path
from spr.core.tar_headers import clean_name
from spr.core.tar_index import SUFFIXES, TarFile, compressed_error
from spr.core.tar_lookup import Members, text_of
from spr.core.tar_members import TarMember
from spr.core.terminal import count_text, size_text

_IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


@dataclass(slots=True)
class _Loaded:
    lock: threading.Lock
    members: Members | None = None


class TarFiles:
    """The images in some tar files; see `spr.core.image_files.ImageFiles`.

    ``compressed`` are tar files that can't be read. The members are indexed when the first one is looked for.
    """

    def __init__(self, tars: Sequence[TarFile], compressed: Sequence[tuple[Path, str]] = ()) -> None:
        self.tars, self.compressed = tuple(tars), tuple(compressed)
        self._loaded = _Loaded(threading.Lock())

    def load(self) -> Members:
        """Index the tar files, unless the cache or this process has their index.

        Raises:
            InputError: as `spr.core.tar_index.indexes`.
        """
        with self._loaded.lock:
            if self._loaded.members is None:
                self._loaded.members = Members(self.tars)
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
                    before = text_of(b"/".join(parts[:count]))
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
            own = f"/{spelling(text_of(members.name(row)))}"
            if own.endswith(wanted) or wanted.endswith(own):
                found.append(self._full_name(members, row))
        return found

    def near(self, file_name: str) -> list[str]:
        """The names of members that differ in upper and lower case, in the suffix, or in the folder."""
        if not self.tars or _bytes(file_name) is None:
            return []
        members = self.load()
        return [self._full_name(members, row) for row in members.of_stem(file_name)]

    def _full_name(self, members: Members, row: int) -> str:
        return f"{members.tars[members.tar_number(row)].path.name}/{text_of(members.name(row))}"

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
            found = sort_tars(_tars_in(place, allow_outside) if place.is_dir() else [place])
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


def sort_tars(paths: Sequence[Path]) -> TarFiles:
    """The tar files among some files or URLs, and those that are compressed and not also there without compression."""
    tars, compressed = [], []
    for path in paths:
        tar, usual = TarFile.at(path), path.suffix.lower() == ".tar"
        # Of many tar files, those of the usual name are opened only when they are indexed.
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
