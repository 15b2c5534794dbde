"""Rows as JSON, written one after another: as JSON Lines or as one list."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

_LAYOUT = {"lines": ("", "\n", "\n"), "list": ("[\n", ",\n", "\n]\n")}


R = TypeVar("R")


class JsonWriter(Generic[R]):
    """A `spr.exports.formats.Writer` of JSON.

    Args:
        path: The file.
        row: Converts a row to a JSON object.
        layout: ``lines``: one object per line; ``list``: one JSON list.
    """

    def __init__(
        self, path: Path, row: Callable[[R], dict[str, Any]], layout: Literal["lines", "list"] = "lines"
    ) -> None:
        self._row = row
        self._before, self._between, self._after = _LAYOUT[layout]
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, rows: Sequence[R]) -> None:
        """Append rows."""
        for row in rows:
            self._file.write(self._before + json.dumps(self._row(row), ensure_ascii=False))
            self._before = self._between

    def close(self) -> None:
        """Complete the file."""
        with self._file as file:
            file.write((self._before if self._before != self._between else "") + self._after)
            file.flush()
            os.fsync(file.fileno())

    def abandon(self) -> None:
        """Close the file."""
        self._file.close()
