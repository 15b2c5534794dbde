"""The optimiser of the embedded models: Muon for the matrices of hidden layers, AdamW for all other parameters.

Muon replaces the momentum of a matrix by the nearest orthogonal matrix before the step. torch's implementation computes
it in bfloat16, which is slow on CPUs without hardware support; this one uses float32 and batches matrices of one shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)  # Newton–Schulz coefficients that move singular values towards 1 quickly


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Approximately the nearest (semi-)orthogonal matrices, with singular values near 1: ``(K, M, N)`` → ``(K, M, N)``.

    >>> singular = torch.linalg.svdvals(orthogonalise(torch.diag(torch.tensor([3.0, 1.0, 0.5]))[None]))
    >>> bool(((singular > 0.6) & (singular < 1.3)).all())
    True
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    made: Tensor = x.mT if tall else x
    return made


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, in the parameters' own precision; parameters must be matrices."""

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; matrices of the same shape are orthogonalised together."""
        del closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
                directions = orthogonalise(torch.stack(list(updates)))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(directions.unbind()), alpha=-group["lr"] * scale)


class Optimiser:
    """Muon and AdamW with one schedule: linear warm-up, then cosine decay to 0.1 % of the peak learning rate.

    Args:
        modules: The modules to train; Muon takes matrices without ``embed`` or ``lm_head`` in their names.
        steps: Length of the schedule.
        lr: Peak learning rate of AdamW.
        muon_lr: Peak learning rate of Muon.
        weight_decay: Weight decay of both.
        warmup: Share of the steps for the warm-up.
        clip: Maximum norm of the whole gradient.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        *,
        steps: int,
        lr: float = 3e-3,
        muon_lr: float = 0.02,
        weight_decay: float = 0.01,
        warmup: float = 0.03,
        clip: float = 1.0,
    ) -> None:
        named = [
            (f"{key}.{name}", parameter)
            for key, module in modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        ids = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in ids]
        self.parameters = matrices + rest
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=muon_lr, weight_decay=weight_decay),
            torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98)),
        ]
        self.peaks = (muon_lr, lr)
        self.steps, self.warmup, self.clip = steps, warmup, clip

    def rate(self, step: int) -> float:
        """The share of the peak learning rate at a step, counted from 0."""
        progress = (step + 1) / self.steps
        if progress < self.warmup:
            return progress / self.warmup
        return 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))

    def step(self, step: int) -> None:
        """Clip the gradients, apply them with this step's learning rate, and clear them."""
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for optimiser, peak in zip(self.optimisers, self.peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * self.rate(step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """The state of both optimisers."""
        return [optimiser.state_dict() for optimiser in self.optimisers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore a state of `state_dict`."""
        for optimiser, state in zip(self.optimisers, states, strict=True):
            optimiser.load_state_dict(state)
