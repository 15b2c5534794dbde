"""Ids of images, annotations and categories: integers in most files, strings in some, both in a few."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

Keys: TypeAlias = npt.NDArray[np.int64]
ShortKeys: TypeAlias = Keys | npt.NDArray[np.int32]
"""Keys as int32 if all of them fit."""
Places: TypeAlias = npt.NDArray[np.int32]
"""Positions in a table of keys; -1 for keys that it lacks."""
IdColumn: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.object_]
"""Ids of a table: int64 if all are integers, otherwise an object array of strings."""

TEXT_BASE = 2**63 - 2**32
"""Keys from here on stand for strings. Integers as large as this are treated as strings too."""

NO_KEY = 2**63 - 1
"""The key of a missing or invalid id; keys of strings never reach it."""

NO_KEYS: Keys = np.empty(0, dtype=np.int64)

CHUNK = 2**14
"""Rows per step, so that intermediate arrays stay in the processor's cache."""

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)


class IdTable:
    """Maps ids to int64 keys, which are equal if the ids are: ``12``, ``12.0`` and ``"12"`` are the same id.

    Integers are their own keys. After all ids have been added, `freeze` sorts the strings; final keys then sort as ids
    do: integers by value, then strings by code point.

    >>> ids = IdTable()
    >>> keys = np.array([ids.key(id) for id in ("b", 7, "a", "7")])
    >>> ids.freeze()
    >>> ids.texts(np.sort(ids.final_keys(keys)))
    ['7', '7', 'a', 'b']
    """

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._sorted: list[str] = []
        self._ranks = np.empty(0, dtype=np.int64)

    def key(self, value: object) -> int:
        """The key of a JSON value; `NO_KEY` if it is no valid id: missing, empty, a boolean, a fraction, a list, …"""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            if -(2**63) <= value < TEXT_BASE:
                return value
            value = str(value)
        if not isinstance(value, str) or not value or not is_unicode(value):
            return NO_KEY
        if _INTEGER.fullmatch(value) and -(2**63) <= int(value) < TEXT_BASE:
            return int(value)
        return TEXT_BASE + self._codes.setdefault(value, len(self._codes))

    def freeze(self) -> None:
        """Sort the strings. `key` must not be called afterwards."""
        self._sorted = sorted(self._codes)
        self._ranks = np.argsort([self._codes[text] for text in self._sorted])

    def final_keys(self, keys: Keys) -> Keys:
        """Keys that sort as the ids do, for keys from `key`."""
        if not self._sorted or keys.dtype == np.int32:
            return keys
        is_text = (keys >= TEXT_BASE) & (keys != NO_KEY)
        keys = keys.copy()
        keys[is_text] = TEXT_BASE + self._ranks[keys[is_text] - TEXT_BASE]
        return keys

    def texts(self, keys: ShortKeys) -> list[str]:
        """The ids of final keys as strings; an empty string for `NO_KEY`."""
        return [
            str(key) if key < TEXT_BASE else "" if key == NO_KEY else self._sorted[key - TEXT_BASE]
            for key in keys.tolist()
        ]

    def column(self, keys: Keys) -> IdColumn:
        """The ids of final keys in the most compact form."""
        return np.array(self.texts(keys), dtype=np.object_) if (keys >= TEXT_BASE).any() else keys


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded as UTF-8. A lone surrogate, which stands for an invalid byte, can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def look_up(sorted_keys: Keys, wanted: ShortKeys) -> Places:
    """Positions of ``wanted`` in ``sorted_keys`` (ascending, unique); -1 for missing keys.

    >>> look_up(np.array([10, 20, 30]), np.array([30, 11, 10])).tolist()
    [2, -1, 0]
    """
    return Matches(sorted_keys, wanted.astype(np.int64)).places


class Matches:
    """Keys as positions in a table that has most of them, in half of the memory.

    ``table`` is ascending and unique; ``places`` are int32 positions in it, -1 for keys that it lacks. These are
    ``others``, in the rows ``missing``. Keys that are int32 are replaced by the places, in the same memory.

    >>> matches = Matches(np.array([10, 20]), np.array([20, 5, 10]))
    >>> matches.places.tolist(), matches.keys().tolist(), matches.keys(np.array([1])).tolist()
    ([1, -1, 0], [20, 5, 10], [5])
    """

    def __init__(self, table: Keys, keys: ShortKeys) -> None:
        self._table = table
        self.places = cast("Places", keys) if keys.dtype == np.int32 else np.empty(len(keys), dtype=np.int32)
        find, missing, others = _finder(table, len(keys)), [], []
        for start in range(0, len(keys), CHUNK):
            part = keys[start : start + CHUNK].astype(np.int64)
            found = find(part)
            rows = np.flatnonzero(found < 0)
            missing.append(start + rows)
            others.append(part[rows])
            self.places[start : start + CHUNK] = found
        self.missing = np.concatenate([NO_KEYS, *missing])
        self.others = np.concatenate([NO_KEYS, *others])

    def keys(self, rows: npt.NDArray[np.integer[Any]] | None = None) -> Keys:
        """The keys of these rows, or of all."""
        places = self.places if rows is None else self.places[rows]
        found = np.empty(len(places), dtype=np.int64)
        is_known = places >= 0
        found[is_known] = self._table[places[is_known]]
        wanted = self.missing if rows is None else rows[~is_known]
        found[~is_known] = self.others[np.searchsorted(self.missing, wanted)]
        return found


def _finder(table: Keys, count: int) -> Callable[[Keys], npt.NDArray[np.integer[Any]]]:
    """A function from keys to their positions in a table; ``count`` is the number of keys that will be looked up."""
    if not len(table):
        return lambda keys: np.full(len(keys), -1)
    low, high = int(table[0]), int(table[-1])
    if high - low >= 4 * (len(table) + count):

        def search(keys: Keys) -> npt.NDArray[np.integer[Any]]:
            places = np.minimum(np.searchsorted(table, keys), len(table) - 1)
            return np.where(table[places] == keys, places, -1)

        return search
    # Most ids are dense integers, for which a lookup table is ten times faster than a search.
    places = np.full(high - low + 2, -1, dtype=np.int32)
    places[table - low] = np.arange(len(table), dtype=np.int32)
    return lambda keys: places[np.where((keys >= low) & (keys <= high), keys - low, high - low + 1)]
