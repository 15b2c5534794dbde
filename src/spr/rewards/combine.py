"""Rewards by name: with a threshold, fixed or scheduled by the trainer's step, and as weighted sums."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spr.core.errors import RewardError, nearest
from spr.core.registry import Registry
from spr.rewards.answer import Answer
from spr.rewards.rewards import (
    Reward,
    average_precision,
    count,
    f1,
    format_,
    iou,
    iou_squared,
    length,
    point_in_box,
    precision,
    recall,
    rejection,
    s_loc,
)
from spr.rewards.truth import Truth

REWARDS: Registry[Reward] = Registry(
    "reward",
    "spr.rewards",
    {
        "iou": iou,
        "iou_squared": iou_squared,
        "f1": f1,
        "recall": recall,
        "precision": precision,
        "s_loc": s_loc,
        "map": average_precision,
        "count": count,
        "point_in_box": point_in_box,
        "format": format_,
        "length": length,
        "rejection": rejection,
    },
)
"""The rewards by name. Other packages add theirs through the entry-point group ``spr.rewards``."""

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_TERM = re.compile(
    rf"\s*(?:(?P<weight>{_NUMBER})\s*\*\s*)?(?P<name>[A-Za-z_][\w.-]*)"
    rf"(?:@(?P<start>{_NUMBER})(?::(?P<end>{_NUMBER})/(?P<steps>\d+))?)?\s*"
)
_FORMS = "`f1`, `f1@0.75`, `f1@0.5:0.9/1000`, or a sum such as `0.8*f1@0.75 + 0.2*format`"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A number that goes linearly from ``start`` to ``end`` over the first ``steps`` steps, and then stays.

    >>> Schedule(0.5, 0.9, 1000).at(250), Schedule(0.5, 0.9, 1000).at(4000)
    (0.6, 0.9)
    """

    start: float
    end: float
    steps: int

    def at(self, step: int) -> float:
        """The number at a step of the trainer, counted from 0."""
        share = min(1.0, max(0, step) / self.steps)
        return self.start + (self.end - self.start) * share if share < 1 else self.end


@dataclass(frozen=True, slots=True)
class Named:
    """A reward of `REWARDS` with what follows ``@``: a number, a `Schedule` or nothing.

    Raises:
        RewardError: when it is called with a schedule and an answer without a step.
    """

    name: str
    at: float | Schedule | None = None

    def __call__(self, answer: Answer, truth: Truth) -> float:
        """The reward, 0 to 1."""
        reward = REWARDS[self.name]
        if self.at is None:
            return float(reward(answer, truth))
        value = self.at
        if isinstance(value, Schedule):
            if answer.step is None:
                what = f"`{self.name}` has a schedule, but the trainer gives no step"
                raise RewardError(what, got=str(self), fix=f"give one number, such as {self.name}@{value.end:g}")
            value = value.at(answer.step)
        options = {_option(self.name, reward): value}
        return float(reward(answer, truth, **options))

    @property
    def needs_step(self) -> bool:
        """Whether it depends on the trainer's step."""
        return isinstance(self.at, Schedule)

    def __str__(self) -> str:
        """The text that `get_reward` reads."""
        if isinstance(self.at, Schedule):
            return f"{self.name}@{_digits(self.at.start)}:{_digits(self.at.end)}/{self.at.steps}"
        return self.name if self.at is None else f"{self.name}@{_digits(self.at)}"


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """``Σ weight · reward``; with weights that sum to 1, from 0 to 1 as the rewards themselves."""

    terms: tuple[tuple[float, Named], ...]

    def __call__(self, answer: Answer, truth: Truth) -> float:
        """The sum of the weighted rewards."""
        return sum(weight * reward(answer, truth) for weight, reward in self.terms)

    @property
    def needs_step(self) -> bool:
        """Whether a term depends on the trainer's step."""
        return any(reward.needs_step for _, reward in self.terms)

    def __str__(self) -> str:
        """The text that `get_reward` reads."""
        return " + ".join(f"{_digits(weight)}*{reward}" for weight, reward in self.terms)


def get_reward(spec: str) -> Named | WeightedSum:
    """The reward that a text stands for.

    Args:
        spec: A name of `REWARDS`; with ``@`` and a number, a threshold (`f1`, `recall`, `precision`, `s_loc`: 0 to 1)
            or the `length` in characters; with ``@start:end/steps``, one that goes linearly from ``start`` to ``end``
            over so many steps of the trainer; or a sum of these with weights.

    Raises:
        RewardError: for an unknown name, a number that is out of range or that the reward doesn't take, or another
            text.

    >>> answer = Truth((), "ferret", (640, 480)).read("There is no dog.")
    >>> reward = get_reward("0.75*f1@0.5:0.9/1000 + 0.25*rejection")
    >>> str(reward), reward.needs_step, get_reward("rejection")(answer, Truth(()))
    ('0.75*f1@0.5:0.9/1000 + 0.25*rejection', True, 1.0)
    """
    if not isinstance(spec, str):
        raise RewardError("This is not a reward", got=repr(spec)[:80], expected=f"a text such as {_FORMS}")
    terms: list[tuple[float, Named]] = []
    is_sum, position = False, 0
    while True:
        match = _TERM.match(spec, position)
        if match is None:
            raise RewardError("This is not a reward", got=repr(spec), expected=_FORMS)
        weight = float(match["weight"]) if match["weight"] is not None else 1.0
        is_sum |= match["weight"] is not None
        if weight <= 0:
            raise RewardError("The weight of a reward is not above 0", got=repr(spec), fix="leave the reward out")
        terms.append((weight, _named(match, spec)))
        position = match.end()
        if position == len(spec):
            break
        if spec[position] != "+":
            raise RewardError("This is not a reward", got=repr(spec), expected=_FORMS)
        position += 1
    return WeightedSum(tuple(terms)) if is_sum or len(terms) > 1 else terms[0][1]


def _digits(value: float) -> str:
    """All digits of a number, never with an exponent."""
    return np.format_float_positional(value, trim="-")


def _named(match: re.Match[str], spec: str) -> Named:
    name = match["name"]
    if name not in REWARDS:
        raise RewardError("There is no reward of this name", got=repr(name), fix=nearest(name, REWARDS))
    if match["start"] is None:
        return Named(name)
    option = _option(name, REWARDS[name])
    start, end = float(match["start"]), float(match["end"] or match["start"])
    for value in (start, end):
        if value <= 0 or (option == "threshold" and value > 1):
            expected = "above 0 and at most 1" if option == "threshold" else "above 0"
            raise RewardError(f"The {option} of `{name}` is out of range", got=repr(spec), expected=expected)
    if match["end"] is None:
        return Named(name, start)
    steps = int(match["steps"])
    if steps < 1:
        raise RewardError(f"The schedule of `{name}` has no steps", got=repr(spec), expected=_FORMS)
    return Named(name, Schedule(start, end, steps))


def _option(name: str, reward: Callable[..., float]) -> str:
    """The name of a reward's keyword-only number."""
    options = [item.name for item in inspect.signature(reward).parameters.values() if item.kind is item.KEYWORD_ONLY]
    if len(options) != 1:
        raise RewardError(f"`{name}` takes no number after @", got=f"{name}@…", fix=f"write {name}")
    return options[0]
