"""What all records share: the way to a table's row and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self


class Row:
    """The base of all records, which are frozen dataclasses."""

    __match_args__: ClassVar[tuple[str, ...]]  # the fields' names, which @dataclass puts here

    def to_row(self) -> dict[str, Any]:
        """The record as nested dicts, tuples and numbers, as `pyarrow.Table.from_pylist` takes them."""
        # Not by dataclasses.asdict, which copies every number deeply: rows are made by the million.
        return {name: _plain(getattr(self, name)) for name in self.__match_args__}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The record of a table's row (extra columns are left out), validated."""
        return cls(**{name: row[name] for name in cls.__match_args__ if name in row})


def _plain(value: Any) -> Any:
    # A tuple holds records, or none at all.
    if isinstance(value, tuple) and value and isinstance(value[0], Row):
        return tuple([item.to_row() for item in value])
    return value


def make_nested(record: Row, **kinds: type[Row]) -> None:
    """Turn the named fields of a record that is being made, lists of rows or records, into tuples of records."""
    for name, kind in kinds.items():
        items = getattr(record, name)
        made = tuple(item if isinstance(item, kind) else kind.from_row(item) for item in items)
        object.__setattr__(record, name, made)
