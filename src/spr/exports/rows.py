"""What a format is, and what each of its rows is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias

from spr.records import PreferencePair

ImageMode: TypeAlias = Literal["embed", "copy", "path"]
"""Where an export's images are: their bytes within its rows, copies in its folder, or where they were."""

IMAGE_MODES: tuple[ImageMode, ...] = ("embed", "copy", "path")


class Texts(NamedTuple):
    """What is asked and the two answers, as the trainer sees them."""

    prompt: str
    chosen: str
    rejected: str


class ImageFile(NamedTuple):
    """An image as a row holds it.

    Attributes:
        path: ``embed``: the file's name alone; ``copy``: relative to the export's folder; ``path``: absolute.
        data: The file's bytes for ``embed``, else None.
    """

    path: str
    data: bytes | None


@dataclass(frozen=True, slots=True)
class ExportRow:
    """A pair with its texts and its image."""

    pair: PreferencePair
    texts: Texts
    image: ImageFile


@dataclass(frozen=True, slots=True)
class Labels:
    """What is the same in all rows.

    Attributes:
        name: The data set's, for people.
        origin: File name of the annotations that the pairs come from.
        describer: The model that wrote the answers, ``name@revision``.
    """

    name: str
    origin: str
    describer: str


class Writer(Protocol):
    """Writes rows into a folder, in order; nothing is complete before `close`."""

    def write(self, rows: Sequence[ExportRow]) -> None:
        """Append rows."""
        ...

    def close(self) -> None:
        """Finish the files."""
        ...

    def abandon(self) -> None:
        """Let go of what is open, finished or not."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """What another trainer reads.

    Attributes:
        key: Its name on the command line.
        reader: Whose it is.
        images: The modes that it can be written in, the usual one first.
        placeholders: Texts that its reader takes for an image or the like, so that no prompt or answer may hold them.
        data_files: Where the rows are, as `datasets.load_dataset` takes it.
        columns: Each column (or key) and what it means.
        usage: How to train with it, Markdown; ``{out}`` stands for the folder.
        open: Folder and labels → writer.
    """

    key: str
    reader: str
    images: tuple[ImageMode, ...]
    placeholders: tuple[str, ...]
    data_files: str
    columns: Mapping[str, str]
    usage: str
    open: Callable[[Path, Labels], Writer]
