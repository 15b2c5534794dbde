"""Phrase grounding on Flickr30k Entities: the model locates every phrase of a caption."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import msgspec
import numpy as np

from spr.core import boxes as bx
from spr.core.errors import InputError
from spr.core.paths import is_dir, is_file
from spr.core.progress import advance
from spr.core.terminal import count_text
from spr.core.xml_input import read_elements
from spr.evaluation.answer_fields import Item
from spr.evaluation.ferret_rules import PROTOCOL_HELP, AnswerProtocol, check_protocol, entities, normal_phrase
from spr.evaluation.inference import Question
from spr.evaluation.layouts.content import JsonContent
from spr.evaluation.layouts.layout import Layout, read_items
from spr.evaluation.lines import decode_json, first_repeated, read_bytes
from spr.evaluation.metrics import Share
from spr.evaluation.predictions import Answers
from spr.evaluation.result import Result
from spr.evaluation.task import Option, Task, check_prompt
from spr.grounding import Dialect, parse
from spr.grounding.matching import reaches
from spr.records import Box, Size

TOP = (1, 5, 10)
THRESHOLD = 0.5
PROMPT = "What are the locations of {phrases}?"
"""Ferret's question; ``{phrases}`` are in lower case, separated by a comma and a space."""
PhraseBoxes: TypeAlias = Literal["merged", "any"]
"""What an answer must match where a phrase has several boxes: the box around all of them, or any of them."""

_PHRASES = "{phrases}"
_MARKED_PHRASE = re.compile(r"\[/EN#([^/\s]+)/(\S+)\s([^\]]*)\]")  # such as [/EN#283585/people A man]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase to locate: its text, its categories (such as ``people``) and its boxes, xyxy pixels, at least one."""

    text: str
    categories: tuple[str, ...]
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Sentence:
    """The phrases of a caption to locate; ``id`` is ``<image>_<sentence>``, the dataset's numbers of both."""

    id: str
    file_name: str
    size_wh: Size
    phrases: tuple[Phrase, ...]


@dataclass(frozen=True, kw_only=True)
class PhraseGrounding(Task[list[Sentence]]):
    """Phrases of Flickr30k Entities.

    The model is asked about all phrases of a sentence at once, as in Ferret's evaluation. The boxes of a phrase are
    those that the answer gives to a phrase with the same words (ignoring case and punctuation). Metrics: ``recall@1``,
    ``recall@5`` and ``recall@10``, the share of phrases for which one of the first k boxes has an IoU of at least 0.5,
    and ``upper_bound``, the same over all boxes. Groups: the dataset's categories.
    """

    name: ClassVar[str] = "phrase-grounding"
    higher_is_better: ClassVar[tuple[str, ...]] = (*(f"recall@{k}" for k in TOP), "upper_bound")

    entities: Annotated[Path, Option("The folder of Flickr30k Entities, with Annotations/ and Sentences/.")]
    boxes: Annotated[
        PhraseBoxes, Option("Where a phrase has several boxes: match the box around all of them, or any of them.")
    ] = "merged"
    prompt: Annotated[
        str | None, Option("The question, with {phrases}. By default in Ferret's wording.", asks=True)
    ] = None
    protocol: Annotated[AnswerProtocol, Option(PROTOCOL_HELP)] = "spr"

    def load(self, path: Path) -> list[Sentence]:
        """Read the sentences of ``final_flickr_{merged,separate}GT_*.json``.

        The phrases come from ``tokens_positive_eval``. Their boxes and categories come from the Entities files: as in
        Ferret's evaluator, from the first phrase of the sentence that has the same text and a box.
        """
        for folder in ("Annotations", "Sentences"):
            if not is_dir(self.entities / folder):
                fix = "give --entities the folder that contains Annotations/ and Sentences/"
                raise InputError(f"{self.entities} is not Flickr30k Entities", got=f"no folder {folder}", fix=fix)
        sentences: list[Sentence] = read_items(self, path)
        return sentences

    def ids(self, items: list[Sentence]) -> Sequence[str]:
        """The ids of the sentences."""
        return [sentence.id for sentence in items]

    def about(self, items: list[Sentence]) -> Sequence[Item]:
        """The images of the sentences."""
        return [Item(sentence.id, sentence.file_name, sentence.size_wh) for sentence in items]

    def questions(self, items: list[Sentence], dialect: Dialect, model: str) -> tuple[str, list[Question]]:
        """One question per sentence."""
        check_protocol(self.protocol, dialect)
        prompt = check_prompt(self.prompt or PROMPT, _PHRASES)
        questions = []
        for sentence in items:
            phrases = ", ".join(phrase.text.lower().replace(",", "").strip() for phrase in sentence.phrases)
            text = prompt.replace(_PHRASES, phrases)
            questions.append(Question(sentence.id, sentence.file_name, sentence.size_wh, text))
        return prompt, questions

    def score(self, items: list[Sentence], answers: Answers) -> Result:
        """Recall of the first k boxes of each phrase."""
        dialect = answers.resolve_dialect()
        check_protocol(self.protocol, dialect)
        ids, images, hits, categories, no_box, malformed, scale = [], [], [], [], [], [], []
        for sentence, text in zip(items, answers.texts, strict=True):
            boxes_of, is_malformed, other_scale = self._read(text or "", sentence.size_wh, dialect)
            advance()
            if is_malformed:
                malformed.append(sentence.id)
            if other_scale:
                scale.append(sentence.id)
            for number, phrase in enumerate(sentence.phrases):
                ids.append(f"{sentence.id}#{number}")
                images.append(sentence.file_name)
                categories.append(phrase.categories)
                boxes = boxes_of.get(normal_phrase(phrase.text), [])
                if not boxes and text is not None:
                    no_box.append(f"{ids[-1]} ({phrase.text})")
                best = bx.iou_matrix(boxes, phrase.boxes).max(axis=1)
                hits.append([bool(reaches(best[:k], THRESHOLD).any()) for k in (*TOP, None)])
        columns = np.asarray(hits, dtype=np.float64).reshape(-1, len(TOP) + 1).T
        shares = {name: Share.mean(column) for name, column in zip(self.higher_is_better, columns, strict=True)}
        all_categories = sorted({name for of_phrase in categories for name in of_phrase})
        groups = {name: np.array([name in of_phrase for of_phrase in categories]) for name in all_categories}
        protocol: dict[str, Any] = {
            "answers": self.protocol,
            "dialect": dialect.spec,
            "boxes": self.boxes,
            "match": "IoU of at least 0.5",
            "ci95": "bootstrap over images",
        }
        problems = {**answers.problems, "malformed": malformed, "scale": scale, "no_box": no_box}
        return Result(self.name, protocol, tuple(ids), tuple(images), shares, groups, problems)

    def _read(self, text: str, size_wh: Size, dialect: Dialect) -> tuple[dict[str, list[Box]], bool, bool]:
        """The answer's boxes by `normal_phrase`, in order; whether a part was malformed, or on another scale."""
        if self.protocol == "ferret":
            pairs = entities(text, size_wh)
            malformed, other_scale = pairs is None, False
        else:
            grounded = parse(text, dialect, size_wh)
            pairs = [(span.phrase, box) for span in grounded.spans for box in span.boxes]
            malformed, other_scale = bool(grounded.problems), grounded.other_scale
        boxes: dict[str, list[Box]] = {}
        for phrase, box in pairs or ():
            boxes.setdefault(normal_phrase(phrase), []).append(box)
        return boxes, malformed, other_scale

    def sentence(self, row: _Row, read: Callable[[str], list[dict[str, Phrase]]]) -> Sentence:
        """A row of ``images`` with the boxes of its phrases; ``read`` returns the phrases of an image's sentences."""
        image, number = str(row.original_img_id), row.sentence_id
        sentences = read(image)
        if not 0 <= number < len(sentences):
            raise InputError(f"Image {image} has no sentence {number}", got=count_text(len(sentences), "sentences"))
        known, phrases = sentences[number], []
        for (start, end), *_ in row.tokens_positive_eval:
            text = row.caption[start:end]
            if text not in known:
                what = f"Sentence {number} of image {image} has no such phrase"
                raise InputError(what, got=text, expected=", ".join(known))
            x1, y1, x2, y2 = zip(*known[text].boxes, strict=True)
            around = min(x1), min(y1), max(x2), max(y2)
            phrases.append(replace(known[text], boxes=(around,)) if self.boxes == "merged" else known[text])
        return Sentence(f"{image}_{number}", row.file_name, (row.width, row.height), tuple(phrases))


class _Row(msgspec.Struct, gc=False):
    original_img_id: int | str
    sentence_id: int
    file_name: str
    width: int
    height: int
    caption: str
    tokens_positive_eval: list[Annotated[list[tuple[int, int]], msgspec.Meta(min_length=1)]]


class _Mdetr(msgspec.Struct):
    images: list[_Row]


def _read(content: JsonContent, task: PhraseGrounding) -> list[Sentence]:
    path = content.path
    what, expected = f"{path} is not MDETR's Flickr30k JSON", "a file such as final_flickr_mergedGT_test.json"
    rows = decode_json(content.data, _Mdetr, what, expected=expected, strict=False).images
    read = lru_cache(maxsize=64)(partial(_read_entities, task.entities))
    sentences = [task.sentence(row, read) for row in rows]
    if not sentences:
        raise InputError(f"{path} is empty", got="no rows in `images`", expected="at least one")
    repeated = first_repeated(task.ids(sentences))
    if repeated is not None:
        raise InputError(f"{path} contains a sentence twice", got=repeated, expected="each sentence once")
    return sentences


_ROW_KEYS = ("original_img_id", "sentence_id", "file_name", "width", "height", "caption", "tokens_positive_eval")
_KEYS = tuple(f"images[].{key}" for key in _ROW_KEYS)
LAYOUT = Layout("MDETR's Flickr30k JSON", "phrase-grounding", ("a JSON object",), _KEYS, _read)


def _read_entities(folder: Path, image: str) -> list[dict[str, Phrase]]:
    """The phrases of each sentence of an image by text, from its two files; of equal ones, the first with a box."""
    if not image or any(character in "/\\\0" for character in image):
        expected = "the name of a file of Flickr30k Entities, without folder and ending"
        raise InputError("`original_img_id` is not valid", got=repr(image), expected=expected)
    paths = folder / "Annotations" / f"{image}.xml", folder / "Sentences" / f"{image}.txt"
    for path in paths:
        if not is_file(path):
            fix = "unpack the whole dataset"
            raise InputError("A file of Flickr30k Entities is missing", got=f"no file {path}", fix=fix)
    boxes: dict[str | None, tuple[Box, ...]] = {}
    try:
        path = paths[0]
        for item in read_elements(path, "Flickr30k Entities file", "annotation"):
            edges = item.find("bndbox")
            if item.tag == "object" and edges is not None:
                x1, y1, x2, y2 = (float(edges.findtext(name) or "nan") for name in ("xmin", "ymin", "xmax", "ymax"))
                for name in item.iter("name"):
                    boxes[name.text] = (*boxes.get(name.text, ()), (x1, y1, x2, y2))
        path = paths[1]
        lines = read_bytes(path, "a file of Flickr30k Entities", "Sentences").decode().splitlines()
    except ValueError as error:
        raise InputError(f"{path} can't be read", got=error, expected="a file of Flickr30k Entities") from None
    sentences: list[dict[str, Phrase]] = []
    for line in filter(None, lines):
        sentences.append({})
        for number, categories, words in _MARKED_PHRASE.findall(line):
            if number in boxes:
                text = " ".join(words.split())
                sentences[-1].setdefault(text, Phrase(text, tuple(categories.split("/")), boxes[number]))
    return sentences
