"""`spr check --fix`: writes the data anew with its boxes in another dialect, and reports what happened to every row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from spr.core.atomic import atomic_file
from spr.core.errors import ConfigError, GroundingError, InputError
from spr.core.outputs import check_output
from spr.core.paths import is_remote
from spr.grounding import Dialect
from spr.workflows.checking.converter import Converter, Refused
from spr.workflows.checking.layouts import RowLayout
from spr.workflows.checking.layouts.layout import WrongRow, stated_size
from spr.workflows.checking.reading import DataFile
from spr.workflows.checking.source import RawRow, open_parquet, raw_rows

Status: TypeAlias = Literal["changed", "unchanged", "refused"]
REPORT = ".report.jsonl"
"""Suffix of the file beside the output that says what happened to each row."""


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a row.

    Attributes:
        number: The row, from 1.
        place: The row for people.
        status: ``changed``; ``unchanged``, if it has no boxes or they are already as wanted; ``refused``, if it can't
            be converted and is therefore not in the output.
        boxes: How many boxes were converted.
        reason: Why a row was refused, or has boxes but is unchanged.
        lost: Words that the dialect can't write, since it lists boxes without prose.
    """

    number: int
    place: str
    status: Status
    boxes: int = 0
    reason: str = ""
    lost: str = ""

    def to_json(self) -> dict[str, Any]:
        """The change as values of JSON."""
        shown = {"row": self.number, "place": self.place, "status": self.status, "boxes": self.boxes}
        others = {"reason": self.reason, "lost": self.lost}
        return shown | {key: value for key, value in others.items() if value}


@dataclass(frozen=True, slots=True)
class FixResult:
    """What `fix_data` did.

    Attributes:
        out, report: The files that were written.
        counts: How many rows were changed, unchanged and refused.
        boxes: How many boxes were converted.
        lost: In how many rows words were lost, since the dialect writes no prose.
        first_refused: The first rows that were refused, with the reason.
    """

    out: Path
    report: Path
    counts: Counter[str] = field(default_factory=Counter)
    boxes: int = 0
    lost: int = 0
    first_refused: tuple[str, ...] = ()


def check_out(data: Path, out: Path) -> None:
    """Raise `ConfigError` if the new file is the data file, and `RunError` if it, or its report, exists."""
    if not is_remote(out) and out.resolve() == data.resolve():
        raise ConfigError("--out is the data file", got=str(out), expected="a new file: nothing is changed in place")
    for path, what in ((out, "a new data file"), (out.with_name(out.name + REPORT), "a new report")):
        check_output(path, what, folder=False)


def fix_data(data: DataFile, source: Dialect, target: Dialect, out: Path) -> FixResult:
    """Write the data with the boxes of its texts in another dialect, in the same layout and order.

    Rows that can't be converted without a guess are left out. ``out`` + ``.report.jsonl`` has a line per row. Both
    appear only when they are complete.

    Args:
        data: The data.
        source: The dialect of its texts.
        target: The dialect to write.
        out: The new file.

    Raises:
        ConfigError: if ``out`` is the data file, or the layout has no texts.
        RunError: if ``out`` exists, or can't be written.
        InputError: if the data file is damaged, or no row could be converted.
    """
    layout, report = data.layout, out.with_name(out.name + REPORT)
    if not isinstance(layout, RowLayout):
        what, got = "--fix converts boxes in texts", f"{layout.title}, whose boxes are pixels in fields"
        raise ConfigError(what, got=got, expected="data with conversations, such as LLaVA JSON")
    check_out(data.path, out)
    counts: Counter[str] = Counter()
    boxes = lost = 0
    refused: list[str] = []
    convert = Converter(source, target)
    with atomic_file(out) as file, atomic_file(report) as lines:
        writer = _writer(data, file)
        for raw in _each(data):
            change, row = fix_row(data, layout, raw, convert)
            counts[change.status] += 1
            boxes, lost = boxes + change.boxes, lost + bool(change.lost)
            if change.status == "refused":
                refused += [f"{change.place}: {change.reason}"] if len(refused) < 5 else []
            else:
                writer.write(row)
            lines.write(_json(change.to_json()) + b"\n")
        writer.close()
        if not counts["changed"] + counts["unchanged"]:
            expected, fix = f"texts in dialect {source.spec}", "check --dialect; run without --fix to see what fits"
            got = refused[0] if refused else "no rows"
            raise InputError(f"No row of {data.path} could be converted", got=got, expected=expected, fix=fix)
    return FixResult(out, report, counts, boxes, lost, tuple(refused))


def _each(data: DataFile) -> Iterator[RawRow]:
    for block in raw_rows(data.path, data.kind):
        yield from block


def fix_row(data: DataFile, layout: RowLayout, raw: RawRow, convert: Converter) -> tuple[Change, Any]:
    """What happens to a row, and the row as it is written, for which ``raw`` is changed."""
    place = data.place(raw.number)
    if not isinstance(raw.value, dict):
        return Change(raw.number, place, "refused", reason=raw.problem or "not an object"), None
    row = raw.value
    try:
        slots = layout.slots(row)
        size = stated_size(row) or data.sizes.find(layout.image(row))
        done = [convert(slot, size) for slot in slots]
        fields = layout.boxes(row)
    except (WrongRow, Refused, GroundingError) as error:
        what = f"{error.what}: {error.got}" if isinstance(error, GroundingError) and error.got is not None else error
        return Change(raw.number, place, "refused", reason=" ".join(str(what).split())), None
    edited = [(slot, one.text) for slot, one in zip(slots, done, strict=True) if one.text != slot.text]
    for slot, text in edited:
        slot.holder[slot.key] = text
    boxes = sum(one.boxes for one in done)
    lost = " ".join(filter(None, (one.lost for one in done)))
    if edited:
        return Change(raw.number, place, "changed", boxes, lost=lost), row
    reason = "the boxes are in `objects`, which the trainer writes in the model's format" if fields else ""
    return Change(raw.number, place, "unchanged", reason=reason), row


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # lone surrogates that were escaped in the original, too
        return json.dumps(value).encode()


@dataclass(slots=True)
class _JsonWriter:
    file: IO[bytes]
    before: bytes
    between: bytes
    after: bytes
    is_first: bool = True

    def write(self, row: Any) -> None:
        self.file.write((self.before if self.is_first else self.between) + _json(row))
        self.is_first = False

    def close(self) -> None:
        self.file.write((self.before if self.is_first else b"") + self.after)


class _ParquetWriter:
    """Writes rows in the columns and with the metadata of the original file."""

    def __init__(self, data: DataFile, file: IO[bytes]) -> None:
        import pyarrow.parquet as pq

        with open_parquet(data.path) as source:
            self._schema = source.schema_arrow
        self._writer = pq.ParquetWriter(file, self._schema)
        self._rows: list[Any] = []

    def write(self, row: Any) -> None:
        self._rows.append(row)
        if len(self._rows) == 1000:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


def _writer(data: DataFile, file: IO[bytes]) -> _JsonWriter | _ParquetWriter:
    if data.kind == "parquet":
        return _ParquetWriter(data, file)
    if data.kind == "list":
        return _JsonWriter(file, b"[\n", b",\n", b"\n]\n")
    return _JsonWriter(file, b"", b"\n", b"\n")
