"""Log-probabilities of answer tokens: the output head runs on these alone, in chunks, and keeps no logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK = 1024
"""Answer tokens whose logits are in memory at a time: 0.6 GB in float32 at 150,000 words."""


def token_logps(hidden: Tensor, labels: Tensor, head: nn.Module, *, softcap: float | None = None) -> Tensor:
    """Log p(label) at each position.

    A frozen linear head's gradient with regard to its input is known as soon as the logits are: W[label] − Σ p W. It is
    computed along with them, so that neither logits nor probabilities are kept, and nothing is computed twice.

    Args:
        hidden: ``(N, D)``, what the head reads, in any floating dtype.
        labels: ``(N,)`` int64.
        head: The output head, a frozen `nn.Linear`; any other module is differentiated as usual, chunk by chunk.
        softcap: Bounds logits to ± this by a tanh, as some models do.

    Returns:
        ``(N,)`` float32.
    """
    # Weights that a sharding engine gathers only around a module's own call must be used by that call.
    plain = type(head) is nn.Linear and softcap is None and not hasattr(head.weight, "ds_id")
    frozen = not any(parameter.requires_grad for parameter in head.parameters())
    parts = []
    for start in range(0, len(labels), CHUNK):
        rows, wanted = hidden[start : start + CHUNK], labels[start : start + CHUNK]
        if plain and frozen:
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
        logits = nn.functional.linear(hidden, weight, bias).float()
        total = logits.logsumexp(-1)
        logps = logits.gather(-1, labels[:, None])[:, 0] - total
        if ctx.needs_input_grad[0]:
            probabilities = logits.sub_(total[:, None]).exp_().to(weight.dtype)
            ctx.save_for_backward(weight[labels] - probabilities @ weight)
        return logps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors
        return (direction * gradients[0][:, None]).to(direction.dtype), None, None, None
