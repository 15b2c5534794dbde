"""Small copies of the images in the report's folder, so that the report can be moved and needs no other file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from spr.core.errors import RunError
from spr.core.images import ImageProblem, ImageSource
from spr.core.ordered_map import ordered_map

SIDE = 640
"""Maximum length of a thumbnail's longer side, in pixels."""
_LOSSLESS = 256
"""Images whose longer side is at most this are stored as PNG, because JPEG artefacts would show."""
_PER_FOLDER = 1000
_AHEAD = 64

Item = TypeVar("Item")


class Thumbnails:
    """Creates one thumbnail per image.

    Args:
        folder: The report's folder; thumbnails go to ``thumbs/`` in it.
        source: The run's images.
    """

    def __init__(self, folder: Path, source: ImageSource) -> None:
        self._folder, self._source = folder, source
        self._entries: dict[str, _Entry] = {}

    def attach(
        self, items: Iterable[Item], image_of: Callable[[Item], tuple[str, int, int]]
    ) -> Iterator[tuple[Item, dict[str, Any]]]:
        """Each item in order, with ``{"src": …}`` or ``{"problem": …, "detail": …}``; threads work some items ahead.

        Args:
            items: Anything that has an image.
            image_of: File name of an item's image, and its annotated width and height in pixels.

        Raises:
            RunError: if a thumbnail can't be written.
        """

        def numbered() -> Iterator[Item]:
            for item in items:
                self._entries.setdefault(image_of(item)[0], _Entry(len(self._entries)))
                yield item

        def thumbnail(item: Item) -> dict[str, Any]:
            file_name, width, height = image_of(item)
            entry = self._entries[file_name]
            with entry.lock:
                entry.result = entry.result or self._create(entry.number, file_name, (width, height))
            return entry.result

        # Pillow decodes, scales and encodes without holding Python's interpreter lock.
        return ordered_map(thumbnail, numbered(), threads=os.cpu_count() or 1, ahead=_AHEAD)

    def _create(self, number: int, file_name: str, size_wh: tuple[int, int]) -> dict[str, Any]:
        try:
            thumbnail = self._source.thumbnail(file_name, size_wh, SIDE)
        except ImageProblem as problem:
            return {"problem": problem.reason, "detail": str(problem)}
        # Numbers instead of the images' names, which may contain anything.
        suffix = "png" if max(thumbnail.size) <= _LOSSLESS else "jpg"
        source = f"thumbs/{number // _PER_FOLDER:04d}/{number:07d}.{suffix}"
        path = self._folder / source
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            thumbnail.save(path, quality=75)
        except OSError as error:
            fix = "free some disk space, or choose another --out"
            raise RunError(f"{path} can't be written", got=error, fix=fix) from None
        return {"src": source}


@dataclass(slots=True)
class _Entry:
    """An image's number and thumbnail; the lock keeps pairs of one image from creating it twice."""

    number: int
    lock: Lock = field(default_factory=Lock)
    result: dict[str, Any] | None = None
