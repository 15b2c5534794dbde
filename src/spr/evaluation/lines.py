"""Readers of JSON-lines annotation files, checked against a type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from spr.core.errors import InputError
from spr.evaluation.predictions import as_id

Row = TypeVar("Row")


def read_bytes(path: Path, expected: str) -> bytes:
    """The content of an annotations file.

    Args:
        path: The file.
        expected: What the file should contain, for the error message.

    Raises:
        InputError: if the file can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else error
        raise InputError(f"Annotations {path} can't be read", got=got, expected=expected) from None


def read_lines(path: Path, row: type[Row], expected: str, data: bytes | None = None) -> list[Row]:
    """Read a JSON-lines file; empty lines are skipped.

    Args:
        path: The file.
        row: The type of a line; unknown fields are ignored.
        expected: An example of a line, for error messages.
        data: The content of the file, if it has been read.

    Raises:
        InputError: if the file can't be read or has no lines, or naming the line and field that do not fit the type.
    """
    data = read_bytes(path, expected) if data is None else data
    decoder = msgspec.json.Decoder(row)
    rows = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line and not line.isspace():
            try:
                rows.append(decoder.decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise InputError(f"Line {number} of {path} is not valid", got=error, expected=expected) from None
    if not rows:
        raise InputError(f"{path} is empty", got="no lines", expected=expected)
    return rows


def unique_ids(path: Path, field: str, values: Sequence[object]) -> tuple[str, ...]:
    """The rows' ids as text; the rows' numbers, counted from 0, where no row has an id.

    Args:
        path: The file that the rows come from, for error messages.
        field: The name of the id field, for error messages.
        values: The id of each row, None where it has none.

    Raises:
        InputError: if only some rows have an id, an id is neither text nor a whole number, or an id is repeated.
    """
    if all(value is None for value in values):
        return tuple(map(str, range(len(values))))
    ids: dict[str, None] = {}
    for number, value in enumerate(values):
        name = as_id(value)
        if name is None or name in ids:
            expected = "a text or a whole number, different in each row"
            raise InputError(f"`{field}` of row {number} of {path} is not valid", got=repr(value), expected=expected)
        ids[name] = None
    return tuple(ids)
