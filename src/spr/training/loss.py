"""Losses of preference training as pure functions of log-probabilities (paper; supplement, Sec. 2).

A loss is a function of `LossInputs` and the config section `training` that returns ``(B,)`` losses, one per pair. A new
loss is such a function and one line in `spr.config.backends.LOSSES`, or an entry point of the group ``spr.losses``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint

from spr.config import TrainingConfig
from spr.config.backends import LOSSES
from spr.models.products import linear
from spr.training.kept_memory import returned_blocks

CHUNK = 1024
"""Answer tokens whose logits are in memory at a time: 0.6 GB in float32 with a vocabulary of 150,000."""


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Log-probabilities of the two answers of B pairs under the trained model.

    Attributes:
        chosen, rejected: ``(B,)`` float32, sums over an answer's tokens, at most 0; with `training.box_token_weight`,
            of the log-probabilities times their weights.
        chosen_tokens, rejected_tokens: ``(B,)``, int64 numbers of tokens, or float32 sums of the tokens' weights.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Log-probabilities under the trained model, and ``(B,)`` float32 under the reference model.

    The reference's equal the trained model's if the loss does not need a reference. ``reward_shift`` is the mean reward
    of all answers in the steps before, for losses that need it; 0 in the first step.
    """

    policy: PairLogps
    chosen_reference: Tensor
    rejected_reference: Tensor
    reward_shift: float = 0.0

    @property
    def chosen_ratio(self) -> Tensor:
        """``(B,)``, log π(y_w|x) − log π_ref(y_w|x) of the chosen answers."""
        return self.policy.chosen - self.chosen_reference

    @property
    def rejected_ratio(self) -> Tensor:
        """``(B,)``, the same of the rejected answers."""
        return self.policy.rejected - self.rejected_reference


Loss = Callable[[LossInputs, TrainingConfig], Tensor]


def uses(*, reference: bool = True, rejected: bool = True, reward_shift: bool = False) -> Callable[[Loss], Loss]:
    """Declare what a loss needs; a loss that declares nothing needs the reference and the rejected answers.

    The reference's log-probabilities cost a pass over all pairs before training. If a loss does without the rejected
    answers, pairs whose rejected answer is empty, too long or equal to the chosen one are trained on as well. With
    ``reward_shift``, the trainer keeps `LossInputs.reward_shift`, also across an interruption.
    """

    def declare(loss: Any) -> Any:
        loss.needs_reference, loss.needs_rejected, loss.needs_reward_shift = reference, rejected, reward_shift
        return loss

    return declare


def needs_reference(settings: TrainingConfig) -> bool:
    """Whether the loss needs the reference model."""
    return bool(settings.anchor_weight or settings.difficulty_weight) or _declared(settings, "needs_reference", True)


def needs_rejected(settings: TrainingConfig) -> bool:
    """Whether the loss needs the rejected answers."""
    return bool(settings.difficulty_weight) or _declared(settings, "needs_rejected", True)


def needs_reward_shift(settings: TrainingConfig) -> bool:
    """Whether the loss needs the mean reward of the steps before."""
    return _declared(settings, "needs_reward_shift", False)


def _declared(settings: TrainingConfig, need: str, usual: bool) -> bool:
    return any(getattr(LOSSES[name], need, usual) for name in settings.losses)


# ── the losses ────────────────────────────────────────────────────────────────────────────────────────────────────────


def dpo(inputs: LossInputs, settings: TrainingConfig) -> Tensor:
    """−log σ(β (chosen − rejected)) of the log-ratios: the sigmoid loss of direct preference optimization (paper).

    Log-ratios of 2 and −1 with β 0.5 give a margin of 1.5, and −log σ(1.5) = log(1 + e⁻¹·⁵) = log 1.22313 = 0.20141:

    >>> zero, one = torch.zeros(1), torch.ones(1, dtype=torch.int64)
    >>> policy = PairLogps(torch.tensor([2.0]), torch.tensor([-1.0]), one, one)
    >>> round(dpo(LossInputs(policy, zero, zero), TrainingConfig(beta=0.5)).item(), 5)
    0.20141
    """
    return -logsigmoid(settings.beta * (inputs.chosen_ratio - inputs.rejected_ratio))


def ipo(inputs: LossInputs, settings: TrainingConfig) -> Tensor:
    """(h − 1 / 2β)², where h is the difference of the log-ratios per token (identity preference optimization, eq. 17).

    Log-ratios are averaged over an answer's tokens, as the authors of the IPO paper confirmed: sums would make the loss
    grow with the length of the answers.

    Log-ratios of 2 over 4 tokens and −1 over 2 tokens differ by 0.5 + 0.5 = 1; with β 0.25, (1 − 2)² = 1:

    >>> policy = PairLogps(torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([4]), torch.tensor([2]))
    >>> ipo(LossInputs(policy, torch.zeros(1), torch.zeros(1)), TrainingConfig(beta=0.25)).item()
    1.0
    """
    chosen, rejected = (tokens.clamp(min=1) for tokens in (inputs.policy.chosen_tokens, inputs.policy.rejected_tokens))
    return (inputs.chosen_ratio / chosen - inputs.rejected_ratio / rejected - 1 / (2 * settings.beta)) ** 2


@uses(reward_shift=True)
def bco_pair(inputs: LossInputs, settings: TrainingConfig) -> Tensor:
    """−log σ(r_w − δ) − log σ(δ − r_l): binary classifier optimization (Jung et al., 2024, arXiv 2404.04656) of pairs.

    A reward r is β times the log-ratio, and δ is the mean reward of the answers in all optimizer steps before this one
    (our choice of the moving average; it does not depend on how a step is split into batches).

    Rewards of 1 and −0.5 and δ = 0.25: −log σ(0.75) − log σ(0.75) = 2 · 0.38687 = 0.77374:

    >>> zero, one = torch.zeros(1), torch.ones(1, dtype=torch.int64)
    >>> policy = PairLogps(torch.tensor([2.0]), torch.tensor([-1.0]), one, one)
    >>> round(bco_pair(LossInputs(policy, zero, zero, 0.25), TrainingConfig(beta=0.5)).item(), 5)
    0.77374
    """
    chosen, rejected = (settings.beta * ratio for ratio in (inputs.chosen_ratio, inputs.rejected_ratio))
    return -logsigmoid(chosen - inputs.reward_shift) - logsigmoid(inputs.reward_shift - rejected)


@uses(reference=False, rejected=False)
def sft(inputs: LossInputs, settings: TrainingConfig) -> Tensor:
    """Supervised fine-tuning: the per-token negative log-likelihood of the chosen answers (the paper's ablation)."""
    del settings
    return nll(inputs.policy.chosen, inputs.policy.chosen_tokens)


def nll(logps: Tensor, tokens: Tensor) -> Tensor:
    """Per-token negative log-likelihood, ``(B,)``; every answer has the same weight, whatever its length.

    >>> nll(torch.tensor([-6.0]), torch.tensor([4])).item()
    1.5
    """
    return -logps / tokens.clamp(min=1)


def anchor(chosen_ratio: Tensor, settings: TrainingConfig) -> Tensor:
    """−log σ(β · log-ratio − δ) of the chosen answers, ``(B,)``: the anchor of mDPO (Wang et al., EMNLP 2024).

    A reward of 1.5 with δ = 0 gives log(1 + e⁻¹·⁵) = 0.20141:

    >>> round(anchor(torch.tensor([3.0]), TrainingConfig(beta=0.5)).item(), 5)
    0.20141
    """
    return -logsigmoid(settings.beta * chosen_ratio - settings.anchor_margin)


def difficulty_weights(gaps: Tensor, strength: float) -> Tensor:
    """Weights of N pairs, ``(N,)`` float64 with mean 1: the smaller the gap, the greater the weight.

    A gap is log p per token of the chosen minus the rejected answer under the reference model. If it is large, the
    pair is easy: the model prefers the chosen answer already. Let z be the standard score of a gap among all pairs, and
    Φ the cumulative distribution function of the standard normal distribution. Then d = 1 − Φ(z) is the difficulty of
    the pair, and its weight is 1 − s + s · d / mean(d), where s is the strength, 0..1. That hard pairs count more is
    from DA-DPO (Qiu et al., 2026, arXiv 2601.00623); the formula is our choice.

    Two gaps have the standard scores −1 and 1, so d = Φ(1) = 0.8413 and 0.1587, with mean 0.5; at half the strength:

    >>> difficulty_weights(torch.tensor([0.1, 0.7]), 0.5).tolist() # doctest: +ELLIPSIS
    [1.3413..., 0.6586...]
    """
    gaps = gaps.double()
    deviation = gaps.std(correction=0)
    scores = (gaps - gaps.mean()) / deviation if deviation > 0 else torch.zeros_like(gaps)
    difficulty: Tensor = torch.special.ndtr(-scores)
    return 1 - strength + strength * difficulty / difficulty.mean()


# ── a batch ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PairLosses:
    """The losses of B pairs, each ``(B,)`` float32, and the rewards of their answers.

    A reward is β times the log-ratio to the reference, without gradient; zero without a reference.
    """

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor

    @property
    def margins(self) -> Tensor:
        """Chosen minus rejected rewards."""
        return self.chosen_rewards - self.rejected_rewards

    @property
    def accuracies(self) -> Tensor:
        """1 where the chosen answer has the greater reward, else 0."""
        return (self.chosen_rewards > self.rejected_rewards).float()


def pair_losses(
    policy: PairLogps,
    reference: tuple[Tensor, Tensor] | None,
    settings: TrainingConfig,
    *,
    reward_shift: float = 0.0,
    weights: Tensor | None = None,
    supervised: Tensor | None = None,
) -> PairLosses:
    """Compute the loss that the config selects, with the terms that it adds and the pairs' weights.

    The reference model's log-probabilities of the chosen and the rejected answers are ``(B,)`` float32; None if the
    loss does not need them. ``reward_shift`` is that of `LossInputs`. ``weights``, ``(B,)`` float32, are those of the
    pairs; None if all are 1. Where ``supervised``, ``(B,)`` bool, is true, there is no rejected answer: the loss is the
    per-token negative log-likelihood of the chosen one (`training.mix`), and the rewards are 0.
    """
    if reference is None:
        reference = policy.chosen.detach(), policy.rejected.detach()
    inputs = LossInputs(policy, *reference, reward_shift)
    parts = [weight * LOSSES[name](inputs, settings) for name, weight in settings.losses.items()]
    loss = sum(parts[1:], parts[0])
    if settings.nll_weight:
        loss = loss + settings.nll_weight * nll(policy.chosen, policy.chosen_tokens)
    if settings.anchor_weight:
        loss = loss + settings.anchor_weight * anchor(inputs.chosen_ratio, settings)
    if weights is not None:
        loss = loss * weights
    rewards = [settings.beta * ratio.detach() for ratio in (inputs.chosen_ratio, inputs.rejected_ratio)]
    if supervised is not None:
        loss = torch.where(supervised, nll(policy.chosen, policy.chosen_tokens), loss)
        rewards = [reward.masked_fill(supervised, 0.0) for reward in rewards]
    return PairLosses(loss, *rewards)


# ── log-probabilities of tokens ───────────────────────────────────────────────────────────────────────────────────────


def token_logps(
    hidden: Tensor, labels: Tensor, head: nn.Module, *, softcap: float | None = None, chunk: int = CHUNK
) -> Tensor:
    """Log-probabilities of tokens; the output head runs on one chunk of tokens at a time, and no logits are kept.

    The gradient of a frozen linear head with respect to its input is known as soon as the logits are: W[label] − Σ p W.
    It is computed along with them, so that neither logits nor probabilities are kept and nothing is computed twice. Any
    other head is recomputed in the backward pass.

    ``hidden`` is ``(N, D)`` in any floating dtype, ``labels`` is ``(N,)`` int64, and the result is ``(N,)`` float32, at
    most 0. ``softcap`` is the bound of the logits that some models apply by a tanh.
    """
    # Engines that shard weights gather them around a module's own call, so the call has to use them.
    plain = type(head) is nn.Linear and softcap is None and not hasattr(head.weight, "ds_id")
    frozen = not any(parameter.requires_grad for parameter in head.parameters())
    parts = []
    for start in range(0, len(labels), chunk):
        rows, wanted = hidden[start : start + chunk], labels[start : start + chunk]
        if plain and frozen:
            with returned_blocks():  # the logits
                parts.append(_FrozenHead.apply(rows, wanted, head.weight, head.bias))  # type: ignore[no-untyped-call]
        elif torch.is_grad_enabled():
            parts.append(checkpoint(_logps, rows, wanted, head, softcap, use_reentrant=False))
        else:
            parts.append(_logps(rows, wanted, head, softcap))
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _logps(hidden: Tensor, labels: Tensor, head: nn.Module, softcap: float | None) -> Tensor:
    logits: Tensor = head(hidden).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.gather(-1, labels[:, None])[:, 0] - logits.logsumexp(-1)


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        logits = linear(hidden, weight, bias).float()
        total = logits.logsumexp(-1)
        logps = logits.gather(-1, labels[:, None])[:, 0] - total
        if ctx.needs_input_grad[0]:
            probabilities = logits.sub_(total[:, None]).exp_().to(weight.dtype)
            ctx.save_for_backward(weight[labels] - linear(probabilities, weight.t()))
        return logps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors
        return (direction * gradients[0][:, None]).to(direction.dtype), None, None, None
