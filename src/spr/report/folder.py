"""A report's folder, whole or not at all: made beside its place, then put there; what users put in it stays."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from spr import __version__
from spr.core.errors import RunError

MARKER = "report.json"
"""The file that says that a folder is a report, and which entries of it are."""


@contextlib.contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """An empty folder to write into, which becomes ``out`` when the block ends without an error.

    A report that is there is replaced; other files that someone put beside its own go over into the new one. On an
    error, ``out`` stays as it was.

    Raises:
        RunError: if ``out`` is something else than a report or an empty folder, or can't be written.
    """
    target = Path(os.path.realpath(out))
    check_target(out)
    new = target.with_name(f".{target.name}.{os.getpid()}.new.tmp")
    old = target.with_name(f".{target.name}.{os.getpid()}.old.tmp")
    try:
        _sweep(target)
        new.mkdir(parents=True)
        yield new
        entries = sorted([path.name for path in new.iterdir()] + [MARKER])
        marker = {"format": "spr report", "version": __version__, "entries": entries}
        (new / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
        # A user's own file may have come since the first look.
        strangers = _strangers(target)
        if target.exists():
            target.rename(old)
        new.rename(target)
        for name in strangers:
            kept = target / name if not (target / name).exists() else target / f"{name}.kept"
            (old / name).rename(kept)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        fix = "make room or allow it, or choose another --out"
        raise RunError(f"The report can't be written to {out}", got=error, fix=fix) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_target(out: Path) -> None:
    """Raise `RunError` unless ``out`` is free, an empty folder, or a report."""
    try:
        if not out.exists():
            return
        if out.is_dir() and (not any(out.iterdir()) or _entries(out) is not None):
            return
        got = "a file" if not out.is_dir() else f"a folder without {MARKER}"
    except OSError as error:
        got = str(error)
    fix = "choose a new or empty folder for --out"
    raise RunError(f"{out} is no report, and stays as it is", got=got, expected="a report, or nothing", fix=fix)


def _sweep(target: Path) -> None:
    """Remove what reports that were killed left unfinished beside this one."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.new.tmp"):
        pid = path.name.split(".")[-3]
        if not pid.isdecimal() or int(pid) == os.getpid() or not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _strangers(folder: Path) -> list[str]:
    entries = _entries(folder) or ()
    return [path.name for path in folder.iterdir() if path.name not in entries] if folder.is_dir() else []


def _entries(folder: Path) -> list[str] | None:
    """The names in a report's folder that are the report's, or None where the folder is none."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(marker, dict) and marker.get("format") == "spr report"
    return [str(name) for name in marker.get("entries", [])] if known else None
