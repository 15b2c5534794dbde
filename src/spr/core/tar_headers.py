"""The members of a tar file, from its headers alone: old, USTAR, GNU and PAX format. No data is read.

Python's tarfile creates an object per member, which takes several times as long and as much memory.
"""

from __future__ import annotations

import posixpath
from array import array
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias

from spr.core.image_names import spelling, stem

if TYPE_CHECKING:
    import pyarrow as pa  # imported by functions: processes that read images from folders need no tar files

BLOCK = 512
ReadAt: TypeAlias = Callable[[int, int], bytes]
"""Returns ``length`` bytes at an offset, fewer only at the end: ``read_at(offset, length)``."""

SPARSE, LOST_LINK = -1, -2
"""In place of an offset: a sparse file, and a link to something that is not in the tar file."""

_ZEROS = bytes(BLOCK)
_LONGEST = 2**20  # bytes of a PAX header or of a long name
_FILES, _NO_DATA = b"07\0", b"123456"
_LINKS = 40  # links that lead to links
_STEP = 256  # members


class TarError(ValueError):
    """A file is not a tar file, or a damaged one."""


def name_hash(name: bytes) -> int:
    """A 64-bit hash of a member's name."""
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little")


def stem_key(name: str) -> bytes:
    """The last part of a name, without what `spelling` ignores, upper and lower case, and the suffix."""
    return stem(spelling(name).rpartition("/")[2]).encode("utf-8", "surrogatepass")


def clean_name(name: bytes) -> bytes:
    """A member's name without ``.`` and empty parts: ``./a//b.jpg`` is ``a/b.jpg``."""
    return b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))


@cache
def members_schema() -> pa.Schema:
    """The columns of a tar file's index."""
    import pyarrow as pa

    return pa.schema(
        [
            ("name", pa.large_binary()),  # without `.` and empty parts
            ("offset", pa.int64()),  # of the data in the tar file, in bytes, or `SPARSE` or `LOST_LINK`
            ("size", pa.int64()),  # in bytes
            ("name_hash", pa.uint64()),
            ("stem_hash", pa.uint64()),  # of its `stem_key`
        ]
    )


def read_members(read_at: ReadAt, size: int, progress: Callable[[int], None] = lambda _: None) -> pa.Table:
    """The files in a tar file of ``size`` bytes, in the order of their headers, as `members_schema`.

    Links are resolved to the members that they lead to. Folders, devices and pipes are left out. A tar file that ends
    after a member, without the usual zeros, is complete. ``progress`` is called with the offset from time to time.

    Raises:
        TarError: if the file is not a tar file, is damaged, or ends too early.
        OSError: if it can't be read.
    """
    return _Reader(read_at, size).read(progress)


class _Reader:
    def __init__(self, read_at: ReadAt, size: int) -> None:
        self._read_at, self._size = read_at, size
        self._names, self._ends = bytearray(), array("q", [0])
        self._offsets, self._sizes = array("q"), array("q")
        self._name_hashes, self._stem_hashes = array("Q"), array("Q")
        self._links: list[tuple[int, bytes]] = []
        self._global: dict[str, bytes] = {}

    def read(self, progress: Callable[[int], None]) -> pa.Table:
        position, count, own = 0, 0, dict[str, bytes]()
        while (block := self._read_at(position, BLOCK)) and block != _ZEROS:
            kind, length = check_header(block, position)
            position += BLOCK
            if kind in b"xgXLK":
                if length > _LONGEST:
                    raise TarError(f"a name or a PAX header of {length:,} bytes at byte {position - BLOCK:,}")
                data = self._read_at(position, length)
                self._check_end(position + length)
                if kind in b"LK":
                    own["path" if kind == b"L" else "linkpath"] = data.split(b"\0")[0]
                else:
                    (self._global if kind == b"g" else own).update(_pax(data, position))
                position += _padded(length)
                continue
            fields, own = {key: value for key, value in {**self._global, **own}.items() if value}, {}
            sparse = kind == b"S" or any(key.startswith("GNU.sparse.") for key in fields)
            if kind == b"S":
                position = self._skip_sparse_map(block, position)
            if "size" in fields:
                length = _decimal(fields["size"], position)
            name = fields.get("GNU.sparse.name") or fields.get("path") or _own_name(block)
            if kind in b"12":
                self._add_link(name, kind, fields.get("linkpath") or block[157:257].split(b"\0")[0])
            elif kind in b"07\0S" and not name.endswith(b"/"):
                self._check_end(position + length)
                self._add(name, SPARSE if sparse else position, length)
            if kind not in _NO_DATA:
                self._check_end(position + length)
                position += _padded(length)
            count += 1
            if count % _STEP == 0:
                progress(position)
        if not count:
            raise TarError("no member" if self._size else "an empty file")
        self._resolve_links()
        return self._table()

    def _check_end(self, end: int) -> None:
        if end > self._size:
            raise TarError(f"it has {self._size:,} bytes, but a member ends at byte {end:,}")

    def _skip_sparse_map(self, block: bytes, position: int) -> int:
        more = block[482]
        while more:
            block = self._read_at(position, BLOCK)
            if len(block) < BLOCK:
                raise TarError(f"it ends within a header, after {position + len(block):,} bytes")
            more, position = block[504], position + BLOCK
        return position

    def _add(self, name: bytes, offset: int, size: int) -> None:
        name = clean_name(name)
        self._names += name
        self._ends.append(len(self._names))
        self._offsets.append(offset)
        self._sizes.append(size)
        self._name_hashes.append(name_hash(name))
        last = name[name.rfind(b"/") + 1 :].decode("utf-8", "surrogateescape")
        self._stem_hashes.append(name_hash(stem_key(last)))

    def _add_link(self, name: bytes, kind: bytes, target: bytes) -> None:
        if kind == b"2":
            target = posixpath.normpath(posixpath.join(posixpath.dirname(clean_name(name)), target))
        self._links.append((len(self._offsets), clean_name(target)))
        self._add(name, LOST_LINK, 0)

    def _resolve_links(self) -> None:
        if not self._links:
            return
        wanted, rows = {target for _, target in self._links}, dict[bytes, int]()
        for row, (start, end) in enumerate(zip(self._ends, self._ends[1:], strict=False)):
            if (name := bytes(self._names[start:end])) in wanted:
                rows[name] = row
        targets = dict(self._links)
        for row, target in self._links:
            found = rows.get(target)
            for _ in range(_LINKS):
                found = rows.get(targets[found]) if found in targets else found
            if found is not None and found not in targets:
                self._offsets[row], self._sizes[row] = self._offsets[found], self._sizes[found]

    def _table(self) -> pa.Table:
        import pyarrow as pa

        count = len(self._offsets)
        buffers = [None, pa.py_buffer(self._ends), pa.py_buffer(self._names)]
        numbers = (self._offsets, self._sizes, self._name_hashes, self._stem_hashes)
        columns = [
            pa.Array.from_buffers(field.type, count, [None, pa.py_buffer(values)])
            for field, values in zip(list(members_schema())[1:], numbers, strict=True)
        ]
        return pa.table([pa.Array.from_buffers(pa.large_binary(), count, buffers), *columns], schema=members_schema())


def check_header(block: bytes, position: int = 0) -> tuple[bytes, int]:
    """The type of a header at a position, and the length of its data in bytes; a `TarError` if it is damaged."""
    if not block:
        raise TarError("an empty file")
    if len(block) < BLOCK:
        raise TarError(f"it ends within a header, after {position + len(block):,} bytes")
    try:
        wanted, length = _number(block[148:156]), _number(block[124:136])
    except ValueError:
        wanted, length = -1, 0
    rest = block[:148] + block[156:]
    if wanted != 256 + sum(rest) and wanted != 256 + sum(byte - 256 * (byte > 127) for byte in rest):
        raise TarError(f"a damaged header at byte {position:,}" if position else "no header of a tar file")
    if length < 0:
        raise TarError(f"a negative size at byte {position:,}")
    return block[156:157], length


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _own_name(block: bytes) -> bytes:
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes) -> int:
    """A number of a header: octal digits, or base 256 if the first bit is set."""
    if field[0] & 0x80:
        number = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
        return number if field[0] != 0xFF else -1
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _decimal(value: bytes, position: int) -> int:
    if not value.isdigit() or len(value) > 20:
        raise TarError(f"a PAX size that is no number before byte {position:,}")
    return int(value)


def _pax(data: bytes, position: int) -> dict[str, bytes]:
    """The records of a PAX header, ``LENGTH KEY=VALUE`` with a line end."""
    fields: dict[str, bytes] = {}
    start = 0
    while start < len(data) and data[start]:
        length, space, _ = data[start : start + 24].partition(b" ")
        end = start + int(length) if length.isdigit() else 0
        key, sign, value = data[start + len(length) + 1 : end - 1].partition(b"=")
        if not space or not sign or end > len(data) or data[end - 1 : end] != b"\n":
            raise TarError(f"a damaged PAX header at byte {position + start:,}")
        fields[key.decode("utf-8", "replace")] = value
        start = end
    return fields
