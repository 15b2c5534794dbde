"""AMBER: hallucination in descriptions and in answers about existence, attributes and relations (Wang et al. 2023).

The rules are those of its evaluation, ``inference.py`` in junyangwang0410/AMBER, without the two models that it needs:
docs/evaluation.md says what differs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import msgspec
import numpy as np

from spr.core.errors import InputError
from spr.core.paths import as_path, is_file
from spr.evaluation.answer_fields import Item
from spr.evaluation.inference import Question
from spr.evaluation.layouts.content import Content
from spr.evaluation.layouts.layout import Layout, read_items
from spr.evaluation.lines import decode_json, read_bytes, unique_ids
from spr.evaluation.metrics import Bools, Share
from spr.evaluation.predictions import Answers
from spr.evaluation.result import Result
from spr.evaluation.task import Option, Task, check_prompt
from spr.grounding import Dialect
from spr.grounding.noun_phrases import noun_phrases

YesNo: TypeAlias = Literal["first-word", "exact"]
_QUESTION = "{question}"
_FILES = ("annotations.json", "relation.json", "safe_words.txt")
_KINDS = {
    "discriminative-hallucination": ("existence",),
    "discriminative-attribute-state": ("attribute", "state"),
    "discriminative-attribute-number": ("attribute", "number"),
    "discriminative-attribute-action": ("attribute", "action"),
}
"""The groups of each type of question; any other type is a relation, as in AMBER's evaluation."""
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "geese": "goose",
    "mice": "mouse",
    "leaves": "leaf",
    "knives": "knife",
    "shelves": "shelf",
    "loaves": "loaf",
}


@dataclass(frozen=True, slots=True)
class AmberItems:
    """N questions, one tuple per column.

    ``truths`` are True for yes and False for no; None for a description, whose ``present`` are the objects that are in
    the image, and ``likely`` those that are not, but that models tend to invent. ``relations`` maps a word to those
    that may stand for it, and ``safe`` are words that never count as invented.
    """

    ids: tuple[str, ...]
    images: tuple[str, ...]
    questions: tuple[str, ...]
    kinds: tuple[str, ...]
    truths: tuple[bool | None, ...]
    present: tuple[tuple[str, ...], ...]
    likely: tuple[tuple[str, ...], ...]
    relations: Mapping[str, tuple[str, ...]]
    safe: frozenset[str]


class _Query(msgspec.Struct, gc=False):
    id: int
    image: str
    query: str


class _Annotation(msgspec.Struct, gc=False):
    id: int
    type: str
    truth: list[str] | Literal["yes", "no"]
    hallu: list[str] = []


@dataclass(frozen=True, slots=True)
class Description:
    """What a description names: ``nouns`` of AMBER's words, ``invented`` of them, and which objects it covers.

    ``covered`` counts the present objects that are named, and ``recognized`` the likely ones.
    """

    nouns: int
    invented: int
    covered: int
    recognized: int


@dataclass(frozen=True, kw_only=True)
class Amber(Task[AmberItems]):
    """AMBER: descriptions, and yes-or-no questions about existence, attributes and relations.

    Metrics of descriptions: ``chair``, the share of the named objects that are not in the image; ``cover``, the share
    of the objects in the image that are named; ``hal``, the share of descriptions that name one that is not there;
    ``cog``, the share of the objects that models tend to invent that are named. Metrics of questions: ``accuracy``;
    ``precision``, ``recall`` and ``f1`` of no. A question without an answer, or with neither yes nor no, is wrong.
    """

    name: ClassVar[str] = "amber"
    reads_boxes: ClassVar[bool] = False
    higher_is_better: ClassVar[tuple[str, ...]] = ("cover", "accuracy", "precision", "recall", "f1")
    lower_is_better: ClassVar[tuple[str, ...]] = ("chair", "hal", "cog")

    yes_no: Annotated[
        YesNo,
        Option("How yes and no are read: from the answer's first word, or as the exact word Yes or No, as AMBER."),
    ] = "first-word"
    prompt: Annotated[str | None, Option("The question, with {question}. By default as AMBER asks it.", asks=True)] = (
        None
    )
    data: Annotated[
        Path | None,
        Option("Folder with annotations.json, relation.json and safe_words.txt. By default that of the queries."),
    ] = None

    def load(self, path: Path) -> AmberItems:
        """Read one of AMBER's files of queries: a JSON list of ``id``, ``image`` and ``query``.

        The annotations belong to it by their ids, and are in ``--data``, in its folder or in the one above.
        """
        queries: list[_Query] = read_items(self, path)
        ids = unique_ids(path, "id", [query.id for query in queries])
        folder = self._folder(path)
        known = _annotations(folder / "annotations.json")
        missing = next((query.id for query in queries if query.id not in known), None)
        if missing is not None:
            fix = "give the files of one version of AMBER"
            raise InputError(f"{folder / 'annotations.json'} has no entry for query {missing}", got=path.name, fix=fix)
        rows = [known[query.id] for query in queries]
        relations = _relations(folder / "relation.json")
        unknown = {word for row in rows if isinstance(row.truth, list) for word in (*row.truth, *row.hallu)}
        unknown -= relations.keys()
        if unknown:
            what = f"{folder / 'relation.json'} lacks words of the annotations"
            raise InputError(what, got=", ".join(sorted(unknown)[:5]), fix="give the files of one version of AMBER")
        safe = read_bytes(folder / "safe_words.txt", "one word per line").decode().split("\n")
        return AmberItems(
            ids,
            tuple(query.image for query in queries),
            tuple(query.query for query in queries),
            tuple(row.type for row in rows),
            tuple(None if isinstance(row.truth, list) else row.truth == "yes" for row in rows),
            tuple(tuple(map(str.lower, row.truth)) if isinstance(row.truth, list) else () for row in rows),
            tuple(tuple(map(str.lower, row.hallu)) for row in rows),
            {key.lower(): tuple(map(str.lower, words)) for key, words in relations.items()},
            frozenset(word.strip().lower() for word in safe) - {""},
        )

    def _folder(self, path: Path) -> Path:
        folders = [as_path(self.data)] if self.data is not None else [path.parent, path.parent.parent]
        for folder in folders:
            if all(is_file(folder / name) for name in _FILES):
                return folder
        absent = [name for name in _FILES if not is_file(folders[-1] / name)]
        raise InputError(
            f"AMBER's annotations are not in {' or '.join(map(str, folders))}",
            got=f"no {' and no '.join(absent)}",
            expected=", ".join(_FILES),
            fix="give their folder with --data; they are in `data/` of github.com/junyangwang0410/AMBER",
        )

    def ids(self, items: AmberItems) -> Sequence[str]:
        """The ids of the questions."""
        return items.ids

    def about(self, items: AmberItems) -> Sequence[Item]:
        """The questions with their images, and labels where the answer is yes or no."""
        labels = ("" if truth is None else "yes" if truth else "no" for truth in items.truths)
        rows = zip(items.ids, items.images, items.questions, labels, strict=True)
        return [Item(name, image, None, question, label) for name, image, question, label in rows]

    def questions(self, items: AmberItems, dialect: Dialect, model: str) -> tuple[str, list[Question]]:
        """One question per row; AMBER's files do not give the size of the image."""
        prompt = check_prompt(self.prompt or _QUESTION, _QUESTION)
        rows = zip(items.ids, items.images, items.questions, strict=True)
        return prompt, [Question(name, image, None, prompt.replace(_QUESTION, text)) for name, image, text in rows]

    def score(self, items: AmberItems, answers: Answers) -> Result:
        """The metrics of the descriptions and of the questions that there are."""
        described = np.array([truth is None for truth in items.truths], dtype=bool)
        shares: dict[str, Share] = {}
        problems = dict(answers.problems)
        if described.any():
            shares |= self._of_descriptions(items, answers)
        if not described.all():
            own, neither = self._of_questions(items, answers)
            shares |= own
            problems["neither"] = [items.ids[k] for k in np.flatnonzero(neither)]
        groups: dict[str, Bools] = {}
        for name in ("existence", "attribute", "state", "number", "action", "relation"):
            groups[name] = np.array([name in _groups(kind) for kind in items.kinds], dtype=bool)
        protocol = {
            "yes_no": self.yes_no,
            "positive": "no",
            "nouns": "AMBER's words within noun phrases, plural endings allowed",
            "similarity": "none: a word is in the image if relation.json says so",
            "ci95": "bootstrap over images",
        }
        kept = {name: mask for name, mask in groups.items() if mask.any()}
        return Result(self.name, protocol, items.ids, items.images, shares, kept, problems)

    def _of_descriptions(self, items: AmberItems, answers: Answers) -> dict[str, Share]:
        words = {*items.relations, *(word for own in items.relations.values() for word in own)}
        values = np.zeros((len(items.ids), 8))
        for k, (truth, text) in enumerate(zip(items.truths, answers.texts, strict=True)):
            if truth is None:
                present, likely = items.present[k], items.likely[k]
                found = describe(text or "", present, likely, items.relations, items.safe, words)
                said = text is not None
                values[k, :4] = found.invented, found.covered, found.invented > 0, found.recognized
                values[k, 4:] = found.nouns, len(present), said, len(likely) * said
        names = ("chair", "cover", "hal", "cog")
        return {name: Share.ratio(values[:, k], values[:, k + 4]) for k, name in enumerate(names)}

    def _of_questions(self, items: AmberItems, answers: Answers) -> tuple[dict[str, Share], Bools]:
        asked = np.array([truth is not None for truth in items.truths], dtype=bool)
        is_no = np.array([truth is False for truth in items.truths], dtype=bool)
        said = [
            reads_yes(text, self.yes_no) if text is not None and truth is not None else None
            for text, truth in zip(answers.texts, items.truths, strict=True)
        ]
        answered = asked & np.array([text is not None for text in answers.texts], dtype=bool)
        yes, no = (np.array([meant is word for meant in said], dtype=bool) for word in (True, False))
        hits = no & is_no
        shares = {
            "accuracy": Share.ratio(hits | (yes & asked & ~is_no), asked),
            "precision": Share.ratio(hits, no),
            "recall": Share.ratio(hits, is_no),
            "f1": Share.ratio(2.0 * hits, 1.0 * no + is_no),
        }
        return shares, answered & ~yes & ~no


def reads_yes(text: str, rule: YesNo) -> bool | None:
    """Whether an answer means yes; None if it means neither yes nor no.

    ``first-word``: the first word is yes or no, in any case. ``exact``: the answer is Yes or No, as in AMBER's
    evaluation.

    >>> tuple(reads_yes(text, "first-word") for text in ("Yes, there is.", "no", "There is no dog."))
    (True, False, None)
    >>> tuple(reads_yes(text, "exact") for text in ("Yes", "No", "yes", "No."))
    (True, False, None, None)
    """
    if rule == "exact":
        return {"Yes": True, "No": False}.get(text)
    first = _WORD.search(text)
    return None if first is None else {"yes": True, "no": False}.get(first[0].lower())


def describe(
    text: str,
    present: Sequence[str],
    likely: Sequence[str],
    relations: Mapping[str, Sequence[str]],
    safe: frozenset[str],
    words: set[str],
) -> Description:
    """What a description names of AMBER's ``words``, which are the keys and values of ``relations``.

    A noun that stands for a present object, or is one, is right, and covers the first such object. Any other noun is
    invented, unless it is ``safe``; it may be one of the ``likely`` objects.

    >>> relations = {"person": ("man", "people"), "dog": (), "sky": ()}
    >>> words = {"person", "man", "people", "dog", "sky"}
    >>> describe("Two men walk their dogs under a tree.", ["person", "sky"], ["dog"], relations, frozenset(), words)
    Description(nouns=2, invented=1, covered=1, recognized=1)
    """
    nouns = [noun for start, end in noun_phrases(text) for noun in _known(text[start:end], words)]
    there, tempting = _first_of(present, relations), _first_of(likely, relations)
    counted = [noun for noun in nouns if noun not in safe]
    invented = [noun for noun in counted if noun not in there]
    covered = {there[noun] for noun in counted if noun in there}
    recognized = {tempting[noun] for noun in invented if noun in tempting}
    return Description(len(nouns), len(invented), len(covered), len(recognized))


def _first_of(objects: Sequence[str], relations: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Which object a word stands for: first the related words of all objects, then the objects themselves."""
    found: dict[str, int] = {}
    for number, name in enumerate(objects):
        for word in relations[name]:
            found.setdefault(word, number)
    for number, name in enumerate(objects):
        found.setdefault(name, number)
    return found


def _known(phrase: str, words: set[str]) -> list[str]:
    """Those words of a phrase that are AMBER's, in the singular."""
    found = []
    for match in _WORD.finditer(phrase):
        word = match[0].lower()
        forms = [word, _IRREGULAR.get(word, ""), word.removesuffix("s"), word.removesuffix("es")]
        forms += [f"{word.removesuffix('ies')}y"] if word.endswith("ies") else []
        if word in _IRREGULAR:
            forms = forms[:2]
        found += [next(form for form in forms if form in words)] if words.intersection(forms) else []
    return found


def _groups(kind: str) -> tuple[str, ...]:
    return () if kind == "generative" else _KINDS.get(kind, ("relation",))


def _annotations(path: Path) -> dict[int, _Annotation]:
    expected = '[{"id": 1, "type": "generative", "truth": ["sky", …], "hallu": ["cloud", …]}, …]'
    rows = decode_json(
        read_bytes(path, expected), list[_Annotation], f"{path} is not AMBER's annotations", expected=expected
    )
    for row in rows:
        if isinstance(row.truth, list) != (row.type == "generative"):
            got = f"type {row.type} with truth {row.truth}"
            raise InputError(f"Entry {row.id} of {path} is not valid", got=got, expected="words, or yes or no")
    return {row.id: row for row in rows}


def _relations(path: Path) -> dict[str, list[str]]:
    expected = '{"person": ["people", "man", …], …}'
    content: dict[str, Any] = decode_json(
        read_bytes(path, expected), dict[str, list[str]], f"{path} is not AMBER's relations", expected=expected
    )
    return content


def _read(content: Content, _: Any) -> list[_Query]:
    return content.rows(_Query, '[{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}, …]')


LAYOUT = Layout("AMBER's queries", "amber", ("a JSON list",), ("id", "image", "query"), _read)
