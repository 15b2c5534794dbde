"""Referring object classification: is the object at this place a dog or a cat? On LVIS, by Ferret's rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from spr.core.errors import ConfigError
from spr.evaluation.inference import Load, Question, answered, ask
from spr.evaluation.lines import ids_of, read_lines, wrong
from spr.evaluation.metrics import Share
from spr.evaluation.predictions import Answers, read_predictions
from spr.evaluation.result import Result
from spr.grounding import Dialect, render_box
from spr.models.protocols import Describer
from spr.records import Box, Size

TASK = "referring"
QUESTION = "Is the object {location} of the image a {first} or a {second}?"
Region: TypeAlias = Literal["box", "point"]
# As r"\s+not[^,.]*[,.]" and r"\s+no[^,.]*[,.]" find it, but in linear time: an answer may have 100 kB of spaces.
_DENIED = re.compile(r"(?<!\s)\s++not[^,.]*+[,.]"), re.compile(r"(?<!\s)\s++no[^,.]*+[,.]")
_LINE = '{"id", "image_path", "width", "height", "bbox_norm", "sample_point", "name", "synonyms", "neg_class"}'


@dataclass(frozen=True, slots=True)
class ReferringItem:
    """A question of Ferret's LVIS file.

    Attributes:
        id: Of the object.
        file_name: Of the image, without folders.
        size_wh: Width and height of the image in pixels.
        box: xyxy pixels.
        point: A pixel of the object, x and y; None where the file has none.
        name: The category.
        synonyms: Other names of it.
        other: A category that the object is not.
        frequency: LVIS's ``r``, ``c`` or ``f``; empty where the file doesn't say.
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


def read_referring(path: Path) -> list[ReferringItem]:
    """The questions of a file in Ferret's form, as `spr lvis-questions` writes it.

    Raises:
        InputError: naming the row, if it is something else.
    """
    rows = read_lines(path, _LINE)
    ids = ids_of(path, rows, "id")
    return [_item(path, number, row, ids[number]) for number, row in enumerate(rows)]


def _item(path: Path, number: int, row: dict[str, Any], name: str) -> ReferringItem:
    for field in ("image_path", "name", "neg_class"):
        if not isinstance(row.get(field), str) or not row[field]:
            wrong(path, number, field, row.get(field), "a text")
    size = row.get("width"), row.get("height")
    if not all(type(side) is int and side > 0 for side in size):
        wrong(path, number, "width and height", size, "pixels, whole numbers of at least 1")
    box: Any = row.get("bbox_norm")
    point: Any = row.get("sample_point")
    synonyms = row.get("synonyms", [])
    if not _are_numbers(box, 4) or not (box[0] < box[2] and box[1] < box[3]):
        wrong(path, number, "bbox_norm", box, "x1, y1, x2, y2 as shares of the image")
    if point is not None and not _are_numbers(point, 2):
        wrong(path, number, "sample_point", point, "x and y in pixels")
    if not isinstance(synonyms, list) or not all(isinstance(text, str) for text in synonyms):
        wrong(path, number, "synonyms", synonyms, "a list of texts")
    width, height = row["width"], row["height"]
    return ReferringItem(
        name,
        row["image_path"].rsplit("/", 1)[-1],
        (width, height),
        (box[0] * width, box[1] * height, box[2] * width, box[3] * height),
        None if point is None else (point[0], point[1]),
        row["name"],
        tuple(synonyms),
        row["neg_class"],
        row["frequency"] if isinstance(row.get("frequency"), str) else "",
    )


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(v) in (int, float) for v in value)


def question_of(item: ReferringItem, number: int, dialect: Dialect, region: Region) -> str:
    """The question about an object: the right name comes first in even rows of the file, second in odd ones.

    Args:
        item: The object.
        number: Its row, from 0.
        dialect: How the model writes places.
        region: Whether the place is given as a box or, in Ferret's dialect only, as a point.

    Raises:
        ConfigError: for a point where the dialect, or the file, has none.
    """
    if region == "point":
        if dialect.key != "ferret" or item.point is None:
            got = f"dialect {dialect.key}" if dialect.key != "ferret" else f"no `sample_point` for {item.id}"
            raise ConfigError("--region point can't be asked", got=got, expected="Ferret's dialect and a sample_point")
        x, y = (int(place * 1000.0 / side) for place, side in zip(item.point, item.size_wh, strict=True))
        location = f"[{x}, {y}]{dialect.region_suffix}"
    elif region == "box":
        location = render_box(item.box, dialect, item.size_wh, region=True)
    else:
        raise ConfigError("--region is not known", got=region, expected="box | point")
    first, second = (item.name, item.other) if number % 2 == 0 else (item.other, item.name)
    return QUESTION.replace("{location}", location).replace("{first}", first).replace("{second}", second)


def is_right(text: str, name: str, synonyms: Sequence[str]) -> bool:
    """Whether an answer says the name or a synonym, outside of what it denies: Ferret's rule.

    What follows " not" or " no" up to the next comma or full stop is taken out (with words such as " nothing", too).
    Underscores are spaces; a synonym in brackets, ``ball_(round)``, counts as two. Case matters.

    >>> is_right("It is not a cat, it is a wine glass.", "wine_glass", [])
    True
    >>> is_right("It is not a wine glass.", "wine_glass", ["goblet"])
    False
    """
    for pattern in _DENIED:
        end = max(text.rfind(","), text.rfind(".")) + 1  # behind it nothing can end a denial
        text = pattern.sub("", text[:end]) + text[end:]
    names = [name.replace("_", " ").strip()]
    for synonym in synonyms:
        parts = synonym.replace(")", "").split("(") if "(" in synonym else [synonym]
        names += [part.replace("_", " ").strip() for part in parts]
    return any(known in text for known in names if known)


def evaluate_referring(
    describer: Describer, items: Sequence[ReferringItem], load: Load, *, region: Region = "box", seed: int = 0
) -> Result:
    """Ask a model about each object and score its answers.

    Args:
        describer: Greedy, for figures that compare with others'.
        items: In the order of their file, which decides which name comes first.
        load: Where the images come from.
        region: How the place is given.
        seed: Of the answers, if they are sampled.
    """
    questions = [
        Question(item.id, item.file_name, item.size_wh, question_of(item, number, describer.dialect, region))
        for number, item in enumerate(items)
    ]
    answers = ask(describer, questions, load, seed=seed)
    result = score_referring(items, answers)
    kept = tuple(answered(question, text, describer) for question, text in zip(questions, answers.texts, strict=True))
    said = {"model": describer.name, "region": region, "temperature": getattr(describer, "temperature", None)}
    said |= {"dialect": describer.dialect.spec, "prompt": QUESTION}
    return replace(result, protocol={**result.protocol, **said}, predictions=kept)


def referring_from_file(items: Sequence[ReferringItem], path: Path) -> Result:
    """`score_referring` of a file of predictions."""
    answers = read_predictions(path, [item.id for item in items])
    result = score_referring(items, answers)
    return replace(result, protocol={**result.protocol, "model": answers.model, "predictions": path.name})


def score_referring(items: Sequence[ReferringItem], answers: Answers) -> Result:
    """``accuracy`` of answers that are there, by LVIS's frequency of the category."""
    rows = zip(items, answers.texts, strict=True)
    right = [text is not None and is_right(text, item.name, item.synonyms) for item, text in rows]
    frequencies = np.asarray([item.frequency for item in items], dtype=object)
    names = {"r": "rare", "c": "common", "f": "frequent"}
    groups = {name: frequencies == key for key, name in names.items() if (frequencies == key).any()}
    protocol = {
        "right": "the name or a synonym is said, and not denied (Ferret's rule)",
        "ci95": "bootstrap over images",
    }
    ids, images = tuple(item.id for item in items), tuple(item.file_name for item in items)
    return Result(TASK, protocol, ids, images, {"accuracy": Share.mean(right)}, groups, dict(answers.problems))
