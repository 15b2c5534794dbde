"""Paths in object stores: `RemotePath`, with the methods of `pathlib.Path` that a store can perform.

A store has whole objects and no folders: an object appears when it is complete, can't be renamed or appended to, and
listings may lag behind. What needs a local disk is a `StorageError`.
"""

from __future__ import annotations

import fnmatch
import io
import mmap
import os
import stat as modes
import time
from collections.abc import Callable, Generator, Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Self, TypeVar
from urllib.parse import unquote

from spr.core.errors import StorageError
from spr.core.object_store import READ_ONLY, connect, explained, is_broken_answer, request_timeout
from spr.core.object_url import ObjectUrl

if TYPE_CHECKING:
    from obstore.store import ObjectStore

DIGEST = "sha256"
"""The attribute of an object that holds the SHA-256 of its content."""
_PART = 8 * 2**20
"""Bytes per request of large uploads, and at most of sequential reads."""
_FIRST_READ = 2**17
_UPLOADS = 4
_PAUSE = 0.2

Result = TypeVar("Result")


class Version(NamedTuple):
    """What identifies one content of an object, for conditional writes."""

    e_tag: str | None
    version: str | None


class Info(NamedTuple):
    """An object's size in bytes, modification time in nanoseconds, version, and SHA-256 if it was put with it."""

    size: int
    mtime_ns: int
    version: Version
    sha256: str | None


class ConflictError(StorageError):
    """A conditional write found another version of the object than expected."""


class NoConditionsError(StorageError):
    """The store does not support conditional writes."""


class RemotePath(ObjectUrl):
    """The URL of an object, or of a prefix that is treated as a folder.

    ``str()`` gives the URL. ``//`` and ``.`` within a key are reduced as pathlib does; ``..`` is not allowed. A URL of
    a web server is read with its ``%`` escapes decoded; other URLs are taken literally.

    >>> path = RemotePath("s3://bucket/runs") / "mine" / "config.yaml"
    >>> str(path), path.name, str(path.parent), path.relative_to("s3://bucket/runs").as_posix()
    ('s3://bucket/runs/mine/config.yaml', 'config.yaml', 's3://bucket/runs/mine', 'mine/config.yaml')

    Raises:
        InputError: if it is not such a URL.
    """

    __slots__ = ()

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _key(self) -> str:
        return unquote(self.key) if self._scheme in READ_ONLY else self.key

    def _ask(self, action: str, request: Callable[[Any, ObjectStore], Result]) -> Result:
        """Call ``request`` with the package obstore and the store; its errors become those of SPR.

        obstore repeats requests, but not if the connection breaks within a list or an error: these are repeated here.
        A conditional write may be repeated too: `put` recognises its own result.
        """
        store = connect(self._scheme, self.bucket)
        import obstore

        started = time.monotonic()
        while True:
            try:
                return request(obstore, store)
            except Exception as error:
                late = time.monotonic() - started > request_timeout() / 4
                if late or not is_broken_answer(error):
                    raise explained(error, str(self), action) from None
            time.sleep(_PAUSE)

    def info(self) -> Info:
        """Size, modification time, version and SHA-256 of an object; one small request.

        Raises:
            FileNotFoundError: if there is no such object.
            StorageError: if the store can't be reached or refuses the request; so do all methods that follow.
        """
        found = self._ask("read", lambda obs, store: obs.get(store, self._key, options={"head": True}))
        return _info(found.meta, found.attributes)

    def stat(self, **_: object) -> os.stat_result:
        """Type (a regular file), size and modification time of an object; FileNotFoundError if there is none."""
        info = self.info()
        seconds = info.mtime_ns // 10**9
        values = (modes.S_IFREG | 0o644, 0, 0, 1, 0, 0, info.size, seconds, seconds, seconds)
        return os.stat_result(values, {"st_mtime": info.mtime_ns / 1e9, "st_mtime_ns": info.mtime_ns})

    def lstat(self) -> os.stat_result:
        """As `stat`."""
        return self.stat()

    def is_file(self, **_: object) -> bool:
        """Whether there is an object of this name."""
        try:
            self.info()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self, **_: object) -> bool:
        """Whether a listing has any object below this path; always False on a web server, which lists none."""
        prefix = f"{self.key}/" if self.key else None
        if self._scheme in READ_ONLY:
            return False
        return bool(self._ask("listed", lambda obs, store: next(obs.list(store, prefix), ())))

    def exists(self, **_: object) -> bool:
        """Whether there is such an object, or any below it."""
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        """False: stores have no links."""
        return False

    def samefile(self, other_path: str | os.PathLike[str]) -> bool:
        """Whether the other path is the same URL."""
        return self == other_path

    def read(self, *, most: int | None = None) -> tuple[bytes, Info]:
        """The content of an object, with what is known about it, in one request.

        With ``most``, a larger object is not transferred: its content is then empty.
        """

        def request(obs: Any, store: ObjectStore) -> tuple[bytes, Info]:
            found = obs.get(store, self._key)
            info = _info(found.meta, found.attributes)
            return b"" if most is not None and info.size > most else bytes(found.bytes()), info

        return self._ask("read", request)

    def read_bytes(self) -> bytes:
        """The content of an object."""
        return self.read()[0]

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        """The content of an object as text, with universal line ends."""
        with self.open("r", encoding=encoding, errors=errors, newline=newline) as file:
            return str(file.read())

    def read_range(self, offset: int, length: int, *, version: Version | None = None) -> bytes:
        """``length`` bytes from an offset, fewer at the end; of this version, which is a StorageError if it is gone."""
        options: Any = {"range": (offset, offset + length)}
        if version is not None and version.e_tag is not None and self._scheme not in READ_ONLY:
            options["if_match"] = version.e_tag
        try:
            found = self._ask("read", lambda obs, store: bytes(obs.get(store, self._key, options=options).bytes()))
        except StorageError as error:
            if "412" in str(error.got):
                raise StorageError(f"{self} has changed while it was read", fix="run the command again") from None
            raise
        return found[:length]

    def open(  # type: ignore[override]
        self,
        mode: str = "r",
        buffering: int = -1,  # noqa: ARG002
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open an object for reading, as bytes (``rb``) or text (``r``); it is read range by range, as needed."""
        if mode not in ("r", "rt", "rb"):
            self._refuse(f"opening it with mode {mode!r}")
        file = io.BufferedReader(_RemoteFile(self), 2**18)
        return file if mode == "rb" else io.TextIOWrapper(file, encoding or "utf-8", errors, newline)

    # ── listings, which may lag behind ────────────────────────────────────────────────────────────────────────────────

    def below(self) -> list[Self]:
        """All objects below this path, in no order, as far as the store lists them already."""
        prefix = f"{self.key}/" if self.key else None
        found = self._ask("listed", lambda obs, store: obs.list(store, prefix).collect())
        return [self._with((self.bucket, *entry["path"].split("/"))) for entry in found]

    @property
    def lists_nothing(self) -> bool:
        """Whether the store is a web server, on which only whole URLs can be asked for."""
        return self._scheme in READ_ONLY

    def first_objects(self) -> list[Self]:
        """The objects directly in this folder among the first that a listing returns; empty on a web server."""
        if self._scheme in READ_ONLY:
            return []
        prefix = f"{self.key}/" if self.key else None
        found = self._ask("listed", lambda obs, store: next(obs.list(store, prefix, chunk_size=1000), ()))
        paths = [self._with((self.bucket, *entry["path"].split("/"))) for entry in found]
        return [path for path in paths if path.parent == self]

    def iterdir(self) -> Generator[Self, None, None]:
        """The objects and folders in this folder, sorted; nothing if there is no such folder."""
        if self._scheme in READ_ONLY:
            self._refuse("listing a folder of a web server")
        folders, objects = self._entries()
        yield from sorted([*folders, *objects])

    def _entries(self) -> tuple[list[Self], list[Self]]:
        """The folders and the objects in this folder."""
        prefix = f"{self.key}/" if self.key else None
        found = self._ask("listed", lambda obs, store: obs.list_with_delimiter(store, prefix))
        keys = found["common_prefixes"], [entry["path"] for entry in found["objects"]]
        folders, objects = ([self._with((self.bucket, *key.split("/"))) for key in part] for part in keys)
        return folders, objects

    def glob(self, pattern: str, **_: object) -> Iterator[Self]:  # type: ignore[override]
        """The objects and folders that match a pattern; ``**`` is not supported."""
        first, _slash, rest = str(pattern).partition("/")
        if first == "**":
            self._refuse("searching folders recursively")
        if not set(first) & set("*?["):
            found = [self / first] if rest or (self / first).exists() else []
        else:
            folders, objects = self._entries()
            entries = folders if rest else sorted([*folders, *objects])
            found = [path for path in entries if fnmatch.fnmatchcase(path.name, first)]
        for path in found:
            yield from path.glob(rest) if rest else (path,)

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def write_bytes(self, data: Any) -> int:
        """Put an object, with its SHA-256 as an attribute; it appears when it is complete."""
        self.put(data)
        return memoryview(data).nbytes

    def write_text(
        self,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,  # noqa: ARG002
    ) -> int:
        """Put a text; line ends stay as they are."""
        self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))
        return len(data)

    def put(self, data: Any, *, only: Version | Literal["new"] | None = None) -> Version:
        """Put an object with its SHA-256; with ``only``, if it is still of this version, or does not exist yet.

        Raises:
            ConflictError: if ``only`` is not met, and the object has another content than ``data``.
            NoConditionsError: if the store has no conditional writes.
        """
        self._check_writable()
        attributes: Any = {DIGEST: sha256(data).hexdigest()}
        options: dict[str, Any] = {"attributes": attributes, "chunk_size": _PART, "max_concurrency": _UPLOADS}
        if only is not None:
            version = {} if only == "new" else {name: value for name, value in only._asdict().items() if value}
            options |= {"mode": version or "create", "use_multipart": False}

        def request(obs: Any, store: ObjectStore) -> Any:
            try:
                return obs.put(store, self._key, data, **options)
            except (obs.exceptions.AlreadyExistsError, obs.exceptions.PreconditionError):
                return None
            except (obs.exceptions.NotSupportedError, NotImplementedError):
                if only is None:
                    raise
                raise NoConditionsError(f"{self._scheme}://{self.bucket} has no conditional writes") from None

        result = self._ask("written", request)
        if result is not None:
            return Version(result["e_tag"], result["version"])
        # A request that was repeated because its answer got lost meets its own result.
        try:
            found, info = self.read()
        except FileNotFoundError:
            raise ConflictError(f"{self} was deleted by another program") from None
        if found != bytes(data):
            raise ConflictError(f"{self} was written by another program")
        return info.version

    def put_file(self, path: Path) -> Version:
        """Put a local file, without reading it into memory as a whole."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return self.put(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete an object; stores that don't say whether there was one never raise FileNotFoundError."""
        self._check_writable()
        try:
            self._ask("deleted", lambda obs, store: obs.delete(store, self._key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there as soon as an object is in it."""

    def _check_writable(self) -> None:
        if self._scheme in READ_ONLY:
            raise StorageError(f"{self} can't be written", got=self._scheme, fix="give a path, or an s3:// URL")


def _refusal(name: str) -> Any:
    def refuse(self: RemotePath, *_: object, **__: object) -> NoReturn:
        self._refuse(f"the operation `{name}`")

    return refuse


for _name in dir(Path):
    # Whatever else pathlib can do, in this version of Python or a later one, would use the local disk.
    _value = getattr(Path, _name)
    if any(_name in vars(known) for known in (RemotePath, ObjectUrl)) or _name in ("parser", "from_uri", "cwd", "home"):
        continue
    if not _name.startswith("_"):
        setattr(RemotePath, _name, _refusal(_name) if callable(_value) else property(_refusal(_name)))
for _name in ("_parts", "_raw_paths"):  # what `Path(path)` copies from another path, up to 3.11 and from 3.12
    setattr(RemotePath, _name, property(_refusal("Path")))


class _RemoteFile(io.RawIOBase):
    """An object as a seekable file; reads in a row become larger, up to `_PART`."""

    def __init__(self, path: RemotePath) -> None:
        self._path, self._info = path, path.info()
        self.name = str(path)
        self._position, self._block, self._start, self._size = 0, memoryview(b""), 0, _FIRST_READ

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size}[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._info.size - self._position)
        if wanted <= 0:
            return 0
        end = self._start + len(self._block)
        if not self._start <= self._position < end:
            self._size = min(4 * self._size, _PART) if self._position == end else _FIRST_READ
            length = min(max(wanted, self._size), self._info.size - self._position)
            self._block = memoryview(self._path.read_range(self._position, length, version=self._info.version))
            self._start = self._position
            if not self._block:
                return 0
        part = self._block[self._position - self._start :][:wanted]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


def _info(meta: Any, attributes: Any) -> Info:
    modified = meta["last_modified"]
    time = int(modified.timestamp()) * 10**9 + modified.microsecond * 1000 if modified is not None else 0
    digest = next((str(value) for name, value in attributes.items() if str(name).lower() == DIGEST), None)
    return Info(meta["size"], time, Version(meta["e_tag"], meta["version"]), digest)
