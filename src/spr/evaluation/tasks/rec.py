"""Referring expression comprehension: the model locates what a sentence refers to (RefCOCO, RefCOCO+, RefCOCOg)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np

from spr.core import boxes as bx
from spr.core.progress import advance
from spr.evaluation.answer_fields import Item
from spr.evaluation.expressions import Expressions
from spr.evaluation.ferret_rules import PROTOCOL_HELP, AnswerProtocol, boxes_only, check_protocol
from spr.evaluation.inference import LoadImage, Question
from spr.evaluation.layouts.layout import read_items
from spr.evaluation.metrics import Bools, Share
from spr.evaluation.predictions import Answers
from spr.evaluation.result import Result
from spr.evaluation.task import Option, Task, check_prompt
from spr.grounding import Dialect
from spr.grounding.matching import reaches
from spr.grounding.parse import BoxReader
from spr.models.questions import EXPRESSION, locate_prompt
from spr.records import Box

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
Areas: TypeAlias = Literal["pixels", "share"]
SIZES: dict[Areas, tuple[float, float]] = {"pixels": (32.0**2, 96.0**2), "share": (32.0**2 / 640**2, 96.0**2 / 640**2)}
"""The areas at which ``small`` ends and ``large`` begins: COCO's in px², or the same as shares of a 640 × 640 image."""

_PROMPT_HELP = "The question, with {expression}. By default in the wording of the model's family."
_NO_BOX: Box = (math.nan,) * 4
_ADVANCE = 200  # answers that are counted as finished at a time


@dataclass(frozen=True, kw_only=True)
class Rec(Task[Expressions]):
    """Referring expressions: RefCOCO, RefCOCO+, RefCOCOg, or your own.

    Metrics: ``acc@0.5`` to ``acc@0.9``, the share of expressions whose box has at least this IoU, and ``mean_iou``. The
    first box of an answer counts; an answer without a box is a miss. Groups: the dataset, the size of the object, and
    whether the answer has a box.
    """

    name: ClassVar[str] = "rec"
    higher_is_better: ClassVar[tuple[str, ...]] = (*(f"acc@{threshold}" for threshold in THRESHOLDS), "mean_iou")

    prompt: Annotated[str | None, Option(_PROMPT_HELP, asks=True)] = None
    protocol: Annotated[AnswerProtocol, Option(PROTOCOL_HELP)] = "spr"
    areas: Annotated[
        Areas, Option("Small, medium and large objects by COCO's pixel areas, or by their share of the image.")
    ] = "pixels"

    def load(self, path: Path) -> Expressions:
        """Read expressions in any of the known layouts; the content decides which (docs/benchmarks.md)."""
        items: Expressions = read_items(self, path)
        return items

    def ids(self, items: Expressions) -> Sequence[str]:
        """The ids of the expressions."""
        return items.ids

    def about(self, items: Expressions) -> Sequence[Item]:
        """The expressions with their images."""
        return list(map(Item, items.ids, items.file_names, items.sizes_wh, items.sentences))

    def images(self, items: Expressions) -> LoadImage | None:
        """The images that the file contains, if it does."""
        return items.images

    def questions(self, items: Expressions, dialect: Dialect, model: str) -> tuple[str, list[Question]]:
        """One question per expression."""
        check_protocol(self.protocol, dialect)
        prompt = check_prompt(self.prompt or locate_prompt(dialect, model), EXPRESSION)
        keep = dialect.rec_keeps_commas
        sentences = [sentence if keep else sentence.replace(",", "").strip() for sentence in items.sentences]
        texts = [prompt.replace(EXPRESSION, sentence) for sentence in sentences]
        return prompt, list(map(Question, items.ids, items.file_names, items.sizes_wh, texts))

    def score(self, items: Expressions, answers: Answers) -> Result:
        """Accuracy by IoU threshold, and mean IoU."""
        dialect = answers.resolve_dialect()
        check_protocol(self.protocol, dialect)
        reader = BoxReader(dialect) if self.protocol == "spr" else None
        first_boxes: list[Box] = []
        no_box, malformed, scale = [], [], []
        for number, (name, text, size) in enumerate(zip(items.ids, answers.texts, items.sizes_wh, strict=True), 1):
            if number % _ADVANCE == 0:
                advance(_ADVANCE)
            if text is None:
                first_boxes.append(_NO_BOX)
                continue
            box = reader.read_one(text, size) if reader is not None else None
            if box is not None:
                first_boxes.append(box)
                continue
            own, flaws, other_scale = reader.read(text, size) if reader is not None else boxes_only(text, size)
            first_boxes.append(own[0] if own else _NO_BOX)
            if not own:
                no_box.append(name)
            if flaws:
                malformed.append(name)
            if other_scale:
                scale.append(name)
        advance(len(items.ids) % _ADVANCE)
        boxes = bx.as_boxes(first_boxes)
        overlaps = bx.iou(boxes, items.boxes_xyxy)  # 0 without a box
        shares = {f"acc@{threshold}": Share.mean(reaches(overlaps, threshold)) for threshold in THRESHOLDS}
        shares["mean_iou"] = Share.mean(overlaps)
        problems = {**answers.problems, "no_box": no_box, "malformed": malformed, "scale": scale}
        small, large = SIZES[self.areas]
        protocol: dict[str, Any] = {
            "answers": self.protocol,
            "dialect": dialect.spec,
            "box": "the first box of the answer; an answer without a box is a miss",
            "match": "IoU of at least the threshold",
            "areas": f"{self.areas}: small below {small:g}, large from {large:g}",
            "ci95": "bootstrap over images",
        }
        groups = self._groups(items, ~np.isnan(boxes[:, 0]))
        return Result(self.name, protocol, items.ids, items.file_names, shares, groups, problems)

    def _groups(self, items: Expressions, has_box: Bools) -> dict[str, Bools]:
        datasets = np.asarray(items.datasets, dtype=object)
        groups: dict[str, Bools] = {name: datasets == name for name in sorted(set(items.datasets) - {""})}
        values = bx.area(items.boxes_xyxy)
        if self.areas == "share":
            values = values / np.asarray(items.sizes_wh, dtype=np.float64).prod(axis=1)
        small, large = SIZES[self.areas]
        groups["small"], groups["large"] = values < small, values >= large
        groups["medium"] = ~(groups["small"] | groups["large"])
        groups["with a box"], groups["without a box"] = has_box, ~has_box
        return {name: mask for name, mask in groups.items() if mask.any()}
