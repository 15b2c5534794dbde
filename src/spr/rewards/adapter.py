"""What the adapters of all trainers share: truths from a column, answers with their markup, a reward per answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

from spr.core.errors import RewardError, nearest
from spr.grounding import get_dialect, parse
from spr.rewards.answer import Answer
from spr.rewards.combine import REWARDS, get_reward
from spr.rewards.decoding import without_end
from spr.rewards.rewards import duplicates, format_, precision, recall
from spr.rewards.truth import Truth

SpecialTokens: TypeAlias = Literal["check", "kept"]
"""Whether the trainer's texts still have their special tokens.

``check``: an error if the dialect needs them and no answer of a first batch has one. ``kept``: they have.
"""
METRICS = ("precision", "recall", "duplicates", "valid")
"""The fields of `Measures` that trainers log, at an IoU of 0.5."""
_T = TypeVar("_T")


class TrainerReward:
    """A reward as a trainer calls it. A subclass reads the arguments of one trainer.

    Args:
        reward: What `get_reward` reads.
        name: The name under which the trainer logs it; by default ``reward`` itself.
        opens_thinking: Whether the chat template ends the prompt with ``<think>``, so that an answer without
            ``</think>`` is reasoning that was cut, not an answer.
        special_tokens: Whether the trainer's texts still have the special tokens of the markup, see `SpecialTokens`.

    Attributes:
        trainer: The trainer, for errors.
        column: What the trainer calls the column with the truths.
        gives_step: Whether the trainer says at which step it is.
        fix_tokens: How to get texts with special tokens from this trainer.
        patience: Answers without special tokens after which the trainer is taken to remove them, unless one had some.

    Raises:
        RewardError: for a reward that `get_reward` refuses, one that depends on a step that the trainer doesn't give,
            or an unknown value of ``special_tokens``.
    """

    trainer: ClassVar[str]
    column: ClassVar[str]
    fix_tokens: ClassVar[str]
    gives_step: ClassVar[bool] = False
    patience: ClassVar[int] = 1

    def __init__(
        self,
        reward: str,
        *,
        name: str | None = None,
        opens_thinking: bool = False,
        special_tokens: SpecialTokens = "check",
    ) -> None:
        self.reward, self.given = get_reward(reward), reward
        if self.reward.needs_step and not self.gives_step:
            what = f"{self.trainer} tells rewards no step, so thresholds can't depend on it"
            raise RewardError(what, got=str(self.reward), fix="give one number, such as f1@0.75")
        if special_tokens not in ("check", "kept"):
            fix = nearest(str(special_tokens), ("check", "kept"))
            raise RewardError("`special_tokens` is unknown", got=repr(special_tokens), fix=fix)
        self.opens_thinking, self.special_tokens = opens_thinking, special_tokens
        self.__name__ = self.__qualname__ = name or reward
        self._seen: set[str] = set()  # dialects whose tokens were in an answer
        self._without: Counter[str] = Counter()  # answers without, by dialect

    def options(self) -> dict[str, Any]:
        """The arguments that make an equal reward, without ``reward``."""
        return {
            "name": self.__name__,
            "opens_thinking": self.opens_thinking,
            "special_tokens": self.special_tokens,
        }

    def __reduce__(self) -> tuple[Callable[[], TrainerReward], tuple[()]]:
        return partial(type(self), self.given, **self.options()), ()

    def __repr__(self) -> str:
        return f"<{self.trainer} reward {self.__name__}>"

    def truths(self, values: object, count: int, columns: Iterable[str] = ()) -> list[Truth]:
        """The truths of a batch of ``count`` answers.

        Raises:
            RewardError: if the column is missing or one of its values is not a truth.
        """
        if values is None:
            got = ", ".join(sorted(columns)) or None
            fix = "write the rows with `spr export --format grpo-…`, or add a column of `Truth.to_json`"
            raise RewardError(f"The rows have no column `{self.column}`", got=got, expected="a truth per row", fix=fix)
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise RewardError(
                f"Column `{self.column}` is not a list", got=repr(values)[:80], expected=f"{count} truths"
            )
        truths = [self.truth(value) for value in values]
        if len(truths) != count:
            raise RewardError(f"Column `{self.column}` has another length", got=len(truths), expected=f"{count} truths")
        return truths

    def truth(self, value: Any) -> Truth:
        """The truth in a value of the column."""
        return Truth.from_json(value, self.column)

    def answers(
        self, texts: Sequence[str], truths: Sequence[Truth], *, step: int | None = None, kept: bool = False
    ) -> list[Answer]:
        """The answers in the generated texts of a batch, each read in its truth's dialect.

        ``kept`` says that this batch has its special tokens, whatever `special_tokens` is.

        Raises:
            RewardError: if the dialect needs special tokens and the trainer has removed them.
        """
        if not kept and self.special_tokens == "check":
            self._check_tokens(texts, truths)
        opening = "<think>" if self.opens_thinking else ""
        return [truth.read(opening + without_end(text), step=step) for text, truth in zip(texts, truths, strict=True)]

    def score(self, answers: Sequence[Answer], truths: Sequence[Truth]) -> list[float]:
        """One reward per answer."""
        return [self.reward(answer, truth) for answer, truth in zip(answers, truths, strict=True)]

    def _check_tokens(self, texts: Sequence[str], truths: Sequence[Truth]) -> None:
        for text, truth in zip(texts, truths, strict=True):
            spec = truth.dialect
            if spec in self._seen or not truth.objects or (tokens := needed_tokens(spec)) is None:
                continue
            if tokens.search(text):
                self._seen.add(spec)
            else:
                self._without[spec] += 1
        for spec in {truth.dialect for truth in truths} - self._seen:
            if self._without[spec] >= self.patience:
                self._without[spec] = 0
                dialect = get_dialect(spec)
                what = f"No answer has a special token of dialect `{dialect.key}`: {self.trainer} removes them"
                got, expected = repr(texts[0][:80]), f"such as {dialect.example}"
                raise RewardError(what, got=got, expected=expected, fix=self.fix_tokens)


def measures(answer: Answer, truth: Truth) -> dict[str, float]:
    """The `METRICS` of an answer, for the trainer's log."""
    values = precision(answer, truth), recall(answer, truth), duplicates(answer, truth), format_(answer, truth)
    return dict(zip(METRICS, map(float, values), strict=True))


def text_of(completion: object) -> str:
    """The text of a completion: itself, or what the last message of the assistant says.

    >>> text_of([{"role": "assistant", "content": [{"type": "text", "text": "a dog"}]}])
    'a dog'
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Mapping):
        return text_of(completion.get("content"))
    if not isinstance(completion, Sequence):
        return ""
    said = [item for item in completion if isinstance(item, Mapping)]
    if any("role" in item for item in said):
        spoken = [item for item in said if item.get("role") == "assistant"]
        return text_of(spoken[-1]) if spoken else ""
    return "".join(item["text"] for item in said if isinstance(item.get("text"), str))


@lru_cache(maxsize=64)
def needed_tokens(spec: str) -> re.Pattern[str] | None:
    """The special tokens without which answers in a dialect read otherwise; None if none are needed.

    Needed are those that tokenizers declare as special and without which the dialect's own example has no boxes, or
    boxes without phrases.

    >>> needed_tokens("qwen3_vl"), needed_tokens("paligemma"), needed_tokens("glm_v")
    (None, None, None)
    >>> needed_tokens("kosmos2").search("a dog"), needed_tokens("kosmos2").search("<object>")[0]
    (None, '<object>')
    """
    dialect = get_dialect(spec)
    if dialect.special_tokens is None or dialect.servers_keep_tokens:
        return None
    whole = parse(dialect.example, dialect, (1000, 1000))
    rest = parse(re.sub(dialect.special_tokens, "", dialect.example), dialect, (1000, 1000))
    same = (rest.boxes, rest.points, rest.problems) == (whole.boxes, whole.points, whole.problems)
    return None if same else re.compile(dialect.special_tokens)


def by_name(name: str, make: Callable[[str], _T], module: str) -> _T:
    """The reward of this name as an attribute of an adapter's module.

    Raises:
        AttributeError: if there is no such reward.
    """
    if name.startswith("_") or name not in REWARDS:
        raise AttributeError(f"module {module!r} has no attribute {name!r}: {nearest(name, [*REWARDS, 'make'])}")
    return make(name)
