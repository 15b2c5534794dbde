"""Writes thumbnails. Worker processes import this module, so it imports little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from spr.core.boxes import Size
from spr.core.image_metadata import forget_metadata
from spr.core.images import ImageProblem, ImageSource

SIDE = 640
"""Maximum length of a thumbnail's longer side, in pixels."""
_LOSSLESS = 256
"""Images whose longer side is at most this are stored as PNG, because JPEG artefacts would show."""
_PER_FOLDER = 1000
Written: TypeAlias = str | dict[str, Any]
"""The suffix of a thumbnail's file name, or ``{"problem": …, "detail": …}`` for an image that can't be used."""


@dataclass(frozen=True, slots=True)
class NumberedImage:
    """An image of the gallery, with its number from 0 in the order of the pairs, and its annotated size in pixels."""

    number: int
    file_name: str
    size_wh: Size


def thumbnail_name(number: int, suffix: str) -> str:
    """The path of a thumbnail in the report's folder: a number, because an image's own name may contain anything.

    >>> thumbnail_name(1234, "jpg")
    'thumbs/0001/0001234.jpg'
    """
    return f"thumbs/{number // _PER_FOLDER:04d}/{number:07d}.{suffix}"


def write_thumbnails(source: ImageSource, folder: Path, images: Sequence[NumberedImage]) -> list[Written]:
    """Write thumbnails without metadata into the report's folder."""
    return [_write(source, folder, image) for image in images]


def _write(source: ImageSource, folder: Path, image: NumberedImage) -> Written:
    try:
        thumbnail = source.thumbnail(image.file_name, image.size_wh, SIDE)
    except ImageProblem as problem:
        detail = str(problem)
        for place in (source.folder, source.folder.resolve(), Path(image.file_name).parent):
            if place.is_absolute():
                detail = detail.replace(f"{place}/", "")
        return {"problem": problem.reason, "detail": detail}
    suffix = "png" if max(thumbnail.size) <= _LOSSLESS else "jpg"
    path = folder / thumbnail_name(image.number, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    forget_metadata(thumbnail).save(path, quality=75)
    return suffix
