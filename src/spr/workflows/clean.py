"""`spr clean`: free the disk space of what a run no longer needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spr.core.atomic import leftovers
from spr.core.documents import read_json
from spr.core.outputs import file_hashes
from spr.core.paths import is_dir
from spr.runs.folder import check_run_version, is_run, not_a_run

CHECKPOINT = "checkpoint.json"


@dataclass(frozen=True, slots=True)
class Waste:
    """Something that can be deleted.

    Attributes:
        path: The file or folder.
        size: Its size in bytes.
        what: What it is.
        kind: ``checkpoints``, ``caches``, ``temporary`` (unfinished work of a killed process), or ``unfinished`` (a
            checkpoint from which a training would resume).
    """

    path: Path
    size: int
    what: str
    kind: str


def find_waste(run: Path) -> list[Waste]:
    """What could be deleted in a run, in the order of the paths. Links are not followed.

    Adapters, tables, pairs, results, the reference's log-probabilities and the describer's answers are never part of
    it. A training is finished if its ``finished.json`` and its adapter are there and unchanged; the checkpoints of any
    other are ``unfinished``.

    Raises:
        RunError: if the folder is not a run.
    """
    if not is_dir(run) or not is_run(run):
        raise not_a_run(run, expected="a folder that `spr run` or `spr train` has made")
    check_run_version(run)
    found = []
    trainings = [] if (run / "trainings").is_symlink() else sorted((run / "trainings").glob("*"))
    for place in [run, *(path for path in trainings if not path.is_symlink())]:
        training = place / "training"
        if training.is_symlink() or not training.is_dir():
            continue
        finished = _is_finished(place)
        what = "a checkpoint of a finished training" if finished else "a checkpoint of a training that is NOT finished"
        checkpoints = training / "checkpoints"
        steps = [] if checkpoints.is_symlink() else sorted(checkpoints.glob("step-*"))
        steps = [path for path in steps if not path.is_symlink()]
        kind = "checkpoints" if finished else "unfinished"
        found += [Waste(path, _size(path), what, kind) for path in steps if (path / CHECKPOINT).is_file()]
        features = training / "features"
        if features.is_dir() and not features.is_symlink():
            found.append(Waste(features, _size(features), "image features, computed again if needed", "caches"))
    inside = tuple(waste.path for waste in found)
    for folder in _folders(run):
        if not any(folder.is_relative_to(path) for path in inside):
            found += [
                Waste(path, _size(path), "unfinished work of a killed process", "temporary")
                for path in leftovers(folder)
                # A folder that was set aside is put back by the next command if its successor is missing.
                if path.suffix == ".spr-tmp" or os.path.lexists(path.with_name(path.name[1:].rsplit(".", 2)[0]))
            ]
    return sorted(found, key=lambda waste: waste.path)


def delete(waste: list[Waste]) -> int:
    """Delete what `find_waste` found; returns the bytes that were freed."""
    for item in waste:
        if item.path.is_symlink() or not item.path.is_dir():
            item.path.unlink(missing_ok=True)
            continue
        # The metadata first: a deletion that is cut short must not leave a checkpoint that looks complete.
        (item.path / CHECKPOINT).unlink(missing_ok=True)
        shutil.rmtree(item.path)
    return sum(item.size for item in waste)


def _is_finished(place: Path) -> bool:
    try:
        expected = read_json(place / "training" / "finished.json")["adapter"]
        return bool(expected) and file_hashes(place / "adapter", expected) == expected
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return False


def _folders(run: Path) -> Iterator[Path]:
    for folder, names, _ in os.walk(run):  # does not follow links
        yield Path(folder)
        names.sort()


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)
