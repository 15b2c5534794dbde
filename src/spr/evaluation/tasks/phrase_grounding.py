"""Phrase grounding on Flickr30k Entities: the model locates every phrase of a caption."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np

from spr.core import boxes as bx
from spr.core.errors import InputError
from spr.evaluation.ferret_rules import PROTOCOL_HELP, AnswerProtocol, check_protocol, entities, normal_phrase
from spr.evaluation.inference import Question
from spr.evaluation.lines import read_bytes
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
_MARKED_PHRASE = re.compile(r"\[/EN#([^/\s]+)/(\S+)\s([^\]]*)\]")
_Entities: TypeAlias = tuple[dict[str, tuple[Box, ...]], list[list[tuple[str, str, tuple[str, ...]]]]]
"""Of an image: the boxes by phrase number, and for each sentence its phrases with their numbers and categories."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase to locate: its text, its categories (such as ``people``) and its boxes, xyxy pixels, at least one."""

    text: str
    categories: tuple[str, ...]
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A caption with the phrases to locate.

    Attributes:
        id: ``<image>_<sentence>``, the dataset's numbers of both.
        file_name: The image, relative to the image folder.
        size_wh: Its width and height in pixels.
        caption: The text.
        phrases: In the order in which the model is asked about them.
    """

    id: str
    file_name: str
    size_wh: Size
    caption: str
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

        Raises:
            InputError: naming the file and the row, if something is missing or does not fit.
        """
        for folder in ("Annotations", "Sentences"):
            if not (self.entities / folder).is_dir():
                fix = "give --entities the folder that contains Annotations/ and Sentences/"
                raise InputError(f"{self.entities} is not Flickr30k Entities", got=f"no folder {folder}", fix=fix)
        expected = "a file such as final_flickr_mergedGT_test.json"
        try:
            read = lru_cache(maxsize=64)(partial(_read_entities, self.entities))
            sentences = [self._sentence(row, read) for row in json.loads(read_bytes(path, expected))["images"]]
        except (ValueError, KeyError, TypeError) as error:
            got = f"{type(error).__name__}: {error}"
            raise InputError(f"{path} is not MDETR's Flickr30k JSON", got=got, expected=expected) from None
        if not sentences:
            raise InputError(f"{path} is empty", got="no rows in `images`", expected="at least one")
        repeated = next((name for name, count in Counter(self.ids(sentences)).items() if count > 1), None)
        if repeated is not None:
            raise InputError(f"{path} contains a sentence twice", got=repeated, expected="each sentence once")
        return sentences

    def ids(self, items: list[Sentence]) -> Sequence[str]:
        """The ids of the sentences."""
        return [sentence.id for sentence in items]

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
        problems = {kind: list(ids) for kind, ids in answers.problems.items()} | {"malformed": [], "no_box": []}
        ids, images, hits, categories = [], [], [], []
        for sentence, text in zip(items, answers.texts, strict=True):
            boxes_of, malformed = self._read(text or "", sentence.size_wh, dialect)
            if malformed:
                problems["malformed"].append(sentence.id)
            for number, phrase in enumerate(sentence.phrases):
                ids.append(f"{sentence.id}#{number}")
                images.append(sentence.file_name)
                categories.append(phrase.categories)
                boxes = boxes_of.get(normal_phrase(phrase.text), [])
                if not boxes and text is not None:
                    problems["no_box"].append(f"{ids[-1]} ({phrase.text})")
                best = bx.iou_matrix(boxes, phrase.boxes).max(axis=1) if boxes else np.zeros(1)
                hits.append([bool(reaches(best[:k], THRESHOLD).any()) for k in (*TOP, len(best))])
        columns = np.asarray(hits, dtype=np.float64).reshape(-1, len(TOP) + 1).T
        names = [*(f"recall@{k}" for k in TOP), "upper_bound"]
        shares = {name: Share.mean(column) for name, column in zip(names, columns, strict=True)}
        all_categories = sorted({name for of_phrase in categories for name in of_phrase})
        groups = {name: np.array([name in of_phrase for of_phrase in categories]) for name in all_categories}
        protocol: dict[str, Any] = {
            "answers": self.protocol,
            "dialect": dialect.spec,
            "boxes": self.boxes,
            "match": "IoU of at least 0.5",
            "ci95": "bootstrap over images",
        }
        return Result(self.name, protocol, tuple(ids), tuple(images), shares, groups, problems)

    def _read(self, text: str, size_wh: Size, dialect: Dialect) -> tuple[dict[str, list[Box]], bool]:
        """The answer's boxes by `normal_phrase`, in order, and whether a part of the answer was malformed."""
        boxes: dict[str, list[Box]] = {}
        if self.protocol == "ferret":
            found = entities(text, size_wh)
            for phrase, box in found or ():
                boxes.setdefault(normal_phrase(phrase), []).append(box)
            return boxes, found is None
        grounded = parse(text, dialect, size_wh)
        for span in grounded.spans:
            boxes.setdefault(normal_phrase(span.phrase), []).extend(span.boxes)
        return boxes, bool(grounded.problems)

    def _sentence(self, row: dict[str, Any], read: Callable[[str], _Entities]) -> Sentence:
        image, number, caption = str(row["original_img_id"]), int(row["sentence_id"]), row["caption"]
        boxes, sentences = read(image)
        if not 0 <= number < len(sentences):
            raise InputError(f"Image {image} has no sentence {number}", got=f"{len(sentences)} sentences")
        known = [(text, key, categories) for text, key, categories in sentences[number] if key in boxes]
        phrases = []
        for (start, end), *_ in row["tokens_positive_eval"]:
            text = caption[start:end]
            found = next(((key, categories) for words, key, categories in known if words == text), None)
            if found is None:
                expected = ", ".join(words for words, _, _ in known)
                raise InputError(f"Sentence {number} of image {image} has no such phrase", got=text, expected=expected)
            own = boxes[found[0]]
            phrases.append(Phrase(text, found[1], (_around(own),) if self.boxes == "merged" else own))
        size_wh = int(row["width"]), int(row["height"])
        return Sentence(f"{image}_{number}", row["file_name"], size_wh, caption, tuple(phrases))


def _around(boxes: Sequence[Box]) -> Box:
    columns = list(zip(*boxes, strict=True))
    return min(columns[0]), min(columns[1]), max(columns[2]), max(columns[3])


def _read_entities(folder: Path, image: str) -> _Entities:
    """Read the two files of an image. A phrase is marked as ``[/EN#283585/people A man]``."""
    path = folder / "Annotations" / f"{image}.xml"
    try:
        root = ET.parse(path).getroot()  # noqa: S314
        path = folder / "Sentences" / f"{image}.txt"
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        fix = "unpack the whole dataset"
        raise InputError("A file of Flickr30k Entities is missing", got=f"no {path}", fix=fix) from None
    except (OSError, UnicodeDecodeError, ET.ParseError) as error:
        raise InputError(f"{path} can't be read", got=error, expected="a file of Flickr30k Entities") from None
    boxes: dict[str, tuple[Box, ...]] = {}
    for item in root.iter("object"):
        edges = item.find("bndbox")
        if edges is not None:
            x1, y1, x2, y2 = (float(edges.findtext(name) or "nan") for name in ("xmin", "ymin", "xmax", "ymax"))
            for name in item.iter("name"):
                boxes[name.text or ""] = (*boxes.get(name.text or "", ()), (x1, y1, x2, y2))
    return boxes, [
        [(" ".join(m[3].split()), m[1], tuple(m[2].split("/"))) for m in _MARKED_PHRASE.finditer(line)]
        for line in lines
        if line
    ]
