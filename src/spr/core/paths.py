"""Paths that users or files give: local ones, and URLs of object storage. Whether they exist, without surprises."""

from __future__ import annotations

import os
import re
from pathlib import Path

from spr.core.object_store import KINDS
from spr.core.remote import RemotePath

_URL = re.compile(rf"({'|'.join(KINDS)}):/+[^/]")


def as_path(path: str | os.PathLike[str]) -> Path:
    """A path, which is a `RemotePath` for a URL of object storage, also for one that `Path` has normalised.

    >>> as_path("s3://bucket/runs/mine"), str(as_path(Path("s3://bucket/runs/mine"))), as_path("runs/s3").as_posix()
    (RemotePath('s3://bucket/runs/mine'), 's3://bucket/runs/mine', 'runs/s3')
    """
    if isinstance(path, RemotePath):
        return path
    return RemotePath(str(path)) if _URL.match(str(path)) else Path(path)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `as_path` gives a `RemotePath`."""
    return isinstance(path, RemotePath) or _URL.match(str(path)) is not None


def lexists(path: Path) -> bool:
    """Whether there is anything of this name, also a link to nothing."""
    return path.exists() if isinstance(path, RemotePath) else os.path.lexists(path)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file; False for a name that is too long or contains NUL, and in a folder that can't be read.

    `Path.is_file` raises OSError for some of these. A store that can't be reached is a `StorageError`: nobody knows
    then.

    >>> is_file("9" * 5000)
    False
    """
    try:
        return as_path(path).is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder (see `is_file`); a listing decides about one in object storage."""
    try:
        return as_path(path).is_dir()
    except (OSError, ValueError):
        return False


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is anything (see `is_file`)."""
    try:
        return as_path(path).exists()
    except (OSError, ValueError):
        return False
