"""Benchmarks in VLMEvalKit's form: tab-separated values with a header, and images in base64."""

from __future__ import annotations

import base64
import binascii
import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from spr.core.errors import InputError
from spr.core.remote import RemotePath
from spr.core.text_input import TextInput, decode_utf8
from spr.evaluation.layouts.content import Content, converted

Row = TypeVar("Row")
Place = tuple[int, int]
"""Offset and length of a field in the file, in bytes."""

_LARGEST = 2**28  # characters of a field: an image of 200 MB
_REFERENCE = 64  # shorter "images" are the index of another row (VLMEvalKit, vlmeval/dataset/image_base.py)


class TsvContent(Content):
    """A TSV file. It may be larger than the memory: images are read from the file one by one."""

    def __init__(self, path: Path, header: str) -> None:
        super().__init__(path, ("TSV",), next(csv.reader([header], delimiter="\t")))

    def rows(self, row: type[Row], expected: str) -> list[Row]:
        """The rows; texts are read as numbers where the struct has numbers."""
        found = converted(self.path, (values for values, _ in self._read()), row, strict=False, first=1)
        if not found:
            raise InputError(f"{self.path} is empty", got="no rows", expected=expected)
        return found

    def pictures(self, column: str) -> Iterator[tuple[Place, bytes]]:
        """The images of a column; the index of an earlier row stands for that row's image."""
        of_index: dict[str, Place] = {}
        for values, lines in self._read():
            field = values[column].encode()
            place = of_index.get(values[column]) if len(field) <= _REFERENCE else None
            if place is None:
                place = next((offset + at, len(field)) for offset, line in lines if (at := line.find(field)) >= 0)
                yield place, _decoded(field)
            else:
                yield place, self.read_picture(place)
            of_index[values.get("index", "")] = place

    def read_picture(self, place: Place) -> bytes:
        """The bytes of one image."""
        offset, length = place
        if isinstance(self.path, RemotePath):
            return _decoded(self.path.read_range(offset, length))
        with self.path.open("rb") as file:
            file.seek(offset)
            return _decoded(file.read(length))

    def _is_packed(self) -> bool:
        with self.path.open("rb") as file:
            return file.read(2) == b"\x1f\x8b"

    def _read(self) -> Iterator[tuple[dict[str, str], list[tuple[int, bytes]]]]:
        """The fields of each row, and its lines with their offsets in the file."""
        with TextInput(self.path, expected="tab-separated values") as file, _long_fields():
            if file.converted or self._is_packed():
                fix = "unpack the file, or save it as UTF-8"
                raise InputError(f"{self.path} can't be read", got="a packed file or UTF-16", fix=fix)
            lines: list[tuple[int, bytes]] = []

            def decoded() -> Iterator[str]:
                offset, number = file.skipped, 0
                for line in io.BufferedReader(file, 2**20):
                    lines.append((offset, line))
                    offset, number = offset + len(line), number + 1
                    yield decode_utf8(line, str(self.path), line=number)

            reader = csv.reader(decoded(), delimiter="\t")
            try:
                for fields in reader:
                    if fields and reader.line_num > 1:
                        if len(fields) != len(self.keys):
                            what, got = f"Line {reader.line_num:,} of {self.path} is not valid", f"{len(fields)} fields"
                            raise InputError(what, got=got, expected=f"{len(self.keys)}: {', '.join(self.keys)}")
                        yield dict(zip(self.keys, fields, strict=True)), list(lines)
                    lines.clear()
            except csv.Error as error:
                raise InputError(f"Line {reader.line_num:,} of {self.path} is not valid", got=error) from None


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let fields be as long as images; the limit is one of the whole process."""
    limit = csv.field_size_limit(_LARGEST)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _decoded(field: bytes) -> bytes:
    try:
        return base64.b64decode(field, validate=False)
    except binascii.Error:
        return b""  # which `ImageSource` reports as an image that can't be read


def is_tsv(head: bytes) -> str | None:
    """The header of a TSV file, given its beginning; None if it is another text."""
    line = head.split(b"\n", 1)[0].rstrip(b"\r").decode(errors="replace")
    return line if "\t" in line and line.lstrip()[:1] not in ("{", "[") else None
