"""The Arrow schemas of the tables in a run folder; their columns are the fields of `spr.records.records`."""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc

from spr.core.boxes import Box, Point
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
POINT = pa.list_(pa.field("element", pa.float32(), nullable=False), 2)

_TYPES = {str: pa.string(), int: pa.int32(), float: pa.float32(), bool: pa.bool_(), Box: BOX, Point: POINT}
_NULLABLE = {"score", "box_after", "finish_reason", "chosen_finish_reason", "rejected_finish_reason"}
_NULLABLE |= {"license", "source_url", "askable"}
ADDED = {"license": None, "source_url": None, "split": "train", "askable": None}
"""Columns that tables of an earlier version with the same format lack, with the value that they are read as."""
SPANS = ("spans", "chosen_spans", "rejected_spans")
"""Columns of spans. Tables of an earlier version lack their field ``points`` (`with_points`)."""
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


def with_points(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column of spans in their type ``kind``; spans of an earlier version, which have no ``points``, get none."""
    if column.type == kind or not pa.types.is_list(column.type) or not pa.types.is_struct(column.type.value_type):
        return column
    old, new = column.type.value_type, kind.value_type
    if "points" in old.names or [*old] != [field for field in new if field.name != "points"]:
        return column
    chunks = []
    for lists in column.chunks:
        spans = lists.flatten()
        none = pa.ListArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), len(spans) + 1), pa.array([], POINT))
        children = [spans.field(name) if name != "points" else none.cast(new.field(name).type) for name in new.names]
        structs = pa.StructArray.from_arrays(children, fields=[*new])
        offsets = pc.subtract(lists.offsets, lists.offsets[0])
        chunks.append(pa.ListArray.from_arrays(offsets, structs, type=kind))
    return pa.chunked_array(chunks, kind)


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
