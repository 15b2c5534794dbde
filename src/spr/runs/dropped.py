"""`RUN/dropped.parquet`: what all stages dropped, in one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from spr.records.schemas import DROPPED
from spr.core.atomic import atomic_file
from spr.runs.store import StageStore, unreadable

ROWS_AT_ONCE = 2**18
"""A large dataset drops millions; these many are in memory, some 20 MB."""


def merge_dropped(run: Path, stages: Iterable[str]) -> int:
    """Write ``RUN/dropped.parquet`` from all stages' drops, in order, a part at a time; returns the number of rows.

    Raises:
        RunError: if a stage's drops can't be read, or the file not be written.
    """
    stores = [StageStore(run / stage) for stage in stages]
    files = [path for store in stores if (manifest := store.manifest()) for path in store.dropped_files(manifest)]
    count = 0
    path = run / "dropped.parquet"
    with atomic_file(path) as file, pq.ParquetWriter(file, DROPPED, compression="zstd") as writer:
        for table in _even(batch for path in files for batch in _batches(path)):
            writer.write_table(table)
            count += len(table)
    return count


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(ROWS_AT_ONCE)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def _even(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of `ROWS_AT_ONCE`, the last of what is left: how the rows came must not show in the file."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= ROWS_AT_ONCE:
            table = pa.Table.from_batches(waiting, DROPPED)
            yield table.slice(0, ROWS_AT_ONCE).combine_chunks()
            waiting = table.slice(ROWS_AT_ONCE).to_batches()
    yield pa.Table.from_batches(waiting, DROPPED).combine_chunks()
