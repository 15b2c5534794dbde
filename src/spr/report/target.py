"""The report's folder: replaced as a whole, without touching other folders or files that the user added to a report."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from spr import __version__
from spr.core import FORMAT_VERSION
from spr.core.atomic import atomic_dir
from spr.core.documents import read_json
from spr.core.outputs import check_output
from spr.core.remote import RemotePath

PAGE = "index.html"
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
    target = out.resolve()
    before = _entries(target) or ()
    with atomic_dir(target, sync=False, last=PAGE) as folder:
        yield folder
        entries = sorted([path.name for path in folder.iterdir()] + [MARKER])
        marker = {"format": "spr report", "format_version": FORMAT_VERSION, "version": __version__, "entries": entries}
        (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
        written = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        local = not isinstance(target, RemotePath) and target.is_dir()
        for path in target.iterdir() if local else ():
            if path.name in before:
                continue
            copy = folder / path.name
            copy = copy.with_name(f"{path.name}.kept") if copy.exists() else copy
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, copy, symlinks=True)
            else:
                shutil.copy2(path, copy, follow_symlinks=False)
    if isinstance(target, RemotePath):  # where the new files were put beside the old ones
        for path in target.below():
            name = path.relative_to(target).as_posix()
            if name.partition("/")[0] in before and name not in written:
                path.unlink(missing_ok=True)


def check_target(out: Path) -> None:
    """Raise `RunError` unless ``out`` is a report, an empty folder or missing."""
    check_output(out, "a report", lambda folder: _entries(folder) is not None, folder=True)


def _entries(folder: Path) -> list[str] | None:
    """The names in a report's folder that belong to the report; None if the folder is not a report."""
    try:
        marker = read_json(folder / MARKER)
    except (OSError, ValueError):
        return None
    known = (
        isinstance(marker, dict) and marker.get("format") == "spr report" and isinstance(marker.get("entries"), list)
    )
    return [str(name) for name in marker["entries"]] if known else None
