"""Files and folders that are written completely or not at all.

A file or folder is written under a temporary name beside its destination, synced to disk, and renamed. If the process
is killed, the previous version stays in place, and `recover` removes the temporary file. Temporary names, such as
``.config.yaml.123.spr-tmp``, can't be mistaken for a user's file.

In object storage, an object appears when it is complete, so nothing temporary is needed there. The files of a folder
are put one after another, the one that marks the folder as complete last.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from spr.core.errors import RunError
from spr.core.ordered_map import ordered_map
from spr.core.remote import ConflictError, NoConditionsError, RemotePath

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.spr-(?P<kind>tmp|old)")
_FIX = "free some disk space or check the permissions, or choose another path"
_MOST_CONFLICTS = 20


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file for writing that appears under its name only when the block ends without an error.

    Missing parent folders are created, and an existing file is replaced.

    Raises:
        RunError: if the file can't be written (no space, no permission).
    """
    if isinstance(path, RemotePath):
        buffer = io.BytesIO()
        yield buffer
        path.put(buffer.getbuffer())
        return
    temporary = _temporary(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode
            yield file
        # By name: safetensors, given the name, puts another file there, which only the owner may read.
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise RunError(f"{path} can't be written", got=error, fix=_FIX) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file with `atomic_file`."""
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_dir(path: Path, *, replace: bool = True, sync: bool = True, last: str | None = None) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` when the block ends without an error; parents are created.

    A folder that is already at ``path`` is renamed aside, and removed only once the new one is in its place; if the
    process is killed between the two renames, `recover` puts the previous folder back. Without ``replace``, only an
    empty folder is replaced. ``sync`` writes all files to disk first, so that the folder survives a power cut, which
    takes long for thousands of files, and gives all files the permissions of the folder (safetensors makes files that
    only the owner may read).

    In object storage, the folder that is yielded is on the local disk, and its files are put at the end: the one that
    ``last`` names, relative to the folder, after all others. Until then, a reader can see a part of them. Files that
    are there already and that the new folder lacks stay.

    Raises:
        RunError: if the folder can't be written (no space, no permission, or ``replace`` is False and it exists).
    """
    if isinstance(path, RemotePath):
        if not replace and path.exists():
            raise RunError(f"{path} can't be written", got="there is something", fix="choose another path")
        with tempfile.TemporaryDirectory(prefix="spr-") as local:
            yield Path(local)
            upload(Path(local), path, last)
        return
    temporary, previous = _temporary(path, "tmp"), _temporary(path, "old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        if sync:
            for written in (*temporary.rglob("*"), temporary):
                mode = written.stat().st_mode
                wanted = mode | temporary.stat().st_mode & 0o666
                if mode != wanted:
                    written.chmod(wanted)
                _sync(written)
        if replace and os.path.lexists(path):
            path.rename(previous)
        try:
            temporary.rename(path)
        except OSError:
            if os.path.lexists(previous):
                previous.rename(path)
            raise
        _sync(path.parent)
        recover(path)
    except OSError as error:
        raise RunError(f"{path} can't be written", got=error, fix=_FIX) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def upload(folder: Path, target: RemotePath, last: str | None = None) -> None:
    """Put all files of a local folder below a path in object storage; the one that ``last`` names after the others."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]

    def put(name: str) -> None:
        (target / name).put_file(folder / name)

    for _ in ordered_map(put, (name for name in names if name != last)):
        pass
    if last in names:
        put(last)


def append_line(path: Path, line: str) -> None:
    """Append a line, given without its end, to a text file in UTF-8; an object is read and put again.

    Raises:
        OSError: if the file can't be written.
        StorageError: if the object can't.
    """
    if not isinstance(path, RemotePath):
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        return
    for attempt in range(_MOST_CONFLICTS):
        try:
            before, info = path.read()
        except FileNotFoundError:
            before, info = b"", None
        try:
            path.put(before + line.encode() + b"\n", only="new" if info is None else info.version)
            return
        except ConflictError:
            if attempt == _MOST_CONFLICTS - 1:
                raise
        except NoConditionsError:
            path.put(before + line.encode() + b"\n")
            return


def recover(path: Path) -> None:
    """Clean up what a killed `atomic_dir` or `atomic_file` left beside ``path``.

    Where ``path`` itself is missing, the previous folder, which was renamed aside, is put back. Leftovers of processes
    that are still alive are not touched.
    """
    for leftover in leftovers(path.parent, path.name):
        if leftover.suffix == ".spr-old" and not os.path.lexists(path):
            leftover.rename(path)
        elif leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """What killed processes, or this one, left in a folder while they wrote ``name``, or anything."""
    found = []
    local = not isinstance(folder, RemotePath) and folder.is_dir()
    for path in folder.iterdir() if local else ():
        match = _TEMPORARY.fullmatch(path.name)
        if match and name in (None, match["name"]) and not _is_other_process(int(match["pid"])):
            found.append(path)
    return found


def is_temporary(path: Path) -> bool:
    """Whether a name is one that `atomic_file` or `atomic_dir` gives to unfinished work.

    >>> is_temporary(Path("runs/.config.yaml.123.spr-tmp")), is_temporary(Path("runs/.notes.1.tmp"))
    (True, False)
    """
    match = _TEMPORARY.fullmatch(path.name)
    return match is not None and match["kind"] == "tmp"


def _sync(path: Path) -> None:
    """Sync a file, or a folder's entries, to disk, so that it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """Hex SHA-256 of a file; ``progress`` is called with the number of bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(2**23):
            digest.update(block)
            progress(done := done + len(block))
    return digest.hexdigest()


def has_sha256(path: Path, expected: str) -> bool:
    """Whether there is a file with this SHA-256. For an object that SPR has put, a small request tells."""
    try:
        if isinstance(path, RemotePath) and (known := path.info().sha256) is not None:
            return known == expected
        return path.is_file() and sha256(path) == expected
    except FileNotFoundError:
        return False


def _temporary(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.spr-{kind}")


def _is_other_process(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
