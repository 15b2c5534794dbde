"""Tables with a list of objects per row as flat numpy arrays, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spr.records.schemas import BOX


@dataclass(frozen=True, slots=True)
class ObjectColumns:
    """The N objects of all rows of a table, concatenated.

    ``offsets`` is int64 ``(rows + 1,)``: row ``i`` has objects ``offsets[i]:offsets[i + 1]``. ``ids`` are strings,
    ``boxes_xyxy`` float32 ``(N, 4)`` in pixels of the original image, ``structs`` all fields as an Arrow array.
    """

    offsets: npt.NDArray[np.int64]
    ids: pa.Array
    boxes_xyxy: npt.NDArray[np.float32]
    structs: pa.StructArray

    @classmethod
    def of(cls, table: pa.Table, column: str = "objects") -> ObjectColumns:
        """Read a list column whose structs have the fields ``id`` and ``box``."""
        lists = table[column].combine_chunks()
        if isinstance(lists, pa.ChunkedArray):
            lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], lists.type)
        # flatten() takes the offset of a slice into account, so the offsets are shifted as well.
        offsets = lists.offsets.to_numpy().astype(np.int64)
        structs = lists.flatten()
        boxes = structs.field("box").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
        return cls(offsets - offsets[0], structs.field("id"), boxes, structs)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Number of objects per row, int64 ``(rows,)``."""
        return np.diff(self.offsets)

    def of_rows(self, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Indices of the objects of the given rows, in the order of the rows, int64."""
        rows = np.asarray(rows, dtype=np.int64)
        counts = self.counts[rows]
        shifts = self.offsets[rows] - np.concatenate([[0], np.cumsum(counts)])[:-1]
        return np.asarray(np.arange(counts.sum()) + np.repeat(shifts, counts), dtype=np.int64)

    def real(self, rows: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Mask of an array of the rows padded to the longest one: True for objects, bool ``(rows, longest)``."""
        counts = self.counts[np.asarray(rows, dtype=np.int64)]
        return np.asarray(np.arange(counts.max(initial=0))[None, :] < counts[:, None])


def box_array(boxes_xyxy: npt.ArrayLike) -> pa.Array:
    """Boxes ``(N, 4)`` as an Arrow array of fixed lists of four float32."""
    values = np.ascontiguousarray(boxes_xyxy, dtype=np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), type=BOX)


def list_array(offsets: npt.NDArray[np.int64], values: pa.Array) -> pa.Array:
    """A list column from offsets ``(rows + 1,)`` and the concatenated items of all rows."""
    kind = pa.list_(pa.field("element", values.type, nullable=False))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=kind)
