"""Predictions files: JSON lines with a model's answers, matched to the items by id and not by position."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import eq
from pathlib import Path
from typing import Any

import msgspec

from spr.core.errors import ConfigError, InputError
from spr.core.paths import is_dir
from spr.core.terminal import count_text
from spr.evaluation.answer_fields import IMAGE_FIELDS, QUESTION_FIELDS, Item, PredictionLines, getter, line_type, occurs
from spr.evaluation.lines import decode_lines, read_bytes
from spr.grounding import DIALECTS, Dialect, final_answer, get_dialect
from spr.records import CUT_REASONS, Box

PROBLEMS: dict[str, str] = {
    "missing": "the item has no answer; counts as wrong",
    "doubled": "the item has several different answers; the first one counts",
    "unknown": "the answer belongs to no item of the annotations; ignored",
    "other_item": "the line names another image or question than its item; counts as wrong",
    "not_text": "the answer is not a text; counts as wrong",
    "question": "the answer is the question itself; counts as wrong",
    "empty": "the answer is empty",
    "no_id": "the line has no id; ignored",
    "not_json": "the line is not a JSON object; ignored",
    "reasoning": "the reasoning is not closed, so there is no answer; counts as wrong",
    "image": "the image can't be read, so the model was not asked; counts as wrong",
    "truncated": "the answer was cut; it was read as far as it goes",
    "malformed": "the answer contains a malformed box; the rest of the answer was read",
    "scale": "the numbers of a box fit another scale than the dialect's; they were read as they are",
    "category": "a box has no name, or one that is not a category; counts as a false positive, but not in AP and AR",
    "confidence": "the boxes can't be given their confidences; they have the lowest one",
    "no_box": "the answer has no box, or none for this phrase; counts as a miss",
    "no_point": "the answer has no point; counts as a miss",
    "neither": "the answer means neither yes nor no; counts as wrong",
}
"""Problems with answers that a result counts and lists, with their explanations."""

UNUSABLE = ("missing", "not_text", "other_item", "question", "empty", "reasoning", "image")
"""The problems that leave an item without a usable answer."""

_FILE = re.compile(r"\.\w{2,5}$")  # the end of a file name


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
    there is no id. ``matched`` says how a predictions file was read (`spr.evaluation.result.Result`). ``scores`` and
    ``logprobs`` are the fields of these names in a predictions file, one value per item, None where a line has none;
    None if no line has one.
    """

    texts: list[str | None] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    dialect: Dialect | str | None = None
    model: str | None = None
    raw: list[str | None] = field(default_factory=list)
    finish_reasons: list[str | None] = field(default_factory=list)
    matched: dict[str, Any] | None = None
    scores: list[Any] | None = None
    logprobs: list[Any] | None = None

    @property
    def usable(self) -> int:
        """The number of answers that are neither missing nor empty."""
        return sum(map(bool, map(str.strip, filter(None, self.texts))))

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
        elif text is not None and not text.strip():
            self.note("empty", name)
        self.raw.append(raw)
        self.finish_reasons.append(finish_reason)
        self.texts.append(text if problem is None else None)

    def add_texts(self, texts: Sequence[str]) -> None:
        """As `add`, for texts with words and without reasoning."""
        self.raw += texts
        self.finish_reasons += [None] * len(texts)
        self.texts += texts

    def resolve_dialect(self) -> Dialect:
        """The dialect that the answers' boxes are written in; raises `ConfigError` if it is unknown."""
        if self.dialect is None:
            expected = f"one of {', '.join(DIALECTS)}"
            what = "The predictions do not say which dialect their boxes are written in"
            raise ConfigError(what, expected=expected, fix="give --dialect")
        return get_dialect(self.dialect) if isinstance(self.dialect, str) else self.dialect


def read_predictions(
    path: Path,
    items: Sequence[Item],
    *,
    answer_field: str | None = None,
    id_field: str | None = None,
    dialect: Dialect | str | None = None,
) -> Answers:
    """Read a predictions file and match its answers to the items by id.

    Each line has an id (one of `ID_FIELDS`) and an answer (one of `ANSWER_FIELDS`), and may have a ``finish_reason``, a
    ``dialect``, a ``model``, and ``scores`` or ``logprobs`` (`Answers`). A folder means all ``*.jsonl`` files in it, as
    a model on several devices writes them; its lines are numbered through all files. A line that names another image or
    question than the item of its id is not used, nor is an answer that is the question itself.

    Args:
        path: The file or folder.
        items: The items to be answered.
        answer_field: The field of the answers; needed if lines have several known ones. A path such as
            ``choices.0.text`` leads to a text inside objects and lists.
        id_field: The same for the ids.
        dialect: How the answers write boxes; None for what the file says.

    Raises:
        InputError: if the file can't be read, has no lines, or can be read in several ways (several answer fields,
            several id fields that fit, several dialects), or if no answer can be used.
    """
    files = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")]) if is_dir(path) else [path]
    expected = "a JSON-lines file"
    data = b"\n".join(read_bytes(file, expected, "Predictions", check=False) for file in files)  # checked line by line
    answers = Answers()
    rows: dict[int, Any] = dict(decode_lines(data, line_type(data, answer_field, id_field)))
    for number in [number for number, row in rows.items() if isinstance(row, Exception)]:
        answers.note("not_json", f"line {number}")
        del rows[number]
    if not rows:
        bad = len(answers.problems.get("not_json", ()))
        got = f"{count_text(bad, 'lines')} without a JSON object" if bad else "no lines"
        expected = 'lines such as {"id": "1", "answer": "…"}'
        fix = "write one object per line: jq -c '.[]' FILE" if data.lstrip()[:1] == b"[" else None
        raise InputError(f"{path} contains no predictions", got=got, expected=expected, fix=fix)
    answers.model = ", ".join(_texts(rows.values(), "model")) or None
    dialects = _texts(rows.values(), "dialect")
    if dialect is None and len(dialects) > 1:
        fix = "give --dialect, or evaluate the files one by one"
        raise InputError(
            f"The lines of {path} are in several dialects", got=", ".join(dialects), expected="one", fix=fix
        )
    answers.dialect = dialect or next(iter(dialects), None)
    lines, by_id = PredictionLines(path, data, rows), {item.id: item for item in items}
    id_field, names = lines.choose_id_field(id_field, by_id.keys())
    chosen: dict[Any, Any] = dict(zip(names, rows.values(), strict=True))
    repeated: list[tuple[str, Any]] = []
    if len(chosen) < len(rows) or not chosen.keys() <= by_id.keys():  # otherwise each line has an item of its own
        chosen = {}
        for (number, row), name in zip(rows.items(), names, strict=True):
            if name is None:
                answers.note("no_id", f"line {number}")
            elif name not in by_id:
                answers.note("unknown", name)
            elif chosen.setdefault(name, row) is not row:
                repeated.append((name, row))
    if not chosen:
        got, expected = (", ".join(list(ids)[:3]) + ", …" for ids in (filter(None, names), by_id))
        fix = "give the predictions for these annotations, with the ids of the annotations"
        what = f"No answer in {path} belongs to an item of the annotations"
        raise InputError(what, got=f"`{id_field}`: {got}", expected=expected, fix=fix)
    answer_field = lines.choose_answer_field(answer_field, lambda: ((by_id[name], row) for name, row in chosen.items()))
    get = getter(answer_field)
    for name, row in repeated:
        if not (isinstance(get(row), str) and get(chosen[name]) == get(row)):
            answers.note("doubled", name)
    fields = _telling(chosen, QUESTION_FIELDS), _telling(chosen, IMAGE_FIELDS)
    get_reason = getter("finish_reason") if occurs(chosen.values(), "finish_reason") else None
    is_plain = not any(fields) and get_reason is None
    texts = _plain_texts(items, chosen, get) if is_plain and len(chosen) == len(by_id) else None
    if texts is not None:
        answers.add_texts(texts)
    for item in items if texts is None else ():
        line = chosen.get(item.id)
        if is_plain and line is not None and _is_text(answer := get(line), item.question):
            answers.add_texts([answer])
            continue
        text, problem, what = (None, "missing", "") if line is None else _read(item, line, get(line), *fields)
        answers.add(item.id, text)
        if problem is not None:
            answers.note(problem, item.id + what)
        elif get_reason is not None and isinstance(reason := get_reason(line), str) and reason in CUT_REASONS:
            answers.note("truncated", item.id)
    if not any(raw and raw.strip() for raw in answers.raw):
        kinds = {kind: ids for kind, ids in answers.problems.items() if kind not in ("unknown", "not_json", "no_id")}
        got = "\n            ".join(f"{len(ids)} {kind} ({PROBLEMS[kind]}): {ids[0]}" for kind, ids in kinds.items())
        fix = "give the predictions for these annotations; --answer-field and --id-field name the fields to read"
        raise InputError(f"No answer in {path} can be used", got=got, expected="answers to the items", fix=fix)
    answers.scores, answers.logprobs = (_field(items, chosen, name) for name in ("scores", "logprobs"))
    counts = {"items": len(chosen), "of_items": len(items), "lines": len(chosen) + len(repeated), "of_lines": len(rows)}
    answers.matched = {"id_field": id_field, "answer_field": answer_field, **counts}
    return answers


def _field(items: Sequence[Item], chosen: Mapping[str, Any], name: str) -> list[Any] | None:
    """The values of a field, one per item; None if no line has it."""
    if not occurs(chosen.values(), name):
        return None
    get = getter(name)
    values = (get(chosen[item.id]) if item.id in chosen else None for item in items)
    return [None if value is msgspec.UNSET else value for value in values]


def _texts(rows: Collection[Any], name: str) -> list[str]:
    """The different texts of a field, sorted."""
    return sorted({v for v in map(getter(name), rows) if isinstance(v, str)}) if occurs(rows, name) else []


def _telling(chosen: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The fields whose texts differ between lines: a text that is always the same says nothing about an item."""
    return [name for name in names if _differ(chosen.values(), name)]


def _differ(rows: Collection[Any], name: str) -> bool:
    """Whether a field has different texts, or a text at all if there is only one line."""
    if not occurs(rows, name):
        return False
    texts = [value for value in map(getter(name), rows) if isinstance(value, str)]
    return bool(texts) and (len(rows) == 1 or texts.count(texts[0]) < len(texts))


def _read(
    item: Item, row: Any, answer: Any, question_fields: Sequence[str], image_fields: Sequence[str]
) -> tuple[str | None, str | None, str]:
    """The answer of a line, or a problem and what is said about it."""
    if not isinstance(answer, str):
        return None, "not_text", ""
    own = answer.strip()
    if own and own == item.question.strip():
        return None, "question", ""
    if not question_fields and not image_fields:
        return answer, None, ""
    asked, images = _texts_of(row, question_fields), _texts_of(row, image_fields)
    if own and own in map(str.strip, asked):
        return None, "question", ""
    other = [image for image in images if item.file_name and _FILE.search(image) and not item.is_about(image)]
    if not other and asked and item.question and not any(map(item.asks, asked)):
        other = asked
    if other:
        return None, "other_item", f" ({' '.join(other[0].split())[:60]})"
    return answer, None, ""


def _plain_texts(items: Sequence[Item], chosen: Mapping[str, Any], get: Callable[[Any], Any]) -> list[str] | None:
    """The answers of all items if each passes `_is_text`, without a loop in Python; otherwise None."""
    answers = [get(chosen[item.id]) for item in items]
    if set(map(type, answers)) != {str} or "<" in "".join(answers):
        return None
    words = list(map(str.strip, answers))
    return answers if all(words) and not any(map(eq, words, [item.question.strip() for item in items])) else None


def _is_text(answer: Any, question: str) -> bool:
    """Whether an answer is a text with words, surely without reasoning, and not the question itself."""
    if not isinstance(answer, str) or "<" in answer:
        return False
    words = answer.strip()
    return bool(words) and words != question.strip()


def _texts_of(row: Any, names: Sequence[str]) -> list[str]:
    return [text for name in names if isinstance(text := getattr(row, name), str) and text]
