"""Names of objects in stores as a `pathlib.Path`: their parts, parents and what is below them, without a request."""

from __future__ import annotations

import os
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn, Self

from spr.core.errors import InputError, StorageError
from spr.core.object_store import KINDS, READ_ONLY

if TYPE_CHECKING:
    _Local = Path
else:
    _Local = type(Path())  # the platform's class, which alone can be a base before Python 3.12


class ObjectUrl(_Local):
    """The names of `RemotePath`, which says what a URL is."""

    __slots__ = ("_scheme", "_segments")
    _scheme: str
    _segments: tuple[str, ...]  # the bucket, then the key's parts

    def __new__(cls, *parts: str | PurePath) -> Self:  # noqa: D102
        self: Self = object.__new__(cls)
        first, *rest = map(str, parts)
        scheme, colon, below = first.partition(":/")
        segments = [part for part in "/".join([below.lstrip("/"), *rest]).split("/") if part not in ("", ".")]
        if scheme not in KINDS or not colon or not segments or ".." in segments or "\0" in below:
            raise InputError("This is not the URL of an object", got=first, expected="such as s3://BUCKET/FOLDER")
        if scheme in READ_ONLY and {"?", "#"} & set(first):
            expected, fix = "such as https://HOST/FILE", "download the file and give its path"
            raise InputError("URLs with a query can't be read", got=first, expected=expected, fix=fix)
        self._scheme, self._segments = scheme, tuple(segments)
        return self

    def __init__(self, *parts: str | PurePath) -> None:
        # The base class would parse the parts as those of a local path.
        pass

    def __str__(self) -> str:
        return f"{self._scheme}://{'/'.join(self._segments)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self),)

    def __hash__(self) -> int:
        return hash((self._scheme, self._segments))

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, ObjectUrl) and self._scheme == other._scheme
        return same and isinstance(other, ObjectUrl) and self._segments == other._segments

    def __lt__(self, other: PurePath) -> bool:
        return str(self) < str(other)

    def __le__(self, other: PurePath) -> bool:
        return str(self) <= str(other)

    def __gt__(self, other: PurePath) -> bool:
        return str(self) > str(other)

    def __ge__(self, other: PurePath) -> bool:
        return str(self) >= str(other)

    def __truediv__(self, key: str | os.PathLike[str]) -> Self:
        return self.joinpath(key)

    def __rtruediv__(self, key: str | os.PathLike[str]) -> NoReturn:
        self._refuse("joining it to another path")

    def __fspath__(self) -> NoReturn:
        self._refuse("opening it as a local file")

    def joinpath(self, *others: str | os.PathLike[str]) -> Self:
        """The path below this one; absolute paths and ``..`` are an InputError."""
        for other in others:
            if isinstance(other, ObjectUrl) or str(other).startswith("/"):
                raise InputError(f"This is not a path below {self}", got=other)
        return self._with(self._segments + tuple("/".join(map(str, others)).split("/")))

    def with_segments(self, *segments: str | PurePath) -> Self:
        """A path of these parts."""
        return type(self)(*segments)

    def _with(self, segments: tuple[str, ...]) -> Self:
        return type(self)(f"{self._scheme}://" + "/".join(segments))

    @property
    def parts(self) -> tuple[str, ...]:
        """The scheme with the bucket, then the key's parts."""
        return (self.anchor, *self._segments[1:])

    @property
    def drive(self) -> str:
        """Empty: a URL has none."""
        return ""

    @property
    def root(self) -> str:
        """The URL of the bucket."""
        return self.anchor

    @property
    def anchor(self) -> str:
        """The URL of the bucket."""
        return f"{self._scheme}://{self._segments[0]}"

    @property
    def bucket(self) -> str:
        """The name of the bucket or of the container, or the host and its port."""
        return self._segments[0]

    @property
    def key(self) -> str:
        """The name of the object in its bucket."""
        return "/".join(self._segments[1:])

    @property
    def name(self) -> str:
        """The last part of the key; the bucket's name for a bucket."""
        return self._segments[-1]

    @property
    def suffix(self) -> str:
        """As of a local path."""
        return PurePosixPath(self.name).suffix

    @property
    def suffixes(self) -> list[str]:
        """As of a local path."""
        return PurePosixPath(self.name).suffixes

    @property
    def stem(self) -> str:
        """As of a local path."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> Self:
        """The folder above; a bucket is its own parent."""
        return self._with(self._segments[:-1]) if len(self._segments) > 1 else self

    @property
    def parents(self) -> tuple[Self, ...]:
        """The folders above, the nearest first."""
        return tuple(self._with(self._segments[:count]) for count in range(len(self._segments) - 1, 0, -1))

    def with_name(self, name: str) -> Self:
        """The path of another object beside this one."""
        if not name or "/" in name or len(self._segments) == 1:
            raise ValueError(f"Invalid name {name!r}")
        return self._with((*self._segments[:-1], name))

    def with_stem(self, stem: str) -> Self:
        """As of a local path."""
        return self.with_name(stem + self.suffix)

    def with_suffix(self, suffix: str) -> Self:
        """As of a local path."""
        return self.with_name(PurePosixPath(self.name).with_suffix(suffix).name)

    def relative_to(self, other: str | os.PathLike[str], *_: object, **__: object) -> PurePosixPath:  # type: ignore[override]
        """The rest of the path below another one; a ValueError if it is not below it."""
        try:
            above = other if isinstance(other, ObjectUrl) else type(self)(str(other))
        except InputError as error:
            raise ValueError(str(error)) from None
        count = len(above._segments)
        if above._scheme != self._scheme or above._segments != self._segments[:count]:
            raise ValueError(f"{self} is not below {above}")
        return PurePosixPath(*self._segments[count:])

    def is_relative_to(self, other: str | os.PathLike[str], *_: object) -> bool:
        """Whether this path is below another one, or the same."""
        try:
            self.relative_to(other)
        except ValueError:
            return False
        return True

    def match(self, path_pattern: str, **_: object) -> bool:
        """Whether the last parts match a pattern."""
        return PurePosixPath(self.key or self.name).match(str(path_pattern))

    def as_posix(self) -> str:
        """The URL."""
        return str(self)

    def as_uri(self) -> str:
        """The URL."""
        return str(self)

    def is_absolute(self) -> bool:
        """True: a URL does not depend on the current folder."""
        return True

    def absolute(self) -> Self:
        """The path itself."""
        return self

    def resolve(self, *_: object, **__: object) -> Self:
        """The path itself: stores have no links."""
        return self

    def expanduser(self) -> Self:
        """The path itself."""
        return self

    def _refuse(self, operation: str) -> NoReturn:
        fix = "give a path on a local disk here (docs/object-storage.md lists what works on URLs)"
        raise StorageError(f"{self} is not on a local disk", got=operation, expected="a local path", fix=fix)
