"""Referring object classification on LVIS by Ferret's rules: which of two categories is the object at this place?

`write_lvis_questions` generates the question file from LVIS annotations, in the form of Ferret's file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import msgspec
import numpy as np

from spr.annotations.columns import name_of_url
from spr.core.errors import ConfigError, InputError
from spr.core.outputs import write_output
from spr.core.randomness import stable_hash
from spr.core.terminal import count_text
from spr.evaluation.answer_fields import Item
from spr.evaluation.inference import Question
from spr.evaluation.layouts.content import Content
from spr.evaluation.layouts.layout import Layout, read_items
from spr.evaluation.lines import decode_json, read_bytes, unique_ids
from spr.evaluation.metrics import Share
from spr.evaluation.predictions import Answers
from spr.evaluation.result import Result
from spr.evaluation.task import Option, Task
from spr.grounding import DIALECTS, Dialect, render_box
from spr.grounding.names import category_name, is_readable
from spr.records import Box, Size

QUESTION = "Is the object {location} of the image a {first} or a {second}?"
_EXPECTED = '{"id", "image_path", "width", "height", "bbox_norm", "sample_point", "name", "synonyms", "neg_class"}'
# The same matches as r"\s+not[^,.]*[,.]" and r"\s+no[^,.]*[,.]", in linear time even for 100 kB of spaces.
_DENIED = re.compile(r"(?<!\s)\s++not[^,.]*+[,.]"), re.compile(r"(?<!\s)\s++no[^,.]*+[,.]")
_FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
_REGION_HELP = "How the question gives the object's place: by its box or, in Ferret's dialect only, by a point."


@dataclass(frozen=True, slots=True)
class ReferringItem:
    """A question of Ferret's LVIS file: is the object a ``name`` or an ``other``?

    Box (xyxy) and point (x, y) are in pixels of the image. ``frequency`` is LVIS's ``r``, ``c`` or ``f``; empty if
    unknown.
    """

    id: str
    file_name: str
    size_wh: Size
    box: Box
    point: tuple[float, float] | None
    name: str
    synonyms: tuple[str, ...]
    other: str
    frequency: str = ""


_Text: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]
_Side: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class _Line(msgspec.Struct, gc=False):
    image_path: _Text
    width: _Side
    height: _Side
    bbox_norm: tuple[float, float, float, float]
    name: _Text
    neg_class: _Text
    id: Any = None
    sample_point: tuple[float, float] | None = None
    synonyms: tuple[str, ...] = ()
    frequency: str = ""

    def __post_init__(self) -> None:
        x1, y1, x2, y2 = self.bbox_norm
        if not (x1 < x2 and y1 < y2):
            raise ValueError(f"`bbox_norm` is {self.bbox_norm}, not x1 < x2 and y1 < y2 as shares of the image")


def _read(content: Content, _: Any) -> list[ReferringItem]:
    rows = content.rows(_Line, _EXPECTED)
    items = []
    for name, row in zip(unique_ids(content.path, "id", [row.id for row in rows]), rows, strict=True):
        (x1, y1, x2, y2), (width, height) = row.bbox_norm, (row.width, row.height)
        box = x1 * width, y1 * height, x2 * width, y2 * height
        # An absolute path comes from another machine.
        file_name = "/".join(row.image_path.split("/")[-2:]) if row.image_path[:1] == "/" else row.image_path
        names = row.name, row.synonyms, row.neg_class, row.frequency
        items.append(ReferringItem(name, file_name, (width, height), box, row.sample_point, *names))
    return items


_KEYS = ("image_path", "width", "height", "bbox_norm", "name", "neg_class")
LAYOUT = Layout("Ferret's LVIS questions", "referring", ("JSON lines", "a JSON list"), _KEYS, _read)


@dataclass(frozen=True, kw_only=True)
class Referring(Task[list[ReferringItem]]):
    """Objects of LVIS: is the object at this place a … or a …?

    Metric: ``accuracy``, the share of answers that say the category or a synonym and do not deny it (`is_right`).
    Groups: LVIS's frequency of the category.
    """

    name: ClassVar[str] = "referring"
    reads_boxes: ClassVar[bool] = False
    higher_is_better: ClassVar[tuple[str, ...]] = ("accuracy",)

    region: Annotated[Literal["box", "point"], Option(_REGION_HELP, asks=True)] = "box"

    def load(self, path: Path) -> list[ReferringItem]:
        """Read a question file in Ferret's form, as ``spr lvis-questions`` writes it.

        Of an absolute path, folder and file are kept. The image folder may be the one above, or that folder itself.
        """
        items: list[ReferringItem] = read_items(self, path)
        return items

    def ids(self, items: list[ReferringItem]) -> Sequence[str]:
        """The ids of the objects."""
        return [item.id for item in items]

    def about(self, items: list[ReferringItem]) -> Sequence[Item]:
        """The images of the objects, with the category as label."""
        return [Item(item.id, item.file_name, item.size_wh, label=item.name) for item in items]

    def questions(self, items: list[ReferringItem], dialect: Dialect, model: str) -> tuple[str, list[Question]]:
        """One question per object: the right category comes first in even rows of the file, second in odd ones."""
        questions = []
        for number, item in enumerate(items):
            first, second = (item.name, item.other) if number % 2 == 0 else (item.other, item.name)
            prompt = QUESTION.format(location=self._location(item, dialect), first=first, second=second)
            questions.append(Question(item.id, item.file_name, item.size_wh, prompt))
        return QUESTION, questions

    def _location(self, item: ReferringItem, dialect: Dialect) -> str:
        if self.region == "box":
            return render_box(item.box, dialect, item.size_wh, region=True)
        if dialect.region_point is None or item.point is None:
            got = f"dialect {dialect.key}" if dialect.region_point is None else f"no `sample_point` for {item.id}"
            known = " or ".join(key for key, other in DIALECTS.items() if other.region_point is not None)
            expected = f"the dialect {known} and a `sample_point` for each object"
            raise ConfigError("--region point can't be used", got=got, expected=expected, fix="use --region box")
        x, y = (int(place * 1000.0 / side) for place, side in zip(item.point, item.size_wh, strict=True))
        return dialect.region_point.format(x, y) + dialect.region_suffix

    def score(self, items: list[ReferringItem], answers: Answers) -> Result:
        """The accuracy, overall and by LVIS's frequency of the category."""
        rows = zip(items, answers.texts, strict=True)
        right = [text is not None and is_right(text, item.name, item.synonyms) for item, text in rows]
        frequencies = np.asarray([item.frequency for item in items], dtype=object)
        groups = {name: frequencies == key for key, name in _FREQUENCIES.items() if (frequencies == key).any()}
        protocol = {
            "right": "the answer says the category or a synonym and does not deny it (Ferret's rule)",
            "ci95": "bootstrap over images",
        }
        ids, images = tuple(item.id for item in items), tuple(item.file_name for item in items)
        return Result(self.name, protocol, ids, images, {"accuracy": Share.mean(right)}, groups, dict(answers.problems))


def is_right(text: str, name: str, synonyms: Sequence[str]) -> bool:
    """Whether an answer says a category or one of its synonyms without denying it: Ferret's rule.

    The text from " not" or " no" (also at the start of a word, as in " nothing") to the next comma or full stop is
    removed first. Underscores are spaces; a synonym with brackets, ``ball_(round)``, counts as two, and a name with
    brackets may be said without them. Case matters.

    >>> is_right("It is not a cat, it is a wine glass.", "wine_glass", [])
    True
    >>> is_right("It is not a wine glass.", "wine_glass", ["goblet"])
    False
    """
    for pattern in _DENIED:
        end = max(text.rfind(","), text.rfind(".")) + 1  # nothing after this can end a denial
        text = pattern.sub("", text[:end]) + text[end:]
    names = [name, category_name(name).words]
    for synonym in synonyms:
        names += synonym.replace(")", "").split("(") if "(" in synonym else [synonym]
    names = [known.replace("_", " ").strip() for known in names]
    return any(known in text for known in names if known)


class _LvisImage(msgspec.Struct):
    id: int
    width: int
    height: int
    file_name: str | None = None
    coco_url: str | None = None
    neg_category_ids: list[int] = []
    not_exhaustive_category_ids: list[int] = []


class _LvisObject(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: list[float]
    id: int | None = None
    segmentation: Any = None


class _Category(msgspec.Struct):
    id: int
    name: str
    synonyms: list[str] = []
    frequency: str = ""


class _Lvis(msgspec.Struct):
    images: list[_LvisImage]
    annotations: list[_LvisObject]
    categories: list[_Category]


def write_lvis_questions(annotations: Path, out: Path, n: int = 2667, *, seed: int = 0, min_area: float = 0.0) -> int:
    """Write ``n`` questions about objects of LVIS v1 JSON as JSON lines; returns how many were written.

    There are fewer if fewer objects are usable; objects whose box has less than ``min_area`` px² are not. Objects are
    chosen by a hash of the seed and their id, so the order of the file does not matter; where ids are missing or not
    unique, the id is the position in the file. The wrong category is one that LVIS's annotators looked for in the image
    and did not find (``neg_category_ids``); if there is none, one that is not annotated in the image. Names are
    readable (``car`` for ``car_(automobile)``), the two of a question differ, and categories whose name is not words
    are left out. The point is a random pixel inside the object's outline, or the centre of its box. These rules are our
    choice: the code that made Ferret's file, which has 2,667 questions, is not published.

    Raises `InputError` if the file is not LVIS JSON, or has no usable object.
    """
    expected, what = "images, annotations, categories", f"{annotations} is not LVIS JSON"
    lvis = decode_json(read_bytes(annotations, "LVIS JSON"), _Lvis, what, expected=expected)
    if len({item.id for item in lvis.annotations} - {None}) < len(lvis.annotations):
        for number, item in enumerate(lvis.annotations, start=1):
            item.id = number
    images = {image.id: image for image in lvis.images}
    file_names = {image.id: image.file_name or name_of_url(image.coco_url) for image in lvis.images}
    categories = {category.id: category for category in lvis.categories if is_readable(category.name)}
    names = {key: category_name(category.name).words for key, category in categories.items()}
    present: dict[int, set[int]] = {}
    for item in lvis.annotations:
        present.setdefault(item.image_id, set()).add(item.category_id)
    usable = [
        item
        for item in lvis.annotations
        if len(item.bbox) == 4
        and min(item.bbox[2:]) > 0
        and item.bbox[2] * item.bbox[3] >= min_area
        and file_names.get(item.image_id)
        and item.category_id in categories
    ]
    chosen = sorted(usable, key=lambda item: stable_hash(seed, "referring", str(item.id)))[:n]
    if not chosen or len(set(names.values())) < 2:
        got = f"{count_text(len(usable), 'objects')} of {count_text(len(categories), 'categories')}"
        raise InputError(
            f"{annotations} has nothing to ask about", got=got, expected="objects of at least two categories"
        )
    lines = []
    for item in chosen:
        image, category = images[item.image_id], categories[item.category_id]
        (x, y, w, h), size_wh = item.bbox, (image.width, image.height)
        shares = x / image.width, y / image.height, (x + w) / image.width, (y + h) / image.height
        others = {key for key, name in names.items() if name != names[category.id]}
        unlabelled = others - present[image.id] - set(image.not_exhaustive_category_ids)
        # If every category is in the image, any other one is used.
        wrong = sorted(others & set(image.neg_category_ids) or unlabelled or others)
        rng = np.random.default_rng(stable_hash(seed, "referring question", str(item.id)))
        row = {
            "id": item.id,
            "image_path": file_names[image.id],
            "width": image.width,
            "height": image.height,
            "bbox": item.bbox,
            "bbox_norm": [min(max(share, 0.0), 1.0) for share in shares],
            "sample_point": _point_in(item, size_wh, rng),
            "name": names[category.id],
            "synonyms": category.synonyms,
            "neg_class": names[wrong[int(rng.integers(len(wrong)))]],
            "frequency": category.frequency,
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_output(out, "".join(lines).encode(), "the file with these questions")
    return len(lines)


def _point_in(item: _LvisObject, size_wh: Size, rng: np.random.Generator) -> list[int]:
    """A random pixel inside the outline; the centre of the box if there is no outline or no pixel was found."""
    x, y, width, height = item.bbox
    drawn = np.floor(rng.uniform((x, y), (x + width, y + height), (64, 2)))
    inside = np.zeros(len(drawn), dtype=bool)
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
