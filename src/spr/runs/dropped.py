"""``RUN/dropped.parquet``: what all stages dropped, in one table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spr.core.atomic import atomic_file
from spr.core.paths import is_remote
from spr.records.schemas import DROPPED
from spr.runs.store import Manifest, StageStore, read_table, unreadable

ROWS_AT_ONCE = 2**18
"""Rows in memory at a time, about 20 MB: a large dataset drops millions."""


_BELOW_IMAGE = {"image": "^$", "query": "/[^/]*$", "candidate": "/[^/]*/[^/]*$", "pair": "/[^/]*(/boxes)?$"}
"""What follows the image's id in the ids of each kind."""


def merge_dropped(run: Path, stages: Iterable[str], *, rows_at_once: int = ROWS_AT_ONCE) -> int:
    """Write ``RUN/dropped.parquet`` from the drops of all stages, in order, and return the number of rows.

    Stages that have not begun are skipped, and so are damaged files: their stage computes them again when its turn
    comes. ``rows_at_once`` rows are in memory at a time, and in a row group.

    Raises:
        RunError: if the file can't be written, or a stage was made by another version.
    """
    found = [
        dropped_by(run, manifest, rows_at_once) for stage in stages if (manifest := StageStore(run / stage).manifest())
    ]
    count = 0
    path = run / "dropped.parquet"
    with atomic_file(path) as file, pq.ParquetWriter(file, DROPPED, compression="zstd") as writer:
        for table in _even((batch for drops in found for batch in drops), rows_at_once):
            writer.write_table(table)
            count += len(table)
    return count


def dropped_by(run: Path, manifest: Manifest, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[pa.RecordBatch]:
    """What a stage dropped, in order, with the schema `spr.records.schemas.DROPPED`; damaged files are left out.

    The file names that a stage after `objects` leaves out are those that the same shard of `objects` has for the images
    of the ids.

    Raises:
        RunError: if a file can't be read.
    """
    for path in StageStore(run / manifest.stage).dropped_files(manifest):
        part = run / "objects" / path.name.replace("dropped", "part")
        images = read_table(part, ["image_id", "file_name"]) if manifest.inputs and part.is_file() else None
        for batch in _batches(path, rows_at_once):
            table = pa.Table.from_batches([batch])
            if "file_name" not in table.column_names:
                table = table.append_column(DROPPED.field("file_name"), pa.nulls(len(table), pa.string()))
            if images is not None:
                table = _with_names(table, images)
            yield from table.select(DROPPED.names).cast(DROPPED).to_batches()


def _with_names(drops: pa.Table, images: pa.Table) -> pa.Table:
    names, known = drops["file_name"], images["image_id"].combine_chunks()
    for kind, below in _BELOW_IMAGE.items():
        rows = pc.index_in(pc.replace_substring_regex(drops["id"], below, ""), known)
        wanted = pc.and_(pc.equal(drops["kind"], kind), pc.is_null(names))
        names = pc.if_else(wanted, images["file_name"].take(rows), names)
    return drops.set_column(drops.column_names.index("file_name"), DROPPED.field("file_name"), names)


def _batches(path: Path, rows_at_once: int) -> Iterator[pa.RecordBatch]:
    try:
        with contextlib.ExitStack() as opened:
            source = opened.enter_context(path.open("rb")) if is_remote(path) else path
            yield from opened.enter_context(pq.ParquetFile(source)).iter_batches(rows_at_once)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def _even(batches: Iterable[pa.RecordBatch], rows_at_once: int) -> Iterator[pa.Table]:
    """Tables of ``rows_at_once`` rows and a last one with the rest: how rows were sharded must not affect the file."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= rows_at_once:
            table = pa.Table.from_batches(waiting, DROPPED)
            yield table.slice(0, rows_at_once).combine_chunks()
            waiting = table.slice(rows_at_once).to_batches()
    yield pa.Table.from_batches(waiting, DROPPED).combine_chunks()
