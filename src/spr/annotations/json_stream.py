"""Reading a JSON file that is too large for memory, block by block.

The top level is an object or a list. The members of an object are read in the order of the file: the caller gets the
lists that it asks for as blocks of whole elements, and other members are skipped without being decoded.

The end of a block is guessed (the last ``},{``) and then verified by decoding: the text between two commas of a list,
put between ``[`` and ``]``, is valid JSON only if both commas separate elements of that list. A cut within a string or
a nested list fails, and an exact scan of quotes and brackets then finds the cut. It scans every byte once, and members
that are skipped are never in memory as a whole, so that time is linear and memory bounded for any content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from spr.core.errors import InputError
from spr.core.text_input import TextInput

BLOCK_SIZE = 256 * 1024
"""Bytes per read. A block and the objects decoded from it fit in the processor's cache, which saves more time than
fewer, larger reads would."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes read so far and the file's size in bytes."""

T = TypeVar("T")

_SPACE = b" \t\r\n"
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_VALUE_STARTS = b'{["-0123456789tfn'
_LONGEST_KEY = 64 * 1024
_LONGEST_ELEMENT = 16 * 2**20
_MOST_KEYS = 1000
_FIRST_PIECE = 1024
_BOUNDARY_TRIES = 64
_LONGEST_GAP = 64
_COMMA = 2
_STEPS = np.zeros(256, dtype=np.int8)
_STEPS[list(b"{[")], _STEPS[list(b"}]")], _STEPS[ord(",")] = 1, -1, _COMMA

_STARTS = {
    b"\x80": ("binary data, perhaps a Python pickle", "give the JSON file"),
    b"<": ("an HTML or XML page", "download the file itself, not the page that links to it"),
    b"[": ("a JSON list", "give the annotations (`instances_….json`), not a list of detections"),
}


class JsonStream:
    """A JSON object or list in a file, which can be read once.

    ``what`` names the file in errors, ``expected`` says what it should contain, and ``fix`` what to do if it can't be
    opened.

    Raises:
        InputError: if the file is missing, empty or not a JSON object; from every method, naming the byte, if it is
            truncated or not JSON.
    """

    def __init__(
        self,
        path: Path,
        *,
        block_size: int = BLOCK_SIZE,
        progress: Progress | None = None,
        what: str = "Annotations file",
        expected: str = "a COCO-style JSON file",
        fix: str = "set `annotations.path` to the JSON file",
    ) -> None:
        self.path, self._block_size, self._progress, self._what = path, block_size, progress, f"{what} {path}"
        self._file = TextInput(path, self._what, expected=expected, fix=fix)
        self._size = path.stat().st_size
        # Bytes `at` to `end` of the buffer have not been consumed; byte 0 of the buffer is byte `base` of the file.
        self._buffer, self._at, self._end, self._base = bytearray(), 0, 0, self._file.skipped
        self._member, self._pending = "", False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def members(self) -> Iterator[str]:
        """The keys of the top level, in the order of the file. Values that `blocks` does not read are skipped."""
        self._start()
        seen: set[str] = set()
        closed = self._peek() == b"}"
        while not closed:
            if self._peek() != b'"':
                self._not_json("expected a key in quotes")
            self._member = str(self._decode(self._key())[0])
            if self._member in seen:
                raise self.error(f"has the key `{self._member}` twice", fix="remove one of the two")
            seen.add(self._member)
            if len(seen) > _MOST_KEYS:
                expected = "an object with `images`, `annotations` and `categories`"
                raise self.error(f"has more than {_MOST_KEYS:,} keys at its top level", expected=expected)
            self._expect(b":")
            self._peek()
            self._pending = True
            yield self._member
            if self._pending:
                self._skip()
            self._member = ""
            closed = self._peek() == b"}"
            if not closed:
                self._expect(b",")
        self._at += 1
        if self._peek(at_end=True):
            self._not_json("there is more text after the end of the object")

    def elements(self, fast: Callable[[memoryview], T | None], lenient: Callable[[list[Any]], T]) -> Iterator[T]:
        """The elements of a file that is a JSON list, decoded block by block as in `blocks`.

        Raises:
            InputError: if the file is not one JSON list.
        """
        while self._end < 4 and self._more():
            pass
        yield from self.blocks(fast, lenient)
        if self._peek(at_end=True):
            self._not_json("there is more text after the end of the list")

    def at_list(self) -> bool:
        """Whether the current member's value is a list, which `blocks` can decode."""
        return self._peek() == b"["

    def blocks(self, fast: Callable[[memoryview], T | None], lenient: Callable[[list[Any]], T]) -> Iterator[T]:
        """Decode the list of the current member block by block.

        Args:
            fast: Decodes a JSON list, given as a buffer that is valid only during the call. Returns None for a list
                that it can't decode, and for anything that is not valid JSON.
            lenient: Does the same for a block that ``fast`` could not decode, given its elements as decoded by `json`.

        Raises:
            InputError: if the value is not a list, or not JSON.
        """
        if self._peek() != b"[":
            got = {b"{": "an object", b'"': "a string"}.get(self._peek(), "a number, true, false or null")
            what = f"has a `{self._member}` member that is not a list" if self._member else "is not a JSON list"
            raise self.error(what, got=got, expected="a list of objects")
        self._pending = False
        self._at += 1
        first = closed = True
        while first or not closed:
            if self._end - self._at < self._block_size:
                self._more()
            guess = guess_cut(self._buffer, self._at, min(self._end, self._at + 2 * self._block_size))
            result = None if guess < 0 else self._try(fast, guess)
            if result is not None:
                cut, closed = guess, False
            else:
                guessed = self._base + guess
                cut, closed = self._exact_cut()
                block = bytes(self._buffer[self._at : cut])
                if block.strip(_SPACE):
                    result = self._try(fast, cut) if self._base + cut != guessed else None
                    result = lenient(self._decode(block)) if result is None else result
                elif not (first and closed):
                    self._not_json("two commas in a row, or a comma before the closing bracket")
            self._at, first = cut + 1, False
            if result is not None:
                yield result

    def error(self, problem: str, *, got: object = None, expected: object = None, fix: str | None = None) -> InputError:
        """An error that names the file."""
        return InputError(f"{self._what} {problem}", got=got, expected=expected, fix=fix)

    def _try(self, fast: Callable[[memoryview], T | None], cut: int) -> T | None:
        # The bytes on either side of the block are overwritten with its brackets, which avoids a copy of the block.
        after = self._buffer[cut]
        self._buffer[self._at - 1], self._buffer[cut] = ord("["), ord("]")
        with memoryview(self._buffer) as whole, whole[self._at - 1 : cut + 1] as block:
            result = fast(block)
        self._buffer[cut] = after
        return result

    def _more(self) -> bool:
        """Read at least as much as is unconsumed, so that a large element takes linear time; False at the end."""
        start = max(self._at - 1, 0)
        rest = self._buffer[start : self._end]
        wanted = max(self._block_size, len(rest))
        if len(rest) + wanted > len(self._buffer):
            self._buffer = bytearray(len(rest) + wanted)
        self._buffer[: len(rest)] = rest
        with memoryview(self._buffer) as whole, whole[len(rest) : len(rest) + wanted] as space:
            read = self._file.readinto(space)
        self._base, self._at, self._end = self._base + start, self._at - start, len(rest) + read
        if read and self._progress is not None:
            self._progress(self._file.done, self._size)
        return read > 0

    def _start(self) -> None:
        while self._end < 4 and self._more():
            pass
        if not self._peek(at_end=True):
            raise self.error("is empty", expected="a COCO-style JSON object")
        for start, (got, fix) in _STARTS.items():
            if self._buffer.startswith(start, self._at, self._end):
                raise self.error("is not a JSON object", got=got, expected="a COCO-style JSON object", fix=fix)
        self._expect(b"{")

    def _peek(self, *, at_end: bool = False) -> bytes:
        """Move to the next byte that is not a space, and return it; nothing at the end, if ``at_end`` allows it."""
        while True:
            found = _NOT_SPACE.search(self._buffer, self._at, self._end)
            if found:
                self._at = found.start()
                return bytes(found.group())
            self._at = self._end
            if not self._more():
                if at_end:
                    return b""
                self._truncated()

    def _expect(self, byte: bytes) -> None:
        got = self._peek()
        if got != byte:
            self._not_json(f"expected {byte.decode()!r}, got {got.decode('utf-8', 'backslashreplace')!r}")
        self._at += 1

    def _key(self) -> bytes:
        while True:
            found = _STRING.match(self._buffer, self._at, self._end)
            if (found.end() if found else self._end) - self._at > _LONGEST_KEY:
                raise self.error(f"has a key of more than {_LONGEST_KEY:,} bytes at byte {self._base + self._at:,}")
            if found:
                self._at = found.end()
                return bytes(found.group())
            if not self._more():
                self._truncated()

    def _skip(self) -> None:
        """Move to the comma or the bracket after a value."""
        if self._peek() not in _VALUE_STARTS:
            self._not_json("expected a value")
        scanner, size = Scanner(), _FIRST_PIECE
        while True:
            piece = bytes(self._buffer[self._at : min(self._at + size, self._end)])
            comma, _, closing = scanner.feed(piece)
            if comma >= 0 or closing >= 0:
                self._at += comma if comma >= 0 else closing
                return
            self._at, size = self._at + len(piece), min(2 * size, BLOCK_SIZE)
            if self._at == self._end and not self._more():
                self._truncated()

    def _exact_cut(self) -> tuple[int, bool]:
        """The index in the buffer of a comma of the list or of its closing bracket, and whether it is the bracket.

        It is the last comma within a block, or the first one after that.
        """
        scanner, size, done, cut = Scanner(), _FIRST_PIECE, 0, -1  # relative to `_at`, since `_more` moves the buffer
        while cut < 0 or (done < self._block_size and self._at + done < self._end):
            if self._at + done == self._end:
                if done > _LONGEST_ELEMENT:
                    at = self._base + self._at
                    raise self.error(f"has an element of more than {_LONGEST_ELEMENT:,} bytes at byte {at:,}")
                if not self._more():
                    self._truncated()
            piece = bytes(self._buffer[self._at + done : min(self._at + done + size, self._end)])
            _, last, closing = scanner.feed(piece)
            if closing >= 0:
                return self._at + done + closing, True
            cut = done + last if last >= 0 else cut
            done, size = done + len(piece), min(2 * size, BLOCK_SIZE)
        return self._at + cut, False

    def _decode(self, elements: bytes) -> list[Any]:
        # Invalid UTF-8 becomes lone surrogates, so that it is an error only in fields that are used.
        text = f"[{elements.decode('utf-8', 'surrogateescape')}]"
        try:
            return list(json.loads(text, parse_int=_int, strict=False))
        except json.JSONDecodeError as error:
            before = text[1 : error.pos].encode("utf-8", "surrogateescape")
            self._not_json(error.msg[:1].lower() + error.msg[1:], skip=len(before))
        except RecursionError:
            self._not_json("lists nested too deeply")

    def _truncated(self) -> NoReturn:
        where = f" within `{self._member}`" if self._member else ""
        problem = f"is truncated: it ends at byte {self._base + self._end:,}{where}"
        raise self.error(problem, expected="a complete JSON file", fix="download or export the file again")

    def _not_json(self, problem: str, *, skip: int = 0) -> NoReturn:
        where = f", within `{self._member}`" if self._member else ""
        raise self.error(f"is not valid JSON at byte {self._base + self._at + skip:,}{where}", got=problem)


def _int(digits: str) -> float:
    # Python refuses to convert very long digit strings to integers; no id or coordinate is that long.
    return int(digits) if len(digits) <= 4000 else float(digits)


def guess_cut(data: bytearray, start: int, end: int) -> int:
    """Index of the comma of the last ``},{`` (spaces are allowed) in ``data[start:end]``, or -1 if none is near."""
    for _ in range(_BOUNDARY_TRIES):
        end = data.rfind(b"{", start, end)
        if end < 0:
            return -1
        before = data[max(start, end - _LONGEST_GAP) : end].rstrip(_SPACE)
        if before.endswith(b",") and before[:-1].rstrip(_SPACE).endswith(b"}"):
            return data.rindex(b",", start, end)
    return -1


class Scanner:
    """Finds the commas of a list or object and its closing bracket in its content, given in pieces of any size.

    >>> Scanner().feed(b'{"a": [1, 2]}, {"b": "},{"'), Scanner().feed(b'[1, "]"], 2] , ')
    ((13, 13, -1), (8, 8, 11))
    """

    def __init__(self) -> None:
        self._depth, self._in_string, self._escaped = 0, False, False

    def feed(self, piece: bytes) -> tuple[int, int, int]:
        """The indices of the first and the last comma, before the closing bracket, and of that; -1 without one."""
        if self._escaped:
            piece = b" " + piece[1:]
        codes = np.frombuffer(piece, dtype=np.uint8)
        quotes = np.flatnonzero(codes == ord('"'))
        if b"\\" in piece:
            quotes = quotes[~_escaped(codes, quotes)]
        self._escaped = (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 1
        steps = _STEPS[codes]
        places = np.flatnonzero(steps)
        places = places[np.searchsorted(quotes, places) % 2 == self._in_string]
        self._in_string ^= len(quotes) % 2 == 1
        steps = steps[places]
        is_comma = steps == _COMMA
        depth = self._depth + np.cumsum(np.where(is_comma, 0, steps), dtype=np.int64)
        self._depth = int(depth[-1]) if depth.size else self._depth
        closing = np.flatnonzero(depth < 0)
        end = int(places[closing[0]]) if closing.size else -1
        commas = places[is_comma & (depth == 0)]
        commas = commas[commas < end] if closing.size else commas
        first, last = (int(commas[0]), int(commas[-1])) if commas.size else (-1, -1)
        return first, last, end


def _escaped(codes: npt.NDArray[np.uint8], quotes: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Whether each quote is preceded by an odd number of backslashes."""
    slashes = np.flatnonzero(codes == ord("\\"))
    starts = np.concatenate([[True], np.diff(slashes) != 1])
    run_start = slashes[starts][np.cumsum(starts) - 1]
    last = np.searchsorted(slashes, quotes) - 1
    follows = (last >= 0) & (slashes[last] == quotes - 1)
    return np.asarray(follows & ((quotes - run_start[last]) % 2 == 1))
