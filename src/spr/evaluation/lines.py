"""Question files, a JSON object a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import msgspec

from spr.core.errors import InputError
from spr.evaluation.predictions import as_id


def read_lines(path: Path, expected: str) -> list[dict[str, Any]]:
    """The objects of a file's lines; empty lines are passed over.

    Args:
        path: The file.
        expected: What a line should be, for the error.

    Raises:
        InputError: naming the line, if the file can't be read, is empty or has a line that is no object.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else error
        raise InputError(f"Annotations {path} can't be read", got=got, expected=expected) from None
    decoder = msgspec.json.Decoder(dict[str, Any])
    rows = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            try:
                rows.append(decoder.decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise InputError(f"Line {number} of {path} is wrong", got=error, expected=expected) from None
    if not rows:
        raise InputError(f"{path} is empty", got="no line", expected=expected)
    return rows


def ids_of(path: Path, rows: list[dict[str, Any]], field: str) -> tuple[str, ...]:
    """Each row's id, or its number from 0 where no row has one.

    Raises:
        InputError: for an id that is neither text nor a whole number, is lacking, or comes twice.
    """
    if not any(field in row for row in rows):
        return tuple(map(str, range(len(rows))))
    ids: dict[str, None] = {}
    for number, row in enumerate(rows):
        name = as_id(row.get(field))
        if name is None or name in ids:
            expected = "a text or a whole number, each once"
            raise InputError(f"`{field}` of row {number} of {path} is wrong", got=row.get(field), expected=expected)
        ids[name] = None
    return tuple(ids)


def wrong(path: Path, number: int, field: str, got: Any, expected: str) -> NoReturn:
    """Raise `InputError` about a field of a row."""
    raise InputError(f"`{field}` of row {number} of {path} is wrong", got=repr(got)[:80], expected=expected)
