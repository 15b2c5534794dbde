"""Whether paths that users or files give exist, without an exception for names that no file can have."""

from __future__ import annotations

import os
from pathlib import Path


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file; False for a name that is too long or contains NUL, and in a folder that can't be read.

    `Path.is_file` raises OSError for some of these.

    >>> is_file("9" * 5000)
    False
    """
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder (see `is_file`)."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is anything (see `is_file`)."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False
