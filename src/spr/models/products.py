"""Matrix products on the CPU: oneDNN's in place of the BLAS library's for float32.

PyTorch's builds for x86 multiply float32 matrices with MKL, whose fastest code is for Intel's processors. oneDNN, which
these builds contain as well, chooses by what the processor can do: on an AMD EPYC with AVX-512 it takes half the time.
Its results are float32 products like MKL's, and differ from them by rounding alone.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_SMALLEST = 1_000_000
"""Multiply-adds from which on oneDNN's overhead of about 10 µs per call pays off."""


def keep_few_kernels() -> None:
    """Let oneDNN keep the kernels of 64 shapes, where it would keep 1,024, unless the environment says otherwise.

    Batches of many lengths have many shapes, and kernels that are not used again took 70 MiB of a small training.
    It has an effect only before oneDNN's first product or convolution of the process.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


@cache
def _onednn() -> Any:
    """The operator ``(input, weight, bias, "none", [], "")``, which has no gradient; None if this build lacks it."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``inputs @ weight.T + bias`` of ``(…, K)`` and ``(N, K)``, in any strides; no gradient is recorded."""
    with torch.no_grad():
        if inputs.device.type == "cpu" and inputs.dtype == weight.dtype == torch.float32:
            operator, work = _onednn(), inputs.numel() * weight.shape[0]
            if operator is not None and work >= _SMALLEST and torch.backends.mkldnn.enabled:
                product: Tensor = operator(_dense(inputs), _dense(weight), bias, "none", [], "")
                return product
        return nn.functional.linear(inputs, weight, bias)


def _dense(part: Tensor) -> Tensor:
    """A copy, unless the tensor or its transpose is contiguous: for other strides, oneDNN has only its slow kernel."""
    return part if part.is_contiguous() or (part.dim() == 2 and part.t().is_contiguous()) else part.contiguous()


def frozen_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` with a gradient of the inputs, but none of weight and bias."""
    if torch.is_grad_enabled() and inputs.requires_grad:
        product: Tensor = _FrozenLinear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
        return product
    return linear(inputs, weight, bias)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return linear(gradients[0], weight.t()), None, None


def replaceable(layer: Any, *, frozen: bool = True) -> bool:
    """Whether a layer's product may be computed from its weight, without a call of the layer itself.

    Not a subclass of `torch.nn.Linear`, such as one with weights of 4 bits, nor one that something else changes when
    it is called: hooks, sharded weights (those that DeepSpeed shards have a ``ds_id``).
    """
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter or "ds_id" in vars(layer.weight):
        return False
    return not (layer._forward_hooks or layer._forward_pre_hooks or (frozen and layer.weight.requires_grad))
