"""The index of a tar file: its members with their places. It is made once, and kept in the user's cache.

An index is an Arrow file, which processes map into their memory together. Its name contains hashes of the tar file's
path, and of its size and modification time, so that a changed tar file is indexed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spr.core.atomic import atomic_file
from spr.core.errors import InputError, RunError
from spr.core.ordered_map import ordered_map
from spr.core.progress import MEGABYTE, Progress
from spr.core.remote import RemotePath, Version
from spr.core.tar_headers import BLOCK, ReadAt, TarError, check_header, members_schema, read_members
from spr.core.terminal import count_text, echo

if TYPE_CHECKING:
    import pyarrow as pa

CACHE = "SPR_CACHE"
"""The environment variable that names the cache folder; by default it is ``spr`` in ``XDG_CACHE_HOME`` or ~/.cache."""
_VERSION = 1
_AHEAD = 2**14  # bytes per request to object storage, where headers are not far from each other
_THREADS, _REMOTE_THREADS = 4, 32  # tar files indexed at once: most of the time may be spent on waiting

COMPRESSED = {  # by the first bytes: the suffix, and the command that decompresses a file in its place
    b"\x1f\x8b": (".gz", "gzip -d"),
    b"\x28\xb5\x2f\xfd": (".zst", "zstd -d --rm"),
    b"BZh": (".bz2", "bzip2 -d"),
    b"\xfd7zXZ\0": (".xz", "xz -d"),
}
_SHORT = {".tgz": ".gz", ".tzst": ".zst", ".tbz2": ".bz2", ".tbz": ".bz2", ".txz": ".xz"}
SUFFIXES = (".tar", *(f".tar{suffix}" for suffix, _ in COMPRESSED.values()), *_SHORT)
"""The suffixes of files that are looked at as tar files, in lower case."""


@dataclass(frozen=True, slots=True)
class TarFile:
    """A tar file as it was when it was found: size in bytes, modification time in ns, version in object storage."""

    path: Path
    size: int
    mtime_ns: int
    version: Version | None = None

    @classmethod
    def at(cls, path: Path) -> TarFile:
        """The file at a path; raises OSError if there is none."""
        if isinstance(path, RemotePath):
            found = path.info()
            return cls(path, found.size, found.mtime_ns, found.version)
        info = path.stat()
        return cls(path, info.st_size, info.st_mtime_ns)

    @contextlib.contextmanager
    def reading(self) -> Iterator[ReadAt]:
        """Open the file, to read bytes at offsets; in object storage some more, which may be the next header."""
        if isinstance(self.path, RemotePath):
            yield _ahead(self)
            return
        with self.path.open("rb", buffering=0) as file:
            yield lambda offset, length: os.pread(file.fileno(), length, offset)

    def compression(self) -> str | None:
        """The suffix that belongs to the compressed content, such as ``.gz``; None if it is not compressed."""
        with self.reading() as read_at:
            start = read_at(0, 8)
        return next((suffix for magic, (suffix, _) in COMPRESSED.items() if start.startswith(magic)), None)


def compressed_error(paths: Sequence[Path], suffix: str) -> InputError:
    """The error for tar files that are compressed in the way that ``suffix`` says."""
    command = next(command for known, command in COMPRESSED.values() if known == suffix)
    first = paths[0]
    named = first.suffix.lower()
    if isinstance(first, RemotePath):
        fix = f"download it, decompress it with {command}, and upload the tar file"
    elif _SHORT.get(named, named) != suffix:
        fix = f"mv {shlex.quote(str(first))} {shlex.quote(f'{first}{suffix}')}"
        fix = f"{fix} && {command} {shlex.quote(f'{first}{suffix}')}"
    elif len(paths) > 1:
        fix = f"{command} {shlex.quote(str(first.parent))}/*{named}"
    else:
        fix = f"{command} {shlex.quote(str(first))}"
    what = f"{first} is a compressed tar file" if len(paths) == 1 else f"{len(paths):,} tar files are compressed"
    got = f"{first.name}{', …' if len(paths) > 1 else ''}: no image can be read without decompressing all before it"
    return InputError(
        what, got=got, expected="a tar file; JPEG and PNG files hardly shrink, so it is as large", fix=fix
    )


def indexes(tars: Sequence[TarFile]) -> list[pa.Table]:
    """The `members_schema` table of each tar file, from the cache, else from the tar file's headers.

    Raises:
        InputError: naming a file that is not a tar file, is compressed, damaged, or can't be read.
    """
    found = [_load(tar) for tar in tars]
    todo = [tar for tar, table in zip(tars, found, strict=True) if table is None]
    if todo:
        label = "indexing " + (todo[0].path.name if len(todo) == 1 else count_text(len(todo), "tar files"))
        with Progress(label, max(1, sum(tar.size for tar in todo) // MEGABYTE), "MB") as progress:
            threads = _REMOTE_THREADS if isinstance(todo[0].path, RemotePath) else _THREADS
            made = dict(ordered_map(lambda tar: _index(tar, progress), todo, threads=threads, ahead=2 * threads))
        found = [made[tar] if table is None else table for tar, table in zip(tars, found, strict=True)]
    return [table for table in found if table is not None]


def _index(tar: TarFile, progress: Progress) -> pa.Table:
    import pyarrow as pa

    with _alone(tar):
        if (known := _load(tar)) is not None:  # another process has made it in the meantime
            progress.advance(tar.size // MEGABYTE)
            return known
        table = _read(tar, progress)
        try:
            with atomic_file(_place(tar)) as file, pa.ipc.new_file(file, members_schema()) as writer:
                writer.write_table(table)
        except RunError as error:
            _warn_once(error)
            return table
        for other in _place(tar).parent.glob(f"{_place(tar).name.partition('-')[0]}-*.arrow"):
            if other != _place(tar):
                other.unlink(missing_ok=True)
    return _load(tar) or table


def check_is_tar(tar: TarFile) -> None:
    """Raise the `InputError` of `indexes` if a file does not begin as a tar file."""
    with _explained(tar), tar.reading() as read_at:
        check_header(read_at(0, BLOCK))


def _read(tar: TarFile, progress: Progress) -> pa.Table:
    done = 0

    def show(position: int) -> None:
        nonlocal done
        step = position // MEGABYTE - done
        done += step
        progress.advance(step)

    with _explained(tar), tar.reading() as read_at:
        table = read_members(read_at, tar.size, show)
    show(tar.size)
    return table


def _ahead(tar: TarFile) -> ReadAt:
    path, start, data = RemotePath(str(tar.path)), 0, b""

    def read_at(offset: int, length: int) -> bytes:
        nonlocal start, data
        if offset >= tar.size:
            return b""
        if not start <= offset <= offset + length <= start + len(data):
            start, data = offset, path.read_range(offset, max(length, _AHEAD), version=tar.version)
        return data[offset - start : offset - start + length]

    return read_at


@contextlib.contextmanager
def _explained(tar: TarFile) -> Iterator[None]:
    try:
        yield
    except TarError as error:
        if suffix := tar.compression():
            raise compressed_error([tar.path], suffix) from None
        fix = "restore the file, or download it again; if it is no tar file, set annotations.images to the images"
        raise InputError(f"{tar.path} can't be read as a tar file", got=error, fix=fix) from None
    except OSError as error:
        raise InputError(f"{tar.path} can't be read", got=error.strerror or error) from None


def cache_folder() -> Path:
    """Where the indexes are kept."""
    own = os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "spr"
    return Path(own).expanduser() / "tars"


def _place(tar: TarFile) -> Path:
    place = str(tar.path) if isinstance(tar.path, RemotePath) else os.path.realpath(tar.path)
    path = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    content = f"{_VERSION} {tar.size} {tar.mtime_ns} {tar.version}"
    version = hashlib.sha256(content.encode()).hexdigest()[:24]
    return cache_folder() / f"{path}-{version}.arrow"


def _load(tar: TarFile) -> pa.Table | None:
    """The index in the cache; None if there is none, or it is damaged."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(_place(tar))) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        table.validate(full=True)
    except (OSError, pa.ArrowException):
        return None
    return table if table.schema.equals(members_schema()) else None


@contextlib.contextmanager
def _alone(tar: TarFile) -> Iterator[None]:
    """Keep other processes from indexing the same file, where the cache's file system has locks."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            place = _place(tar)
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((place.parent / f"lock-{place.name[0]}").open("ab"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


_warned = False


def _warn_once(error: RunError) -> None:
    global _warned
    if not _warned:
        _warned = True
        echo(f"Note: the index of a tar file can't be kept ({error.got}); set {CACHE} to another folder", err=True)
