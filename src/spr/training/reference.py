"""The reference's log-probabilities: computed once, kept in a file, used by every later training on the same pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from spr.core.atomic import write_atomically
from spr.core.errors import InputError, RunError
from spr.training.encode import PlannedPair

_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("chosen", pa.float64(), nullable=False),
        pa.field("rejected", pa.float64(), nullable=False),
    ]
)
Logps = tuple[float, float]
"""Of the chosen and of the rejected answer."""


class ReferenceFile:
    """Log-probabilities under the model without adapter, by the digest of prompt, answers and image.

    Args:
        path: The file; need not be there.
        identity: What decides the numbers besides the pair: model, dtype, processor and template.

    Raises:
        RunError: if the file was made with another identity, naming what differs, or is damaged.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path, self.identity = path, dict(identity)
        self._known: dict[str, tuple[str, Logps]] = {}
        if path.is_file():
            self._read(path)

    def take_over(self, other: Path) -> None:
        """Add what another training's file knows; `save` keeps it here, and the other file stays as it is.

        Raises:
            InputError: if it is not there.
            RunError: as for the file itself.
        """
        if not other.is_file():
            expected = "another run's training/reference.parquet"
            raise InputError(f"There is no file {other}", expected=expected, fix="mend --reference")
        self._read(other)

    def _read(self, path: Path) -> None:
        try:
            table = pq.read_table(path, memory_map=False)
            made_with = json.loads((table.schema.metadata or {})[b"identity"])
            rows = table.to_pylist()
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            fix = "delete it to have it made anew" if path == self.path else "mend --reference"
            raise RunError(f"{path} is no file of reference log-probabilities", got=error, fix=fix) from None
        differ = {name for name in {*made_with, *self.identity} if made_with.get(name) != self.identity.get(name)}
        if differ:
            lines = "; ".join(
                f"{name}: {made_with.get(name)}, now {self.identity.get(name)}" for name in sorted(differ)
            )
            other = "delete it to have it made anew" if path == self.path else "leave --reference out"
            fix = f"use the same model and processor, or {other}"
            raise RunError(f"{path} was made with another reference", got=lines, expected="the same", fix=fix)
        self._known |= {row["key"]: (row["pair_id"], (row["chosen"], row["rejected"])) for row in rows}

    def missing(self, pairs: Sequence[PlannedPair]) -> list[PlannedPair]:
        """The pairs that the file lacks, be it because they are new or because their text or image has changed."""
        return [planned for planned in pairs if planned.key not in self._known]

    def add(self, pairs: Sequence[PlannedPair], logps: Sequence[Logps]) -> None:
        """Note what was computed; `save` keeps it."""
        for planned, values in zip(pairs, logps, strict=True):
            self._known[planned.key] = planned.pair.pair_id, values

    def save(self) -> None:
        """Write the file, whole or not at all."""
        rows = [
            {"pair_id": name, "key": key, "chosen": chosen, "rejected": rejected}
            for key, (name, (chosen, rejected)) in self._known.items()
        ]
        schema = _SCHEMA.with_metadata({"identity": json.dumps(self.identity)})
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
        write_atomically(self.path, sink.getvalue().to_pybytes())

    def of(self, planned: PlannedPair) -> Logps:
        """The log-probabilities of a pair that is not `missing`."""
        return self._known[planned.key][1]
