"""A JSON file too large for memory, read block by block.

The top level is an object. Its members come in whatever order the file has them; the elements of those that the caller
wants arrive as blocks of whole elements, and what it doesn't want is passed over without being decoded.

Where to cut a block is guessed (the last ``},{``) and the guess is proved by decoding: the text between two commas of
an array, put between ``[`` and ``]``, is valid JSON only if both commas belong to that array; a cut within a string or
a nested list can't pass. When a guess fails, an exact scan of quotes and brackets finds the cut.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TypeAlias, TypeVar

from spr.annotations.json_cuts import SPACE, guess_cut, scan
from spr.core.errors import InputError

BLOCK_SIZE = 256 * 1024
"""Bytes read at once. A block and the objects decoded from it stay in the processor's cache, which is worth more than
fewer, larger reads."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes read so far and the file's size in bytes."""

T = TypeVar("T")

_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SCALAR = re.compile(rb"[^,}\]\s]+(?=[,}\]\s])")
_INT_DIGITS = 4000

_STARTS = {
    b"\x1f\x8b": ("a gzip archive", "unpack it first: gunzip FILE"),
    b"PK\x03\x04": ("a zip archive", "unpack it first: unzip FILE"),
    b"\x80": ("binary data, perhaps a Python pickle", "give the JSON file"),
    b"\xff\xfe": ("text in UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("text in UTF-16", "save it as UTF-8"),
    b"<": ("an HTML or XML page", "download the file itself, not the page that links to it"),
    b"[": ("a JSON list", "give the annotations (`instances_….json`), not a list of detection results"),
}


class JsonStream:
    """A JSON object in a file, to be walked once.

    Args:
        path: The file.
        block_size: Bytes to read at once.
        progress: Called after every read.

    Raises:
        InputError: if the file is missing, empty or doesn't hold a JSON object; and by every method, naming the byte,
            where the file is truncated or not JSON.
    """

    def __init__(self, path: Path, *, block_size: int = BLOCK_SIZE, progress: Progress | None = None) -> None:
        self.path, self._block_size, self._progress = path, block_size, progress
        self._file = _open(path)
        self._size = path.stat().st_size
        # Bytes `at` to `end` of the buffer are still to be read; byte 0 of the buffer is byte `base` of the file.
        self._buffer, self._at, self._end, self._base = bytearray(), 0, 0, 0
        self._member, self._pending = "", False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def members(self) -> Iterator[str]:
        """The keys of the top level, in the file's order; a value that `blocks` doesn't read is passed over."""
        self._start()
        seen: set[str] = set()
        while True:
            if not seen and self._peek() == b"}":
                break
            self._member = self._key()
            if self._member in seen:
                raise self.error(f"has the key `{self._member}` twice", fix="keep one of the two")
            seen.add(self._member)
            self._expect(b":")
            self._peek()
            self._pending = True
            yield self._member
            if self._pending:
                self._skip()
            self._member = ""
            if self._peek() == b"}":
                break
            self._expect(b",")
        self._at += 1
        if self._peek(at_end=True):
            self._not_json("something follows the end of the object")

    def blocks(self, quick: Callable[[memoryview], T | None], careful: Callable[[list[Any]], T]) -> Iterator[T]:
        """The elements of the current member's list, decoded block by block.

        Args:
            quick: Decodes a JSON list, given as a buffer that is valid during the call; None where it can't. It must
                refuse whatever is not valid JSON.
            careful: Makes the same of the list's elements, decoded by `json`; for the blocks that ``quick`` refuses.

        Raises:
            InputError: if the value is not a list, or not JSON.
        """
        if self._peek() != b"[":
            got = {b"{": "an object", b'"': "a text"}.get(self._peek(), "a number, true, false or null")
            raise self.error(f"has `{self._member}` that is not a list", got=got, expected="a list of objects")
        self._pending = False
        self._at += 1
        first = closed = True
        while first or not closed:
            if self._end - self._at < self._block_size:
                self._more()
            guess = guess_cut(self._buffer, self._at, self._end)
            result = None if guess < 0 else self._try(quick, guess)
            if result is not None:
                cut, closed = guess, False
            else:
                guessed = self._base + guess
                cut, closed = self._exact_cut()
                block = bytes(self._buffer[self._at : cut])
                if block.strip(SPACE):
                    result = self._try(quick, cut) if self._base + cut != guessed else None
                    result = careful(self._decode(block)) if result is None else result
                elif not (first and closed):
                    self._not_json("two commas, or a comma before the closing bracket")
            self._at, first = cut + 1, False
            if result is not None:
                yield result

    def error(self, problem: str, *, got: object = None, expected: object = None, fix: str | None = None) -> InputError:
        """An error that names the file."""
        return InputError(f"Annotations file {self.path} {problem}", got=got, expected=expected, fix=fix)

    def _try(self, quick: Callable[[memoryview], T | None], cut: int) -> T | None:
        # The comma or bracket on either side of the block becomes its bracket, which saves copying the block.
        after = self._buffer[cut]
        self._buffer[self._at - 1], self._buffer[cut] = ord("["), ord("]")
        with memoryview(self._buffer) as whole, whole[self._at - 1 : cut + 1] as block:
            result = quick(block)
        self._buffer[cut] = after
        return result

    def _more(self) -> bool:
        """Read on; as much again as there is, so that an element of any size costs linear time. False at the end."""
        start = max(self._at - 1, 0)
        rest = self._buffer[start : self._end]
        wanted = max(self._block_size, len(rest))
        if len(rest) + wanted > len(self._buffer):
            self._buffer = bytearray(len(rest) + wanted)
        self._buffer[: len(rest)] = rest
        with memoryview(self._buffer) as whole, whole[len(rest) : len(rest) + wanted] as space:
            try:
                read = self._file.readinto(space)
            except OSError as error:
                raise self.error(f"can't be read beyond byte {self._base + self._end:,} ({error.strerror})") from error
        self._base, self._at, self._end = self._base + start, self._at - start, len(rest) + read
        if read and self._progress is not None:
            self._progress(self._base + self._end, self._size)
        return read > 0

    def _start(self) -> None:
        if not self._more():
            raise self.error("is empty", expected="a COCO-style JSON object")
        while self._end < 4 and self._more():
            pass
        self._at = 3 if self._buffer.startswith(b"\xef\xbb\xbf") else 0
        if not self._peek(at_end=True):
            raise self.error("is empty", expected="a COCO-style JSON object")
        for start, (got, fix) in _STARTS.items():
            if self._buffer.startswith(start, self._at, self._end):
                raise self.error("is not a JSON object", got=got, expected="a COCO-style JSON object", fix=fix)
        self._expect(b"{")

    def _peek(self, *, at_end: bool = False) -> bytes:
        """The next byte that is not space, where the stream then stands; with ``at_end`` the end gives nothing."""
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

    def _match(self, pattern: re.Pattern[bytes]) -> bytes:
        while True:
            found = pattern.match(self._buffer, self._at, self._end)
            if found:
                self._at = found.end()
                return bytes(found.group())
            if not self._more():
                self._truncated()

    def _key(self) -> str:
        if self._peek() != b'"':
            self._not_json("expected a key in quotes")
        key = self._decode(self._match(_STRING))[0]
        return str(key)

    def _skip(self) -> None:
        start = self._peek()
        if start not in (b"{", b"["):
            self._match(_STRING if start == b'"' else _SCALAR)
            return
        self._at += 1
        closed = False
        while not closed:
            cut, closed = self._exact_cut()
            self._at = cut + 1

    def _exact_cut(self) -> tuple[int, bool]:
        """Index in the buffer of the list's last comma, or of its closing bracket, and whether it is that."""
        while True:
            cut, closed = scan(bytes(self._buffer[self._at : self._end]))
            if cut >= 0:
                return self._at + cut, closed
            if not self._more():
                self._truncated()

    def _decode(self, elements: bytes) -> list[Any]:
        # Bytes that are not UTF-8 become lone surrogates: only a field that is needed then counts as wrong.
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
        end = self._base + self._end
        raise self.error(
            f"is truncated: it ends at byte {end:,}{where}",
            expected="a complete JSON object",
            fix="download or write the file again",
        )

    def _not_json(self, problem: str, *, skip: int = 0) -> NoReturn:
        where = f", within `{self._member}`" if self._member else ""
        raise self.error(f"is not valid JSON at byte {self._base + self._at + skip:,}{where}", got=problem)


def _open(path: Path) -> io.FileIO:
    try:
        return io.FileIO(path)
    except FileNotFoundError:
        what, fix = "does not exist", "check the path in `annotations.path`"
    except IsADirectoryError:
        what, fix = "is a folder", "name the JSON file in it in `annotations.path`"
    except OSError as error:
        what, fix = f"can't be read ({error.strerror})", "check the file's permissions"
    raise InputError(f"Annotations file {path} {what}", expected="a COCO-style JSON file", fix=fix)


def _int(digits: str) -> float:
    # Python refuses to turn very long digit strings into integers; no id and no coordinate is that long.
    return int(digits) if len(digits) <= _INT_DIGITS else float(digits)
