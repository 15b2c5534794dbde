"""The Arrow schemas of the tables in a run folder; their columns are the fields of `spr.records.records`."""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa

from spr.core.boxes import Box
from spr.core.errors import RecordError
from spr.records.records import (
    Candidate,
    ImageObjects,
    PreferencePair,
    QuestionPair,
    RegionObject,
    RegionQuery,
    Row,
    Scores,
)

BOX = pa.list_(pa.field("element", pa.float32(), nullable=False), 4)

_TYPES = {str: pa.string(), int: pa.int32(), float: pa.float32(), bool: pa.bool_(), Box: BOX}
_NULLABLE = {"score", "box_after", "finish_reason", "chosen_finish_reason", "rejected_finish_reason"}
_NULLABLE |= {"license", "source_url", "askable"}
ADDED = {"license": None, "source_url": None, "split": "train", "askable": None}
"""Columns that tables of an earlier version with the same format lack, with the value that they are read as."""
# Where a table differs from its record: seeds have 64 bits, and `inside` follows the box.
_LONG = {"seed"}
_ORDER: dict[type[Row], tuple[str, ...]] = {RegionObject: ("id", "category", "box", "inside", "source", "score")}


def _fields(kind: type[Row]) -> list[pa.Field]:
    hints = get_type_hints(kind)
    names = _ORDER.get(kind, kind.__match_args__)
    types = {name: pa.int64() if name in _LONG else _type(hints[name]) for name in names}
    return [pa.field(name, types[name], nullable=name in _NULLABLE) for name in names]


def _type(hint: Any) -> pa.DataType:
    if hint in _TYPES:
        return _TYPES[hint]
    if get_origin(hint) is Literal:
        return pa.string()
    if NoneType in get_args(hint):
        return _type(next(kind for kind in get_args(hint) if kind is not NoneType))
    if get_origin(hint) is tuple:
        return pa.list_(pa.field("element", _type(get_args(hint)[0]), nullable=False))
    return pa.struct(_fields(hint))


OBJECTS = pa.schema(_fields(ImageObjects))
REGIONS = pa.schema(_fields(RegionQuery))
CANDIDATES = pa.schema(_fields(Candidate))
SCORES = pa.schema(_fields(Scores))
PAIRS = pa.schema(_fields(PreferencePair))
NEGATIVES = pa.schema(_fields(QuestionPair))
DROPPED = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("id", "kind", "stage", "reason")),
        pa.field("file_name", pa.string()),
    ]
)
"""Dropped items: the id of an image, object, query or candidate (``kind``), its stage, and the reason.

``file_name`` is that of its image in the annotations; null where it is not known, and in tables of earlier versions.
"""

R = TypeVar("R", bound=Row)

_SCHEMA_OF: dict[type[Row], pa.Schema] = {
    ImageObjects: OBJECTS,
    RegionQuery: REGIONS,
    Candidate: CANDIDATES,
    Scores: SCORES,
    PreferencePair: PAIRS,
    QuestionPair: NEGATIVES,
}


def to_table(records: Iterable[Row], kind: type[Row]) -> pa.Table:
    """Convert records, all of type ``kind``, to a table with its schema."""
    return pa.Table.from_pylist([record.to_row() for record in records], schema=_SCHEMA_OF[kind])


def from_table(table: pa.Table, kind: type[R]) -> list[R]:
    """Convert the rows of a table to validated records.

    Raises:
        RecordError: if the table lacks a column, or a row is not a valid record.
    """
    expected = set(_SCHEMA_OF[kind].names) - set(ADDED)
    if not expected <= set(table.schema.names):
        missing = sorted(expected - set(table.schema.names))
        raise RecordError(f"table of {kind.__name__} lacks columns", got=table.schema.names, expected=missing)
    rows: list[dict[str, Any]] = table.to_pylist()
    return [kind.from_row(row) for row in rows]
