"""The marker file of an export: what the export was made from, and which files belong to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spr.core import FORMAT_VERSION
from spr.core.atomic import write_atomically
from spr.core.errors import RunError

MARKER = "export.json"
_EDITABLE = ("README.md", MARKER)
"""Files that may change after the export: the user edits the dataset card."""


def read_marker(out: Path) -> dict[str, Any] | None:
    """The marker of an export's folder, or None if the folder is empty or missing.

    Raises:
        RunError: if ``out`` is a file, or a folder that is not an export of this version.
    """
    try:
        if not out.exists() and not out.is_symlink():
            return None
        if out.is_dir() and not any(out.iterdir()):
            return None
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
        known = marker["format_version"] == FORMAT_VERSION
        if known and isinstance(marker["files"], dict) and isinstance(marker["counts"], dict):
            return dict(marker)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    got = "a file" if out.is_file() else f"a folder without an {MARKER} of this version of SPR"
    raise RunError(f"{out} is not an export", got=got, fix="choose a new or empty folder for --out")


def check_same(out: Path, marker: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Check that the folder holds exactly this export, complete.

    Args:
        out: The export's folder.
        marker: What `read_marker` returned.
        identity: The settings and the pairs of the export that was asked for.

    Raises:
        RunError: naming what differs: a setting, the pairs, or a file that is missing or has another size.
    """
    old = marker.get("identity", {})
    changed = [f"{key}: {old.get(key)} → {value}" for key, value in identity.items() if old.get(key) != value]
    if changed:
        fix = f"choose another --out, or delete {out}"
        raise RunError(f"{out} holds another export", got="; ".join(changed), expected="the same settings", fix=fix)
    for name, size in marker["files"].items():
        path = out / name
        if not path.is_file() or (name not in _EDITABLE and path.stat().st_size != size):
            got = f"{name} is missing" if not path.is_file() else f"{name} has {path.stat().st_size:,} bytes"
            fix = f"delete {out} and export again"
            raise RunError(f"{out} is a damaged export", got=got, expected=f"{size:,} bytes", fix=fix)


def write_marker(folder: Path, identity: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    """Write the marker with the sizes of all files in the folder."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    marker = {"format_version": FORMAT_VERSION, "identity": dict(identity), "counts": dict(counts), "files": files}
    write_atomically(folder / MARKER, (json.dumps(marker, indent=1, ensure_ascii=False) + "\n").encode())
