"""An export's folder: made whole or not at all, never over something else, and known again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spr.core.atomic import write_atomically
from spr.core.errors import RunError

MARKER = "export.json"
"""Names what an export was made from and its files; written last."""
FORMAT = 1
_FREE = ("README.md", MARKER)
"""The card is the user's to fill in: it may change."""


def read_marker(out: Path) -> dict[str, Any] | None:
    """What an export's folder says of itself; None for a folder that is empty or not there.

    Raises:
        RunError: if something else is there.
    """
    try:
        if not out.exists() and not out.is_symlink():
            return None
        if out.is_dir() and not any(out.iterdir()):
            return None
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
        if marker["format"] == FORMAT and isinstance(marker["files"], dict) and isinstance(marker["counts"], dict):
            return dict(marker)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    got = "a file" if out.is_file() else f"a folder without a {MARKER} of this version"
    raise RunError(f"{out} holds something else than an export", got=got, fix="choose a new or empty folder for --out")


def check_same(out: Path, marker: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise unless the folder holds this very export, whole.

    Raises:
        RunError: naming what differs: a setting, the pairs, or a file that is missing or of another size.
    """
    old = marker.get("identity", {})
    changed = [f"{key}: {old.get(key)} → {value}" for key, value in identity.items() if old.get(key) != value]
    if changed:
        fix = f"choose another --out, or delete {out}"
        raise RunError(f"{out} holds another export", got="; ".join(changed), expected="the same", fix=fix)
    for name, size in marker["files"].items():
        path = out / name
        if not path.is_file() or (name not in _FREE and path.stat().st_size != size):
            got = f"{name} is missing" if not path.is_file() else f"{name} has {path.stat().st_size:,} bytes"
            fix = f"delete {out} and export again"
            raise RunError(f"{out} is a damaged export", got=got, expected=f"{size:,} bytes", fix=fix)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to write into, which becomes ``out`` at the end, or goes if anything is raised.

    What killed exports have left beside ``out`` is removed first.

    Raises:
        RunError: if the place can't be written to.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}.export")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        temporary.mkdir()
    except OSError as error:
        raise RunError(f"{out} can't be made", got=error, fix="make room, or choose another --out") from None
    try:
        yield temporary
        temporary.rename(out)
    except OSError as error:
        raise RunError(f"{out} can't be written", got=error, fix="make room, or choose another --out") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_marker(folder: Path, identity: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    """Write the marker, with the size of each file that is there."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    marker = {"format": FORMAT, "identity": dict(identity), "counts": dict(counts), "files": files}
    write_atomically(folder / MARKER, (json.dumps(marker, indent=1, ensure_ascii=False) + "\n").encode())


def _sweep(out: Path) -> None:
    pattern = re.compile(rf"\.{re.escape(out.name)}\.(\d+)\.export")
    for path in out.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return pid != os.getpid()
