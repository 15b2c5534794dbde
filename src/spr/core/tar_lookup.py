"""Members of many tar files by their names, in little memory: 24 bytes per member, beside the mapped indexes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from spr.core.tar_headers import name_hash, stem_key
from spr.core.tar_index import TarFile, indexes
from spr.core.tar_members import TarMember

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_ALIKE = 1000
"""Members are not compared by their spelling if more have the same last part of the name."""


class Members:
    """The members of several tar files by the hashes of their names: 24 bytes per member, and the mapped indexes."""

    def __init__(self, tars: Sequence[TarFile]) -> None:
        self.tars = tars
        tables = indexes(tars)
        self._starts = [0, *accumulate(map(len, tables))]
        self._names = [_mapped(table["name"]) for table in tables]
        self._offsets = [_mapped(table["offset"]).to_numpy() for table in tables]
        self._sizes = [_mapped(table["size"]).to_numpy() for table in tables]
        self._by_name = _sorted([_mapped(table["name_hash"]).to_numpy() for table in tables])
        self._by_stem = _sorted([_mapped(table["stem_hash"]).to_numpy() for table in tables])

    def __len__(self) -> int:
        return self._starts[-1]

    def named(self, name: bytes) -> list[int]:
        """The members of this name; of several in one tar file only the last, which ``tar -x`` would leave."""
        found = [row for row in _equal(self._by_name, name_hash(name)) if self.name(row) == name]
        if len(found) < 2:
            return found
        return list({self.tar_number(row): row for row in sorted(found)}.values())

    def of_stem(self, name: str) -> list[int]:
        """The members whose name ends like this one, apart from spelling, case and suffix; none if they are many."""
        rows = _equal(self._by_stem, name_hash(stem_key(name)))
        if len(rows) > _MOST_ALIKE:
            return []
        return list({(self.tar_number(row), self.name(row)): row for row in sorted(rows)}.values())

    def ending(self, name: bytes, file_name: str) -> list[int]:
        """The members in some folder whose path ends with this name."""
        end = b"/" + name
        if rows := self.of_stem(file_name):
            return [row for row in rows if self.name(row).endswith(end)]
        if len(_equal(self._by_stem, name_hash(stem_key(file_name)))) <= _MOST_ALIKE:
            return []
        import pyarrow.compute as pc

        found = [np.flatnonzero(pc.ends_with(names, pattern=end)) for names in self._names]  # 10 ns per member
        rows = [int(row) for rows, start in zip(found, self._starts, strict=False) for row in rows + start]
        return list({(self.tar_number(row), self.name(row)): row for row in rows[:_MOST_ALIKE]}.values())

    def tar_number(self, row: int) -> int:
        """The index in `tars` of the tar file that a member is in."""
        return bisect_right(self._starts, row) - 1

    def name(self, row: int) -> bytes:
        """A member's name."""
        number = self.tar_number(row)
        name: bytes = self._names[number][row - self._starts[number]].as_py()
        return name

    def member(self, row: int) -> TarMember:
        """The member, to be read."""
        number = self.tar_number(row)
        place = row - self._starts[number]
        offset, size = int(self._offsets[number][place]), int(self._sizes[number][place])
        return TarMember(self.tars[number], text_of(self.name(row)), offset, size)


def _mapped(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array, without a copy of what is mapped into memory."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _sorted(hashes: Sequence[npt.NDArray[np.uint64]]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    values = np.concatenate([np.zeros(0, np.uint64), *hashes])
    order = np.argsort(values, kind="stable").astype(np.uint32)
    return values[order], order


def _equal(table: tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]], value: int) -> list[int]:
    values, order = table
    wanted = np.uint64(value)
    first = int(values.searchsorted(wanted))
    if first == len(values) or values[first] != wanted:
        return []
    rows: list[int] = order[first : values.searchsorted(wanted, "right")].tolist()
    return rows


def text_of(name: bytes) -> str:
    """A member's name as Python has file names: bytes that are not UTF-8 become surrogates."""
    return name.decode("utf-8", "surrogateescape")
