"""Pointing: the model answers with points, which must lie in a region (Where2Place, Point-Bench, PixMo-Points)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
from scipy.optimize import linear_sum_assignment

from spr.core.progress import advance
from spr.evaluation.answer_fields import Item
from spr.evaluation.inference import LoadImage, Question
from spr.evaluation.layouts.layout import read_items
from spr.evaluation.metrics import Bools, Floats, Share
from spr.evaluation.points import PointItem, PointItems
from spr.evaluation.predictions import Answers
from spr.evaluation.result import Result
from spr.evaluation.task import Option, Task, check_prompt
from spr.grounding import Dialect, GroundedText, parse
from spr.grounding.points import points_of
from spr.grounding.unread import has_unread_coordinates
from spr.records import Point

BoxRule: TypeAlias = Literal["centre", "ignore"]
_QUESTION, _EXPRESSION = "{question}", "{expression}"
_MATCHED = ("precision", "recall", "f1")
_RULES: dict[BoxRule, str] = {
    "centre": "the points of the answer; the centres of its boxes if it has no point",
    "ignore": "the points of the answer; boxes are ignored",
}


@dataclass(frozen=True, kw_only=True)
class Pointing(Task[PointItems]):
    """Points in regions: Where2Place, Point-Bench, PixMo-Points, or your own boxes.

    Metrics:

    - ``accuracy``: the share of an answer's points that lie in the target, averaged over the questions (Where2Place).
    - ``success``: the share of questions whose first point lies in the target; where the file gives a count, all points
      must, and there must be as many (Point-Bench).
    - ``precision``, ``recall``, ``f1``, if each region of the target is one object: points are assigned to objects by
      the smallest sum of distances, one each, and count if they lie in their object (PixMo-Points). Averaged over the
      questions.

    An answer without a point is wrong, unless there is nothing to point at. A point out of the dialect's range lies in
    no region, and counts as a point. Groups: those of the file, and whether the
    answer has a point.
    """

    name: ClassVar[str] = "pointing"
    reads_points: ClassVar[bool] = True
    higher_is_better: ClassVar[tuple[str, ...]] = ("accuracy", "success", *_MATCHED)

    prompt: Annotated[
        str | None, Option("The question, with {question}. By default that of the file, or the family's.", asks=True)
    ] = None
    masks: Annotated[
        Path | None, Option("The folder of the masks. By default masks/ or selected_masks/ beside --annotations.")
    ] = None
    boxes: Annotated[
        BoxRule, Option("Where an answer has boxes but no point: their centres are its points, or it has none.")
    ] = "centre"

    def load(self, path: Path) -> PointItems:
        """Read questions in any of the known layouts; the content decides which (docs/benchmarks.md)."""
        items: PointItems = read_items(self, path)
        return items

    def ids(self, items: PointItems) -> Sequence[str]:
        """The ids of the questions."""
        return [row.id for row in items.rows]

    def about(self, items: PointItems) -> Sequence[Item]:
        """The questions with their images."""
        return [Item(row.id, row.file_name, row.size_wh, row.question) for row in items.rows]

    def images(self, items: PointItems) -> LoadImage | None:
        """The images that the file contains, if it does."""
        return items.images

    def questions(self, items: PointItems, dialect: Dialect, model: str) -> tuple[str, list[Question]]:
        """One question per row: that of the file, or the family's question about the label if every row has one."""
        if self.prompt is None and dialect.point_prompt is not None and all(row.label for row in items.rows):
            prompt = dialect.point_prompt
            return prompt, [
                Question(row.id, row.file_name, row.size_wh, prompt.replace(_EXPRESSION, row.label))
                for row in items.rows
            ]
        prompt = check_prompt(self.prompt or _QUESTION, _QUESTION)
        return prompt, [
            Question(row.id, row.file_name, row.size_wh, prompt.replace(_QUESTION, row.question)) for row in items.rows
        ]

    def score(self, items: PointItems, answers: Answers) -> Result:
        """The metrics that the class describes."""
        dialect = answers.resolve_dialect()
        rows, count = items.rows, len(items.rows)
        problems: dict[str, list[str]] = {**answers.problems, "no_point": [], "malformed": [], "scale": []}
        accuracy, success, has_point = np.zeros(count), np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        matched = np.zeros((count, len(_MATCHED)))
        for k, (row, text) in enumerate(zip(rows, answers.texts, strict=True)):
            grounded = parse(text or "", dialect, row.size_wh)
            outside = _outside(grounded)
            points = points_of(grounded, centres=self.boxes == "centre" and not outside.any())
            has_point[k] = bool(points)
            if text is not None:
                held = row.target.holds(points)
                if len(held) or not has_unread_coordinates(grounded):
                    inside = _with_outside(np.asarray(held.any(axis=0)), outside)
                    accuracy[k], success[k] = _accuracy(len(held), inside), _success(len(held), inside, row.count)
                    if row.places is not None:
                        matched[k] = _matched(held, points, row.places, int(outside.sum()))
                if not points and len(held):
                    problems["no_point"].append(row.id)
            if grounded.problems:
                problems["malformed"].append(row.id)
            if grounded.other_scale:
                problems["scale"].append(row.id)
            advance()
        shares = {"accuracy": Share.mean(accuracy), "success": Share.mean(success)}
        single = np.array([row.places is not None for row in rows], dtype=np.float64)
        if single.any():
            shares |= {name: Share.ratio(matched[:, k], single) for k, name in enumerate(_MATCHED)}
        protocol: dict[str, Any] = {
            "dialect": dialect.spec,
            "points": _RULES[self.boxes],
            "in a mask": "the pixel of the coordinates rounded down",
            "ci95": "bootstrap over images",
        }
        ids, images = tuple(self.ids(items)), tuple(row.file_name for row in rows)
        return Result(self.name, protocol, ids, images, shares, _groups(rows, has_point), problems)


def _outside(grounded: GroundedText) -> Bools:
    """Which of an answer's points, in its order, are not read, being out of the dialect's range; ``(P,)``."""
    places = grounded.source.point_places if grounded.source is not None else ()
    return np.array([not place.is_read for place in places], dtype=bool)


def _with_outside(inside: Bools, outside: Bools) -> Bools:
    """Whether each point of an answer lies in the target, given those that were read, and which others there are."""
    if not outside.any():
        return inside
    every = np.zeros(len(outside), dtype=bool)
    every[~outside] = inside
    return every


def _accuracy(regions: int, inside: Bools) -> float:
    """The share of the points that lie in a region; without regions, whether there is no point."""
    if not regions or not len(inside):
        return float(not regions and not len(inside))
    return float(inside.mean())


def _success(regions: int, inside: Bools, count: int | None) -> bool:
    if not regions or not len(inside):
        return not regions and not len(inside)
    return bool(inside[0]) if count is None else bool(inside.all()) and len(inside) == count


def _matched(held: Bools, points: Sequence[Point], places: Sequence[Point], outside: int) -> Floats:
    """Precision, recall and F1 of points that are assigned to regions by their distances to a place of each.

    ``outside`` is the number of further points, which lie in no region.
    """
    total = len(points) + outside
    if not len(places) or not points:
        return np.full(3, float(not len(places) and not total))
    offsets = np.asarray(places, dtype=np.float64)[:, None] - np.asarray(points, dtype=np.float64)[None]
    regions, chosen = linear_sum_assignment(np.linalg.norm(offsets, axis=2))
    right = float(held[regions, chosen].sum())
    return np.array([right / total, right / len(places), 2 * right / (total + len(places))])


def _groups(rows: Sequence[PointItem], has_point: Bools) -> dict[str, Bools]:
    names = np.asarray([row.group for row in rows], dtype=object)
    groups: dict[str, Bools] = {name: names == name for name in sorted(set(names) - {""})}
    groups["with a point"], groups["without a point"] = has_point, ~has_point
    return {name: mask for name, mask in groups.items() if mask.any()}
