"""The Arrow schemas of the tables in a run folder; their columns are the fields of `spr.records.records`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import pyarrow as pa

from spr.core.errors import RecordError
from spr.records.records import Candidate, ImageObjects, PreferencePair, RegionQuery, Scores
from spr.records.row import Row

BOX = pa.list_(pa.field("element", pa.float32(), nullable=False), 4)

_OBJECT = {"id": pa.string(), "category": pa.string(), "box": BOX, "source": pa.string(), "score": pa.float32()}
_IMAGE = {"image_id": pa.string(), "file_name": pa.string(), "width": pa.int32(), "height": pa.int32()}
_NULLABLE = {"score", "box_after"}


def _fields(columns: dict[str, pa.DataType]) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=name in _NULLABLE) for name, kind in columns.items()]


def _structs(columns: dict[str, pa.DataType]) -> pa.DataType:
    return pa.list_(pa.field("element", pa.struct(_fields(columns)), nullable=False))


def _schema(columns: dict[str, pa.DataType]) -> pa.Schema:
    return pa.schema(_fields(columns))


_SPANS = _structs(
    {
        "phrase": pa.string(),
        "start": pa.int32(),
        "end": pa.int32(),
        "boxes": pa.list_(pa.field("element", BOX, nullable=False)),
    }
)

OBJECTS = _schema({**_IMAGE, "objects": _structs(_OBJECT)})
REGIONS = _schema(
    {
        "query_id": pa.string(),
        **_IMAGE,
        "region": BOX,
        "start_object": pa.string(),
        "objects": _structs(
            {
                "id": pa.string(),
                "category": pa.string(),
                "box": BOX,
                "inside": pa.bool_(),
                "source": pa.string(),
                "score": pa.float32(),
            }
        ),
    }
)
CANDIDATES = _schema(
    {
        "candidate_id": pa.string(),
        "query_id": pa.string(),
        "prompt_kind": pa.string(),
        "raw_text": pa.string(),
        "text": pa.string(),
        "plain_text": pa.string(),
        "spans": _SPANS,
        "problems": pa.list_(pa.field("element", pa.string(), nullable=False)),
        "seed": pa.int64(),
        "model": pa.string(),
        "dialect": pa.string(),
    }
)
SCORES = _schema(
    {
        "candidate_id": pa.string(),
        "query_id": pa.string(),
        "s_crop": pa.float32(),
        "s_local": pa.float32(),
        "semantic": pa.float32(),
        "localization": pa.float32(),
        "score": pa.float32(),
        "detections": _structs({"phrase": pa.string(), "box": BOX, "score": pa.float32()}),
        "matches": _structs({"object_id": pa.string(), "iou": pa.float32(), "source": pa.string()}),
    }
)
PAIRS = _schema(
    {
        "query_id": pa.string(),
        **_IMAGE,
        "region": BOX,
        "prompt": pa.string(),
        "chosen": pa.string(),
        "rejected": pa.string(),
        "chosen_spans": _SPANS,
        "rejected_spans": _SPANS,
        "chosen_candidate": pa.string(),
        "rejected_candidate": pa.string(),
        "chosen_score": pa.float32(),
        "rejected_score": pa.float32(),
        "margin": pa.float32(),
        "box_edits": _structs({"phrase": pa.string(), "box_before": BOX, "box_after": BOX, "edit": pa.string()}),
    }
)
DROPPED = _schema({"id": pa.string(), "kind": pa.string(), "stage": pa.string(), "reason": pa.string()})
"""Dropped items: the id of an image, object, query or candidate (``kind``), its stage, and the reason."""

R = TypeVar("R", bound=Row)

_SCHEMA_OF: dict[type[Row], pa.Schema] = {
    ImageObjects: OBJECTS,
    RegionQuery: REGIONS,
    Candidate: CANDIDATES,
    Scores: SCORES,
    PreferencePair: PAIRS,
}


def to_table(records: Iterable[Row], kind: type[Row]) -> pa.Table:
    """Convert records, all of type ``kind``, to a table with its schema."""
    return pa.Table.from_pylist([record.to_row() for record in records], schema=_SCHEMA_OF[kind])


def from_table(table: pa.Table, kind: type[R]) -> list[R]:
    """Convert the rows of a table to validated records.

    Raises:
        RecordError: if the table lacks a column, or a row is not a valid record.
    """
    expected = set(_SCHEMA_OF[kind].names)
    if not expected <= set(table.schema.names):
        missing = sorted(expected - set(table.schema.names))
        raise RecordError(f"table of {kind.__name__} lacks columns", got=table.schema.names, expected=missing)
    rows: list[dict[str, Any]] = table.to_pylist()
    return [kind.from_row(row) for row in rows]
