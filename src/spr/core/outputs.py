"""The rule for all commands that write: a command replaces only what the same command has made.

An output may go to a new place, to an empty file or folder, or to where the same command wrote before, which its
content shows. Everything else is refused and left unchanged (docs/runs.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from spr.core import FORMAT_VERSION
from spr.core.atomic import is_temporary, recover, sha256, write_atomically
from spr.core.documents import parse_json, read_json
from spr.core.errors import RunError
from spr.core.paths import lexists

MARKER = "spr.json"
"""The file in a folder of model weights that says which command made the folder, from what, and the files' SHA-256."""
_LARGEST = 2**27  # bytes: no file that is recognised by its content is larger


def check_output(path: Path, what: str, is_ours: Callable[[Path], bool] = lambda _: False, *, folder: bool) -> None:
    """Raise `RunError` unless an output may be written to ``path``, by the rule of this module.

    Args:
        path: Where the file or folder will be.
        what: What it will be, such as "a report".
        is_ours: Whether an existing file or folder was made by the same command; what it raises means no.
        folder: Whether it will be a folder.
    """
    try:
        if not lexists(path):
            return
        got = "a folder" if path.is_dir() else "a file" if path.is_file() else "neither a file nor a folder"
        if folder and path.is_dir():
            names = sorted(entry.name for entry in path.iterdir())
            got = f"a folder with {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
            free = not names or is_ours(path)
        else:
            size = 0 if folder or not path.is_file() else path.stat().st_size
            free = not folder and path.is_file() and (size == 0 or (size <= _LARGEST and is_ours(path)))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        unreadable = isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError)
        free, got = False, " ".join(str(error).split())[:200] if unreadable else got
    if not free:
        fix = "choose a new or empty folder" if folder else "choose a new name, or move the file away"
        what = f"{path} is not {what}, so it is left unchanged"
        raise RunError(what, got=got, expected="what the same command wrote before, or nothing", fix=fix)


def only_begun(folder: Path) -> bool:
    """Whether a folder has only a lock and temporary files: its command was killed before the first file."""
    return all(path.name == ".lock" or is_temporary(path) for path in folder.iterdir())


def write_output(path: Path, data: bytes, what: str, is_ours: Callable[[Path], bool] = lambda _: False) -> None:
    """Write a file atomically after `check_output`. A file that already has this content is always fine."""
    if not (path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data):
        check_output(path, what, is_ours, folder=False)
        write_atomically(path, data)
    recover(path)


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of files of a folder by name; those that are missing are left out."""
    return {name: sha256(folder / name) for name in sorted(names) if (folder / name).is_file()}


def write_marker(folder: Path, command: str, identity: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Write `MARKER` into a folder that is complete; returns the SHA-256 of its files by name.

    ``identity`` is what determines the folder's content.
    """
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    files = file_hashes(folder, names)
    marker = {"format": command, "format_version": FORMAT_VERSION, "identity": identity or {}, "files": files}
    (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    return files


def read_marker(folder: Path, command: str) -> dict[str, Any] | None:
    """The content of a folder's `MARKER`; None if the command did not write it, or it is damaged."""
    try:
        marker = read_json(folder / MARKER)
    except (OSError, ValueError):
        return None
    fields = {"format": command, "format_version": FORMAT_VERSION}
    known = isinstance(marker, dict) and all(marker.get(name) == value for name, value in fields.items())
    return marker if known and isinstance(marker.get("files"), dict) else None


def made_before(folder: Path, command: str, what: str, identity: Mapping[str, Any]) -> bool:
    """Whether a folder already holds the complete output of a command with the same ``identity``; False if it is free.

    Raises:
        RunError: if the folder holds anything else, or if the output is damaged or has another identity.
    """
    recover(folder)
    check_output(folder, what, lambda path: read_marker(path, command) is not None, folder=True)
    marker = read_marker(folder, command)
    if marker is None:
        return False
    old = marker.get("identity")
    if old != parse_json(json.dumps(identity)):
        fix = f"choose another --out, or delete {folder}"
        raise RunError(f"{folder} holds the output of another `{command}`", got=old, expected=dict(identity), fix=fix)
    found = file_hashes(folder, marker["files"])
    changed = [name for name, expected in marker["files"].items() if found.get(name) != expected]
    if changed:
        got = f"{', '.join(changed[:4])} changed or missing"
        raise RunError(f"{folder} is damaged", got=got, fix=f"choose another --out, or delete {folder}")
    return True
