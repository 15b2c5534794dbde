"""Rewards for EasyR1: functions for ``worker.reward.reward_function``.

`spr.rewards.easyr1.f1` and every other name of `REWARDS` is such a function; `make` builds one with a threshold or a
weighted sum. Read from EasyR1 0.3.3: verl/workers/reward/function.py and config.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, overload

from spr.rewards.adapter import SpecialTokens, TrainerReward, by_name, measures, text_of
from spr.rewards.combine import REWARDS

REWARD_NAME = "spr"
REWARD_TYPE = "batch"


class EasyR1Reward(TrainerReward):
    """A reward function of EasyR1, for ``REWARD_TYPE`` ``batch`` and ``sequential``; made by `make`."""

    trainer = "EasyR1"
    column = "ground_truth"
    patience = 16  # a function of kind `sequential` gets one answer at a time
    fix_tokens = (
        'set worker.reward.skip_special_tokens=false; where it is and most answers have no boxes, special_tokens="kept"'
    )

    @overload
    def __call__(self, reward_inputs: Mapping[str, Any]) -> dict[str, float]: ...
    @overload
    def __call__(self, reward_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]: ...
    def __call__(
        self, reward_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    ) -> dict[str, float] | list[dict[str, float]]:
        """The ``overall`` reward of each answer, and what EasyR1 logs beside it.

        Args:
            reward_inputs: For each answer its ``response`` and its ``ground_truth``, the truth (the column that
                ``data.answer_key`` names); or one of these, of which one result is returned.

        Raises:
            RewardError: for a missing or wrong truth, or special tokens that were removed; never for an answer.
        """
        if isinstance(reward_inputs, Mapping):
            return self([reward_inputs])[0]
        truths = self.truths([item.get("ground_truth") for item in reward_inputs], len(reward_inputs))
        answers = self.answers([text_of(item.get("response")) for item in reward_inputs], truths)
        return [
            {"overall": score, **measures(answer, truth)}
            for score, answer, truth in zip(self.score(answers, truths), answers, truths, strict=True)
        ]


def make(
    reward: str,
    *,
    opens_thinking: bool = False,
    special_tokens: SpecialTokens = "check",
) -> EasyR1Reward:
    """A reward function for EasyR1.

    Args:
        reward: What `get_reward` reads, such as ``"0.8*f1@0.75 + 0.2*format"``. EasyR1 tells rewards no step, so that
            thresholds can't be scheduled.
        opens_thinking: See `TrainerReward`.
        special_tokens: See `SpecialTokens`.

    >>> reward = make("0.8*f1 + 0.2*format")
    >>> from spr.rewards import Truth
    >>> truth = Truth((), "qwen3_vl", (640, 480)).to_json()
    >>> reward({"response": "There is no dog.", "response_length": 5, "ground_truth": truth})["overall"]
    1.0
    """
    return EasyR1Reward(reward, opens_thinking=opens_thinking, special_tokens=special_tokens)


@cache
def __getattr__(name: str) -> EasyR1Reward:
    return by_name(name, make, __name__)


def __dir__() -> list[str]:
    return sorted([*globals(), *REWARDS])
