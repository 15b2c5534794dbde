"""Finding where the elements of a JSON list end, in a part of the text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SPACE = b" \t\r\n"
"""The bytes that JSON allows between its tokens."""

_BOUNDARY_TRIES = 64
_LONGEST_GAP = 64
_COMMA = 2
_STEPS = np.zeros(256, dtype=np.int8)
_STEPS[list(b"{[")], _STEPS[list(b"}]")], _STEPS[ord(",")] = 1, -1, _COMMA


def guess_cut(data: bytearray, start: int, end: int) -> int:
    """Index of the comma of the last ``},{`` (spaces are allowed) in ``data[start:end]``, or -1 if none is near."""
    for _ in range(_BOUNDARY_TRIES):
        end = data.rfind(b"{", start, end)
        if end < 0:
            return -1
        before = data[max(start, end - _LONGEST_GAP) : end].rstrip(SPACE)
        if before.endswith(b",") and before[:-1].rstrip(SPACE).endswith(b"}"):
            return data.rindex(b",", start, end)
    return -1


def scan(data: bytes) -> tuple[int, bool]:
    """The end of the list or object whose content ``data`` starts with.

    Returns:
        The index of its closing bracket and True; without one, the index of the last comma that separates its elements
        (-1 if there is none) and False.

    >>> scan(b'{"a": [1, 2]}, {"b": "},{"'), scan(b'[1, "]"]] , '), scan(b'{"a": 1, "b"')
    ((13, False), (8, True), (-1, False))
    """
    codes = np.frombuffer(data, dtype=np.uint8)
    quotes = np.flatnonzero(codes == ord('"'))
    if b"\\" in data:
        quotes = quotes[~_escaped(codes, quotes)]
    steps = _STEPS[codes]
    places = np.flatnonzero(steps)
    places = places[np.searchsorted(quotes, places) % 2 == 0]
    steps = steps[places]
    is_comma = steps == _COMMA
    depth = np.cumsum(np.where(is_comma, 0, steps), dtype=np.int64)
    closing = np.flatnonzero(depth < 0)
    if closing.size:
        return int(places[closing[0]]), True
    commas = places[is_comma & (depth == 0)]
    return (int(commas[-1]) if commas.size else -1), False


def _escaped(codes: npt.NDArray[np.uint8], quotes: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Whether each quote is preceded by an odd number of backslashes."""
    slashes = np.flatnonzero(codes == ord("\\"))
    starts = np.concatenate([[True], np.diff(slashes) != 1])
    run_start = slashes[starts][np.cumsum(starts) - 1]
    last = np.searchsorted(slashes, quotes) - 1
    follows = (last >= 0) & (slashes[last] == quotes - 1)
    return np.asarray(follows & ((quotes - run_start[last]) % 2 == 1))
