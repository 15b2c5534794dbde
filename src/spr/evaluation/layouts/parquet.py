"""Benchmarks in Parquet, also in several files, with columns of encoded images."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from spr.core.errors import InputError
from spr.core.remote import RemotePath
from spr.evaluation.layouts.content import Content, converted

Row = TypeVar("Row")
Place = tuple[int, int, int, str]
"""File, row group, row inside the group, column."""

_PART = re.compile(r"-\d+-of-\d+$")
_BATCH = 1024


class ParquetContent(Content):
    """One or more Parquet files with the same columns, such as the parts of a split.

    Raises:
        InputError: if a file can't be read, or if the files are of several splits or have different columns.
    """

    def __init__(self, path: Path, parts: Sequence[Path]) -> None:
        splits = list(dict.fromkeys(_PART.sub("", part.stem) for part in parts))
        if len(splits) > 1:
            fix = "give one file, or a folder with the files of one split"
            raise InputError(f"{path} has Parquet files of several splits", got=", ".join(splits), fix=fix)
        self._files = [_open(part) for part in parts]
        columns = [file.schema_arrow.names for file in self._files]
        for part, names in zip(parts, columns, strict=True):
            if names != columns[0]:
                got, expected = ", ".join(names), ", ".join(columns[0])
                raise InputError(f"{part} has other columns than {parts[0]}", got=got, expected=expected)
        super().__init__(path, ("Parquet",), columns[0])
        self._lock = threading.Lock()
        self._group: tuple[tuple[int, int, str], Any] | None = None

    def rows(self, row: type[Row], expected: str) -> list[Row]:
        """The rows; only the columns that the struct has are read."""
        fields = msgspec.structs.fields(cast("type[msgspec.Struct]", row))
        names = [field.encode_name for field in fields if field.encode_name in self.keys]
        found: list[Row] = []
        for file in self._files:
            for batch in file.iter_batches(_BATCH, columns=names):
                found += converted(self.path, batch.to_pylist(), row, strict=True, first=len(found))
        if not found:
            raise InputError(f"{self.path} is empty", got="no rows", expected=expected)
        return found

    def pictures(self, column: str) -> Iterator[tuple[Place, bytes]]:
        """The images of a column; one row group at a time is in memory."""
        for number, file in enumerate(self._files):
            for group in range(file.num_row_groups):
                for k, value in enumerate(self._column(number, group, column)):
                    yield (number, group, k, column), _bytes(value.as_py())

    def shapes(self, column: str) -> Iterator[tuple[Place, tuple[int, int, int] | None]]:
        """The masks of a column of lists of rows of numbers: where each row's are, and (count, height, width).

        None stands for a row without masks.
        """
        for number, file in enumerate(self._files):
            for group in range(file.num_row_groups):
                values = self._column(number, group, column)
                for k in range(len(values)):
                    yield (number, group, k, column), self._shape(values[k], column)

    def _shape(self, masks: Any, column: str) -> tuple[int, int, int] | None:
        if not masks.is_valid or not len(masks):
            return None
        try:
            return len(masks), len(masks[0]), len(masks[0][0])
        except (IndexError, TypeError):
            what = f"A mask of the column `{column}` of {self.path} is empty"
            raise InputError(what, got=masks[0], expected="rows of numbers") from None

    def read_picture(self, place: Place) -> bytes:
        """The bytes of one image."""
        return _bytes(self.read_value(place))

    def read_value(self, place: Place) -> Any:
        """A value of a column. The row group that was read last is kept, because images are needed in order."""
        number, group, k, column = place
        with self._lock:
            if self._group is None or self._group[0] != (number, group, column):
                self._group = (number, group, column), self._column(number, group, column)
            return self._group[1][k].as_py()

    def _column(self, number: int, group: int, column: str) -> Any:
        return self._files[number].read_row_group(group, columns=[column])[column]


def _open(path: Path) -> Any:
    try:
        # Not `pq.read_table`, which imports pyarrow.dataset and, where it is installed, pandas.
        return pq.ParquetFile(pa.BufferReader(path.read_bytes()) if isinstance(path, RemotePath) else path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} can't be read", got=error, expected="a complete Parquet file") from None


def _bytes(value: Any) -> bytes:
    """The bytes of an image, as a column of bytes or as the datasets library writes it: {"bytes", "path"}."""
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) else b""
