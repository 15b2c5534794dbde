"""POPE: is this object in the image, yes or no? What a model makes up (Li et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from spr.core.errors import ConfigError
from spr.evaluation.inference import Load, Question, answered, ask
from spr.evaluation.lines import ids_of, read_lines, wrong
from spr.evaluation.metrics import Share
from spr.evaluation.predictions import Answers, read_predictions
from spr.evaluation.questions import check_prompt
from spr.evaluation.result import Result
from spr.models.protocols import Describer

TASK = "pope"
Parser: TypeAlias = Literal["ferret", "exact"]
PROMPTS: dict[str, str] = {
    "ferret": "{question}",
    "exact": "{question}\nAnswer the question using a single word or phrase.",
}
"""How the question is put, by parser, as the evaluations that read answers so put it."""
_YES, _NO, _NEITHER, _NONE = 1, 0, -1, -2


@dataclass(frozen=True, slots=True)
class Pope:
    """N questions of a POPE file, column by column; ``labels`` are True for yes."""

    ids: tuple[str, ...]
    images: tuple[str, ...]
    questions: tuple[str, ...]
    labels: tuple[bool, ...]


def read_pope(path: Path) -> Pope:
    """The questions of one of POPE's files: lines with ``question_id``, ``image``, ``text`` and ``label``.

    Raises:
        InputError: naming the row, if it is something else.
    """
    rows = read_lines(path, '{"question_id": 1, "image": "….jpg", "text": "Is there a …?", "label": "yes"}')
    for number, row in enumerate(rows):
        for field in ("image", "text"):
            if not isinstance(row.get(field), str):
                wrong(path, number, field, row.get(field), "a text")
        if row.get("label") not in ("yes", "no"):
            wrong(path, number, "label", row.get("label"), "yes or no")
    images, questions, labels = zip(*((row["image"], row["text"], row["label"] == "yes") for row in rows), strict=True)
    return Pope(ids_of(path, rows, "question_id"), images, questions, labels)


def says_yes(text: str, parser: Parser) -> bool | None:
    """Whether an answer means yes; None where it means neither.

    ``ferret``, which is POPE's own: of the first sentence, up to a full stop, without commas: No, no or not among its
    words is no, and all else is yes. ``exact``, which is lmms-eval's: the answer is the word itself, in any case.

    >>> tuple(says_yes(text, "ferret") for text in ("No, there isn't.", "There is not one", "Nothing there", ""))
    (False, False, True, True)
    >>> tuple(says_yes(text, "exact") for text in (" Yes", "no", "No."))
    (True, False, None)
    """
    if parser == "ferret":
        words = text.split(".")[0].replace(",", "").split(" ")
        return not {"No", "no", "not"} & set(words)
    return {"yes": True, "no": False}.get(text.lower().strip())


def evaluate_pope(
    describer: Describer,
    items: Pope,
    load: Load,
    *,
    parser: Parser = "ferret",
    prompt: str | None = None,
    seed: int = 0,
) -> Result:
    """Ask a model and score its answers.

    Args:
        describer: Greedy, for figures that compare with others'.
        items: The questions.
        load: Where the images come from.
        parser: How answers are read.
        prompt: How the question is put, with ``{question}``; None for that of the parser.
        seed: Of the answers, if they are sampled.
    """
    _check(parser)
    asked = check_prompt(prompt or PROMPTS[parser], "{question}")
    rows = zip(items.ids, items.images, items.questions, strict=True)
    questions = [Question(name, image, None, asked.replace("{question}", text)) for name, image, text in rows]
    answers = ask(describer, questions, load, seed=seed)
    result = score_pope(items, answers, parser=parser)
    kept = tuple(answered(question, text, describer) for question, text in zip(questions, answers.texts, strict=True))
    said = {"model": describer.name, "prompt": asked, "temperature": getattr(describer, "temperature", None)}
    return replace(result, protocol={**result.protocol, **said}, predictions=kept)


def pope_from_file(items: Pope, path: Path, *, parser: Parser = "ferret") -> Result:
    """`score_pope` of a file of predictions."""
    answers = read_predictions(path, items.ids)
    result = score_pope(items, answers, parser=parser)
    return replace(result, protocol={**result.protocol, "model": answers.model, "predictions": path.name})


def score_pope(items: Pope, answers: Answers, *, parser: Parser = "ferret") -> Result:
    """Figures of answers that are there: ``accuracy``, ``precision``, ``recall``, ``f1`` (of yes) and ``yes_share``.

    An answer that means neither is wrong, and counts for neither precision nor recall, as in lmms-eval. A question
    without an answer is wrong, and if yes was right also lowers recall and F1.
    """
    _check(parser)
    problems = {kind: list(ids) for kind, ids in answers.problems.items()}
    labels, read = np.asarray(items.labels), np.empty(len(items.ids), dtype=np.int64)
    for k, text in enumerate(answers.texts):
        yes = None if text is None else says_yes(text, parser)
        read[k] = _NONE if text is None else _NEITHER if yes is None else int(yes)
    problems["neither"] = [items.ids[k] for k in np.flatnonzero(read == _NEITHER)]
    right = read == labels
    positive, wrong_yes = (read == _YES) & labels, (read == _YES) & ~labels
    wrong_no = ((read == _NO) | (read == _NONE)) & labels
    shares = {
        "accuracy": Share.mean(right),
        "precision": Share.ratio(positive, positive | wrong_yes),
        "recall": Share.ratio(positive, positive | wrong_no),
        "f1": Share.ratio(2.0 * positive, 2.0 * positive + wrong_yes + wrong_no),
        "yes_share": Share.mean(read == _YES),
    }
    protocol = {"parser": parser, "positive": "yes", "ci95": "bootstrap over images"}
    groups = {"label yes": labels, "label no": ~labels}
    groups = {name: mask for name, mask in groups.items() if mask.any()}
    return Result(TASK, protocol, items.ids, items.images, shares, groups, problems)


def _check(parser: str) -> None:
    if parser not in PROMPTS:
        raise ConfigError("--parser is not known", got=parser, expected=" | ".join(PROMPTS))
