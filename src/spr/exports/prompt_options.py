"""The options of exports whose rows are prompts, checked together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from spr.core.documents import parse_json
from spr.core.errors import ConfigError, InputError, nearest
from spr.core.text_input import read_text
from spr.exports.formats import PromptTask
from spr.rewards import LABELS, Labels

TASKS: tuple[PromptTask, ...] = get_args(PromptTask)
MOST_QUESTIONS = 8
"""The table `objects` keeps at most this many absent categories per image."""


@dataclass(frozen=True)
class PromptOptions:
    """What the prompts of an export ask for, and what their truth says.

    Attributes:
        tasks: What the prompts ask for, see `spr.exports.formats.PromptTask`.
        labels: How words count when boxes are matched to objects, see `spr.rewards.truth.Labels`.
        synonyms: Further names by category, with ``labels="synonyms"``.
        tokenizer: Folder or Hub name of the tokenizer that decodes answers; None for the describer's model, if its
            boxes are special tokens.
        questions: Questions per image and task, of the tasks other than ``describe``: at most this many, 1 to 8.

    Raises:
        ConfigError: for a value that is unknown, or that the others leave without effect.
    """

    tasks: tuple[PromptTask, ...] = ("describe",)
    labels: Labels = "ignore"
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tokenizer: str | None = None
    questions: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        _check("--tasks", self.tasks, TASKS)
        _check("--labels", (self.labels,), LABELS)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            expected = f"one or more of {', '.join(TASKS)}, each once"
            raise ConfigError("--tasks is not valid", got=",".join(self.tasks) or "nothing", expected=expected)
        if bool(self.synonyms) != (self.labels == "synonyms"):
            given = "--synonyms" if self.synonyms else "--labels synonyms"
            other = "--labels synonyms" if self.synonyms else "--synonyms FILE"
            raise ConfigError(f"{given} needs {other}", got=f"only {given}", fix=f"give {other}, too")
        if self.tasks == ("absent",) and self.labels != "ignore":
            fix = "give another task, too, or leave --labels out"
            got = f"--labels {self.labels} --tasks absent"
            raise ConfigError("--labels has no effect where the truth has no objects", got=got, fix=fix)
        if self.questions is None:
            return
        if not 1 <= self.questions <= MOST_QUESTIONS:
            raise ConfigError("--questions is out of range", got=self.questions, expected=f"1 to {MOST_QUESTIONS}")
        if self.tasks == ("describe",):
            fix = "give --tasks describe,detect or the like, or leave --questions out"
            raise ConfigError("--questions has no effect", got="--tasks describe", fix=fix)

    @property
    def identity(self) -> dict[str, str]:
        """What decides the contents of an export."""
        text = json.dumps({name: list(names) for name, names in self.synonyms.items()}, sort_keys=True)
        found = {"tasks": ",".join(self.tasks), "labels": self.labels, "tokenizer": self.tokenizer or "none"}
        found["questions"] = str(self.questions or 1)
        if self.synonyms:
            found["synonyms"] = hashlib.sha256(text.encode()).hexdigest()
        return found


def make_options(
    tasks: str | None = None,
    labels: str | None = None,
    synonyms: Path | None = None,
    tokenizer: str | None = None,
    questions: int | None = None,
) -> PromptOptions | None:
    """The options as the command line gives them: ``tasks`` separated by commas; None if none of them is given.

    Raises:
        ConfigError: as `PromptOptions`.
        InputError: if the file of synonyms can't be read.
    """
    if all(value is None for value in (tasks, labels, synonyms, tokenizer, questions)):
        return None
    given: dict[str, Any] = {"tokenizer": tokenizer, "questions": questions}
    if tasks is not None:
        given["tasks"] = tuple(task.strip() for task in tasks.split(",") if task.strip())
    if labels is not None:
        given["labels"] = labels
    if synonyms is not None:
        given["synonyms"] = _read_synonyms(synonyms)
    return PromptOptions(**given)


def _check(option: str, values: Sequence[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            what = f"{option} has no such value"
            raise ConfigError(what, got=value, expected=" | ".join(known), fix=nearest(value, known))


def _read_synonyms(path: Path) -> dict[str, tuple[str, ...]]:
    expected = '{"person": ["man", "woman"], …}'
    try:
        found = parse_json(read_text(path, f"Synonyms {path}", expected=f"JSON such as {expected}"))
    except ValueError as error:
        raise InputError(f"{path} is not a file of synonyms", got=error, expected=expected) from None
    lists = isinstance(found, dict) and all(isinstance(names, list) for names in found.values())
    if not found or not lists or not all(isinstance(name, str) for names in found.values() for name in names):
        raise InputError(f"{path} is not a file of synonyms", got=repr(found)[:80], expected=expected)
    return {category: tuple(names) for category, names in found.items()}
