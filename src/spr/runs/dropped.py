"""``RUN/dropped.parquet``: what all stages dropped, in one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from spr.core.atomic import atomic_file
from spr.records.schemas import DROPPED
from spr.runs.store import StageStore, unreadable

ROWS_AT_ONCE = 2**18
"""Rows in memory at a time, about 20 MB: a large dataset drops millions."""


def merge_dropped(run: Path, stages: Iterable[str], *, rows_at_once: int = ROWS_AT_ONCE) -> int:
    """Write ``RUN/dropped.parquet`` from the drops of all stages, in order, and return the number of rows.

    Stages that have not begun are skipped, and so are damaged files: their stage computes them again when its turn
    comes. ``rows_at_once`` rows are in memory at a time, and in a row group.

    Raises:
        RunError: if the file can't be written, or a stage was made by another version.
    """
    stores = [StageStore(run / stage) for stage in stages]
    files = [path for store in stores if (manifest := store.manifest()) for path in store.dropped_files(manifest)]
    count = 0
    path = run / "dropped.parquet"
    with atomic_file(path) as file, pq.ParquetWriter(file, DROPPED, compression="zstd") as writer:
        for table in _even((batch for path in files for batch in _batches(path, rows_at_once)), rows_at_once):
            writer.write_table(table)
            count += len(table)
    return count


def _batches(path: Path, rows_at_once: int) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(rows_at_once)
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
