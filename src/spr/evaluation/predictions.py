"""Files of a model's answers, a JSON object a line: matched to the items by id, never by their place in the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from spr.core.errors import ConfigError, InputError
from spr.grounding import DIALECTS, Dialect, get_dialect
from spr.records import Box

ID_FIELDS = ("id", "question_id", "image_id")
ANSWER_FIELDS = ("answer", "text", "response", "prediction")
"""What the id and the answer are called, by us first and then by the files of others; a file uses one of each."""

PROBLEMS: dict[str, str] = {
    "missing": "in the annotations, without an answer: counts as wrong",
    "doubled": "answered more than once: the first answer counts",
    "unknown": "an answer to no item of the annotations: left out",
    "not_text": "the answer is no text: counts as wrong",
    "no_id": "a line without an id: left out",
    "not_json": "a line that is no JSON object: left out",
    "image": "the image could not be read, so the model was not asked: counts as wrong",
    "malformed": "a piece of the answer that should be a box is none; the rest was read",
    "no_box": "no box could be read from the answer, or none for the phrase",
    "neither": "the answer means neither yes nor no: counts as wrong",
}
"""The problems that a result counts and names."""


class _Row(msgspec.Struct, gc=False):
    """What is read of a line; other fields are passed over without being decoded."""

    id: Any = msgspec.UNSET
    question_id: Any = msgspec.UNSET
    image_id: Any = msgspec.UNSET
    sentence_id: Any = msgspec.UNSET
    answer: Any = msgspec.UNSET
    text: Any = msgspec.UNSET
    response: Any = msgspec.UNSET
    prediction: Any = msgspec.UNSET
    dialect: Any = None
    model: Any = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A line of a file of answers.

    Attributes:
        id: The item's.
        answer: The raw answer, None where there is none.
        prompt: What was asked; None if not known.
        file_name: The image; None if not known.
        boxes: The boxes read from the answer, xyxy pixels of the image.
        phrases: What each box's phrase is.
        problems: What was malformed.
        model, dialect: Who answered, and how it writes boxes.
    """

    id: str
    answer: str | None
    prompt: str | None = None
    file_name: str | None = None
    boxes: tuple[Box, ...] = ()
    phrases: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    model: str | None = None
    dialect: str | None = None

    def to_line(self) -> str:
        """The prediction as a line of JSON, its fields in order."""
        made = {name: getattr(self, name) for name in self.__slots__}
        made["boxes"] = [[round(edge, 3) for edge in box] for box in self.boxes]
        return json.dumps({k: v for k, v in made.items() if v is not None or k == "answer"}, ensure_ascii=False) + "\n"


@dataclass(slots=True)
class Answers:
    """Answers in the order of the items that they were matched to.

    Attributes:
        texts: One an item; None where it is missing or no text.
        problems: Ids, or ``line N`` where there is none, by problem (`PROBLEMS`).
        dialect: What the file's first line says of it.
        model: Likewise.
    """

    texts: list[str | None]
    problems: dict[str, list[str]] = field(default_factory=dict)
    dialect: str | None = None
    model: str | None = None

    def note(self, kind: str, name: str) -> None:
        """Count and name a problem."""
        self.problems.setdefault(kind, []).append(name)


def as_id(value: object) -> str | None:
    """An id as text: texts as they are, whole numbers in digits; None for anything else.

    >>> as_id(7), as_id("7"), as_id(True), as_id("")
    ('7', '7', None, None)
    """
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def read_predictions(path: Path, ids: Sequence[str]) -> Answers:
    """The answers of a file to the items, by id.

    Args:
        path: JSON lines with an id (one of `ID_FIELDS`) and an answer (one of `ANSWER_FIELDS`); more fields do no harm.
            A folder stands for all ``*.jsonl`` in it, as a model on several devices leaves them.
        ids: The items.

    Raises:
        InputError: if the file can't be read or is empty, if no line has an id, or if not one answer is to an item.
    """
    rows, bad = _read_lines(path)
    answers = Answers([])
    for number in bad:
        answers.note("not_json", f"line {number}")
    if not rows:
        got = f"{len(bad)} lines that are no JSON objects" if bad else "no line"
        raise InputError(f"{path} holds no predictions", got=got, expected='lines such as {"id": "1", "answer": "…"}')
    id_field, answer_field = _fields(path, rows)
    found = _match(rows, ids, id_field, answer_field, answers)
    first = next(iter(rows.values()))
    answers.dialect = first.dialect if isinstance(first.dialect, str) else None
    answers.model = first.model if isinstance(first.model, str) else None
    if not found:
        got = ", ".join(answers.problems.get("unknown", ())[:3])
        expected = ", ".join(ids[:3]) + ", …"
        fix = "give the predictions that belong to these annotations, with their ids"
        raise InputError(f"No answer of {path} is to an item of the annotations", got=got, expected=expected, fix=fix)
    return answers


def dialect_of(answers: Answers, given: Dialect | None, path: Path) -> Dialect:
    """The dialect to read a file's answers in: the given one, else what the file says.

    Raises:
        ConfigError: if neither says.
        GroundingError: for an unknown dialect in the file, naming the nearest one.
    """
    if given is not None:
        return given
    if answers.dialect is None:
        expected = f"one of {', '.join(DIALECTS)}"
        raise ConfigError(f"{path} does not say how its model writes boxes", expected=expected, fix="give --dialect")
    return get_dialect(answers.dialect)


def _match(rows: Mapping[int, _Row], ids: Sequence[str], id_field: str, answer_field: str, answers: Answers) -> int:
    """Put the rows' answers in the order of ``ids`` into ``answers``; returns how many items were found."""
    place = {name: k for k, name in enumerate(ids)}
    texts: list[Any] = [msgspec.UNSET] * len(ids)
    id_of, answer_of = attrgetter(id_field), attrgetter(answer_field)
    for number, row in rows.items():
        name = id_of(row)
        if type(name) is not str:
            name = as_id(name)
        if name and id_field == "image_id" and row.sentence_id is not msgspec.UNSET:
            name = f"{name}_{row.sentence_id}"  # Flickr30k Entities: several sentences an image
        k = place.get(name) if name else None
        if k is None:
            answers.note(*(("unknown", name) if name else ("no_id", f"line {number}")))
        elif texts[k] is not msgspec.UNSET:
            answers.note("doubled", ids[k])
        else:
            text = answer_of(row)
            texts[k] = None if text is msgspec.UNSET else text
    found = 0
    for k, text in enumerate(texts):
        if type(text) is str:
            found += 1
            continue
        texts[k] = None
        found += text is not msgspec.UNSET
        answers.note("missing" if text is msgspec.UNSET else "not_text", ids[k])
    answers.texts = texts
    return found


def _read_lines(path: Path) -> tuple[dict[int, _Row], list[int]]:
    """The objects of a file by line number from 1, and the numbers of the lines that are none.

    Lines of a folder are counted through all of its files.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    try:
        data = b"\n".join(file.read_bytes() for file in files)
    except OSError as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else error
        raise InputError(f"Predictions {path} can't be read", got=got, expected="a file of JSON lines") from None
    decoder = msgspec.json.Decoder(_Row)
    rows: dict[int, _Row] = {}
    bad: list[int] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line or line.isspace():
            continue
        try:
            rows[number] = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            bad.append(number)
    return rows, bad


def _fields(path: Path, rows: Mapping[int, _Row]) -> tuple[str, str]:
    """What the file calls its ids and answers: the first known name that any of its first lines has."""
    known = (*ID_FIELDS, *ANSWER_FIELDS)
    looked_at = list(islice(rows.values(), 100))
    seen = {name for name in known if any(getattr(row, name) is not msgspec.UNSET for row in looked_at)}
    id_field = next((name for name in ID_FIELDS if name in seen), None)
    answer_field = next((name for name in ANSWER_FIELDS if name in seen), None)
    if id_field is None or answer_field is None:
        lacking, names = ("an id", ID_FIELDS) if id_field is None else ("an answer", ANSWER_FIELDS)
        fix = f"put {lacking} into each line; answers are matched by id, never by their place in the file"
        raise InputError(
            f"The lines of {path} have no field for {lacking}",
            got=", ".join(sorted(seen)) or "none that is known",
            expected=" or ".join(names),
            fix=fix,
        )
    return id_field, answer_field
