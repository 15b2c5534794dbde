"""Names of image files: which are safe, and which are spelled alike."""

from __future__ import annotations

import os
import re
import unicodedata
from urllib.parse import unquote

_DRIVE = re.compile(r"[A-Za-z]:")


def unsafe_path(file_name: str) -> bool:
    r"""Whether a file name could lead out of its folder: absolute, or with ``..``, a drive or a NUL, also on Windows.

    >>> any(unsafe_path(name) for name in ("val/1.jpg", "a..b.jpg"))
    False
    >>> all(unsafe_path(name) for name in ("/etc/passwd", "a/../../b", "..\\b", "C:x", ""))
    True
    """
    parts = file_name.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or "\0" in file_name or _DRIVE.match(file_name) is not None


def file_key(file_name: str) -> str:
    r"""A name by which file names that may lead to the same file agree.

    >>> file_key("./val/a%20b.JPG") == file_key("val\\a b.jpg")
    True
    """
    return os.path.normpath(spelling(file_name))


def spelling(name: str) -> str:
    """A name as it is compared: with ``/``, without ``%`` escapes, composed, and with suffixes in lower case."""
    name = unicodedata.normalize("NFC", unquote(name).replace("\\", "/"))
    return "/".join(
        f"{stem}{dot}{suffix.lower()}" for stem, dot, suffix in (p.rpartition(".") for p in name.split("/"))
    )


def stem(name: str) -> str:
    """A name without its suffix and without the difference of upper and lower case."""
    return (name.rpartition(".")[0] or name).casefold()
