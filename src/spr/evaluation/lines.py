"""Read JSON and JSON lines, such as annotations and predictions, and check them against a type."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from spr.core import text_input
from spr.core.errors import InputError

Content = TypeVar("Content")


def read_bytes(path: Path, expected: str, what: str = "Annotations", *, check: bool = True) -> bytes:
    """The content of a text input in UTF-8, valid if ``check``; an error says what it is and what it should contain."""
    return text_input.read_bytes(path, f"{what} {path}", check=check, expected=expected)


def decode_json(
    data: bytes, content: type[Content], what: str, *, expected: str, fix: str | None = None, strict: bool = True
) -> Content:
    """JSON as an object of the given type, or `InputError`; ``strict=False`` also reads texts as numbers."""
    try:
        return msgspec.json.decode(data, type=content, strict=strict)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(what, got=error, expected=expected, fix=fix) from None


def decode_lines(data: bytes, row: type[Content]) -> Iterator[tuple[int, Content | Exception]]:
    """The number, from 1, of each line that is not empty, and its row or the reason why it does not fit the type."""
    decode, lines = msgspec.json.Decoder(row).decode, data.splitlines()
    errors = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
    with contextlib.suppress(*errors):  # almost every file is valid throughout
        yield from enumerate(list(map(decode, lines)), start=1)
        return
    for number, line in enumerate(lines, start=1):
        if line and not line.isspace():
            try:
                yield number, decode(line)
            except errors as error:
                yield number, error


def read_lines(path: Path, row: type[Content], expected: str, data: bytes | None = None) -> list[Content]:
    """Read a JSON-lines file, or its content ``data``; empty lines and unknown fields are skipped.

    Raises `InputError` if the file can't be read or has no lines, or naming the line and field that do not fit.
    """
    rows: list[Content] = []
    for number, decoded in decode_lines(read_bytes(path, expected) if data is None else data, row):
        if isinstance(decoded, Exception):
            raise InputError(f"Line {number} of {path} is not valid", got=decoded, expected=expected)
        rows.append(decoded)
    if not rows:
        raise InputError(f"{path} is empty", got="no lines", expected=expected)
    return rows


def as_id(value: object) -> str | None:
    """An id as text: texts unchanged, whole numbers (also 7.0, as pandas writes them) as digits; None for others.

    >>> as_id(7), as_id("7"), as_id(7.0), as_id(7.5), as_id(True), as_id("")
    ('7', '7', '7', None, None, None)
    """
    if isinstance(value, str):
        return value or None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs more than once; None if all are different."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def unique_ids(path: Path, field: str, values: Sequence[object]) -> tuple[str, ...]:
    """The rows' ids as text; their numbers, from 0, if no row has an id (all ``values`` are None).

    Raises `InputError` if only some rows have an id, an id is neither text nor a whole number, or an id is repeated.
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
