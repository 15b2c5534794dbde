"""Rows as Parquet files that `datasets.load_dataset` reads with their features, including images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from spr.exports.formats import ExportSplit

R = TypeVar("R")


class ParquetWriter(Generic[R]):
    """A `spr.exports.formats.Writer` of Parquet: ``data/train-00000-of-00003.parquet`` and so on, or ``test-…``.

    Each call of `write` becomes a row group, which bounds the number of images that readers hold in memory. A new file
    is started once one has ``shard_bytes``; the Hugging Face hub recommends the default. The metadata of ``schema``
    holds the features of 🤗 datasets.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        row: Callable[[R], dict[str, Any]],
        split: ExportSplit = "train",
        shard_bytes: int = 500_000_000,
    ) -> None:
        self._folder, self._schema, self._row, self._shard_bytes = folder / "data", schema, row, shard_bytes
        self._split = split
        self._folder.mkdir(parents=True, exist_ok=True)
        self._parts: list[Path] = []
        self._open: pq.ParquetWriter | None = None

    def write(self, rows: Sequence[R]) -> None:
        """Append rows."""
        if self._open is None:
            self._parts.append(self._folder / f"{self._split}-part-{len(self._parts):05d}")
            # Statistics of texts and images would stay in memory, and nobody searches by them.
            self._open = pq.ParquetWriter(self._parts[-1], self._schema, compression="zstd", write_statistics=False)
        self._open.write_table(pa.Table.from_pylist([self._row(row) for row in rows], schema=self._schema))
        if self._parts[-1].stat().st_size >= self._shard_bytes:
            self.abandon()

    def close(self) -> None:
        """Complete the files and number them."""
        self.abandon()
        for number, part in enumerate(self._parts):
            part.rename(self._folder / f"{self._split}-{number:05d}-of-{len(self._parts):05d}.parquet")

    def abandon(self) -> None:
        """Close the open file."""
        if self._open is not None:
            self._open.close()
            self._open = None
