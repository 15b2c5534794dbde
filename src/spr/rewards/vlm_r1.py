"""Rewards for VLM-R1 and Visual-RFT, whose trainers call rewards alike.

`spr.rewards.vlm_r1.f1` and every other name of `REWARDS` is a reward function for their ``reward_funcs_registry``;
`make` builds one with a threshold or a weighted sum. Read from om-ai-lab/VLM-R1 90052f4
(src/open-r1-multimodal/src/open_r1/grpo_jsonl.py and trainer/grpo_trainer.py) and Liuziyu77/Visual-RFT 9486633
(src/virft/src/open_r1/grpo.py and trainer/grpo_trainer.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from spr.rewards.adapter import SpecialTokens, TrainerReward, by_name, text_of
from spr.rewards.combine import REWARDS
from spr.rewards.truth import Truth

_WRAPPED = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)


class VlmR1Reward(TrainerReward):
    """A reward function of VLM-R1 and Visual-RFT; made by `make`.

    They remove special tokens from the texts and don't pass the tokens, so that only dialects that read the same
    without them can be trained.
    """

    trainer = "VLM-R1 or Visual-RFT"
    column = "solution"
    fix_tokens = "use a dialect in plain text, such as qwen2_5_vl or qwen3_vl, or TRL or ms-swift"

    def truth(self, value: Any) -> Truth:
        """The truth in a value of the column; VLM-R1 puts the texts of its data in ``<answer>``."""
        wrapped = _WRAPPED.fullmatch(value) if isinstance(value, str) else None
        return super().truth(value if wrapped is None else wrapped[1].strip())

    def __call__(self, completions: Sequence[Any], solution: Any = None, **columns: Any) -> list[float]:
        """One reward per completion.

        Args:
            completions: Conversations whose last message of the assistant is the answer, or texts.
            solution: The column of truths, one per completion, each also inside ``<answer>``.
            columns: Other columns and arguments of the trainer; not used.

        Raises:
            RewardError: for a missing or wrong truth, or special tokens that were removed; never for an answer.
        """
        truths = self.truths(solution, len(completions), columns)
        return self.score(self.answers([text_of(item) for item in completions], truths), truths)


def make(
    reward: str,
    *,
    name: str | None = None,
    opens_thinking: bool = False,
    special_tokens: SpecialTokens = "check",
) -> VlmR1Reward:
    """A reward function for VLM-R1 and Visual-RFT.

    Args:
        reward: What `get_reward` reads, such as ``"0.8*f1@0.75 + 0.2*format"``. These trainers tell rewards no step, so
            that thresholds can't be scheduled.
        name: The name in the trainer's log; by default ``reward``.
        opens_thinking: See `TrainerReward`.
        special_tokens: See `SpecialTokens`.

    >>> reward = make("0.8*f1 + 0.2*format")
    >>> from spr.rewards import Truth
    >>> truth = Truth((), "qwen2_5_vl:min_pixels=3136,max_pixels=1003520", (640, 480)).to_json()
    >>> answer = {"role": "assistant", "content": "<think>A dog?</think><answer>There is no dog.</answer>"}
    >>> reward(completions=[[answer]], solution=[f"<answer> {truth} </answer>"])
    [1.0]
    """
    return VlmR1Reward(reward, name=name, opens_thinking=opens_thinking, special_tokens=special_tokens)


@cache
def __getattr__(name: str) -> VlmR1Reward:
    return by_name(name, make, __name__)


def __dir__() -> list[str]:
    return sorted([*globals(), *REWARDS])
