"""The marker file of an export: what the export was made from, and which files belong to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spr.core import FORMAT_VERSION
from spr.core.atomic import write_atomically
from spr.core.documents import read_json
from spr.core.errors import RunError
from spr.core.outputs import check_output
from spr.exports.formats import Format, ImageMode, Labels
from spr.exports.prompt_options import PromptOptions
from spr.grounding import Dialect
from spr.runs.reader import Run
from spr.runs.reviews import ReviewMode, Reviews

MARKER = "export.json"
_EDITABLE = ("README.md", MARKER)  # may change after the export: the user edits the dataset card


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """The settings of an export.

    ``target`` is the dialect to convert the texts of pairs to, or None; ``prompts`` are the options of a format whose
    rows are prompts, and ``reviews`` belong to the others.
    """

    run: Run
    out: Path
    format_name: str
    format: Format
    images: ImageMode
    target: Dialect | None
    labels: Labels
    license_id: str
    reviews: Reviews = field(default_factory=Reviews)
    review_mode: ReviewMode = "ignore"
    prompts: PromptOptions | None = None

    @property
    def dialect(self) -> str:
        """The dialect of the exported texts."""
        return self.labels.dialect.spec

    @property
    def identity(self) -> dict[str, str]:
        """What decides the contents of the export."""
        settings = {"format": self.format_name, "images": self.images, "dialect": self.dialect}
        if self.prompts is not None:
            settings |= {"name": self.labels.name, "license": self.license_id, **self.prompts.identity}
            return settings | {name: self.run.sha256_of(name) for name in ("objects", "regions")}
        settings["reviews"] = self.reviews.identity(self.review_mode)
        settings |= {"name": self.labels.name, "license": self.license_id, "pairs": self.run.pairs_sha256}
        if self.run.config.pairing.negatives:
            settings["negatives"] = self.run.sha256_of("negatives")
        return settings


def counts_of_finished(plan: ExportPlan) -> dict[str, Any] | None:
    """The counts of the export that its folder already holds, or None if the folder is empty or missing.

    Raises a RunError if the folder holds anything else, or an export that is damaged or has other settings or pairs.
    """
    out = plan.out
    marker = _read(out)
    if marker is None:
        return None
    old = marker["identity"]
    changed = [f"{key}: {old.get(key)} → {value}" for key, value in plan.identity.items() if old.get(key) != value]
    if changed:
        if old.get("reviews") != plan.identity.get("reviews"):
            changed.append("with other decisions of `spr review`")
        fix = f"choose another --out, or delete {out}"
        raise RunError(f"{out} holds another export", got="; ".join(changed), expected="the same settings", fix=fix)
    for name, size in marker["files"].items():
        path = out / name
        if not path.is_file() or (name not in _EDITABLE and path.stat().st_size != size):
            got = f"{name} has {path.stat().st_size:,} bytes" if path.is_file() else f"{name} is missing"
            raise _damaged(out, got, f"{size} bytes")
    counts: dict[str, Any] = marker["counts"]
    numbers = {"held_out": 0, "questions": 0, "prompts": 0, **counts}
    if any(type(numbers.get(name)) is not int for name in ("pairs", "held_out", "questions", "prompts")):
        raise _damaged(out, f"the counts {counts}", "`pairs`, `questions`, `prompts` and `held_out`")
    if not isinstance(counts.get("left_out"), dict):
        raise _damaged(out, f"the counts {counts}", "`left_out`")
    return numbers


def _damaged(out: Path, got: str, expected: str) -> RunError:
    return RunError(
        f"{out} is a damaged export", got=got, expected=expected, fix=f"choose another --out, or delete {out}"
    )


def _read(out: Path) -> dict[str, Any] | None:
    check_output(out, "an export", lambda folder: _marker(folder) is not None, folder=True)
    return _marker(out)


def _marker(folder: Path) -> dict[str, Any] | None:
    try:
        marker = read_json(folder / MARKER)
    except (OSError, ValueError):
        return None
    known = isinstance(marker, dict) and marker.get("format_version") == FORMAT_VERSION
    return (
        marker if known and all(isinstance(marker.get(key), dict) for key in ("identity", "files", "counts")) else None
    )


def write_marker(folder: Path, plan: ExportPlan, counts: Mapping[str, Any]) -> None:
    """Write the marker with the sizes of all files in the folder."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    marker = {"format_version": FORMAT_VERSION, "identity": plan.identity, "counts": counts, "files": files}
    write_atomically(folder / MARKER, (json.dumps(marker, indent=1, ensure_ascii=False) + "\n").encode())
