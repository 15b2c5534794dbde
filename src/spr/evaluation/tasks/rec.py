"""Referring expression comprehension: the model locates what a sentence refers to (RefCOCO, RefCOCO+, RefCOCOg)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import msgspec
import numpy as np

from spr.core import boxes as bx
from spr.core.errors import InputError
from spr.core.progress import advance
from spr.evaluation.answer_fields import Item
from spr.evaluation.ferret_rules import PROTOCOL_HELP, AnswerProtocol, boxes_only, check_protocol
from spr.evaluation.inference import Question
from spr.evaluation.lines import decode_json, first_repeated, read_bytes, read_lines
from spr.evaluation.metrics import Bools, Floats, Share
from spr.evaluation.predictions import Answers
from spr.evaluation.result import Result
from spr.evaluation.task import Option, Task, check_prompt
from spr.grounding import Dialect
from spr.grounding.matching import reaches
from spr.grounding.parse import Boxes, BoxReader
from spr.models.questions import EXPRESSION, locate_prompt
from spr.records import Box, Size

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
Areas: TypeAlias = Literal["pixels", "share"]
SIZES: dict[Areas, tuple[float, float]] = {"pixels": (32.0**2, 96.0**2), "share": (32.0**2 / 640**2, 96.0**2 / 640**2)}
"""The areas at which ``small`` ends and ``large`` begins: COCO's in px², or the same as shares of a 640 × 640 image."""

_PROMPT_HELP = "The question, with {expression}. By default in the wording of the model's family."
_EXPECTED = '{"image": …, "sentence": …, "box": [x1, y1, x2, y2], "width": …, "height": …}'
_NO_BOX: Box = (math.nan,) * 4


@dataclass(frozen=True, slots=True, eq=False)
class Expressions:
    """N referring expressions, one tuple or array per column.

    ``boxes_xyxy`` is float64 ``(N, 4)`` in pixels of the image. A dataset is such as ``refcoco+``, or empty if unknown.
    Raises `InputError` if an id is repeated, or a box has no area.
    """

    ids: tuple[str, ...]
    file_names: tuple[str, ...]
    sentences: tuple[str, ...]
    boxes_xyxy: Floats
    sizes_wh: tuple[Size, ...]
    datasets: tuple[str, ...]

    def __post_init__(self) -> None:
        repeated = first_repeated(self.ids)
        if repeated is not None:
            raise InputError("Two expressions have the same id", got=repeated, expected="unique ids")
        for k in np.flatnonzero(~(bx.area(self.boxes_xyxy) > 0)):
            got = self.boxes_xyxy[k].tolist()
            raise InputError(f"The box of expression {self.ids[k]} has no area", got=got, expected="x1 < x2, y1 < y2")

    def __len__(self) -> int:
        return len(self.ids)


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
        """Read expressions from MDETR's JSON or from JSON lines; the content decides which.

        MDETR's JSON: each row of ``images`` is one expression (``id``, ``file_name``, ``width``, ``height``,
        ``caption``, ``dataset_name``); the row of ``annotations`` with its ``image_id`` has the box, ``[x, y, width,
        height]`` in pixels. JSON lines: ``{"id", "image", "sentence", "box": [x1, y1, x2, y2], "width", "height",
        "dataset"}``; ``dataset`` is optional, and a missing ``id`` is the line's number, from 0.
        """
        data = read_bytes(path, "MDETR's JSON, or JSON lines")
        # Quotes inside a JSON text are escaped, so this matches only a key, or a value that is this one word.
        if b'"annotations"' in data:
            return _from_mdetr(path, data)
        rows = read_lines(path, _Line, _EXPECTED, data)
        return Expressions(
            tuple(str(number if row.id is None else row.id) for number, row in enumerate(rows)),
            tuple(row.image for row in rows),
            tuple(row.sentence for row in rows),
            np.array([row.box for row in rows], dtype=np.float64),
            tuple((row.width, row.height) for row in rows),
            tuple(row.dataset for row in rows),
        )

    def ids(self, items: Expressions) -> Sequence[str]:
        """The ids of the expressions."""
        return items.ids

    def about(self, items: Expressions) -> Sequence[Item]:
        """The expressions with their images."""
        return list(map(Item, items.ids, items.file_names, items.sizes_wh, items.sentences))

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
        read = BoxReader(dialect).read if self.protocol == "spr" else boxes_only
        first_boxes, no_box, malformed, scale = [], [], [], []
        for name, text, size in zip(items.ids, answers.texts, items.sizes_wh, strict=True):
            own, flaws, other_scale = read(text, size) if text is not None else Boxes((), 0)
            first_boxes.append(own[0] if own else _NO_BOX)
            advance()
            if text is not None and not own:
                no_box.append(name)
            if flaws:
                malformed.append(name)
            if other_scale:
                scale.append(name)
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


_Id: TypeAlias = str | int
_Side: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class _Image(msgspec.Struct, gc=False):
    id: _Id
    file_name: str
    caption: str
    width: _Side
    height: _Side
    dataset_name: str = ""


class _Annotation(msgspec.Struct, gc=False):
    image_id: _Id
    bbox: tuple[float, float, float, float]


class _Mdetr(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]


class _Line(msgspec.Struct, gc=False):
    image: str
    sentence: str
    box: tuple[float, float, float, float]
    width: _Side
    height: _Side
    id: _Id | None = None
    dataset: str = ""


def _from_mdetr(path: Path, data: bytes) -> Expressions:
    expected = "images with id, file_name, caption, width, height; annotations with image_id, bbox"
    fix = "give a file such as finetune_refcoco_val.json, where each row of `images` is one expression"
    content = decode_json(data, _Mdetr, f"{path} is not MDETR's JSON", expected=expected, fix=fix)
    rows, entries = content.images, content.annotations
    if not rows:
        raise InputError(f"{path} is empty", got="no rows in `images`", expected="at least one")
    boxes = {entry.image_id: entry.bbox for entry in entries}
    if len(boxes) < len(entries) or any(row.id not in boxes for row in rows):
        counts = Counter(entry.image_id for entry in entries)
        wrong = next((row.id for row in rows if counts[row.id] != 1), None)
        if wrong is not None:
            what = f"Expression {wrong} of {path} does not have exactly one box"
            raise InputError(what, got=f"{counts[wrong]} annotations with this image_id", expected="one")
    found = np.array([boxes[row.id] for row in rows], dtype=np.float64)
    found[:, 2:] += found[:, :2]
    return Expressions(
        tuple([str(row.id) for row in rows]),
        tuple([row.file_name for row in rows]),
        tuple([row.caption for row in rows]),
        found,
        tuple([(row.width, row.height) for row in rows]),
        tuple([row.dataset_name for row in rows]),
    )
