"""Text inputs: JSON, JSON lines, YAML and plain text. Every such file that a user gives is opened here.

The content decides how a file is read, not its name: gzip is unpacked, a byte order mark is removed, and UTF-16 or
UTF-32 with such a mark is converted to UTF-8. Everything else must be UTF-8.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from spr.core.errors import InputError, SprError

ErrorType: TypeAlias = Callable[..., SprError]
"""Makes the error if a file can't be read: a subclass of `SprError`."""

_GZIP = b"\x1f\x8b"
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"BZh": "a bzip2 archive",
}
_MARKS = {  # UTF-32's little-endian mark begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_FIX = "save it as UTF-8; for a file in Latin-1: iconv -f LATIN1 -t UTF-8 FILE"


class TextInput(io.RawIOBase):
    """A text input as a stream of UTF-8 bytes, without a byte order mark. Bytes of UTF-8 files are not checked.

    ``what`` names the input in errors, such as ``Annotations file a.json``; ``expected`` says what it should contain.

    Raises:
        InputError: or ``error``, if the file can't be opened, is a folder or a device, is packed other than by gzip, or
            is UTF-16 without a byte order mark; while reading, if its gzip or UTF-16 is damaged.
    """

    def __init__(
        self,
        source: Path | IO[bytes],
        what: str = "",
        *,
        expected: object = None,
        fix: str | None = None,
        error: ErrorType = InputError,
    ) -> None:
        self.what, self._error, self._expected, self._fix = what or str(source), error, expected, fix
        self._decoder: codecs.IncrementalDecoder | None = None
        self._converted = b""
        with self._explained():
            self._source: Any = self._open(source) if isinstance(source, Path) else source
            self._file: Any = self._source if hasattr(self._source, "peek") else io.BufferedReader(self._source)
            if self._file.peek(8).startswith(_GZIP):
                self._file = gzip.GzipFile(fileobj=self._file)
            start = bytes(self._file.peek(8)[:8])
            for magic, kind in _ARCHIVES.items():
                if start.startswith(magic):
                    raise self._problem(kind, fix="unpack it first, or pack it with gzip")
            mark = next((mark for mark in _MARKS if start.startswith(mark)), b"")
            if not mark and b"\0" in start[:4]:
                raise self._problem("binary data, or UTF-16 without a byte order mark", fix="save it as UTF-8")
            self._file.read(len(mark))
        encoding = _MARKS.get(mark, "utf-8")
        self.skipped = len(mark) if encoding == "utf-8" else 0
        """Length of the byte order mark that was removed from a UTF-8 file, in bytes."""
        if encoding != "utf-8":
            self._decoder = codecs.getincrementaldecoder(encoding)()

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read at most ``len(buffer)`` bytes; 0 at the end."""
        with self._explained():
            if self._decoder is None:
                part = self._file.read1(len(buffer))
            else:
                data = b" "
                while data and not self._converted:
                    data = self._file.read1(2**16)
                    self._converted = self._decoder.decode(data, final=not data).encode()
                part = self._converted[: len(buffer)]
                self._converted = self._converted[len(part) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        """Close the file."""
        if not self.closed and hasattr(self, "_source"):
            self._source.close()
        super().close()

    @property
    def converted(self) -> bool:
        """Whether the file is UTF-16 or UTF-32, so that what it says about its encoding is no longer true."""
        return self._decoder is not None

    @property
    def done(self) -> int:
        """How many bytes of the file, packed or not, have been read; 0 if that is unknown."""
        try:
            return int(self._source.tell())
        except OSError:
            return 0

    def _open(self, path: Path) -> IO[bytes]:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise self._problem("a folder" if stat.S_ISDIR(mode) else "a device")
        return path.open("rb")

    def _problem(self, got: object, *, fix: str | None = None) -> SprError:
        return self._error(f"{self.what} can't be read", got=got, expected=self._expected, fix=fix or self._fix)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:
            raise self._problem(f"damaged {error.encoding.upper()}: {error.reason}") from None
        except FileNotFoundError:
            raise self._problem("no such file") from None
        except OSError as error:
            raise self._problem(error.strerror or error) from None
        except (EOFError, ValueError, zlib.error) as error:  # truncated gzip, a NUL in the path, damaged gzip
            raise self._problem(error) from None


def read_bytes(path: Path, what: str = "", *, check: bool = True, **options: Any) -> bytes:
    """The whole content of a text input in UTF-8, valid if ``check``; the options are those of `TextInput`.

    Raises:
        InputError: or ``error``, as `TextInput`, or naming the first byte that is not UTF-8.
    """
    with TextInput(path, what, **options) as file:
        data = b"".join(iter(lambda: file.read(2**20), b""))
        if check:
            decode_utf8(data, file.what, skipped=file.skipped, error=options.get("error", InputError))
    return data


def read_text(path: Path, what: str = "", **options: Any) -> str:
    """The whole content of a text input; see `read_bytes`. Line ends stay as they are."""
    return read_bytes(path, what, **options).decode()


def text_lines(file: TextInput, *, replace: bool = False) -> Iterator[str]:
    r"""The lines of a text input, one at a time, without their line ends (``\n`` or ``\r\n``).

    A file without any ``\n`` may end its lines with ``\r``. With ``replace``, invalid bytes become U+FFFD.

    Raises:
        InputError: naming the first byte that is not UTF-8.
    """
    position, number = file.skipped, 1
    for line in io.BufferedReader(file, 2**16):
        pieces = [line.rstrip(b"\r\n")] if line.endswith(b"\n") else line.splitlines()
        for piece in pieces:
            if replace:
                yield piece.decode("utf-8", errors="replace")
            else:
                yield decode_utf8(piece, file.what, skipped=position, line=number)
        position, number = position + len(line), number + 1


def decode_utf8(data: bytes, what: str, *, skipped: int = 0, line: int = 1, error: ErrorType = InputError) -> str:
    """Decode UTF-8. ``skipped`` bytes of the file come before the data, which begins on the given line.

    Raises:
        InputError: or ``error``, naming the first byte that is not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as problem:
        at = problem.start
        line += data.count(b"\n", 0, at)
        got = f"byte 0x{data[at]:02x} at byte {skipped + at:,}, line {line:,}"
        raise error(f"{what} is not UTF-8", got=got, expected="UTF-8", fix=_FIX) from None
