"""Referring expression comprehension: where is what the sentence names? Accuracy by IoU threshold (METHOD §7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from spr.core import boxes as bx
from spr.core.errors import ConfigError
from spr.evaluation.expressions import Expressions
from spr.evaluation.ferret_rules import entities
from spr.evaluation.inference import Load, Question, answered, ask
from spr.evaluation.metrics import Bools, Share, first_box_iou, reaches
from spr.evaluation.predictions import Answers, dialect_of, read_predictions
from spr.evaluation.questions import EXPRESSION, check_prompt, default_prompt
from spr.evaluation.result import Result
from spr.grounding import Dialect
from spr.grounding.plain import Boxes, BoxReader
from spr.models.protocols import Describer
from spr.records import Box, Size

TASK = "rec"
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
Protocol: TypeAlias = Literal["spr", "ferret"]
Areas: TypeAlias = Literal["pixels", "share"]
SIZES: dict[str, tuple[float, float]] = {"pixels": (32.0**2, 96.0**2), "share": (32.0**2 / 640**2, 96.0**2 / 640**2)}
"""Where ``small`` ends and ``large`` begins: COCO's areas in px², or the same as a share of a 640 × 640 image."""

_NO_BOX: Box = (math.nan,) * 4
_Read: TypeAlias = Callable[[str, Size], Boxes]


def evaluate_rec(
    describer: Describer,
    items: Expressions,
    load: Load,
    *,
    prompt: str | None = None,
    seed: int = 0,
    areas: Areas = "pixels",
) -> Result:
    """Ask a model about each expression and score its answers.

    Args:
        describer: Greedy (temperature 0), for figures that compare with others'.
        items: What is asked.
        load: Where the images come from: `spr.evaluation.inference.from_folder`, or a function of one's own.
        prompt: The question, with ``{expression}``; None for the wording of the model's family.
        seed: Of the answers, if they are sampled.
        areas: What ``small``, ``medium`` and ``large`` go by.

    Raises:
        ConfigError: if the prompt lacks ``{expression}``.
    """
    asked = check_prompt(prompt or default_prompt("rec", describer.dialect), EXPRESSION)
    texts = [asked.replace(EXPRESSION, _bare(sentence, describer.dialect)) for sentence in items.sentences]
    columns = zip(items.ids, items.file_names, items.sizes_wh, texts, strict=True)
    questions = [Question(*row) for row in columns]
    answers = ask(describer, questions, load, seed=seed)
    result = score_rec(items, answers, describer.dialect, areas=areas)
    said = {"model": describer.name, "prompt": asked, "temperature": getattr(describer, "temperature", None)}
    kept = tuple(answered(question, text, describer) for question, text in zip(questions, answers.texts, strict=True))
    return replace(result, protocol={**result.protocol, **said}, predictions=kept)


def score_rec(
    items: Expressions,
    answers: Answers,
    dialect: Dialect,
    *,
    protocol: Protocol = "spr",
    areas: Areas = "pixels",
) -> Result:
    """Figures of answers that are there: ``acc@0.5`` to ``acc@0.9`` and ``mean_iou``.

    The answer's first box counts; no box, no answer and an answer that is no text are a miss. Protocol ``ferret`` reads
    answers as Ferret's evaluator does: whole pixels, nothing clipped, and one malformed bracket blanks the answer.

    Args:
        items: What was asked.
        answers: One an item.
        dialect: How the model writes boxes.
        protocol: ``spr`` or ``ferret``.
        areas: What ``small``, ``medium`` and ``large`` go by.

    Raises:
        ConfigError: for an unknown protocol, or ``ferret`` with another dialect.
    """
    read = _reader(protocol, dialect)
    problems = {kind: list(ids) for kind, ids in answers.problems.items()}
    firsts: list[Box] = []
    unread, malformed = [], []
    for k, (text, size) in enumerate(zip(answers.texts, items.sizes_wh, strict=True)):
        if text is None:
            firsts.append(_NO_BOX)
            continue
        found, flaws = read(text, size)
        if found:
            firsts.append(found[0])
        else:
            firsts.append(_NO_BOX)
            unread.append(k)
        if flaws:
            malformed.append(k)
    boxes = np.array(firsts, dtype=np.float64).reshape(-1, 4)
    for kind, rows in (("no_box", unread), ("malformed", malformed)):
        problems[kind] = [items.ids[k] for k in rows]
    overlaps = first_box_iou(boxes, items.boxes_xyxy)
    shares = {f"acc@{threshold}": Share.mean(reaches(overlaps, threshold)) for threshold in THRESHOLDS}
    shares["mean_iou"] = Share.mean(overlaps)
    said: dict[str, Any] = {
        "answers": protocol,
        "dialect": dialect.spec,
        "box": "the first of the answer; none is a miss",
        "match": "IoU at least the threshold",
        "areas": f"{areas}: small under {SIZES[areas][0]:g}, large from {SIZES[areas][1]:g}",
        "ci95": "bootstrap over images",
    }
    groups = _groups(items, ~np.isnan(boxes[:, 0]), areas)
    return Result(TASK, said, items.ids, items.file_names, {**shares}, groups, problems)


def rec_from_file(
    items: Expressions,
    path: Path,
    dialect: Dialect | None = None,
    *,
    protocol: Protocol = "spr",
    areas: Areas = "pixels",
) -> Result:
    """`score_rec` of a file of predictions (`read_predictions`)."""
    answers = read_predictions(path, items.ids)
    result = score_rec(items, answers, dialect_of(answers, dialect, path), protocol=protocol, areas=areas)
    return replace(result, protocol={**result.protocol, "model": answers.model, "predictions": path.name})


def _reader(protocol: Protocol, dialect: Dialect) -> _Read:
    if protocol == "spr":
        return BoxReader(dialect).read
    if protocol != "ferret":
        raise ConfigError("--protocol is not known", got=protocol, expected="spr | ferret")
    if dialect.key != "ferret":
        raise ConfigError("--protocol ferret reads Ferret's dialect only", got=dialect.key, expected="--dialect ferret")

    def read(text: str, size_wh: Size) -> Boxes:
        found = entities(text, size_wh)
        return Boxes((), 1) if found is None else Boxes(tuple(box for _, box in found), 0)

    return read


def _bare(sentence: str, dialect: Dialect) -> str:
    return sentence if dialect.rec_keeps_commas else sentence.replace(",", "").strip()


def _groups(items: Expressions, has_box: Bools, areas: Areas) -> dict[str, Bools]:
    groups: dict[str, Bools] = {}
    datasets = np.asarray(items.datasets, dtype=object)
    for name in sorted(set(items.datasets) - {""}):
        groups[name] = datasets == name
    values = bx.area(items.boxes_xyxy)
    if areas == "share":
        values = values / np.asarray(items.sizes_wh, dtype=np.float64).prod(axis=1)
    small, large = SIZES[areas]
    groups["small"], groups["large"] = values < small, values >= large
    groups["medium"] = ~(groups["small"] | groups["large"])
    groups["with a box"], groups["without a box"] = has_box, ~has_box
    return {name: mask for name, mask in groups.items() if mask.any()}
