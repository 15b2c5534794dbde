"""Rewards for TRL: `GRPOTrainer`, `RLOOTrainer` and Online DPO.

`spr.rewards.trl.f1` and every other name of `REWARDS` is a reward function, also for ``--reward_funcs``; `make` builds
one with a threshold, a weighted sum or a tokenizer. Read from TRL 1.16: trl/trainer/grpo_trainer.py and
rloo_trainer.py (``_calculate_rewards``), trl/experimental/online_dpo/online_dpo_trainer.py
(``_calculate_rewards_from_functions``) and trl/scripts/grpo.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from spr.rewards.adapter import (
    METRICS,
    SpecialTokens,
    TrainerReward,
    by_name,
    measures,
    needed_tokens,
    text_of,
)
from spr.rewards.answer import Answer
from spr.rewards.combine import REWARDS
from spr.rewards.decoding import Decoder, load_decoder
from spr.rewards.truth import Truth


class TrlReward(TrainerReward):
    """A reward function of TRL; made by `make`.

    TRL removes special tokens from ``completions``. Where the markup of a dialect consists of them, the answers are
    decoded from ``completion_ids`` with ``tokenizer`` or the tokenizer that the truth names.
    """

    trainer = "TRL"
    column = "truth"
    gives_step = True
    fix_tokens = (
        "name a tokenizer in the truths (`Truth.tokenizer`), or use spr.rewards.trl.make(…, tokenizer=…) instead of "
        "a dotted name"
    )

    def __init__(self, reward: str, *, tokenizer: Any = None, **options: Any) -> None:
        super().__init__(reward, **options)
        self.tokenizer = tokenizer
        self._decoder: Decoder | None = None

    def options(self) -> dict[str, Any]:
        """The arguments that make an equal reward, without ``reward``."""
        return {**super().options(), "tokenizer": self.tokenizer}

    def __call__(
        self,
        completions: Sequence[Any],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        truth: Any = None,
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One reward per completion.

        Args:
            completions: Texts, or conversations whose last message of the assistant is the answer.
            completion_ids: The generated tokens of each.
            truth: The column of truths, one per completion.
            trainer_state: Its ``global_step`` is the step for scheduled thresholds.
            log_metric: Gets the batch's mean precision, recall and number of duplicates at an IoU of 0.5, and the share
                of well-formed answers.
            log_extra: Gets the boxes that were read, in pixels, for the table of completions.
            columns: Other columns and arguments of the trainer; not used.

        Raises:
            RewardError: for a missing or wrong truth, or special tokens that were removed; never for an answer.
        """
        truths = self.truths(truth, len(completions), columns)
        step = getattr(trainer_state, "global_step", None)
        answers = self._read(completions, completion_ids, truths, step)
        rewards = self.score(answers, truths)
        if log_metric is not None and answers:
            found = [measures(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
            for name in METRICS:
                log_metric(f"spr/{name}", sum(item[name] for item in found) / len(found))
        if log_extra is not None:
            boxes = [json.dumps([[round(v, 1) for v in box] for box in answer.boxes]) for answer in answers]
            log_extra(f"{self.__name__} boxes", boxes)
        return rewards

    def _read(
        self,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None,
        truths: Sequence[Truth],
        step: int | None,
    ) -> list[Answer]:
        texts, undecoded = [text_of(item) for item in completions], []
        answers: dict[int, Answer] = {}
        for number, truth in enumerate(truths):
            decoder = self._decoder_of(truth) if completion_ids is not None else None
            if decoder is None or completion_ids is None or needed_tokens(truth.dialect) is None:
                undecoded.append(number)
                continue
            text = decoder.decode(completion_ids[number])
            answers[number] = self.answers([text], [truth], step=step, kept=True)[0]
        rest = self.answers([texts[k] for k in undecoded], [truths[k] for k in undecoded], step=step)
        answers |= dict(zip(undecoded, rest, strict=True))
        return [answers[number] for number in range(len(truths))]

    def _decoder_of(self, truth: Truth) -> Decoder | None:
        where = self.tokenizer if self.tokenizer is not None else truth.tokenizer
        if where is None or needed_tokens(truth.dialect) is None:
            return None
        if isinstance(where, str):
            return load_decoder(where)
        self._decoder = self._decoder or Decoder(where)
        return self._decoder


def make(
    reward: str,
    *,
    tokenizer: Any = None,
    name: str | None = None,
    opens_thinking: bool = False,
    special_tokens: SpecialTokens = "check",
) -> TrlReward:
    """A reward function for TRL, which pickles as TRL's asynchronous trainer requires.

    Args:
        reward: What `get_reward` reads, such as ``"f1@0.5:0.9/1000"`` or ``"0.8*f1@0.75 + 0.2*format"``.
        tokenizer: The model's tokenizer or processor, or its folder or name on the Hugging Face Hub, for dialects with
            special tokens; by default the one that the truth names.
        name: The name in TRL's log; by default ``reward``.
        opens_thinking: See `TrainerReward`.
        special_tokens: See `SpecialTokens`.

    >>> reward = make("0.8*f1 + 0.2*format", name="boxes")
    >>> from spr.rewards import Truth
    >>> truth = Truth((), "qwen3_vl", (640, 480)).to_json()
    >>> reward.__name__, reward(prompts=["Locate the dog."], completions=["There is no dog."], truth=[truth])
    ('boxes', [1.0])
    """
    return TrlReward(
        reward, tokenizer=tokenizer, name=name, opens_thinking=opens_thinking, special_tokens=special_tokens
    )


@cache
def __getattr__(name: str) -> TrlReward:
    return by_name(name, make, __name__)


def __dir__() -> list[str]:
    return sorted([*globals(), *REWARDS])
