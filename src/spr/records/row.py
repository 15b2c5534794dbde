"""Conversion between records and table rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self


class Row:
    """The base of all records, which are frozen dataclasses."""

    __match_args__: ClassVar[tuple[str, ...]]  # the names of the fields, set by @dataclass

    def to_row(self) -> dict[str, Any]:
        """The record as nested dicts, tuples and numbers, for `pyarrow.Table.from_pylist`."""
        # Faster than dataclasses.asdict, which copies deeply; a run converts millions of rows.
        return {name: _plain(getattr(self, name)) for name in self.__match_args__}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Construct and validate the record of a table row. Additional columns are ignored."""
        return cls(**{name: row[name] for name in cls.__match_args__ if name in row})


def _plain(value: Any) -> Any:
    # Either all items of a tuple are records or none is.
    if isinstance(value, tuple) and value and isinstance(value[0], Row):
        return tuple([item.to_row() for item in value])
    return value


def make_nested(record: Row, **kinds: type[Row]) -> None:
    """In ``__post_init__``: convert the named fields from lists of rows or records to tuples of records."""
    for name, kind in kinds.items():
        items = getattr(record, name)
        converted = tuple(item if isinstance(item, kind) else kind.from_row(item) for item in items)
        object.__setattr__(record, name, converted)
