"""Log-probabilities under the reference model: computed once, and kept in a file that other trainings can use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import broadcast_object_list

from spr.core import FORMAT_VERSION
from spr.core.atomic import write_atomically
from spr.core.documents import parse_json
from spr.core.errors import InputError, RunError
from spr.core.locks import wait_for_lock
from spr.training.checkpoint import check_version
from spr.training.encoding import PlannedPair

_TYPES = {"pair_id": pa.string(), "key": pa.string(), "chosen": pa.float64(), "rejected": pa.float64()}
_SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _TYPES.items()])


def open_reference(folders: Sequence[Path], identity: Mapping[str, str]) -> ReferenceFile:
    """The file ``reference.parquet`` in the first folder that has none, or one of this identity; else in the last."""
    paths = [folder / "reference.parquet" for folder in folders]
    for path in paths[:-1]:
        if not path.is_file() or _identity(path) in (None, dict(identity)):
            return ReferenceFile(path, identity)
    return ReferenceFile(paths[-1], identity)


def _identity(path: Path) -> dict[str, str] | None:
    """The identity that a file names; None if it can't be read."""
    try:
        identity = parse_json((pq.read_schema(path).metadata or {})[b"identity"])
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    return identity if isinstance(identity, dict) else None


def check_reference(path: Path) -> None:
    """Raise `InputError` if there is no file to import with `ReferenceFile.import_from`."""
    if not path.is_file():
        expected = "another run's training/reference.parquet"
        raise InputError(f"There is no file {path}", expected=expected, fix="check the path given to --reference")


class ReferenceFile:
    """Log-probabilities under the reference model, by the digest of prompt, answers and image.

    The file does not have to exist. ``identity`` is what determines the numbers besides the pairs: model, dtype,
    processor, chat template and the adapter of `training.init_adapter`.

    Raises:
        RunError: if the file was computed with another identity, naming what differs, was written by another version,
            or is damaged.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path, self.identity = path, dict(identity)
        self._known: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self._read(path)

    def import_from(self, other: Path) -> None:
        """Add the values of another training's file, or raise `InputError` if it does not exist."""
        check_reference(other)
        self._read(other)

    def _read(self, path: Path) -> None:
        own = path == self.path
        try:
            table = pq.read_table(path, memory_map=False)
            metadata = table.schema.metadata or {}
            identity, version = parse_json(metadata[b"identity"]), int(metadata.get(b"format_version", 0))
            rows = table.to_pylist()
            if not isinstance(identity, dict) or not table.schema.equals(_SCHEMA):
                raise ValueError(f"its columns are {', '.join(table.column_names)}")
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            fix = "delete this file; it will be computed again" if own else "check the path given to --reference"
            raise RunError(f"{path} is not a file of reference log-probabilities", got=error, fix=fix) from None
        check_version(version, path, "delete this file to compute it again" if own else "leave --reference out")
        changed = sorted(name for name in {*identity, *self.identity} if identity.get(name) != self.identity.get(name))
        if changed:
            got = "; ".join(f"{name}: {identity.get(name)}, now {self.identity.get(name)}" for name in changed)
            other = "add --name NAME to train beside it, or delete it" if own else "leave --reference out"
            fix = f"use the same model and processor, or {other}"
            raise RunError(f"{path} belongs to another reference model", got=got, expected="the same", fix=fix)
        self._known |= {row["key"]: row for row in rows}

    def missing(self, pairs: Sequence[PlannedPair]) -> list[PlannedPair]:
        """The pairs that the file lacks, because they are new or because their text or image has changed."""
        return [planned for planned in pairs if planned.key not in self._known]

    def add(self, pairs: Sequence[PlannedPair], logps: Sequence[Sequence[float]]) -> None:
        """Add computed values; `save` writes them."""
        for planned, (chosen, rejected) in zip(pairs, logps, strict=True):
            row = {"pair_id": planned.pair.pair_id, "key": planned.key, "chosen": chosen, "rejected": rejected}
            self._known[planned.key] = row

    def share(self) -> None:
        """Give all processes the values of the main process; all call this together."""
        (self._known,) = broadcast_object_list([self._known])

    def save(self) -> None:
        """Write the file atomically, with what another training has added to it meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(".reference.lock").open("a") as lock:
            wait_for_lock(lock)
            own = self._known
            if self.path.is_file():
                self._read(self.path)
            self._known |= own
            self._write()

    def _write(self) -> None:
        metadata = {"identity": json.dumps(self.identity), "format_version": str(FORMAT_VERSION)}
        sink = pa.BufferOutputStream()
        rows = list(self._known.values())
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata(metadata)), sink)
        write_atomically(self.path, sink.getvalue().to_pybytes())

    def of(self, planned: PlannedPair) -> tuple[float, float]:
        """The log-probabilities of the chosen and of the rejected answer of a pair that is not `missing`."""
        row = self._known[planned.key]
        return row["chosen"], row["rejected"]
