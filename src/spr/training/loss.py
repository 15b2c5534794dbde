"""The losses of preference training, as pure functions of log-probabilities (METHOD §6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from spr.config import TrainingConfig


@dataclass(frozen=True, slots=True)
class PairLogps:
    """What a model thinks of the two answers of B pairs.

    Attributes:
        chosen, rejected: ``(B,)`` float32, the sum of the log-probabilities of an answer's tokens.
        chosen_tokens, rejected_tokens: ``(B,)`` int64, how many tokens that are.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor


@dataclass(frozen=True, slots=True)
class PairLosses:
    """The loss of B pairs and what steers a training, each ``(B,)`` float32.

    Attributes:
        loss: What is minimised; its mean over pairs is the loss of a batch.
        chosen_rewards, rejected_rewards: β times the log-ratio to the reference; zero for fine-tuning.
    """

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor

    @property
    def margins(self) -> Tensor:
        """Chosen minus rejected reward."""
        return self.chosen_rewards - self.rejected_rewards

    @property
    def accuracies(self) -> Tensor:
        """1 where chosen has the greater reward, else 0."""
        return (self.chosen_rewards > self.rejected_rewards).float()


def dpo(chosen_ratio: Tensor, rejected_ratio: Tensor, beta: float) -> Tensor:
    """−log σ(β (chosen − rejected)), the sigmoid loss of direct preference optimisation [paper].

    Args:
        chosen_ratio: ``(B,)``, log π(y_w|x) − log π_ref(y_w|x).
        rejected_ratio: ``(B,)``, the same of the rejected answer.
        beta: How far the policy may go from the reference.

    With ratios 2 and −1 and β 0.5 the margin is 1.5, and −log σ(1.5) = log(1 + e⁻¹·⁵) = log 1.22313 = 0.20141:

    >>> round(dpo(torch.tensor([2.0]), torch.tensor([-1.0]), 0.5).item(), 5)
    0.20141
    """
    return -logsigmoid(beta * (chosen_ratio - rejected_ratio))


def ipo(chosen_ratio: Tensor, rejected_ratio: Tensor, beta: float, lengths: tuple[Tensor, Tensor]) -> Tensor:
    """(h − 1 / 2β)² with h the difference of the log-ratios a token (identity preference optimisation, eq. 17).

    The mean a token, not the sum, as the paper's authors confirmed to other implementers: else the loss would grow with
    the answers.

    Args:
        chosen_ratio: ``(B,)``, as for `dpo`.
        rejected_ratio: ``(B,)``, as for `dpo`.
        beta: The paper's τ.
        lengths: ``(B,)`` each, tokens of the chosen and the rejected answers.

    Ratios 2 over 4 tokens and −1 over 2 differ by 0.5 + 0.5 = 1 a token; with β 0.25, (1 − 2)² = 1:

    >>> ipo(torch.tensor([2.0]), torch.tensor([-1.0]), 0.25, (torch.tensor([4]), torch.tensor([2]))).item()
    1.0
    """
    chosen, rejected = (tokens.clamp(min=1) for tokens in lengths)
    return (chosen_ratio / chosen - rejected_ratio / rejected - 1 / (2 * beta)) ** 2


def nll(logps: Tensor, tokens: Tensor) -> Tensor:
    """The mean negative log-likelihood a token, ``(B,)``; each answer counts alike, whatever its length.

    >>> nll(torch.tensor([-6.0]), torch.tensor([4])).item()
    1.5
    """
    return -logps / tokens.clamp(min=1)


def pair_losses(policy: PairLogps, reference: tuple[Tensor, Tensor] | None, settings: TrainingConfig) -> PairLosses:
    """The loss that the config asks for.

    Args:
        policy: What the trained model thinks of the answers.
        reference: ``(B,)`` each, the reference's log-probabilities of the chosen and the rejected answers; None for
            fine-tuning, which needs none.
        settings: ``loss``, ``beta`` and ``nll_weight``.
    """
    zero = torch.zeros_like(policy.chosen)
    if settings.loss_type == "sft" or reference is None:
        return PairLosses(nll(policy.chosen, policy.chosen_tokens), zero, zero)
    chosen_ratio, rejected_ratio = policy.chosen - reference[0], policy.rejected - reference[1]
    if settings.loss_type == "dpo":
        loss = dpo(chosen_ratio, rejected_ratio, settings.beta)
    else:
        lengths = policy.chosen_tokens, policy.rejected_tokens
        loss = ipo(chosen_ratio, rejected_ratio, settings.beta, lengths)
    if settings.nll_weight:
        loss = loss + settings.nll_weight * nll(policy.chosen, policy.chosen_tokens)
    beta = settings.beta
    return PairLosses(loss, (beta * chosen_ratio).detach(), (beta * rejected_ratio).detach())
