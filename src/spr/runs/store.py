"""A stage's output on disk: Parquet shards, written atomically, and a manifest that names the finished ones.

A shard is written to a temporary name, synced and renamed; its entry in `manifest.json` comes after. So a file without
an entry is unfinished work, and an entry whose file has another checksum is damage: both are done again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from spr.core.atomic import is_temporary, sha256, write_atomically
from spr.core.errors import RunError
from spr.records.schemas import DROPPED

MANIFEST = "manifest.json"
FORMAT = 1


class StageOutput(NamedTuple):
    """What a stage made of a shard: the rows, and what it dropped (table `spr.records.schemas.DROPPED`)."""

    table: pa.Table
    dropped: pa.Table


def dropped_table(stage: str, kind: str, drops: Iterable[tuple[str, str]]) -> pa.Table:
    """A table of dropped things from ``(id, reason)`` pairs.

    Args:
        stage: The stage that dropped them.
        kind: What the ids name: "image", "object", "query" or "candidate".
        drops: ``(id, reason)``.
    """
    ids, reasons = zip(*drops, strict=True) if (drops := list(drops)) else ((), ())
    return dropped_columns(stage, kind, pa.array(ids, pa.string()), pa.array(reasons, pa.string()))


def dropped_columns(stage: str, kind: str, ids: pa.Array, reasons: pa.Array | str) -> pa.Table:
    """The same from Arrow columns, for drops by the million."""
    count = len(ids)
    reasons = pa.repeat(pa.scalar(reasons), count) if isinstance(reasons, str) else reasons
    columns = [ids, pa.repeat(pa.scalar(kind), count), pa.repeat(pa.scalar(stage), count), reasons]
    return pa.table(columns, schema=DROPPED)


def count_reasons(dropped: pa.Table) -> dict[str, int]:
    """How many were dropped, by ``"<kind>: <reason>"``, sorted by that text."""
    if not len(dropped):
        return {}
    counted = dropped.group_by(["kind", "reason"]).aggregate([([], "count_all")]).to_pylist()
    return {f"{row['kind']}: {row['reason']}": row["count_all"] for row in sorted(counted, key=_kind_and_reason)}


def _kind_and_reason(row: dict[str, Any]) -> tuple[str, str]:
    return row["kind"], row["reason"]


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A finished shard.

    Attributes:
        index: Its number.
        inputs: The input rows that it comes from.
        rows: Its own rows.
        source: What identifies the rows that it comes from: the sha256 of its input shards; empty for a first stage.
        sha256, dropped_sha256: Of its two files.
        dropped: Its drops, counted by kind and reason.
    """

    index: int
    inputs: int
    rows: int
    source: str
    sha256: str
    dropped_sha256: str
    dropped: Mapping[str, int]


@dataclass(slots=True)
class Manifest:
    """What a stage has finished.

    Attributes:
        stage: The stage's name.
        fingerprint: Hash of all that decides the rows: config, inputs, the stage's version.
        shards: Entries, sorted by number; some may be missing until the stage is complete.
        source: What a first stage says of its input: counts, and the drops made before sharding.
        complete: Whether all shards are there.
    """

    stage: str
    fingerprint: str
    shards: list[ShardEntry] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)
    complete: bool = False

    @property
    def rows(self) -> int:
        """Rows in all finished shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def dropped(self) -> dict[str, int]:
        """What was dropped so far, by ``"<kind>: <reason>"``."""
        total: Counter[str] = Counter(self.source.get("dropped", {}))
        for shard in self.shards:
            total.update(shard.dropped)
        return dict(sorted(total.items()))


_ENTRY = tuple(item.name for item in dataclasses.fields(ShardEntry))


class StageStore:
    """The folder of a stage's output.

    Args:
        folder: ``RUN/<stage>``; made when the first shard is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def part(self, index: int) -> Path:
        """The file of a shard's rows."""
        return self.folder / f"part-{index:05d}.parquet"

    def drops(self, index: int) -> Path:
        """The file of a shard's drops."""
        return self.folder / f"dropped-{index:05d}.parquet"

    def unfinished(self, index: int) -> Path:
        """The file in which a stage may keep what it has of a shard that is not finished."""
        return self.folder / f"unfinished-{index:05d}.jsonl"

    def forget_unfinished(self) -> None:
        """Remove what was kept of unfinished shards: all are finished."""
        for path in self.folder.glob("unfinished-*.jsonl"):
            path.unlink(missing_ok=True)

    @property
    def source_drops(self) -> Path:
        """The file of what was dropped before sharding."""
        return self.folder / "dropped-source.parquet"

    def manifest(self) -> Manifest | None:
        """The manifest, or None where no stage has begun.

        Raises:
            RunError: if the manifest can't be read (it is written atomically, so a person or another program did it).
        """
        path = self.folder / MANIFEST
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            entries = [ShardEntry(**entry) for entry in raw["shards"]]
            if not isinstance(raw["source"], dict):
                raise ValueError("`source` is no object")
            if raw["format"] != FORMAT:
                raise RunError(f"{path} is of another version of SPR", got=raw["format"], expected=FORMAT)
            return Manifest(raw["stage"], raw["fingerprint"], entries, raw["source"], raw["complete"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OSError) as error:
            fix = f"delete {self.folder} to have this stage done again"
            raise RunError(f"{path} is damaged", got=error, expected="the manifest that SPR wrote", fix=fix) from None

    def save(self, manifest: Manifest) -> None:
        """Write the manifest atomically."""
        head = {
            "format": FORMAT,
            "stage": manifest.stage,
            "fingerprint": manifest.fingerprint,
            "complete": manifest.complete,
            "rows": manifest.rows,
            "source": manifest.source,
        }
        # A line a shard: to be read by people, and written fast though there may be thousands.
        shards = ",\n".join(json.dumps({name: getattr(shard, name) for name in _ENTRY}) for shard in manifest.shards)
        text = json.dumps(head).removesuffix("}") + ', "shards": [\n' + shards + "\n]}\n"
        write_atomically(self.folder / MANIFEST, text.encode())

    def write_shard(self, index: int, output: StageOutput, *, inputs: int, source: str = "") -> ShardEntry:
        """Write a shard's two files; the caller puts the entry into the manifest."""
        rows = write_table(self.part(index), output.table)
        drops = write_table(self.drops(index), output.dropped)
        return ShardEntry(index, inputs, len(output.table), source, rows, drops, count_reasons(output.dropped))

    def valid_shards(self, manifest: Manifest) -> list[ShardEntry]:
        """The entries whose files are there and unchanged."""
        return [shard for shard in manifest.shards if self._is_valid(shard)]

    def _is_valid(self, shard: ShardEntry) -> bool:
        files = {self.part(shard.index): shard.sha256, self.drops(shard.index): shard.dropped_sha256}
        return all(path.is_file() and sha256(path) == expected for path, expected in files.items())

    def sweep(self, manifest: Manifest) -> None:
        """Remove what no entry names: temporary files and shards of interrupted or superseded work."""
        named = {MANIFEST, self.source_drops.name}
        named |= {path.name for shard in manifest.shards for path in (self.part(shard.index), self.drops(shard.index))}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            ours = is_temporary(path) or path.name.startswith(("part-", "dropped-"))
            if ours and path.name not in named and not path.is_dir():
                path.unlink(missing_ok=True)

    def finished(self) -> Manifest:
        """The manifest of a finished stage.

        Raises:
            RunError: if the stage has not finished.
        """
        manifest = self.manifest()
        if manifest is None or not manifest.complete:
            got = "no manifest" if manifest is None else f"{len(manifest.shards)} shards of an unfinished stage"
            fix = f"spr run CONFIG --out {self.folder.parent} --until {self.folder.name}"
            raise RunError(f"{self.folder} holds no finished stage", got=got, fix=fix)
        return manifest

    def tables(self) -> Iterator[pa.Table]:
        """The tables of a finished stage's shards, in order, one in memory at a time.

        Raises:
            RunError: if the stage has not finished.
        """
        for shard in self.finished().shards:
            yield read_table(self.part(shard.index))

    def dropped_files(self, manifest: Manifest) -> list[Path]:
        """The files of all that this stage dropped, in order."""
        before = [self.source_drops] if self.source_drops.is_file() else []
        return before + [self.drops(shard.index) for shard in manifest.shards]


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file as a table, with all or some of its columns.

    Raises:
        RunError: if it is missing or damaged.
    """
    try:
        return pq.read_table(path, columns=columns, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> RunError:
    """What to raise where a Parquet file is missing or damaged."""
    expected = "a Parquet file; in a run folder the same command makes a damaged shard anew"
    return RunError(f"{path} can't be read", got=error, expected=expected)


def write_table(path: Path, table: pa.Table) -> str:
    """Write a table atomically and return the file's sha256. The same rows give the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(_one_chunk(table), sink, compression="zstd", write_page_index=False)
    buffer = sink.getvalue()
    write_atomically(path, buffer)
    return hashlib.sha256(buffer).hexdigest()


def _one_chunk(table: pa.Table) -> pa.Table:
    # How a table was put together must not show in its file.
    return table.combine_chunks() if len(table) else table.schema.empty_table()


def reasons_sorted(dropped: Mapping[str, int]) -> list[tuple[str, int]]:
    """Reasons with their counts, most first, for people to read."""
    return sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
