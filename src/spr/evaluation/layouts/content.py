"""What a benchmark's file holds, as far as it takes to recognise its layout: its form, and its keys or columns."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from spr.core.errors import InputError
from spr.core.image_files import ImageProblem
from spr.core.images import ImageSource
from spr.evaluation.layouts.embedded import EmbeddedImages
from spr.evaluation.lines import decode_json, read_lines
from spr.records import Size

Form: TypeAlias = Literal["Parquet", "TSV", "JSON lines", "a JSON object", "a JSON list"]
Row = TypeVar("Row")

_HEAD = 2**20
_FIRST_ROWS = 20
_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_SPACE = re.compile(rb"\s*")


class Pictures(NamedTuple):
    """The images that a file contains, and the name and size (width and height in pixels) of each row's image."""

    images: EmbeddedImages
    names: tuple[str, ...]
    sizes_wh: tuple[Size, ...]


class Content(ABC):
    """A benchmark's file.

    ``forms`` are the forms that it may have: a file with one JSON object is also one JSON line. ``keys`` are its
    columns, or the keys of its first rows; those of rows inside an object are written ``images[].caption``. ``unknown``
    are keys of an object that hold no rows, so that it is not known which keys these would have.
    """

    def __init__(self, path: Path, forms: tuple[Form, ...], keys: Iterable[str], unknown: Iterable[str] = ()) -> None:
        self.path, self.forms = path, forms
        self.keys = tuple(dict.fromkeys(keys))
        self.unknown = frozenset(unknown)

    def has(self, key: str) -> bool:
        """Whether a row has a key; also if that can't be known, because there are no rows that could have it."""
        outer, inner, _ = key.partition("[].")
        return key in self.keys or (bool(inner) and outer in self.unknown)

    @abstractmethod
    def rows(self, row: type[Row], expected: str) -> list[Row]:
        """All rows as structs of a type; other keys and columns are skipped.

        Raises:
            InputError: naming the row that does not fit, or if there are no rows.
        """

    def pictures(self, column: str) -> Iterator[tuple[Any, bytes]]:
        """The images that a column holds: where each is, for `read_picture`, and its bytes.

        Only Parquet and TSV files contain images, and only layouts of these forms ask for them.
        """
        raise NotImplementedError

    def read_picture(self, place: Any) -> bytes:
        """The bytes of one image, read when it is needed."""
        raise NotImplementedError

    def embedded(self, column: str, names: Sequence[str] | None = None) -> Pictures:
        """The images of a column, under the names of their rows. Of rows with one name, the first one's is taken.

        Args:
            column: The column of encoded images.
            names: One name per row. Without names, an image is named by its content, so that rows about the same image
                have the same name.

        Raises:
            InputError: if an image can't be read.
        """
        places: dict[str, Any] = {}
        sizes: dict[str, Size] = {}
        found: list[str] = []
        source = ImageSource(self.path.parent)
        for number, (place, data) in enumerate(self.pictures(column)):
            name = names[number] if names is not None else blake2b(data, digest_size=12).hexdigest()
            found.append(name)
            if name in places:
                continue
            places[name] = place
            try:
                sizes[name] = source.header(name, data=data)[0]
            except ImageProblem as problem:
                what = f"The `{column}` of row {number:,} of {self.path} can't be read"
                raise InputError(what, got=problem.got or problem.what, expected="an encoded image") from None
        images = EmbeddedImages(self.path, places, self.read_picture)
        return Pictures(images, tuple(found), tuple(sizes[name] for name in found))


class JsonContent(Content):
    """A JSON file: an object, a list, or one object per line. ``damaged`` is the error if it is not valid."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.data = data
        self.damaged: Exception | None = None
        forms, keys, unknown = self._describe()
        super().__init__(path, forms, keys, unknown)

    def _describe(self) -> tuple[tuple[Form, ...], list[str], list[str]]:
        if self.data[_start(self.data) :][:1] == b"[":
            return ("a JSON list",), _keys_of_rows(self.data), []
        lines = _first_lines(self.data)
        first = _values(lines[0])
        if first is not None and len(lines) > 1:
            return ("JSON lines",), [key for line in lines for key in _values(line) or ()], []
        try:
            values = first if lines[0] is self.data else None
            if values is None:
                values = msgspec.json.decode(self.data, type=dict[str, msgspec.Raw])
        except _ERRORS as error:
            self.damaged = error
            return (), [], []
        inner = {key: _keys_of_rows(memoryview(value)) for key, value in values.items()}
        keys = [*values, *(f"{key}[].{name}" for key, names in inner.items() for name in names)]
        forms: tuple[Form, ...] = ("a JSON object",) if first is None else ("a JSON object", "JSON lines")
        return forms, keys, [key for key, names in inner.items() if not names]

    def mentions(self, key: str) -> bool:
        """Whether a key occurs anywhere in the text of a file, which may be damaged."""
        return all(f'"{part}"'.encode() in self.data for part in key.split("[]."))

    def decode(self, content: type[Row], what: str, *, expected: str, fix: str | None = None) -> Row:
        """The whole object as a struct, or `InputError`."""
        return decode_json(self.data, content, what, expected=expected, fix=fix)

    def rows(self, row: type[Row], expected: str) -> list[Row]:
        """The rows of a list or of lines."""
        if "a JSON list" not in self.forms:
            return read_lines(self.path, row, expected, self.data)
        rows = decode_json(self.data, list[row], f"{self.path} is not valid", expected=expected)  # type: ignore[valid-type]
        if not rows:
            raise InputError(f"{self.path} is empty", got="no rows", expected=expected)
        return rows


def converted(path: Path, rows: Iterable[dict[str, Any]], row: type[Row], *, strict: bool, first: int) -> list[Row]:
    """Rows of a table as structs; ``strict=False`` also reads texts as numbers. ``first`` is the first row's number."""
    found = []
    for number, values in enumerate(rows, start=first):
        try:
            found.append(msgspec.convert(values, row, strict=strict))
        except msgspec.ValidationError as error:
            raise InputError(f"Row {number:,} of {path} is not valid", got=error) from None
    return found


def _start(data: bytes | memoryview) -> int:
    match = _SPACE.match(data)
    return match.end() if match is not None else 0


def _first_lines(data: bytes) -> list[bytes]:
    """The first lines that are not blank; at least one, which may be all of the data."""
    if b"\n" not in data and b"\r" not in data:
        return [data]
    head = data[:_HEAD]
    lines = head.splitlines()
    if len(data) > len(head):
        lines = lines[:-1] if len(lines) > 1 else data.splitlines()
    return [line for line in lines if line and not line.isspace()][:_FIRST_ROWS] or [data]


def _values(line: bytes) -> dict[str, msgspec.Raw] | None:
    """The keys of a line and their undecoded values; None if it is not an object."""
    try:
        return msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except _ERRORS:
        return None


def _keys_of_rows(data: bytes | memoryview) -> list[str]:
    """The keys of the first rows of a JSON list, without reading all of it; none if it has no rows that are objects."""
    start = _start(data)
    if data[start : start + 1] != b"[":
        return []
    text = bytes(data[start : start + _HEAD]).decode(errors="ignore")
    decoder, keys, position = json.JSONDecoder(), [], 1
    for _ in range(_FIRST_ROWS):
        try:
            value, position = decoder.raw_decode(text, _next(text, position))
        except (ValueError, RecursionError):
            break
        keys += list(value) if isinstance(value, dict) else []
    return list(dict.fromkeys(keys))


def _next(text: str, position: int) -> int:
    """The position of the next value of a list, after a comma and spaces."""
    while position < len(text) and (text[position].isspace() or text[position] == ","):
        position += 1
    return position
