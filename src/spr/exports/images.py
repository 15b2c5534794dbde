"""The images of an export: every trainer must see the pixels that the pipeline saw, or all boxes are wrong."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from spr.core.image_metadata import forget_metadata, strip_metadata
from spr.core.images import ImageProblem, ImageSource
from spr.core.ordered_map import ordered_map
from spr.exports.formats import DroppedItem, ImageFile, ImageMode, Prompt
from spr.records import PreferencePair, QuestionPair, Size

ImageItem: TypeAlias = PreferencePair | QuestionPair | Prompt | DroppedItem
"""What names an image, its size and its split."""


def export_images(
    items: Sequence[ImageItem],
    source: ImageSource,
    mode: ImageMode,
    folder: Path,
) -> Iterator[ImageFile | str]:
    """For each item its image, or the reason why the image can't be used (see `spr.core.reasons`).

    A JPEG, PNG or WebP file that every reader opens with the same pixels is copied with its encoded pixels and colour
    profile, without EXIF and other metadata. Other files (other formats, EXIF orientation, transparency, 16 bits per
    channel) are written as PNG with the pixels that the pipeline saw. With ``path`` and ``none``, those that readers
    open differently are refused. ``folder`` is the export's folder, for ``copy``: images are in its ``images/``, and
    held-out ones in ``test/images/``, so that each split can be loaded as an image folder.
    """
    # An image of several items is read once, so that no two threads write one file.
    distinct = dict.fromkeys(map(_image, items))
    work = ordered_map(lambda image: _export(*image, source, mode, folder), distinct, ahead=len(distinct) + 1)
    images = dict(work)
    return (images[_image(item)] for item in items)


def _image(item: ImageItem) -> tuple[str, Size, str]:
    return item.file_name, (item.width, item.height), split_folder(item)


def split_folder(item: ImageItem) -> str:
    """The folder of an item's copied image, relative to the export's, with a slash at the end; empty for training."""
    return {"train": "", "dropped": "dropped/"}.get(item.split, "test/")


def _export(
    file_name: str, size_wh: Size, prefix: str, source: ImageSource, mode: ImageMode, folder: Path
) -> ImageFile | str:
    try:
        source.check(file_name, size_wh)
        alike = source.reads_alike(file_name)
        if mode in ("path", "none"):
            path = str(source.path(file_name)) if mode == "path" else file_name
            return ImageFile(path, None) if alike else "image_needs_rewriting"
        stripped = strip_metadata(source.read_bytes(file_name)) if alike else None
        name = safe_name(file_name, rewritten=stripped is None)
        path = f"{prefix}images/{name}"
        target = folder / path
        if mode == "embed" or not target.exists():
            data = _as_png(file_name, size_wh, source) if stripped is None else stripped
            if mode == "embed":
                return ImageFile(Path(name).name, data)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return ImageFile(path, None)
    except ImageProblem as problem:
        return problem.reason


def _as_png(file_name: str, size_wh: Size, source: ImageSource) -> bytes:
    sink = io.BytesIO()
    forget_metadata(source.load(file_name, size_wh)).save(sink, "PNG")
    return sink.getvalue()


def safe_name(file_name: str, *, rewritten: bool = False) -> str:
    """The name of a copied image, with only the characters ``A-Z a-z 0-9 . _ -`` and ``/``.

    A name that has other characters, or whose image is rewritten as PNG, gets a hash that keeps names distinct.

    >>> safe_name("train/patch16/objects365_v2_00908726.jpg")
    'train/patch16/objects365_v2_00908726.jpg'
    >>> safe_name("my photo.jpg"), safe_name("a.jpg", rewritten=True)
    ('my_photo-e555a890.jpg', 'a-509b0d46.png')
    >>> safe_name("/../a.jpg")
    '_/_/a-d72d1349.jpg'
    """
    path = PurePosixPath(file_name)
    plain = "/".join("_" if part == ".." else re.sub(r"[^A-Za-z0-9._-]", "_", part) for part in path.parts)
    if plain == str(path) and not rewritten:
        return plain
    digest = hashlib.sha256(file_name.encode()).hexdigest()[:8]
    safe = PurePosixPath(plain)
    return str(safe.with_name(f"{safe.stem}-{digest}{'.png' if rewritten else safe.suffix}"))
