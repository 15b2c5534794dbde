"""Predictions files: JSON lines with a model's answers, matched to the items by id and not by position."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from spr.core.errors import ConfigError, InputError
from spr.evaluation.lines import as_id, decode_lines, read_bytes
from spr.grounding import DIALECTS, Dialect, final_answer, get_dialect
from spr.records import CUT_REASONS, Box

ID_FIELDS = ("id", "question_id", "image_id")
ANSWER_FIELDS = ("answer", "text", "response", "prediction")
"""The id field and the answer field of a file: our own names first, then those of other programs."""

PROBLEMS: dict[str, str] = {
    "missing": "the item has no answer; counts as wrong",
    "doubled": "the item has several answers; the first one counts",
    "unknown": "the answer belongs to no item of the annotations; ignored",
    "not_text": "the answer is not a text; counts as wrong",
    "no_id": "the line has no id; ignored",
    "not_json": "the line is not a JSON object; ignored",
    "reasoning": "the reasoning is not closed, so there is no answer; counts as wrong",
    "image": "the image can't be read, so the model was not asked; counts as wrong",
    "truncated": "the answer was cut; it was read as far as it goes",
    "malformed": "the answer contains a malformed box; the rest of the answer was read",
    "no_box": "the answer has no box, or none for this phrase; counts as a miss",
    "neither": "the answer means neither yes nor no; counts as wrong",
}
"""Problems with answers that a result counts and lists, with their explanations."""


# The fields of a line that are read; others are skipped without being decoded.
_FIELDS = (*ID_FIELDS, "sentence_id", *ANSWER_FIELDS, "finish_reason", "dialect", "model")
_Row: Any = msgspec.defstruct("_Row", [(name, Any, msgspec.UNSET) for name in _FIELDS], gc=False)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A line of a predictions file: a raw answer, None if the model was not asked, and what is known about it.

    The answer contains the model's reasoning, if any; the rest was read without it. Boxes are xyxy pixels of the image,
    with one phrase per box; ``problems`` are the malformed parts of the answer. ``finish_reason`` is that of
    `spr.models.protocols.Answer`.
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
    finish_reason: str | None = None

    def to_line(self) -> str:
        """The prediction as one line of JSON, with a line break at the end."""
        row = asdict(self) | {"boxes": [[round(edge, 3) for edge in box] for box in self.boxes]}
        return json.dumps({k: v for k, v in row.items() if v is not None or k == "answer"}, ensure_ascii=False) + "\n"


@dataclass(slots=True)
class Answers:
    """Answers in the order of the items, None where there is none; `add` removes the reasoning before an answer.

    ``raw`` are the same answers as they were generated, and ``finish_reasons`` those of
    `spr.models.protocols.Answer`. ``problems`` lists, by kind (`PROBLEMS`), the ids of the answers, or ``line N`` where
    there is no id.
    """

    texts: list[str | None] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    dialect: Dialect | str | None = None
    model: str | None = None
    raw: list[str | None] = field(default_factory=list)
    finish_reasons: list[str | None] = field(default_factory=list)

    def note(self, kind: str, name: str) -> None:
        """Add an answer to a kind of problem."""
        self.problems.setdefault(kind, []).append(name)

    def add(self, name: str, raw: str | None, finish_reason: str | None = None) -> None:
        """Add what a model generated for the next item, or None; its text is the final answer (`final_answer`).

        Reasoning that is not closed leaves no answer, and is a problem.
        """
        text, problem = (None, None) if raw is None else final_answer(raw)
        if problem is not None:
            self.note("reasoning", name)
        self.raw.append(raw)
        self.finish_reasons.append(finish_reason)
        self.texts.append(text if problem is None else None)

    def resolve_dialect(self) -> Dialect:
        """The dialect that the answers' boxes are written in; raises `ConfigError` if it is unknown."""
        if self.dialect is None:
            expected = f"one of {', '.join(DIALECTS)}"
            what = "The predictions do not say which dialect their boxes are written in"
            raise ConfigError(what, expected=expected, fix="give --dialect")
        return get_dialect(self.dialect) if isinstance(self.dialect, str) else self.dialect


def read_predictions(path: Path, ids: Sequence[str]) -> Answers:
    """Read a predictions file and match its answers to the items by id.

    Each line has an id (one of `ID_FIELDS`) and an answer (one of `ANSWER_FIELDS`), and may have a ``finish_reason``;
    the first line may also say the model and the dialect. A folder means all ``*.jsonl`` files in it, as a model on
    several devices writes them; its lines are numbered through all files.

    Raises `InputError` if the file can't be read or is empty, no line has an id, or no answer belongs to an item.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    data = b"\n".join(read_bytes(file, "a JSON-lines file", "Predictions") for file in files)
    answers = Answers()
    rows: dict[int, Any] = {}
    for number, row in decode_lines(data, _Row):
        if isinstance(row, Exception):
            answers.note("not_json", f"line {number}")
        else:
            rows[number] = row
    if not rows:
        bad = len(answers.problems.get("not_json", ()))
        got = f"{bad} lines that are not JSON objects" if bad else "no lines"
        expected = 'lines such as {"id": "1", "answer": "…"}'
        raise InputError(f"{path} contains no predictions", got=got, expected=expected)
    first = next(iter(rows.values()))
    answers.dialect = first.dialect if isinstance(first.dialect, str) else None
    answers.model = first.model if isinstance(first.model, str) else None
    id_field, answer_field = _fields(path, rows)
    known, by_id = set(ids), dict[str, Any]()
    for number, row in rows.items():
        name = as_id(getattr(row, id_field))
        if name and id_field == "image_id" and row.sentence_id is not msgspec.UNSET:
            name = f"{name}_{row.sentence_id}"  # Flickr30k Entities: several sentences per image
        if name is None:
            answers.note("no_id", f"line {number}")
        elif name not in known:
            answers.note("unknown", name)
        elif name in by_id:
            answers.note("doubled", name)
        else:
            by_id[name] = getattr(row, answer_field)
            if row.finish_reason in CUT_REASONS:
                answers.note("truncated", name)
    if not by_id:
        got, expected = ", ".join(answers.problems.get("unknown", ())[:3]), ", ".join(ids[:3]) + ", …"
        fix = "give the predictions for these annotations, with the ids of the annotations"
        what = f"No answer in {path} belongs to an item of the annotations"
        raise InputError(what, got=got, expected=expected, fix=fix)
    for name in ids:
        text = by_id.get(name)
        answers.add(name, text if type(text) is str else None)
        if type(text) is not str:
            answers.note("not_text" if name in by_id else "missing", name)
    return answers


def _fields(path: Path, rows: Mapping[int, Any]) -> tuple[str, str]:
    """The names of the id field and the answer field: the first known name that occurs in the first 100 lines."""
    known = {name for row in islice(rows.values(), 100) for name in _FIELDS if getattr(row, name) is not msgspec.UNSET}
    id_fields, answer_fields = ([name for name in names if name in known] for names in (ID_FIELDS, ANSWER_FIELDS))
    if not id_fields or not answer_fields:
        lacking, names = ("an answer", ANSWER_FIELDS) if id_fields else ("an id", ID_FIELDS)
        what, got = f"The lines of {path} have no field for {lacking}", ", ".join(sorted(id_fields + answer_fields))
        fix = f"put {lacking} into each line; answers are matched by id, not by position"
        raise InputError(what, got=got or "no known field", expected=" or ".join(names), fix=fix)
    return id_fields[0], answer_fields[0]
