"""The report's folder: replaced as a whole, without touching other folders or files that the user added to a report."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from spr import __version__
from spr.core import FORMAT_VERSION
from spr.core.atomic import atomic_dir
from spr.core.errors import RunError

MARKER = "report.json"
"""This file says which entries of a report's folder belong to the report."""


@contextlib.contextmanager
def report_folder(out: Path) -> Iterator[Path]:
    """An empty folder to write into, which replaces the report ``out`` when the block ends without an error.

    Files that the user added to an existing report are copied into the new one.

    Raises:
        RunError: if ``out`` is neither a report nor empty nor missing, or can't be written.
    """
    check_target(out)
    # Through a link, the folder that it points to is replaced, not the link.
    target = Path(os.path.realpath(out))
    with atomic_dir(target, sync=False) as folder:
        yield folder
        entries = sorted([path.name for path in folder.iterdir()] + [MARKER])
        marker = {"format": "spr report", "format_version": FORMAT_VERSION, "version": __version__, "entries": entries}
        (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
        old = _entries(target) or ()
        for path in target.iterdir() if target.is_dir() else ():
            if path.name in old:
                continue
            copy = folder / path.name
            copy = copy.with_name(f"{path.name}.kept") if copy.exists() else copy
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, copy, symlinks=True)
            else:
                shutil.copy2(path, copy, follow_symlinks=False)


def check_target(out: Path) -> None:
    """Raise `RunError` unless ``out`` is a report, an empty folder or missing."""
    try:
        if not out.exists() or (out.is_dir() and (not any(out.iterdir()) or _entries(out) is not None)):
            return
        got = f"a folder without {MARKER}" if out.is_dir() else "a file"
    except OSError as error:
        got = str(error)
    fix = "choose a new or empty folder for --out"
    raise RunError(f"{out} is not a report, so it is left unchanged", got=got, expected="a report, or nothing", fix=fix)


def _entries(folder: Path) -> list[str] | None:
    """The names in a report's folder that belong to the report; None if the folder is not a report."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(marker, dict) and marker.get("format") == "spr report"
    return [str(name) for name in marker.get("entries", [])] if known else None
