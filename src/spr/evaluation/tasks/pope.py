"""POPE: the model says whether an object is in the image, which measures hallucination (Li et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import msgspec
import numpy as np

from spr.evaluation.answer_fields import Item
from spr.evaluation.inference import Question
from spr.evaluation.layouts.content import Content
from spr.evaluation.layouts.layout import Layout, read_items
from spr.evaluation.lines import unique_ids
from spr.evaluation.metrics import Share
from spr.evaluation.predictions import Answers
from spr.evaluation.result import Result
from spr.evaluation.task import Option, Task, check_prompt
from spr.grounding import Dialect

Parser: TypeAlias = Literal["ferret", "exact"]
PROMPTS: dict[Parser, str] = {
    "ferret": "{question}",
    "exact": "{question}\nAnswer the question using a single word or phrase.",
}
"""The default question by parser: the one of the evaluation that reads answers in this way."""
_QUESTION = "{question}"
_EXPECTED = '{"question_id": 1, "image": "….jpg", "text": "Is there a …?", "label": "yes"}'


@dataclass(frozen=True, slots=True)
class PopeItems:
    """N questions of a POPE file, one tuple per column; ``labels`` are True for yes."""

    ids: tuple[str, ...]
    images: tuple[str, ...]
    questions: tuple[str, ...]
    labels: tuple[bool, ...]


class _Line(msgspec.Struct, gc=False):
    image: str
    text: str
    label: Literal["yes", "no"]
    question_id: Any = None


def _read(content: Content, _: Any) -> PopeItems:
    rows = content.rows(_Line, _EXPECTED)
    ids = unique_ids(content.path, "question_id", [row.question_id for row in rows])
    images, questions, labels = zip(*((row.image, row.text, row.label == "yes") for row in rows), strict=True)
    return PopeItems(ids, images, questions, labels)


LAYOUT = Layout("POPE's JSON lines", "pope", ("JSON lines", "a JSON list"), ("image", "text", "label"), _read)


@dataclass(frozen=True, kw_only=True)
class Pope(Task[PopeItems]):
    """POPE: yes-or-no questions about objects in the image.

    Metrics: ``accuracy``; ``precision``, ``recall`` and ``f1`` of yes; and ``yes_share``. An answer that means neither
    is wrong and left out of precision and recall, as in lmms-eval. A question without an answer is wrong, and lowers
    recall and F1 if its label is yes.
    """

    name: ClassVar[str] = "pope"
    reads_boxes: ClassVar[bool] = False
    higher_is_better: ClassVar[tuple[str, ...]] = ("accuracy", "precision", "recall", "f1")

    parser: Annotated[
        Parser, Option("How yes and no are read: by POPE's own rule, or as the exact word, as in lmms-eval.")
    ] = "ferret"
    prompt: Annotated[
        str | None, Option("The question, with {question}. By default as the parser's benchmark asks it.", asks=True)
    ] = None

    def load(self, path: Path) -> PopeItems:
        """Read one of POPE's files: JSON lines with ``question_id``, ``image``, ``text`` and ``label``."""
        items: PopeItems = read_items(self, path)
        return items

    def ids(self, items: PopeItems) -> Sequence[str]:
        """The ids of the questions."""
        return items.ids

    def about(self, items: PopeItems) -> Sequence[Item]:
        """The questions with their images and labels."""
        labels = ("yes" if label else "no" for label in items.labels)
        rows = zip(items.ids, items.images, items.questions, labels, strict=True)
        return [Item(name, image, None, question, label) for name, image, question, label in rows]

    def questions(self, items: PopeItems, dialect: Dialect, model: str) -> tuple[str, list[Question]]:
        """One question per row; POPE's files do not give the size of the image."""
        prompt = check_prompt(self.prompt or PROMPTS[self.parser], _QUESTION)
        rows = zip(items.ids, items.images, items.questions, strict=True)
        return prompt, [Question(name, image, None, prompt.replace(_QUESTION, text)) for name, image, text in rows]

    def score(self, items: PopeItems, answers: Answers) -> Result:
        """Accuracy, and precision, recall and F1 of yes."""
        labels, answered = np.array(items.labels, dtype=bool), np.array([text is not None for text in answers.texts])
        said = [None if text is None else says_yes(text, self.parser) for text in answers.texts]
        yes, no = (np.array([meant is word for meant in said], dtype=bool) for word in (True, False))
        neither = answered & ~yes & ~no
        positive, wrong_yes, wrong_no = yes & labels, yes & ~labels, ~yes & ~neither & labels
        shares = {
            "accuracy": Share.mean(positive | (no & ~labels)),
            "precision": Share.ratio(positive, positive | wrong_yes),
            "recall": Share.ratio(positive, positive | wrong_no),
            "f1": Share.ratio(2.0 * positive, 2.0 * positive + wrong_yes + wrong_no),
            "yes_share": Share.mean(yes),
        }
        problems = {**answers.problems, "neither": [items.ids[k] for k in np.flatnonzero(neither)]}
        protocol = {"parser": self.parser, "positive": "yes", "ci95": "bootstrap over images"}
        groups = {name: mask for name, mask in (("label yes", labels), ("label no", ~labels)) if mask.any()}
        return Result(self.name, protocol, items.ids, items.images, shares, groups, problems)


def says_yes(text: str, parser: Parser) -> bool | None:
    """Whether an answer means yes; None if it means neither yes nor no.

    ``ferret`` is POPE's own rule: in the first sentence (up to a full stop, commas removed), one of the words No, no
    and not means no; everything else means yes. ``exact`` is lmms-eval's: the answer is the word itself, in any case.

    >>> tuple(says_yes(text, "ferret") for text in ("No, there isn't.", "There is not one", "Nothing there", ""))
    (False, False, True, True)
    >>> tuple(says_yes(text, "exact") for text in (" Yes", "no", "No."))
    (True, False, None)
    """
    if parser == "ferret":
        words = text.split(".")[0].replace(",", "").split(" ")
        return not {"No", "no", "not"} & set(words)
    return {"yes": True, "no": False}.get(text.lower().strip())
