"""Rewards for ms-swift: classes for its table ``orms``, registered by a plug-in file.

`spr.rewards.ms_swift.f1` and every other name of `REWARDS` is such a class; `make` builds one with a threshold or a
weighted sum. Read from ms-swift 4.6: swift/rewards/orm.py, ``compute_rewards_per_func`` in
swift/rl_core/grpo_algorithm.py and ``decode_generate_ids`` in swift/template/base.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

from spr.rewards.adapter import TrainerReward, by_name, text_of
from spr.rewards.combine import REWARDS


class SwiftReward(TrainerReward):
    """A reward that ms-swift calls; the classes that `make` builds inherit from it.

    ms-swift decodes answers with their special tokens and without the tokens at their end.
    """

    trainer = "ms-swift"
    column = "truth"
    gives_step = True
    fix_tokens = "decode answers with their special tokens"

    def __call__(
        self, completions: Sequence[Any], *, truth: Any = None, trainer_state: Any = None, **columns: Any
    ) -> list[float]:
        """One reward per completion.

        Args:
            completions: The generated texts.
            truth: The column of truths, one per completion.
            trainer_state: Its ``global_step`` is the step for scheduled thresholds.
            columns: Other columns and arguments of the trainer; not used.

        Raises:
            RewardError: for a missing or wrong truth; never for an answer.
        """
        truths = self.truths(truth, len(completions), columns)
        step = getattr(trainer_state, "global_step", None)
        texts = [text_of(item) for item in completions]
        return self.score(self.answers(texts, truths, step=step, kept=True), truths)


class _Orm(SwiftReward):
    spec: ClassVar[str]
    fixed: ClassVar[dict[str, Any]]

    def __init__(self, args: Any = None, **_: Any) -> None:
        super().__init__(self.spec, **self.fixed)
        self.args = args

    def __reduce__(self) -> tuple[Callable[..., _Orm], tuple[Any, ...]]:
        return _remade, (self.spec, self.fixed, self.args)


def make(reward: str, *, name: str | None = None, opens_thinking: bool = False) -> type[SwiftReward]:
    """A reward class for ms-swift's table ``orms``.

    It derives from ``swift.rewards.ORM`` where ms-swift is installed.

    Args:
        reward: What `get_reward` reads, such as ``"f1@0.5:0.9/1000"`` or ``"0.8*f1@0.75 + 0.2*format"``.
        name: The name in ms-swift's log; by default ``reward``.
        opens_thinking: See `TrainerReward`.

    Raises:
        RewardError: for a reward that `get_reward` refuses.

    >>> reward_class = make("0.8*f1 + 0.2*format", name="boxes")
    >>> from spr.rewards import Truth
    >>> truth = Truth((), "qwen3_vl", (640, 480)).to_json()
    >>> reward_class.__name__, reward_class()(["There is no dog."], truth=[truth])
    ('boxes', [1.0])
    """
    fixed: dict[str, Any] = {"name": name, "opens_thinking": opens_thinking}
    SwiftReward(reward, **fixed)  # refuses a wrong reward here, not when the trainer starts
    bases: tuple[type, ...] = (_Orm, *_swift_base())
    return type(name or reward, bases, {"spec": reward, "fixed": fixed, "__module__": __name__, "__doc__": reward})


def _remade(spec: str, fixed: dict[str, Any], args: Any) -> Any:
    return make(spec, **fixed)(args)


def _swift_base() -> tuple[type, ...]:
    try:
        return (import_module("swift.rewards").ORM,)
    except ModuleNotFoundError:
        return ()


@cache
def __getattr__(name: str) -> type[SwiftReward]:
    return by_name(name, make, __name__)


def __dir__() -> list[str]:
    return sorted([*globals(), *REWARDS])
