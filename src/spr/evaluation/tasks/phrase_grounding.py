"""Phrase grounding on Flickr30k Entities: where is each phrase of the sentence? Recall of the first k boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from spr.core import boxes as bx
from spr.core.errors import ConfigError
from spr.evaluation.ferret_rules import entities, normal_phrase
from spr.evaluation.flickr import Protocol, Sentence
from spr.evaluation.inference import Load, Question, answered, ask
from spr.evaluation.metrics import Bools, Share, reaches
from spr.evaluation.predictions import Answers, dialect_of, read_predictions
from spr.evaluation.questions import GROUNDING, check_prompt
from spr.evaluation.result import Result
from spr.grounding import Dialect, parse
from spr.models.protocols import Describer
from spr.records import Box, Size

TASK = "phrase-grounding"
TOP = (1, 5, 10)
THRESHOLD = 0.5


def evaluate_phrase_grounding(
    describer: Describer,
    items: Sequence[Sentence],
    load: Load,
    *,
    prompt: str | None = None,
    boxes: Protocol = "merged",
    seed: int = 0,
) -> Result:
    """Ask a model about all phrases of each sentence at once, as Ferret's evaluation does, and score its answers.

    Args:
        describer: Greedy, for figures that compare with others'.
        items: The sentences.
        load: Where the images come from.
        prompt: The question, with ``{phrases}``.
        boxes: What the sentences were read with, for the protocol.
        seed: Of the answers, if they are sampled.
    """
    asked = check_prompt(prompt or GROUNDING, "{phrases}")
    questions = [Question(s.id, s.file_name, s.size_wh, asked.replace("{phrases}", _listed(s))) for s in items]
    answers = ask(describer, questions, load, seed=seed)
    result = score_phrase_grounding(items, answers, describer.dialect, boxes=boxes)
    kept = tuple(answered(question, text, describer) for question, text in zip(questions, answers.texts, strict=True))
    said = {"model": describer.name, "prompt": asked, "temperature": getattr(describer, "temperature", None)}
    return replace(result, protocol={**result.protocol, **said}, predictions=kept)


def phrase_grounding_from_file(
    items: Sequence[Sentence],
    path: Path,
    dialect: Dialect | None = None,
    *,
    boxes: Protocol = "merged",
    protocol: str = "spr",
) -> Result:
    """`score_phrase_grounding` of a file of predictions, one a sentence."""
    answers = read_predictions(path, [sentence.id for sentence in items])
    result = score_phrase_grounding(items, answers, dialect_of(answers, dialect, path), boxes=boxes, protocol=protocol)
    return replace(result, protocol={**result.protocol, "model": answers.model, "predictions": path.name})


def score_phrase_grounding(
    items: Sequence[Sentence], answers: Answers, dialect: Dialect, *, boxes: Protocol = "merged", protocol: str = "spr"
) -> Result:
    """``recall@1``, ``recall@5``, ``recall@10`` and ``upper_bound``, by category.

    A phrase's boxes are those that the answer gives to a phrase of the same words (case and punctuation aside), in the
    order of the answer; it is found when one of the first k has an IoU of at least 0.5 with (one of) its own. Protocol
    ``ferret`` reads answers as Ferret's evaluator does (`spr.evaluation.ferret_rules`).

    Raises:
        ConfigError: for an unknown protocol, or ``ferret`` with another dialect.
    """
    if protocol not in ("spr", "ferret"):
        raise ConfigError("--protocol is not known", got=protocol, expected="spr | ferret")
    if protocol == "ferret" and dialect.key != "ferret":
        raise ConfigError("--protocol ferret reads Ferret's dialect only", got=dialect.key, expected="--dialect ferret")
    problems = {kind: list(ids) for kind, ids in answers.problems.items()}
    malformed, no_box = [], []
    ids, images, hits, categories = [], [], [], []
    for sentence, text in zip(items, answers.texts, strict=True):
        said, flawed = _read(text or "", sentence.size_wh, dialect, protocol)
        if flawed:
            malformed.append(sentence.id)
        for number, phrase in enumerate(sentence.phrases):
            ids.append(f"{sentence.id}#{number}")
            images.append(sentence.file_name)
            categories.append(phrase.categories)
            own = said.get(normal_phrase(phrase.text), [])
            if not own and text is not None:
                no_box.append(f"{ids[-1]} ({phrase.text})")
            best = bx.iou_matrix(own, phrase.boxes).max(axis=1) if own else np.zeros(1)
            hits.append([bool(reaches(best[:k], THRESHOLD).any()) for k in (*TOP, len(best))])
    problems |= {"malformed": malformed, "no_box": no_box}
    columns = np.asarray(hits, dtype=np.float64).reshape(-1, len(TOP) + 1).T
    names = [*(f"recall@{k}" for k in TOP), "upper_bound"]
    shares = {name: Share.mean(column) for name, column in zip(names, columns, strict=True)}
    said_of = {
        "answers": protocol,
        "dialect": dialect.spec,
        "boxes": boxes,
        "match": "IoU at least 0.5",
        "ci95": "bootstrap over images",
    }
    return Result(TASK, said_of, tuple(ids), tuple(images), shares, _by_category(categories), problems)


def _listed(sentence: Sentence) -> str:
    return ", ".join(phrase.text.lower().replace(",", "").strip() for phrase in sentence.phrases)


def _read(text: str, size_wh: Size, dialect: Dialect, protocol: str) -> tuple[dict[str, list[Box]], bool]:
    """The answer's boxes by normal phrase, in order, and whether something was malformed."""
    said: dict[str, list[Box]] = {}
    if protocol == "ferret":
        found = entities(text, size_wh)
        for phrase, box in found or ():
            said.setdefault(normal_phrase(phrase), []).append(box)
        return said, found is None
    grounded = parse(text, dialect, size_wh)
    for span in grounded.spans:
        said.setdefault(normal_phrase(span.phrase), []).extend(span.boxes)
    return said, bool(grounded.problems)


def _by_category(categories: Sequence[tuple[str, ...]]) -> dict[str, Bools]:
    names = sorted({name for of_phrase in categories for name in of_phrase})
    return {name: np.array([name in of_phrase for of_phrase in categories]) for name in names}
