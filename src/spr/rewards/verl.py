"""Rewards for verl: functions for ``reward.custom_reward_function``, and a reward manager that keeps special tokens.

`spr.rewards.verl.f1` and every other name of `REWARDS` is such a function; `compute_score` and `make` also take
thresholds and weighted sums. Read from verl 0.9.1: verl/experimental/reward_loop/reward_manager/naive.py,
verl/workers/reward_manager/batch.py and verl/trainer/ppo/reward.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

from spr.rewards.adapter import SpecialTokens, TrainerReward, by_name, measures, text_of
from spr.rewards.combine import REWARDS
from spr.rewards.decoding import Decoder

KEPT = "spr_special_tokens"
"""The key of ``extra_info`` with which `RewardManager` says that it kept the special tokens."""


class _VerlReward(TrainerReward):
    trainer = "verl"
    column = "reward_model.ground_truth"
    fix_tokens = (
        "set reward.reward_manager.source=importlib reward.reward_manager.name=RewardManager "
        "reward.reward_manager.module.path=pkg://spr.rewards.verl, or special_tokens=kept if your manager keeps them"
    )

    def results(
        self, texts: Sequence[str], truths: Sequence[Any], infos: Sequence[Mapping[str, Any] | None] | None
    ) -> list[dict[str, float]]:
        """The score of each text, and what verl logs beside it."""
        found = self.truths(truths, len(texts))
        kept = bool(infos is not None and len(infos) and all(info and info.get(KEPT) for info in infos))
        answers = self.answers([text_of(text) for text in texts], found, kept=kept)
        return [
            {"score": score, **measures(answer, truth)}
            for score, answer, truth in zip(self.score(answers, found), answers, found, strict=True)
        ]


class VerlReward(_VerlReward):
    """A reward function for one answer, for verl's reward managers; made by `make`."""

    patience = 16  # it gets one answer at a time

    def __call__(
        self,
        data_source: Any,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        *,
        reward_router_address: Any = None,
        reward_model_tokenizer: Any = None,
    ) -> dict[str, float]:
        """The ``score`` of an answer, and its precision, recall, number of duplicates and validity, which verl logs.

        Args:
            data_source: The row's source; not used.
            solution_str: The generated text.
            ground_truth: The truth, the row's ``reward_model.ground_truth``.
            extra_info: The row's ``extra_info``; `RewardManager` adds `KEPT`.
            reward_router_address: What verl gives beside a reward model; not used.
            reward_model_tokenizer: The same.

        Raises:
            RewardError: for a missing or wrong truth, or special tokens that were removed; never for an answer.
        """
        return self.results([solution_str], [ground_truth], [extra_info])[0]


class VerlBatchReward(_VerlReward):
    """A reward function for a batch of answers, for verl's ``BatchRewardManager``; made by `make`."""

    def __call__(
        self,
        data_sources: Any,
        solution_strs: Sequence[str],
        ground_truths: Sequence[Any],
        extra_infos: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[dict[str, float]]:
        """What `VerlReward` returns, for each answer of a batch."""
        return self.results(solution_strs, ground_truths, extra_infos)


def make(
    reward: str,
    *,
    batch: bool = False,
    opens_thinking: bool = False,
    special_tokens: SpecialTokens = "check",
) -> VerlReward | VerlBatchReward:
    """A reward function for verl.

    Args:
        reward: What `get_reward` reads, such as ``"0.8*f1@0.75 + 0.2*format"``. verl tells rewards no step, so that
            thresholds can't be scheduled.
        batch: Whether it gets a batch of answers (``BatchRewardManager``).
        opens_thinking: See `TrainerReward`.
        special_tokens: See `SpecialTokens`.

    >>> reward = make("0.8*f1 + 0.2*format")
    >>> from spr.rewards import Truth
    >>> truth = Truth((), "qwen3_vl", (640, 480)).to_json()
    >>> reward(data_source="spr", solution_str="There is no dog.", ground_truth=truth)["score"]
    1.0
    """
    chosen = VerlBatchReward if batch else VerlReward
    return chosen(reward, opens_thinking=opens_thinking, special_tokens=special_tokens)


_made = lru_cache(maxsize=16)(VerlReward)


def compute_score(
    data_source: Any,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    reward: str = "f1",
    opens_thinking: bool = False,
    special_tokens: SpecialTokens = "check",
    reward_router_address: Any = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, float]:
    """What `VerlReward` returns for the reward that ``reward.custom_reward_function.reward_kwargs`` names.

    The other arguments are those of `make` and `VerlReward`.
    """
    function = _made(reward, opens_thinking=opens_thinking, special_tokens=special_tokens)
    return function(data_source, solution_str, ground_truth, extra_info)


def _reward_manager() -> type:
    base: Any = import_module("verl.experimental.reward_loop.reward_manager.naive").NaiveRewardManager

    class KeepingTokenizer:
        """Decodes as `Decoder` does, whatever verl asks for."""

        def __init__(self, tokenizer: Any) -> None:
            self._decoder = Decoder(tokenizer)

        def decode(self, ids: Any, **_: Any) -> str:
            return self._decoder.decode(ids.tolist() if hasattr(ids, "tolist") else ids)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._decoder.tokenizer, name)

    class RewardManager(base):  # type: ignore[misc]
        """verl's naive reward manager, with the special tokens of box markup in ``solution_str``."""

        def __init__(self, config: Any, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, KeepingTokenizer(tokenizer), *args, **kwargs)

        async def run_single(self, data: Any) -> Any:
            """Score the last sequence of ``data``."""
            for info in data.non_tensor_batch["extra_info"]:
                info[KEPT] = True
            return await super().run_single(data)

    return RewardManager


@cache
def __getattr__(name: str) -> Any:
    return _reward_manager() if name == "RewardManager" else by_name(name, make, __name__)


def __dir__() -> list[str]:
    return sorted([*globals(), *REWARDS, "RewardManager"])
