"""The output of a stage on disk: Parquet shards, written atomically, and a manifest that lists the finished ones.

A shard is written under a temporary name, synced and renamed; then its entry is added to ``manifest.json``. A file
without an entry is unfinished, and a file whose checksum differs from its entry is damaged: both are computed again.
In object storage, a shard is put as a whole, and the manifest only if it is still the one that this process read or
wrote: a process that another one has replaced can't undo its work.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from spr.core import FORMAT_VERSION
from spr.core.atomic import has_sha256, is_temporary, sha256, write_atomically
from spr.core.documents import parse_json, read_json
from spr.core.errors import RunError
from spr.core.locks import check_held
from spr.core.ordered_map import ordered_map
from spr.core.progress import advance
from spr.core.remote import ConflictError, NoConditionsError, RemotePath, Version
from spr.core.terminal import count_text
from spr.records.schemas import (
    ADDED,
    CANDIDATES,
    DROPPED,
    NEGATIVES,
    OBJECTS,
    PAIRS,
    REGIONS,
    SCORES,
    SPANS,
    with_points,
)

MANIFEST = "manifest.json"
_SCHEMAS = {"objects": OBJECTS, "regions": REGIONS, "candidates": CANDIDATES, "scores": SCORES, "pairs": PAIRS}
STAGE_ORDER = tuple(_SCHEMAS)
"""The built-in stages that every complete run has, in the order of the data."""
_SCHEMAS["negatives"] = NEGATIVES  # only with `pairing.negatives`
_SHARD = re.compile(r"(part|dropped)-\d{5,}\.parquet")
_UNCHANGED: set[tuple[str, int, int, str]] = set()
"""Path, size, modification time and SHA-256 of the shards that this process has found unchanged."""
_UNFINISHED = re.compile(r"unfinished-\d{5,}\.jsonl")


class StageOutput(NamedTuple):
    """The rows that a stage computed for a shard, and what it dropped (schema `spr.records.schemas.DROPPED`).

    ``notes`` counts what the user should know besides the drops. ``examples`` describes one case of a note or of a
    ``"<kind>: <reason>"``.
    """

    table: pa.Table
    dropped: pa.Table
    notes: Mapping[str, int] = MappingProxyType({})
    examples: Mapping[str, str] = MappingProxyType({})


def dropped_table(
    stage: str, kind: str, drops: Iterable[tuple[str, str]], file_names: Iterable[str | None] | None = None
) -> pa.Table:
    """A table (schema `spr.records.schemas.DROPPED`) of ``(id, reason)`` pairs that a stage dropped.

    ``kind`` is what the ids identify: "image", "object", "query" or "candidate". Stages that read the table `objects`
    may leave out the ``file_names`` of the images: they are looked up by the ids.
    """
    ids, reasons = zip(*drops, strict=True) if (drops := list(drops)) else ((), ())
    names = None if file_names is None else pa.array(file_names, pa.string())
    return dropped_columns(stage, kind, pa.array(ids, pa.string()), pa.array(reasons, pa.string()), names)


def dropped_columns(
    stage: str, kind: str, ids: pa.Array, reasons: pa.Array | str, file_names: pa.Array | None = None
) -> pa.Table:
    """Like `dropped_table`, from Arrow columns, for millions of drops; a single reason applies to all ids."""
    count = len(ids)
    reasons = pa.repeat(pa.scalar(reasons), count) if isinstance(reasons, str) else reasons
    file_names = pa.nulls(count, pa.string()) if file_names is None else file_names
    columns = [ids, pa.repeat(pa.scalar(kind), count), pa.repeat(pa.scalar(stage), count), reasons, file_names]
    return pa.table(columns, schema=DROPPED)


def count_reasons(dropped: pa.Table) -> dict[str, int]:
    """The number of drops per ``"<kind>: <reason>"``, sorted by kind and reason."""
    if not len(dropped):
        return {}
    counted = dropped.group_by(["kind", "reason"]).aggregate([([], "count_all")]).to_pylist()
    counted.sort(key=lambda row: (row["kind"], row["reason"]))
    return {f"{row['kind']}: {row['reason']}": row["count_all"] for row in counted}


def reasons_sorted(dropped: Mapping[str, int]) -> list[tuple[str, int]]:
    """Drop reasons with their counts, the most frequent first."""
    return sorted(dropped.items(), key=lambda item: (-item[1], item[0]))


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard, by its number from 0.

    ``inputs`` counts the input rows that it was computed from, and ``source`` identifies them: the sha256 of the input
    shards, empty for a first stage. ``sha256`` and ``dropped_sha256`` are those of the files of rows and drops;
    ``dropped`` counts the drops per ``"<kind>: <reason>"``; for ``notes`` and ``examples`` see `StageOutput`.
    """

    index: int
    inputs: int
    rows: int
    source: str
    sha256: str
    dropped_sha256: str
    dropped: Mapping[str, int]
    notes: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = (self.index, self.inputs, self.rows, *_counts(self.dropped).values(), *_counts(self.notes).values())
        if not isinstance(self.examples, Mapping):
            raise ValueError("the examples of a shard's entry are not an object")
        texts = (self.source, self.sha256, self.dropped_sha256, *self.examples.values())
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers) or not _are_texts(texts):
            raise ValueError("a shard's entry has a wrong value")


def _counts(value: object) -> dict[str, int]:
    if not isinstance(value, Mapping) or not all(type(number) is int for number in value.values()):
        raise ValueError("not an object with numbers")
    return dict(value)


def _are_texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


@dataclass(slots=True)
class Manifest:
    """What a stage has finished, and what its rows depend on.

    ``fingerprint`` is a hash of everything that determines the rows: config, inputs, the stage's version. ``shards``
    are sorted; until the stage is ``complete``, some may be missing. ``source``, of a first stage, has ``counts`` of
    what it read and the drops made before sharding. ``inputs`` are the stages that it reads; ``sections`` the config
    fields and sections that its rows depend on, besides those that its inputs depend on. ``weights`` identify the
    models that were in folders, by config field.
    """

    stage: str
    fingerprint: str
    shards: list[ShardEntry] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    inputs: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    weights: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.source, Mapping):
            raise ValueError("the source is not an object")
        if not isinstance(self.weights, Mapping) or not _are_texts(self.weights.values()):
            raise ValueError("the weights are not an object with texts")
        texts = (self.stage, self.fingerprint, *self.inputs, *self.sections, self.source.get("dropped_sha256", ""))
        indices = [shard.index for shard in self.shards]
        if not _are_texts(texts) or type(self.complete) is not bool or indices != sorted(set(indices)):
            raise ValueError("a field has a wrong value")
        for name in ("counts", "dropped", "totals"):
            _counts(self.source.get(name, {}))

    @property
    def rows(self) -> int:
        """Number of rows in all finished shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def dropped(self) -> dict[str, int]:
        """Number of drops so far, per ``"<kind>: <reason>"``."""
        total: Counter[str] = Counter(self.source.get("dropped", {}))
        for shard in self.shards:
            total.update(shard.dropped)
        return dict(sorted(total.items()))

    @property
    def notes(self) -> dict[str, int]:
        """The notes of all finished shards, added up."""
        total: Counter[str] = Counter()
        for shard in self.shards:
            total.update(shard.notes)
        return dict(total)

    @property
    def examples(self) -> dict[str, str]:
        """The first example of each note and drop reason."""
        return {key: text for shard in reversed(self.shards) for key, text in shard.examples.items()}


class StageStore:
    """The folder of a stage's output, ``RUN/<stage>``; created when the first shard is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._version: Version | None = None  # of the manifest in object storage, as this process read or wrote it

    def part(self, index: int) -> Path:
        """The file of a shard's rows."""
        return self.folder / f"part-{index:05d}.parquet"

    def drops(self, index: int) -> Path:
        """The file of a shard's drops."""
        return self.folder / f"dropped-{index:05d}.parquet"

    def unfinished(self, index: int) -> Path:
        """The file in which a stage may keep partial results of a shard that is not finished."""
        return self.folder / f"unfinished-{index:05d}.jsonl"

    def delete_unfinished(self) -> None:
        """Delete the partial results of all shards, once all are finished."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if _UNFINISHED.fullmatch(path.name):
                path.unlink(missing_ok=True)

    @property
    def source_drops(self) -> Path:
        """The file of what was dropped before sharding."""
        return self.folder / "dropped-source.parquet"

    def manifest(self) -> Manifest | None:
        """The manifest, or None if the stage has not begun.

        Raises:
            RunError: if another version of SPR wrote it, or it can't be read. It is written atomically, so then a
                person or another program has changed it.
        """
        path = self.folder / MANIFEST
        try:
            if isinstance(path, RemotePath):
                data, info = path.read()
                self._version = info.version
            else:
                data = path.read_bytes()
            raw = parse_json(data.decode("utf-8"))
            version = 1 if "format" in raw else raw["format_version"]
            if version != FORMAT_VERSION:
                raise version_error(self.folder.parent, version)
            entries = [ShardEntry(**entry) for entry in raw["shards"]]
            if not isinstance(raw["source"], dict):
                raise ValueError("`source` is not an object")
            inputs, sections = tuple(raw["inputs"]), tuple(raw["sections"])
            head = raw["stage"], raw["fingerprint"], entries, raw["source"], raw["complete"]
            return Manifest(*head, inputs, sections, raw.get("weights", {}))
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            fix = f"restore it, or choose another --out with --reuse {self.folder.parent}, or delete {self.folder}"
            raise RunError(f"{path} is damaged", got=error, expected="the manifest that SPR wrote", fix=fix) from None

    def save(self, manifest: Manifest) -> None:
        """Write the manifest atomically.

        Raises:
            RunError: if it can't be written; in object storage, also if another process has written it since `manifest`
                or `save` of this object, or this process has lost the run's lock.
        """
        head = {
            "format_version": FORMAT_VERSION,
            "stage": manifest.stage,
            "fingerprint": manifest.fingerprint,
            "inputs": manifest.inputs,
            "sections": manifest.sections,
            "complete": manifest.complete,
            "rows": manifest.rows,
            "source": manifest.source,
            "weights": manifest.weights,
        }
        # One line per shard: readable, and fast to write even for thousands of shards.
        shards = ",\n".join(json.dumps(vars(shard)) for shard in manifest.shards)
        text = json.dumps(head).removesuffix("}") + ', "shards": [\n' + shards + "\n]}\n"
        path = self.folder / MANIFEST
        if not isinstance(path, RemotePath):
            write_atomically(path, text.encode())
            return
        check_held(path)
        try:
            self._version = path.put(text.encode(), only="new" if self._version is None else self._version)
        except ConflictError as error:
            fix = f"see that nothing else uses {self.folder.parent}, then run the same command again: it resumes"
            got = "nothing was overwritten"
            raise RunError(f"{error.what} while this process wrote the stage", got=got, fix=fix) from None
        except NoConditionsError:
            self._version = path.put(text.encode())

    def write_shard(self, index: int, output: StageOutput, *, inputs: int, source: str = "") -> ShardEntry:
        """Write a shard's two files; the caller adds the entry to the manifest."""
        rows = write_table(self.part(index), output.table)
        drops = write_table(self.drops(index), output.dropped)
        counts = count_reasons(output.dropped), dict(output.notes), dict(output.examples)
        return ShardEntry(index, inputs, len(output.table), source, rows, drops, *counts)

    def valid_shards(self, manifest: Manifest) -> list[ShardEntry]:
        """The entries whose files are present and unchanged."""
        kept = []
        for shard, valid in ordered_map(self._is_valid, manifest.shards):
            kept += [shard] if valid else []
            advance()
        return kept

    def _is_valid(self, shard: ShardEntry) -> bool:
        files = {self.part(shard.index): shard.sha256, self.drops(shard.index): shard.dropped_sha256}
        return all(has_sha256(path, expected) for path, expected in files.items())

    def sweep(self, manifest: Manifest) -> None:
        """Remove temporary files, and shards that the manifest doesn't list. Other files are left alone.

        Objects that a store does not list yet are left, which is harmless: their shards are written over them.
        """
        listed = {path.name for shard in manifest.shards for path in (self.part(shard.index), self.drops(shard.index))}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            ours = is_temporary(path) or _SHARD.fullmatch(path.name)
            if ours and path.name not in listed and not path.is_dir():
                path.unlink(missing_ok=True)

    def finished(self) -> Manifest:
        """The manifest of a finished stage.

        Raises:
            RunError: if the stage is not finished.
        """
        manifest = self.manifest()
        if manifest is None or not manifest.complete:
            got = (
                "no manifest"
                if manifest is None
                else f"{count_text(len(manifest.shards), 'shards')} of an unfinished stage"
            )
            fix = f"spr run CONFIG --out {self.folder.parent} --until {self.folder.name}"
            raise RunError(f"{self.folder} does not hold a finished stage", got=got, fix=fix)
        return manifest

    def tables(self) -> Iterator[pa.Table]:
        """The tables of a finished stage's shards, in order, one in memory at a time.

        Raises:
            RunError: if the stage is not finished, or a shard is damaged.
        """
        for shard in self.finished().shards:
            yield self.read(shard)

    def read(self, shard: ShardEntry, columns: Sequence[str] | None = None) -> pa.Table:
        """The table of a shard, or some of its columns.

        Raises:
            RunError: if the file is missing, or is not the one that was written.
        """
        path, schema = self.part(shard.index), _SCHEMAS.get(self.folder.name)
        try:
            if isinstance(path, RemotePath):  # in one request
                data = path.read_bytes()
                if hashlib.sha256(data).hexdigest() != shard.sha256:
                    raise unreadable(path, ValueError("it has changed since it was written"))
                return _with_columns(_parse(path, pa.BufferReader(data), columns, schema), path, columns, schema)
            stat = path.stat()
            key = str(path.absolute()), stat.st_size, stat.st_mtime_ns, shard.sha256
            if key not in _UNCHANGED:
                if sha256(path) != shard.sha256:
                    raise unreadable(path, ValueError("it has changed since it was written"))
                _UNCHANGED.add(key)
        except OSError as error:
            raise unreadable(path, error) from None
        return _with_columns(read_table(path, columns, schema), path, columns, schema)

    def dropped_files(self, manifest: Manifest) -> list[Path]:
        """The files of what this stage dropped, in order, without those that are empty, missing or damaged."""
        files: dict[Path, str] = {self.source_drops: manifest.source.get("dropped_sha256", "")}
        files |= {self.drops(shard.index): shard.dropped_sha256 for shard in manifest.shards if shard.dropped}
        checked = ordered_map(lambda item: bool(item[1]) and has_sha256(*item), files.items())
        return [path for (path, _), unchanged in checked if unchanged]


def stage_folders(run: Path) -> list[Path]:
    """The folders of a run's stages that have begun, by name; folders with another program's manifest are no stages.

    In object storage, stages that SPR has and those in the run's log are found although listings lag.
    """
    if isinstance(run, RemotePath):
        names = sorted({*STAGE_ORDER, *_logged_stages(run), *(path.parent.name for path in run.glob(f"*/{MANIFEST}"))})
        return [run / name for name in names if is_manifest(run / name / MANIFEST)]
    folders = [path.parent for path in sorted(run.glob(f"*/{MANIFEST}"))]
    return [folder for folder in folders if folder.name in STAGE_ORDER or is_manifest(folder / MANIFEST)]


def _logged_stages(run: Path) -> set[str]:
    """The stages that the run's log says have started."""
    try:
        lines = (run / "log.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return set()
    names = set()
    for line in lines:
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "stage started":
            names.add(str(event.get("stage")))
    return {name for name in names if re.fullmatch(r"[\w-]+", name)}


def is_manifest(path: Path) -> bool:
    """Whether SPR wrote a manifest, in whatever version."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("stage") == path.parent.name and "fingerprint" in content


def version_error(run: Path, version: object) -> RunError:
    """The error for a run folder of another format version."""
    if version == 1:
        fix = "use SPR 0.1 for this folder, or choose another --out to make a new run"
        return RunError(f"{run} was made by SPR 0.1, whose folders this version can't use", fix=fix)
    fix = "use the SPR version that made it, or choose another --out"
    return RunError(f"{run} was made by another version of SPR", got=version, expected=FORMAT_VERSION, fix=fix)


def read_table(path: Path, columns: Sequence[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns, as a table.

    With the ``schema`` of its stage, columns that earlier versions did not write (`ADDED`, and the points of
    spans) are filled in; with `DROPPED`, the file names.

    Raises:
        RunError: if it is missing or damaged.
    """
    try:
        source = pa.BufferReader(path.read_bytes()) if isinstance(path, RemotePath) else path
    except OSError as error:
        raise unreadable(path, error) from None
    return _parse(path, source, columns, schema)


def _parse(path: Path, source: Any, columns: Sequence[str] | None, schema: pa.Schema | None) -> pa.Table:
    """`read_table` from an open file or a path; ``path`` names it in errors."""
    try:
        # Not `pq.read_table`, which imports pyarrow.dataset and, where it is installed, pandas.
        with pq.ParquetFile(source) as file:
            table = file.read(columns=columns)
        for field in schema or ():
            added = field.name in ADDED or (schema is DROPPED and field.nullable)
            if added and (columns is None or field.name in columns) and field.name not in table.column_names:
                values = pa.repeat(pa.scalar(ADDED.get(field.name), field.type), len(table))
                table = table.append_column(field, values)
        for field in schema or ():
            if field.name in SPANS and field.name in table.column_names:
                place = table.column_names.index(field.name)
                table = table.set_column(place, field, with_points(table[field.name], field.type))
        if columns is not None:
            table = table.select(columns)
        table.validate(full=True)
        return table
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def _with_columns(table: pa.Table, path: Path, columns: Sequence[str] | None, schema: pa.Schema | None) -> pa.Table:
    """The table; a `RunError` if a column of its stage's schema is missing or has another type."""
    wanted = [] if schema is None else [schema.field(name) for name in columns or schema.names]
    if [field for field in wanted if field not in list(table.schema)]:
        raise unreadable(path, ValueError(f"its columns are {', '.join(table.column_names)}"))
    return table


def unreadable(path: Path, error: Exception) -> RunError:
    """The error for a Parquet file that is missing or damaged."""
    fix = "repeat the command that made the run folder; it computes damaged shards again"
    return RunError(f"{path} can't be read", got=error, expected="a Parquet file", fix=fix)


def write_table(path: Path, table: pa.Table) -> str:
    """Write a table atomically and return the file's sha256. Equal rows give equal bytes."""
    # One chunk: how a table was put together must not affect its file.
    table = table.combine_chunks() if len(table) else table.schema.empty_table()
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_index=False)
    buffer = sink.getvalue()
    write_atomically(path, buffer)
    return hashlib.sha256(buffer).hexdigest()
