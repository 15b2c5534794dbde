"""Detection annotations of COCO and LVIS as columns, in the order in which their own evaluators go through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np

from spr.annotations.columns import name_of_url
from spr.core.boxes import LARGEST
from spr.core.errors import InputError, closest
from spr.evaluation.lines import first_repeated, read_bytes
from spr.evaluation.metrics import Bools, Floats, Ints
from spr.grounding.category_names import words_of
from spr.records import Size

_LISTS = ("images", "annotations", "categories")
_LARGEST_AREA = 1e10  # that of the largest range of COCO and LVIS
_EXPECTED = "an object with `images`, `annotations` (with `bbox`) and `categories`"


@dataclass(frozen=True, slots=True, eq=False)
class DetectionData:
    """I images, K categories and N annotated objects, one tuple or array per column.

    Images and categories are sorted by id, as in pycocotools; objects keep the order of the file.

    Attributes:
        image_ids: The ids of the images, as text.
        file_names: The images, relative to the image folder.
        sizes_wh: Width and height of each image in pixels.
        categories: The names of the categories.
        frequencies: LVIS's ``r``, ``c`` or ``f`` of each category; empty texts for COCO.
        image: The index of each object's image, int64 ``(N,)``.
        category: The index of its category, int64 ``(N,)``.
        boxes_xywh: float64 ``(N, 4)``, pixels.
        areas: px², float64 ``(N,)``: that of the annotation, which can be of a mask, or of the box if it has none.
        crowd: Whether the object is a crowd region (``iscrowd``), bool ``(N,)``; False for LVIS.
        ignored: Whether it does not count if it is found or missed, bool ``(N,)``: crowd regions, LVIS's ``ignore``.
        federated: Whether the rules are LVIS's: only some categories are annotated in each image.
        checked: For LVIS, the pairs ``image * K + category`` of which it is known whether there are objects, sorted.
        inexhaustive: For LVIS, the pairs of which not every object is annotated, sorted.
    """

    image_ids: tuple[str, ...]
    file_names: tuple[str, ...]
    sizes_wh: tuple[Size, ...]
    categories: tuple[str, ...]
    frequencies: tuple[str, ...]
    image: Ints
    category: Ints
    boxes_xywh: Floats
    areas: Floats
    crowd: Bools
    ignored: Bools
    federated: bool
    checked: Ints
    inexhaustive: Ints

    def pairs(self, image: Ints, category: Ints) -> Ints:
        """One number per pair of an image and a category, sorted by image and then by category."""
        return image * len(self.categories) + category


_Id: TypeAlias = int | str
_Side: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class _Image(msgspec.Struct, gc=False):
    id: _Id
    width: _Side
    height: _Side
    file_name: str = ""
    coco_url: str = ""
    neg_category_ids: tuple[_Id, ...] | None = None
    not_exhaustive_category_ids: tuple[_Id, ...] = ()


class _Object(msgspec.Struct, gc=False):
    image_id: _Id
    category_id: _Id
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | bool = 0
    ignore: int | bool = 0


class _Category(msgspec.Struct, gc=False):
    id: _Id
    name: str
    frequency: str = ""


class _Coco(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Object]
    categories: list[_Category]


def read_detection(path: Path) -> DetectionData:
    """Read COCO's or LVIS's detection annotations; those are LVIS's whose images have ``neg_category_ids``.

    Raises:
        InputError: if the file is empty or has another layout (naming what was found and the nearest task), if an id is
            repeated, if an object belongs to no image or to no category, or has a negative side or area, or if no
            answer could name a category: two have the same name, or one with objects has no words.
    """
    data = read_bytes(path, "COCO's or LVIS's detection annotations, JSON")
    if not data.strip():
        raise InputError(f"{path} is empty", got="0 bytes", expected=_EXPECTED)
    try:
        content = msgspec.json.decode(data, type=_Coco)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _other_layout(path, data, error) from None
    images, objects, categories = content.images, content.annotations, content.categories
    for name, rows in (("images", images), ("categories", categories)):
        if not rows:
            fix = (
                "give the annotations with their categories, as `instances_val2017.json`" if name != "images" else None
            )
            raise InputError(f"{path} has no {name}", got=f"`{name}` is empty", expected="at least one", fix=fix)
    images, image_index = _sorted(images, path, "images")
    categories, category_index = _sorted(categories, path, "categories")
    count = len(objects)
    image = _indices(path, [row.image_id for row in objects], image_index, "image")
    category = _indices(path, [row.category_id for row in objects], category_index, "category")
    boxes = np.array([row.bbox for row in objects], dtype=np.float64).reshape(count, 4)
    wrong = np.flatnonzero((np.abs(boxes) > LARGEST).any(axis=1) | (boxes[:, 2:] < 0).any(axis=1))
    if len(wrong):
        what = f"The `bbox` of row {wrong[0]} of `annotations` of {path} is not a box"
        raise InputError(what, got=boxes[wrong[0]].tolist(), expected="[x, y, width, height] in pixels")
    own = np.array([np.nan if row.area is None else row.area for row in objects], dtype=np.float64)
    wrong = np.flatnonzero((own < 0) | (own > _LARGEST_AREA))
    if len(wrong):
        what = f"The `area` of row {wrong[0]} of `annotations` of {path} is not an area"
        raise InputError(what, got=own[wrong[0]], expected=f"px², from 0 to {_LARGEST_AREA:g}")
    _check_names(path, [row.name for row in categories], set(category.tolist()))
    federated = any(row.neg_category_ids is not None for row in images)
    crowd = np.array([bool(row.iscrowd) and not federated for row in objects], dtype=bool)
    ignored = crowd | np.array([bool(row.ignore) and federated for row in objects], dtype=bool)
    width = len(categories)

    def listed(ids_of: Callable[[_Image], Sequence[_Id] | None]) -> Ints:
        found = [
            k * width + category_index[name]
            for k, row in enumerate(images)
            for name in ids_of(row) or ()
            if name in category_index
        ]
        return np.unique(np.array(found, dtype=np.int64))

    negative = listed(lambda row: row.neg_category_ids)
    return DetectionData(
        tuple([str(row.id) for row in images]),
        tuple([row.file_name or name_of_url(row.coco_url) for row in images]),
        tuple([(row.width, row.height) for row in images]),
        tuple([row.name for row in categories]),
        tuple([row.frequency for row in categories]),
        image,
        category,
        boxes,
        np.where(np.isnan(own), boxes[:, 2] * boxes[:, 3], own),
        crowd,
        ignored,
        federated,
        np.union1d(negative, image * width + category) if federated else np.zeros(0, np.int64),
        listed(lambda row: row.not_exhaustive_category_ids),
    )


def _sorted(rows: list[Any], path: Path, name: str) -> tuple[list[Any], dict[_Id, int]]:
    """Rows in the order of their ids, and the position of each id."""
    repeated = first_repeated(str(row.id) for row in rows)
    if repeated is not None:
        raise InputError(f"Two {name} of {path} have the same id", got=repeated, expected="unique ids")
    numbers = all(isinstance(row.id, int) for row in rows)
    rows = sorted(rows, key=lambda row: row.id if numbers else str(row.id))
    return rows, {row.id: k for k, row in enumerate(rows)}


def _check_names(path: Path, names: Sequence[str], with_objects: Set[int]) -> None:
    known: dict[tuple[str, ...], str] = {}
    for k, name in enumerate(names):
        words = words_of(name)
        if not words and k in with_objects:
            raise InputError(f"A category of {path} has no words", got=repr(name), expected="a name that is a word")
        if words and words in known:
            fix = "remove the one without annotations from `categories`, or give them different names"
            got = f"{known[words]!r} and {name!r}"
            raise InputError(f"Two categories of {path} have the same name", got=got, expected="other words", fix=fix)
        known[words] = name


def _indices(path: Path, ids: Sequence[_Id], index: dict[_Id, int], name: str) -> Ints:
    try:
        return np.fromiter(map(index.__getitem__, ids), np.int64, len(ids))
    except KeyError as error:
        what = f"An annotation of {path} belongs to no {name}"
        fix = f"remove the annotations without {'an image' if name == 'image' else 'a category'}, or add it to the file"
        raise InputError(
            what, got=f"{name}_id {error.args[0]!r}", expected=f"the id of a listed {name}", fix=fix
        ) from None


def _other_layout(path: Path, data: bytes, error: Exception) -> InputError:
    """The error for a file that is not COCO's: what it contains, and the task or command that reads such a file."""
    from spr.evaluation.layouts.content import JsonContent
    from spr.evaluation.layouts.layout import nearest
    from spr.evaluation.layouts.tsv import TsvContent, is_tsv

    what = f"{path} is not COCO's or LVIS's detection annotations"
    header = is_tsv(data)
    if header is not None:
        table = TsvContent(path, header)
        got = f"TSV with {', '.join(table.keys[:8])}"
        return InputError(what, got=got, expected=_EXPECTED, fix=nearest(table, "detection"))
    content = JsonContent(path, data)
    near_layout = nearest(content, "detection") if content.damaged is None and content.forms else None
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        lines = content.forms == ("JSON lines",)
        shown = f"JSON lines with {', '.join(content.keys[:8])}" if lines else str(error)
        return InputError(what, got=shown, expected=_EXPECTED, fix=near_layout if lines else None)
    if isinstance(raw, list):
        keys = ", ".join(list(raw[0])[:6]) if raw and isinstance(raw[0], dict) else "no objects"
        detections = {"image_id", "category_id", "bbox"} <= set(content.keys)
        own = "give the annotations as --annotations; detections in COCO's result format are not answers of a model"
        fix = own if detections else near_layout
        return InputError(what, got=f"a JSON list: {keys}", expected=_EXPECTED, fix=fix)
    if not isinstance(raw, dict):
        return InputError(what, got=type(raw).__name__, expected=_EXPECTED)
    missing = [name for name in _LISTS if name not in raw]
    got = f"the keys {', '.join(f'`{key}`' for key in list(raw)[:8])}" if missing else str(error)
    rows = raw.get("images")
    captions = isinstance(rows, list) and any(isinstance(row, dict) and "caption" in row for row in rows[:5])
    others = [key for key in raw if key not in _LISTS and isinstance(raw[key], list)]
    near = next((key for key in others if closest(key, missing) is not None), None)
    if captions:
        fix = "a file with a `caption` per image is read by `spr evaluate rec` (one box each) or `multi-rec`"
    elif near is not None:
        fix = f"name the list `{closest(near, missing)}` instead of `{near}`"
    elif "categories" in missing and len(missing) == 1:
        fix = "add `categories`: a list of objects with `id` and `name`"
    else:
        fix = near_layout if missing else None
    return InputError(what, got=got, expected=_EXPECTED, fix=fix)
