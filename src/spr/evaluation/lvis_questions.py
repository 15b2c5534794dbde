"""Generate the question file of the task ``referring`` from LVIS annotations, in the form of Ferret's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from spr.core.atomic import write_atomically
from spr.core.errors import InputError
from spr.core.randomness import stable_hash
from spr.evaluation.lines import decode_json, read_bytes
from spr.records import Size

_TRIES = 64


class _Image(msgspec.Struct):
    id: int
    width: int
    height: int
    file_name: str = ""
    coco_url: str = ""
    neg_category_ids: list[int] = []
    not_exhaustive_category_ids: list[int] = []


class _Object(msgspec.Struct):
    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    segmentation: Any = None


class _Category(msgspec.Struct):
    id: int
    name: str
    synonyms: list[str] = []
    frequency: str = ""


class _Lvis(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Object]
    categories: list[_Category]


def write_lvis_questions(annotations: Path, out: Path, n: int = 2667, *, seed: int = 0, min_area: float = 0.0) -> int:
    """Write ``n`` questions, or as many as there are usable objects; returns how many were written.

    Objects are chosen by a hash of the seed and their id, so the order of the file does not matter. The wrong category
    is one that LVIS's annotators looked for in the image and did not find (``neg_category_ids``); if there is none, one
    that is not annotated in the image. The point is a random pixel inside the object's outline, or the centre of its
    box. These rules are our choice: the code that made Ferret's file, which has 2,667 questions, is not published.

    Args:
        annotations: LVIS v1 JSON.
        out: The JSON-lines file to write.
        n: The maximum number of questions.
        seed: Random seed for the choice of objects, wrong categories and points.
        min_area: Objects with a smaller box are skipped, in px².

    Raises:
        InputError: if the file is not LVIS JSON, or has no usable object.
    """
    expected, what = "images, annotations, categories", f"{annotations} is not LVIS JSON"
    lvis = decode_json(read_bytes(annotations, "LVIS JSON"), _Lvis, what, expected=expected)
    images = {image.id: image for image in lvis.images}
    categories = {category.id: category for category in lvis.categories}
    present: dict[int, set[int]] = {}
    for item in lvis.annotations:
        present.setdefault(item.image_id, set()).add(item.category_id)
    usable = [
        item
        for item in lvis.annotations
        if len(item.bbox) == 4
        and min(item.bbox[2:]) > 0
        and item.bbox[2] * item.bbox[3] >= min_area
        and item.image_id in images
        and item.category_id in categories
    ]
    chosen = sorted(usable, key=lambda item: stable_hash(seed, "referring", str(item.id)))[:n]
    if not chosen or len(categories) < 2:
        what, got = f"{annotations} has nothing to ask about", f"{len(usable)} objects of {len(categories)} categories"
        raise InputError(what, got=got, expected="objects of at least two categories")
    lines = []
    for item in chosen:
        image, category = images[item.image_id], categories[item.category_id]
        (x, y, w, h), size_wh = item.bbox, (image.width, image.height)
        shares = x / image.width, y / image.height, (x + w) / image.width, (y + h) / image.height
        rng = np.random.default_rng(stable_hash(seed, "referring question", str(item.id)))
        row = {
            "id": item.id,
            "image_path": image.file_name or image.coco_url.rsplit("/", 1)[-1],
            "width": image.width,
            "height": image.height,
            "bbox": item.bbox,
            "bbox_norm": [min(max(share, 0.0), 1.0) for share in shares],
            "sample_point": _point_in(item, size_wh, rng),
            "name": category.name,
            "synonyms": category.synonyms,
            "neg_class": _other(image, category.id, present[item.image_id], categories, rng),
            "frequency": category.frequency,
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomically(out, "".join(lines).encode())
    return len(lines)


def _other(
    image: _Image, own: int, present: set[int], categories: dict[int, _Category], rng: np.random.Generator
) -> str:
    absent = [number for number in image.neg_category_ids if number in categories and number != own]
    if not absent:
        known = present | set(image.not_exhaustive_category_ids)
        absent = [number for number in categories if number not in known]
    # If every category is in the image, any other one is used.
    absent = sorted(absent) or sorted(number for number in categories if number != own)
    return categories[absent[int(rng.integers(len(absent)))]].name


def _point_in(item: _Object, size_wh: Size, rng: np.random.Generator) -> list[int]:
    """A random pixel inside the outline; the centre of the box if there is no outline or no pixel was found."""
    x, y, width, height = item.bbox
    drawn = np.floor(rng.uniform((x, y), (x + width, y + height), (_TRIES, 2)))
    inside = np.zeros(_TRIES, dtype=bool)
    for outline in item.segmentation if isinstance(item.segmentation, list) else ():
        if len(outline) % 2 == 0:
            inside |= _in_polygon(drawn + 0.5, np.asarray(outline, dtype=np.float64).reshape(-1, 2))
    px, py = drawn[int(inside.argmax())] if inside.any() else (x + width / 2, y + height / 2)
    return [min(max(int(px), 0), size_wh[0] - 1), min(max(int(py), 0), size_wh[1] - 1)]


def _in_polygon(points: Any, polygon: Any) -> Any:
    """Which points ``(P, 2)`` lie inside the polygon ``(V, 2)``, by the even-odd rule; bool ``(P,)``."""
    x, y = points[:, :1], points[:, 1:]
    x1, y1 = polygon[:, 0], polygon[:, 1]
    x2, y2 = np.roll(x1, -1), np.roll(y1, -1)
    crosses = (y1 > y) != (y2 > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = x1 + (y - y1) * (x2 - x1) / (y2 - y1)
    return (crosses & (x < at)).sum(axis=1) % 2 == 1
