"""Rows as JSON texts in a file, written one after another: as JSON Lines, or as one list."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from spr.core.errors import RunError
from spr.exports.rows import ExportRow

_LAYOUT = {"lines": ("", "\n", "\n"), "list": ("[\n", ",\n", "\n]\n")}


class JsonWriter:
    """A `spr.exports.rows.Writer` of JSON.

    Args:
        path: The file.
        row: What a row becomes.
        layout: ``lines``: a text a line; ``list``: one JSON list, a line each.
    """

    def __init__(
        self, path: Path, row: Callable[[ExportRow], dict[str, Any]], layout: Literal["lines", "list"] = "lines"
    ) -> None:
        self._row, self._path = row, path
        self._before, self._between, self._after = _LAYOUT[layout]
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, rows: Sequence[ExportRow]) -> None:
        """Append rows."""
        try:
            for row in rows:
                self._file.write(self._before + json.dumps(self._row(row), ensure_ascii=False))
                self._before = self._between
        except OSError as error:
            raise RunError(f"{self._path.parent} can't be written", got=error, fix="make room") from None

    def close(self) -> None:
        """Finish the file."""
        try:
            with self._file as file:
                file.write(self._after)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{self._path.parent} can't be written", got=error, fix="make room") from None

    def abandon(self) -> None:
        """Let go of the file."""
        self._file.close()
