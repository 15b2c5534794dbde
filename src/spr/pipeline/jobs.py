"""Jobs: everything that a process needs to compute one shard of a stage, wherever it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from spr.config import Config
from spr.core.progress import counted
from spr.pipeline.stage import Stage
from spr.runs.store import ShardEntry, StageStore, read_table


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a worker process needs to compute the shard ``index`` in the stage's ``folder``."""

    stage: Stage
    config: Config
    folder: Path
    index: int
    sources: Mapping[str, Path | bytes]  # by stage name: Parquet files, or a first stage's rows in Arrow's IPC format
    inputs: int  # number of input rows
    work: int  # what the progress counts for it
    source: str = ""  # identifies the input rows, see `ShardEntry`


def run_shard(job: Job) -> ShardEntry:
    """Read a shard's inputs, process them and write its files; the caller writes the manifest."""
    tables = {
        name: pa.ipc.open_stream(source).read_all() if isinstance(source, bytes) else read_table(source)
        for name, source in job.sources.items()
    }
    store = StageStore(job.folder)
    extra = {"unfinished": store.unfinished(job.index)} if job.stage.keeps_unfinished else {}
    with counted(job.work):
        output = job.stage.process(tables, job.config, **extra)
        job.stage.check(output)
        return store.write_shard(job.index, output, inputs=job.inputs, source=job.source)


def to_ipc(table: pa.Table) -> bytes:
    """A table in Arrow's IPC format. Pickling loses the names and nullability of fields in fixed-size lists."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
