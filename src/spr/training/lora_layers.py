"""Less work in the linear layers of a LoRA training, with the same results.

PEFT computes an adapted layer as ``x Wᵀ + s (x Aᵀ) Bᵀ`` in five operations, of which three read and write the whole
output; autograd then adds up two gradients of ``x``. Here the layer is one function of autograd:

- Many tokens: ``x (W + s B A)ᵀ``, one product. The merged weight costs r multiply-adds per weight and batch, and is
  computed again for the backward pass, not kept.
- Few tokens, or weights of 16 bits (or float32 that PyTorch is set to round to TF32 or bfloat16 in products), whose
  rounding would lose the adapter: ``x Wᵀ``, to which the second product is added in place.

The gradients are ``∂x = ∂y W + s (∂y B) A``, ``∂A = s (∂y B)ᵀ x`` and ``∂B = s ∂yᵀ (x Aᵀ)``. Frozen layers compute
the gradient of their input alone. On the CPU, products of float32 are oneDNN's (`spr.models.products`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spr.models.products import frozen_linear, keep_few_kernels, linear, replaceable


def speed_up_layers(model: nn.Module) -> None:
    """Replace the forward passes of a model's linear layers, adapted or frozen, by faster ones with the same result.

    Modules, parameters and hooks stay as they are, and a layer that is unlike PEFT's plain LoRA computes as before:
    dropout, several adapters, weights of 4 bits, or of float16 with an adapter of float32. Not for sharded weights,
    which an engine gathers around a module's own call.
    """
    keep_few_kernels()
    for module in model.modules():
        if type(module) is LoraLinear:
            module.forward = partial(_adapted, module, module.forward)
        elif type(module) is nn.Linear and type(module.weight) is nn.Parameter:
            module.forward = partial(_frozen, module, module.forward)  # type: ignore[method-assign]


def _frozen(layer: nn.Linear, before: Callable[..., Tensor], inputs: Tensor) -> Tensor:
    weight = layer.weight
    if torch.is_autocast_enabled(inputs.device.type) or weight.requires_grad or inputs.dtype != weight.dtype:
        return before(inputs)
    return frozen_linear(inputs, weight, layer.bias)


def _adapted(layer: Any, before: Callable[..., Tensor], inputs: Tensor, *args: Any, **options: Any) -> Tensor:
    base, name = layer.base_layer, _only_adapter(layer)
    unknown = name is None and (layer.merged or not layer.disable_adapters)
    if args or options or unknown or not replaceable(base):
        return before(inputs, *args, **options)
    weight, bias, device = base.weight, base.bias, inputs.device.type
    autocast = torch.is_autocast_enabled(device)
    given = inputs.to(torch.get_autocast_dtype(device)) if autocast else inputs
    if given.dtype != weight.dtype:
        return before(inputs)
    if name is None:
        return frozen_linear(given, weight, bias)
    parts = (layer.lora_A[name].weight, layer.lora_B[name].weight)
    if autocast:
        parts = (parts[0].to(weight.dtype), parts[1].to(weight.dtype))
    elif any(part.dtype != weight.dtype for part in parts):  # float16, in which small gradients would be 0
        return before(inputs)
    product: Tensor = _LoraLinear.apply(given, weight, bias, *parts, layer.scaling[name])  # type: ignore[no-untyped-call]
    return product


def _only_adapter(layer: Any) -> str | None:
    """The name of the adapter, if the layer is that of plain LoRA with one adapter, not merged and without dropout."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] in layer.lora_variant:
        return None
    dropout, parts = layer.lora_dropout[names[0]], (layer.lora_A[names[0]], layer.lora_B[names[0]])
    if not (isinstance(dropout, nn.Identity) or not dropout.training):
        return None
    return names[0] if all(replaceable(part, frozen=False) and part.bias is None for part in parts) else None


def _merges(tokens: int, weight: Tensor) -> bool:
    """Whether merging takes less work than the adapter's own two products, and its rounding loses nothing."""
    exact = weight.dtype == torch.float64 or (weight.dtype == torch.float32 and not _rounds(weight.device.type))
    return exact and tokens * sum(weight.shape) >= weight.numel()


def _rounds(device: str) -> bool:
    """Whether PyTorch is set to round the factors of float32 products to TF32 or bfloat16."""
    backend: Any = torch.backends.mkldnn if device == "cpu" else torch.backends.cuda
    precision = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if precision is None:  # a version of PyTorch with one setting for all devices
        return torch.get_float32_matmul_precision() != "highest"
    return precision not in ("none", "ieee")


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, a, b)
        ctx.scaling, ctx.merges = scaling, _merges(inputs.numel() // inputs.shape[-1], weight)
        if ctx.merges:
            return linear(inputs, torch.addmm(weight, b, a, alpha=scaling), bias)
        output = linear(inputs, weight, bias)
        output.view(-1, len(b)).addmm_(linear(inputs, a).view(-1, len(a)), b.t(), alpha=scaling)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, a, b = ctx.saved_tensors
        rows, tokens = gradients[0].reshape(-1, len(b)), inputs.reshape(-1, a.shape[1])
        inner = linear(rows, b.t()).mul_(ctx.scaling)  # (T, r), the gradient of x Aᵀ
        to_a = to_b = to_inputs = None
        if ctx.needs_input_grad[3]:
            to_a = linear(inner.t(), tokens.t())
        if ctx.needs_input_grad[4]:
            to_b = linear(linear(tokens, a).t(), rows.t()).mul_(ctx.scaling).t()
        if ctx.needs_input_grad[0]:
            if ctx.merges:
                to_inputs = linear(rows, torch.addmm(weight, b, a, alpha=ctx.scaling).t())
            else:
                to_inputs = linear(rows, weight.t()).addmm_(inner, a)
            to_inputs = to_inputs.view_as(inputs)
        return to_inputs, None, None, to_a, to_b, None
