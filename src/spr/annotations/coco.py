"""Reading COCO-style JSON (COCO, LVIS v1, Objects365 v1 and v2) as a stream.

Memory grows with the number of boxes (about 60 bytes each at the peak), not with the size of the file: segmentations,
captions and other fields are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from spr.annotations.assembly import Annotations, assemble
from spr.annotations.columns import (
    CODE,
    OK,
    AnnotationColumns,
    ImageColumns,
    fast_images,
    fast_objects,
    join_images,
    join_objects,
    lenient_category,
    lenient_images,
    lenient_objects,
    license_text,
)
from spr.annotations.ids import (
    IdTable,
    is_unicode,
)
from spr.annotations.json_stream import BLOCK_SIZE, JsonStream, Progress
from spr.core.errors import InputError
from spr.core.paths import as_path

_LISTS = ("images", "annotations", "categories")
_WITHOUT_BOX = (CODE["entry_not_an_object"], CODE["box_missing"])
_MOST_ODD_KEYS = 1000
_OTHER_KINDS = {"caption": "captions", "segments_info": "panoptic segmentation"}

_Error = Callable[..., InputError]


def read_coco(
    path: str | os.PathLike[str],
    *,
    allow_outside_images: bool = False,
    clip_to_square: bool = False,
    block_size: int = BLOCK_SIZE,
    progress: Progress | None = None,
) -> Annotations:
    """Read a COCO-style annotations file.

    The lists `images`, `annotations` and `categories` may come in any order. Ids are integers or strings; ``12`` and
    ``"12"`` are the same id. A box ``[x, y, width, height]`` becomes ``(x1, y1, x2, y2)``, clipped to its image. The
    file name of an image without `file_name` (LVIS) is the last two parts of its `coco_url`. Malformed entries are
    dropped with one of `spr.core.reasons.ANNOTATION_REASONS`. Ids of annotations that are missing or not unique are
    replaced, see `Annotations.numbered`. The result does not depend on the order of the entries.

    Args:
        path: The JSON file, which may be packed with gzip; see `spr.core.text_input`.
        allow_outside_images: Keep images whose file name is absolute or contains ``..``.
        clip_to_square: Clip boxes to a square with the image's longer side instead of the image, because the boxes may
            have been drawn on the image turned by 90°.
        block_size: Bytes per read; affects only the speed.
        progress: Called after every read with the bytes read so far and the file's size.

    Raises:
        InputError: if the file is missing, empty, truncated or not JSON (naming the byte), lacks one of the lists, has
            no boxes (captions, panoptic segmentation), gives a category id two names, or has no usable image.
    """
    ids = IdTable()
    images: list[ImageColumns] = []
    objects = join_objects(())
    categories: list[tuple[int, str, int]] = []
    licenses: dict[str, str] = {}
    odd_keys: dict[str, None] = {}

    def lenient(items: list[Any]) -> AnnotationColumns:
        if len(odd_keys) < _MOST_ODD_KEYS:
            odd_keys.update(dict.fromkeys(key for item in items if isinstance(item, dict) for key in item))
        return lenient_objects(items, ids)

    with JsonStream(as_path(path), block_size=block_size, progress=progress) as stream:
        seen: list[str] = []
        for member in stream.members():
            seen.append(member)
            if member == "images":
                images = list(stream.blocks(fast_images, partial(lenient_images, ids=ids)))
            elif member == "annotations":
                objects = join_objects(stream.blocks(fast_objects, lenient))
            elif member == "categories":
                blocks = stream.blocks(lambda _: None, list)
                categories = [lenient_category(item, ids) for block in blocks for item in block]
            elif member == "licenses" and stream.at_list():
                texts = (license_text(item) for block in stream.blocks(lambda _: None, list) for item in block)
                licenses = dict(filter(None, texts))
    missing = [f"`{name}`" for name in _LISTS if name not in seen]
    if missing:
        got = f"the keys {_listed(seen)}" if seen else "an object without keys"
        expected = "an object with `images`, `annotations` and `categories`"
        raise stream.error(f"has no {' and '.join(missing)}", got=got, expected=expected)
    if not images:
        raise stream.error("lists no images", got="`images` is empty")
    if odd_keys and "bbox" not in odd_keys and np.isin(objects.reasons, _WITHOUT_BOX).all():
        raise _no_boxes(list(odd_keys), stream.error)
    ids.freeze()
    entries = join_images(images)
    images.clear()
    stated = {key: key and licenses.get(key, f"license {key}") for key in set(entries.licenses)}
    entries.licenses = list(map(stated.__getitem__, entries.licenses))
    if allow_outside_images:
        for row in np.flatnonzero(entries.reasons == CODE["image_file_name_unsafe"]).tolist():
            if is_unicode(entries.names[row]) and "\0" not in entries.names[row]:
                entries.reasons[row] = OK
    return assemble(entries, categories, objects, ids, stream.error, clip_to_square)


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys[:8])


def _no_boxes(keys: Sequence[str], error: _Error) -> InputError:
    kind = next((kind for key, kind in _OTHER_KINDS.items() if key in keys), None)
    return error(
        f"looks like a {kind} file: no annotation has a box" if kind else "has no boxes: no annotation has a `bbox`",
        got=f"annotations with the keys {_listed(keys)}",
        expected="annotations with a `bbox`",
        fix="give the instances file, such as `instances_train2017.json`",
    )
