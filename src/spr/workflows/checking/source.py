"""Opens a data file of any kind: a JSON object, a JSON list, JSON lines or Parquet, and yields its rows in blocks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import msgspec

from spr.annotations.json_stream import JsonStream
from spr.core.errors import InputError
from spr.core.remote import RemotePath
from spr.core.text_input import TextInput

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Kind: TypeAlias = Literal["object", "list", "lines", "parquet"]
"""How a file holds its rows: a JSON object with lists, a JSON list, JSON lines, or Parquet."""

EXPECTED = "a JSON file, JSON lines or a Parquet file of grounding data"
FIX = "give the file that the trainer reads"
WORDS: dict[Kind, str] = {"object": "", "list": "row", "lines": "line", "parquet": "row"}
"""What a row is called in the place that is shown to people."""

_BLOCK = 2**20
_START = 64 * 1024
_PARQUET_ROWS = 256
_DECODE = msgspec.json.Decoder().decode
_OBJECT_KEYS = ("annotations", "categories", "info", "licenses")
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class RawRow(NamedTuple):
    """A row of a file as it is stored.

    Attributes:
        number: Its line or its place in the list, from 1.
        value: The decoded row; None if it can't be decoded.
        problem: Why it can't be decoded.
    """

    number: int
    value: Any
    problem: str = ""


def kind_of(path: Path) -> Kind:
    """How a file holds its rows.

    Raises:
        InputError: if it can't be read, is a folder, or is empty.
    """
    if _is_parquet(path):
        return "parquet"
    with open_text(path) as file:
        start = io.BufferedReader(file, _START).read(_START)
    text = start.lstrip()
    if not text:
        raise InputError(f"Data file {path} is empty", got="no rows", expected=EXPECTED, fix=FIX)
    if text.startswith(b"["):
        return "list"
    if not text.startswith(b"{"):
        return "lines"
    line, newline, rest = text.partition(b"\n")
    if newline or len(start) < _START:
        row = _decoded(line)
        if isinstance(row, dict):
            return "object" if not rest.strip() and "annotations" in row else "lines"
        if line.rstrip().endswith(b"}") and rest.lstrip().startswith(b"{"):
            return "lines"
        return "object"
    return _kind_of_long_line(path)


def _kind_of_long_line(path: Path) -> Kind:
    with JsonStream(path, what="Data file", expected=EXPECTED, fix=FIX) as stream:
        for member in stream.members():
            if member in _OBJECT_KEYS:
                return "object"
            if member in ("messages", "conversations", "prompt"):
                return "lines"
    return "object"


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except FileNotFoundError:
        raise InputError(f"Data file {path} can't be read", got="no such file", expected=EXPECTED, fix=FIX) from None
    except IsADirectoryError:
        fix = "give one file; for several, check each"
        raise InputError(f"Data file {path} can't be read", got="a folder", expected=EXPECTED, fix=fix) from None
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or error
        raise InputError(f"Data file {path} can't be read", got=got, expected=EXPECTED, fix=FIX) from None


def open_text(path: Path) -> TextInput:
    """A data file as text, unpacked if it is gzip."""
    return TextInput(path, f"Data file {path}", expected=EXPECTED, fix=FIX)


def raw_rows(path: Path, kind: Kind) -> Iterator[list[RawRow]]:
    """The rows of a file that is a list, JSON lines or Parquet, in blocks, in the order of the file.

    Raises:
        InputError: if a JSON list is truncated or is not JSON, naming the byte and the last whole row; if a Parquet
            file is damaged.
    """
    if kind == "lines":
        return _lines(path)
    return _parquet(path) if kind == "parquet" else _list(path)


def _lines(path: Path) -> Iterator[list[RawRow]]:
    number, pieces = 1, list[bytes]()
    with open_text(path) as file:
        while data := file.read(_BLOCK):
            first, newline, others = data.partition(b"\n")
            pieces.append(first)
            if newline:
                lines = [b"".join(pieces), *others.split(b"\n")]
                pieces = [lines.pop()]
                yield _decode_lines(lines, number)
                number += len(lines)
    last = b"".join(pieces)
    if last.strip():
        yield _decode_lines([last], number)


def _decode_lines(lines: list[bytes], first: int) -> list[RawRow]:
    try:
        return [RawRow(first + k, _DECODE(line)) for k, line in enumerate(lines)]
    except _UNREADABLE:
        pass
    rows = []
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        row = _decoded(line)
        rows.append(RawRow(number, row) if not isinstance(row, Exception) else RawRow(number, None, str(row)))
    return rows


def _decoded(line: bytes) -> Any:
    """A line as a value, or the exception that says why it is none; NaN and lone surrogates are read."""
    try:
        return _DECODE(line)
    except _UNREADABLE:
        pass
    try:
        return json.loads(line.decode("utf-8", "surrogateescape"), strict=False)
    except (ValueError, RecursionError) as error:
        return error


def _list(path: Path) -> Iterator[list[RawRow]]:
    number = 0
    with JsonStream(path, what="Data file", expected=EXPECTED, fix=FIX) as stream:
        try:
            for values in stream.elements(decode_list, list):
                yield [RawRow(number + k, value) for k, value in enumerate(values, start=1)]
                number += len(values)
        except InputError as error:
            error.add_note(f"  after:    row {number:,}" if number else "  after:    no whole row")
            raise


def decode_list(block: memoryview) -> list[Any] | None:
    """A JSON list, or None if it is not valid."""
    try:
        values: list[Any] = _DECODE(block)
    except _UNREADABLE:
        return None
    return values


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file, which is read into memory if it is in an object store."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(path.read_bytes()) if isinstance(path, RemotePath) else path)


def _parquet(path: Path) -> Iterator[list[RawRow]]:
    import pyarrow as pa

    number = 0
    try:
        file = open_parquet(path)
        for batch in file.iter_batches(_PARQUET_ROWS):
            values = batch.to_pylist()
            yield [RawRow(number + k, value) for k, value in enumerate(values, start=1)]
            number += len(values)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"Data file {path} is not a readable Parquet file", got=error, expected=EXPECTED) from None
