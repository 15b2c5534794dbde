"""Referring expressions with any number of targets, none included: precision, recall, F1 and rejection.

The metrics are those of HumanRef (Jiang et al. 2025, arXiv 2503.08507; `rexseek/metric/recall_precision_densityf1.py`
of IDEA-Research/RexSeek), RefDrone (arXiv 2502.00392; `mmdet/evaluation/metrics/refdrone_metric.py` of
sunzc-sunny/refdrone) and GroundingME (arXiv 2512.17495; `evaluate.py` of lirang04/GroundingME).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from spr.core import boxes as bx
from spr.core.progress import advance
from spr.evaluation.answer_fields import Item
from spr.evaluation.inference import LoadImage, Question
from spr.evaluation.layouts.layout import read_items
from spr.evaluation.metrics import Bools, Floats, Ints, Share
from spr.evaluation.multi_expressions import MultiExpression, PicturedExpressions
from spr.evaluation.predictions import Answers
from spr.evaluation.result import Result
from spr.evaluation.task import Option, Task, check_prompt
from spr.grounding import Dialect, parse
from spr.grounding.matching import reaches
from spr.grounding.parse import Boxes, BoxReader
from spr.grounding.unread import has_unread_coordinates
from spr.models.questions import EXPRESSION, locate_prompt
from spr.records import Box, Size

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
"""The IoU thresholds of the means: 0.5, 0.55, …, 0.95."""
SHOWN = (0.5, 0.75, 0.9)
ABSENT = ' If it is not in the image, answer "none".'
"""What ``--absent said`` adds to the question (our choice)."""
Absent: TypeAlias = Literal["unsaid", "said"]

_NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)  # how GroundingME writes that there is none
_COUNTS = {"1 target": (1, 1), "2-5 targets": (2, 5), "6-10 targets": (6, 10), "over 10 targets": (11, None)}
_PER_EXPRESSION = ("recall", "precision", "f1", "density_f1")
_NAMES = (
    *(f"acc@{threshold}" for threshold in SHOWN),
    "macc",
    *(f"{name}@0.5" for name in _PER_EXPRESSION),
    *_PER_EXPRESSION,
    "instance_f1@0.5",
    "instance_acc@0.5",
    "image_f1@0.5",
    "rejection_acc",
    "rejection_precision",
    "rejection_f1",
)


class _Read(NamedTuple):
    """The boxes of an answer, and what it means if it has none."""

    boxes: tuple[Box, ...]
    rejects: bool = False
    malformed: bool = False
    scale: bool = False


@dataclass(frozen=True, kw_only=True)
class MultiRec(Task[list[MultiExpression]]):
    """Expressions with any number of targets, or none: HumanRef, RefDrone, GroundingME, or your own.

    All boxes of an answer count. An answer rejects an expression if it has no coordinates. Metrics:

    - ``acc@0.5``, ``@0.75``, ``@0.9``, and ``macc``, the mean over 0.5, 0.55, …, 0.95: the share of expressions whose
      targets are all found, one box each, without a further box; without a target, the share that is rejected.
    - ``recall``, ``precision``, ``f1``, ``density_f1`` at 0.5, and the means over the ten thresholds: computed for each
      expression with a target, and averaged, as in HumanRef.
    - ``instance_f1@0.5``, ``instance_acc@0.5``, ``image_f1@0.5``: from counts over all expressions, as in RefDrone.
    - ``rejection_acc``: the share of expressions without a target that are rejected; ``rejection_precision``: the share
      of the rejected expressions that have no target; ``rejection_f1``.

    Groups: those of the file, with and without a target, and the number of targets.
    """

    name: ClassVar[str] = "multi-rec"
    higher_is_better: ClassVar[tuple[str, ...]] = _NAMES

    prompt: Annotated[
        str | None,
        Option("The question, with {expression}. By default in the wording of the model's family.", asks=True),
    ] = None
    absent: Annotated[
        Absent, Option("said: the question adds that the answer is none if there is no such object.", asks=True)
    ] = "unsaid"

    def load(self, path: Path) -> list[MultiExpression]:
        """Read expressions in any of the known layouts; the content decides which (docs/benchmarks.md)."""
        items: list[MultiExpression] = read_items(self, path)
        return items

    def ids(self, items: list[MultiExpression]) -> Sequence[str]:
        """The ids of the expressions."""
        return [item.id for item in items]

    def about(self, items: list[MultiExpression]) -> Sequence[Item]:
        """The expressions with their images."""
        return [Item(item.id, item.file_name, item.size_wh, item.sentence) for item in items]

    def images(self, items: list[MultiExpression]) -> LoadImage | None:
        """The images that the file contains, if it does."""
        return items.images if isinstance(items, PicturedExpressions) else None

    def questions(self, items: list[MultiExpression], dialect: Dialect, model: str) -> tuple[str, list[Question]]:
        """One question per expression."""
        prompt = check_prompt(self.prompt or locate_prompt(dialect, model), EXPRESSION)
        prompt += ABSENT if self.absent == "said" else ""
        questions = []
        for item in items:
            sentence = item.sentence if dialect.rec_keeps_commas else item.sentence.replace(",", "").strip()
            text = prompt.replace(EXPRESSION, sentence)
            questions.append(Question(item.id, item.file_name, item.size_wh, text))
        return prompt, questions

    def score(self, items: list[MultiExpression], answers: Answers) -> Result:
        """The metrics that the class describes."""
        dialect = answers.resolve_dialect()
        reader = BoxReader(dialect)
        problems: dict[str, list[str]] = {**answers.problems, "no_box": [], "malformed": [], "scale": []}
        targets = np.array([len(item.boxes) for item in items], dtype=np.float64)
        counts = np.zeros(len(items))
        rejected = np.zeros(len(items), dtype=bool)
        found = np.zeros((len(items), len(THRESHOLDS)))
        highest_first = np.zeros_like(found)
        for k, (item, text) in enumerate(zip(items, answers.texts, strict=True)):
            read = _read(text, item.size_wh, reader)
            advance()
            counts[k], rejected[k] = len(read.boxes), read.rejects
            if text is not None and not read.boxes and item.boxes:
                problems["no_box"].append(item.id)
            if read.malformed:
                problems["malformed"].append(item.id)
            if read.scale:
                problems["scale"].append(item.id)
            if item.boxes and read.boxes:
                overlaps = bx.iou_matrix(item.boxes, read.boxes)
                found[k] = count_in_order(overlaps, THRESHOLDS)
                highest_first[k] = count_highest_first(overlaps, THRESHOLDS)
        shares = _shares(targets, counts, rejected, found, highest_first)
        answered = sum(text is not None for text in answers.texts)
        notes: tuple[str, ...] = ()
        if answered and not counts.any() and answered != len(problems["no_box"]):
            notes = (f"none of the {answered:,} answers has a box that its dialect can read",)
        protocol: dict[str, Any] = {
            "dialect": dialect.spec,
            "boxes": "all boxes of the answer; [0, 0, 0, 0] is none",
            "rejection": "a text without a box, without a point, and without coordinates that can't be read",
            "match": "one box per target. HumanRef's metrics: each target in order takes the best box that is left; "
            "all others: the highest IoU first",
            "absent": self.absent,
            "ci95": "bootstrap over images",
        }
        ids, images = tuple(self.ids(items)), tuple(item.file_name for item in items)
        return Result(self.name, protocol, ids, images, shares, _groups(items, targets), problems, notes=notes)


def count_in_order(overlaps: bx.Array, thresholds: Sequence[float]) -> Ints:
    """Count the targets that are found as in HumanRef: in their order, each takes the best box that is left.

    Args:
        overlaps: IoU, shape ``(targets, boxes)``, 0 to 1.
        thresholds: The lowest IoUs that count, each for itself.

    >>> overlaps = np.array([[0.6, 0.7], [0.0, 0.9]])  # the first target takes the only box of the second
    >>> count_in_order(overlaps, [0.5, 0.8]).tolist(), count_highest_first(overlaps, [0.5, 0.8]).tolist()
    ([1, 1], [2, 1])
    """
    usable = np.where(reaches(overlaps, np.reshape(thresholds, (-1, 1, 1))), overlaps, 0.0)
    each, counts = np.arange(len(usable)), np.zeros(len(usable), dtype=np.int64)
    for target in range(len(overlaps)):
        best = usable[:, target].argmax(axis=1)
        is_found = usable[each, target, best] > 0
        counts += is_found
        usable[each[is_found], :, best[is_found]] = 0.0
    return counts


def count_highest_first(overlaps: bx.Array, thresholds: Sequence[float]) -> Ints:
    """Count the targets that are found as in RefDrone: pairs of a target and a box, the highest IoU first.

    The pairs of a threshold are those of any lower one, as far as they reach it.
    """
    left = np.where(reaches(overlaps, min(thresholds)), overlaps, 0.0)
    taken: list[float] = []
    while (highest := left.max()) > 0:
        taken.append(highest)
        row, column = divmod(int(left.argmax()), left.shape[1])
        left[row, :] = left[:, column] = 0.0
    return np.asarray(reaches(np.reshape(taken, (-1, 1)), np.asarray(thresholds)).sum(axis=0))


def _read(text: str | None, size_wh: Size, reader: BoxReader) -> _Read:
    """The boxes of an answer. One with points, or with coordinates that can't be read, does not reject."""
    if text is None or not text.strip():
        return _Read(())
    own: Boxes = reader.read(text, size_wh)
    boxes = tuple(box for box in own.boxes if box != _NO_BOX)
    if boxes:
        return _Read(boxes, False, own.problems > 0, own.other_scale)
    grounded = parse(text, reader.dialect, size_wh)
    unread = has_unread_coordinates(grounded)
    return _Read((), not unread and not grounded.points, unread, own.other_scale)


def _shares(targets: Floats, counts: Floats, rejected: Bools, found: Floats, highest_first: Floats) -> dict[str, Share]:
    """The metrics from the numbers of targets and boxes ``(N,)``, and of found targets ``(N, 10)`` in both orders."""
    some = targets > 0
    none = ~some
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(some[:, None], found / targets[:, None], 0.0)
        precision = np.where(counts[:, None] > 0, found / counts[:, None], 0.0)
        f1 = np.where(some[:, None], 2 * found / (targets + counts)[:, None], 0.0)
        density = np.where(counts > 0, np.minimum(1.0, targets / counts), 0.0)
    right = np.where(
        some[:, None], (highest_first == targets[:, None]) & (counts == targets)[:, None], rejected[:, None]
    )
    of_expression = dict(zip(_PER_EXPRESSION, (recall, precision, f1, f1 * density[:, None]), strict=True))
    shares = {f"acc@{threshold}": Share.mean(right[:, THRESHOLDS.index(threshold)]) for threshold in SHOWN}
    shares["macc"] = Share.mean(right.mean(axis=1))
    weights = some.astype(np.float64)
    shares |= {f"{name}@0.5": Share(values[:, 0] * weights, weights) for name, values in of_expression.items()}
    shares |= {name: Share(values.mean(axis=1) * weights, weights) for name, values in of_expression.items()}
    true = highest_first[:, 0]
    exact = some & (true == targets) & (counts == targets)
    false = np.where(some, counts - true, ~rejected)  # RefDrone counts the boxes of an expression without target once
    missed = np.where(some, targets - true, 0.0)
    denied = none & rejected
    shares["instance_f1@0.5"] = Share.ratio(2 * true, 2 * true + false + missed)
    shares["instance_acc@0.5"] = Share.ratio(true + denied, true + false + missed + denied)
    shares["image_f1@0.5"] = Share.ratio(2.0 * exact, 2.0 * exact + (none & ~rejected) + (some & ~exact))
    shares["rejection_acc"] = Share.ratio(denied, none)
    shares["rejection_precision"] = Share.ratio(denied, rejected)
    shares["rejection_f1"] = Share.ratio(2.0 * denied, none.astype(np.float64) + rejected)
    return shares


def _groups(items: list[MultiExpression], targets: Floats) -> dict[str, Bools]:
    names = dict.fromkeys(name for item in items for name in item.groups)
    groups: dict[str, Bools] = {name: np.array([name in item.groups for item in items]) for name in names}
    groups["with a target"], groups["without a target"] = targets > 0, targets == 0
    for name, (low, high) in _COUNTS.items():
        groups[name] = (targets >= low) & (targets <= (np.inf if high is None else high))
    return {name: mask for name, mask in groups.items() if mask.any()}
