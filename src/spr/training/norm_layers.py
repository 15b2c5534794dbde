"""RMS normalization as one function of autograd: half the passes over memory, with the same results.

transformers computes y = w · x / √(mean(x²) + ε) in six operations, each with a gradient of its own. With
s = 1 / √(mean(x²) + ε) and g = w · ∂y, the gradient is ∂x = s (g − x · s² · mean(g · x)).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_EXACT = (torch.float32, torch.float64)


def speed_up_norms(model: nn.Module) -> int:
    """Replace the forward passes of a model's frozen RMS normalizations; returns their number.

    Families define the layer differently, for example with 1 + w. Only layers that compute the formula above for a
    trial input are replaced, and in 16 bits they compute as before.
    """
    count = 0
    for module in model.modules():
        weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        named = type(module).__name__.endswith("RMSNorm") and isinstance(epsilon, float)
        if not (named and isinstance(weight, nn.Parameter) and weight.dim() == 1):
            continue
        if not weight.requires_grad and weight.dtype in _EXACT:
            trial = torch.linspace(-1, 2, 3 * len(weight), dtype=weight.dtype, device=weight.device).view(3, -1)
            with torch.no_grad():
                same = torch.allclose(module(trial), _RmsNorm.apply(trial, weight, epsilon), rtol=1e-5, atol=1e-6)  # type: ignore[no-untyped-call]
            if same:
                module.forward = partial(_norm, module, module.forward)
                count += 1
    return count


def _norm(layer: Any, before: Callable[..., Tensor], inputs: Tensor, *args: Any, **options: Any) -> Tensor:
    if args or options or inputs.dtype != layer.weight.dtype or torch.is_autocast_enabled(inputs.device.type):
        return before(inputs, *args, **options)
    result: Tensor = _RmsNorm.apply(inputs, layer.weight, layer.variance_epsilon)  # type: ignore[no-untyped-call]
    return result


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norms = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True)
        scale = norms.square_().div_(inputs.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(inputs, weight, scale)
        output: Tensor = inputs * scale
        return output.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, scale = ctx.saved_tensors
        weighted = gradients[0] * weight
        shared = torch.linalg.vecdot(weighted, inputs)[..., None].mul_(scale**3 / -inputs.shape[-1])
        return weighted.mul_(scale).addcmul_(inputs, shared), None, None
