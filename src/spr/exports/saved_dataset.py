"""Rows as a `datasets.DatasetDict` on disk, as `DatasetDict.load_from_disk` reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa

from spr.exports.formats import ExportSplit

R = TypeVar("R")
_SPLITS = "dataset_dict.json"


class SavedDatasetWriter(Generic[R]):
    """A `spr.exports.formats.Writer` of Arrow files: ``train/data-00000-of-00003.arrow`` and so on, or ``test/…``.

    Each call of `write` becomes a record batch, and a new file is started once one has ``shard_bytes``. ``features``
    are those of 🤗 datasets.
    """

    def __init__(
        self,
        folder: Path,
        features: Any,
        row: Callable[[R], dict[str, Any]],
        split: ExportSplit = "train",
        shard_bytes: int = 500_000_000,
    ) -> None:
        self._root, self._folder, self._split = folder, folder / split, split
        self._features, self._schema, self._row, self._shard_bytes = features, features.arrow_schema, row, shard_bytes
        self._folder.mkdir(parents=True, exist_ok=True)
        self._parts: list[Path] = []
        self._open: pa.RecordBatchStreamWriter | None = None

    def write(self, rows: Sequence[R]) -> None:
        """Append rows."""
        if self._open is None:
            self._parts.append(self._folder / f"part-{len(self._parts):05d}")
            self._open = pa.ipc.new_stream(str(self._parts[-1]), self._schema)
        self._open.write_table(pa.Table.from_pylist([self._row(row) for row in rows], schema=self._schema))
        if self._parts[-1].stat().st_size >= self._shard_bytes:
            self.abandon()

    def close(self) -> None:
        """Complete the files, number them, and describe the dataset."""
        from datasets import DatasetInfo

        self.abandon()
        names = [f"data-{number:05d}-of-{len(self._parts):05d}.arrow" for number in range(len(self._parts))]
        for part, name in zip(self._parts, names, strict=True):
            part.rename(self._folder / name)
        DatasetInfo(features=self._features).write_to_directory(str(self._folder))
        sizes = [(name, (self._folder / name).stat().st_size) for name in names]
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": self._split,
        }
        _write(self._folder / "state.json", state)
        splits = [name for name in ("train", "test") if (self._root / name / "state.json").exists()]
        _write(self._root / _SPLITS, {"splits": splits})

    def abandon(self) -> None:
        """Close the open file."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
