"""Small copies of the images in the report's folder, so that the report can be moved and needs no other file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from spr.core.image_metadata import forget_metadata
from spr.core.images import ImageProblem, ImageSource
from spr.core.ordered_map import ordered_map
from spr.records import PreferencePair
from spr.runs.reader import JoinedPair

SIDE = 640
"""Maximum length of a thumbnail's longer side, in pixels."""
_LOSSLESS = 256
"""Images whose longer side is at most this are stored as PNG, because JPEG artefacts would show."""
_PER_FOLDER = 1000
LEFT_OUT = {"problem": "left_out", "detail": "The report was written with --no-images."}
"""In place of a thumbnail."""


@dataclass(slots=True)
class _Entry:
    """An image's number and thumbnail; the lock keeps pairs of one image from creating it twice."""

    number: int
    lock: Lock = field(default_factory=Lock)
    result: dict[str, Any] | None = None


def with_thumbnails(
    pairs: Iterable[JoinedPair], source: ImageSource, folder: Path
) -> Iterator[tuple[JoinedPair, dict[str, Any]]]:
    """Each pair in order, with ``{"src": …}`` or ``{"problem": …, "detail": …}``; threads work some pairs ahead.

    Each image has one thumbnail, in ``thumbs/`` of the report's folder.
    """
    entries: dict[str, _Entry] = {}

    def numbered() -> Iterator[JoinedPair]:
        for item in pairs:
            entries.setdefault(item.pair.file_name, _Entry(len(entries)))
            yield item

    def thumbnail(item: JoinedPair) -> dict[str, Any]:
        entry = entries[item.pair.file_name]
        with entry.lock:
            if entry.result is None:
                entry.result = _create(source, folder, entry.number, item.pair)
        return entry.result

    # Pillow decodes, scales and encodes without holding Python's interpreter lock.
    return ordered_map(thumbnail, numbered(), threads=os.cpu_count() or 1, ahead=64)


def _create(source: ImageSource, folder: Path, number: int, pair: PreferencePair) -> dict[str, Any]:
    try:
        thumbnail = source.thumbnail(pair.file_name, (pair.width, pair.height), SIDE)
    except ImageProblem as problem:
        detail = str(problem)
        for place in (source.folder, source.folder.resolve(), Path(pair.file_name).parent):
            if place.is_absolute():
                detail = detail.replace(f"{place}/", "")
        return {"problem": problem.reason, "detail": detail}
    # Numbers instead of the images' names, which may contain anything.
    suffix = "png" if max(thumbnail.size) <= _LOSSLESS else "jpg"
    name = f"thumbs/{number // _PER_FOLDER:04d}/{number:07d}.{suffix}"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    forget_metadata(thumbnail).save(folder / name, quality=75)
    return {"src": name}
