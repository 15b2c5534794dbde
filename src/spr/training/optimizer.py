"""The optimizer of the adapter: AdamW of PyTorch, or AdamW of bitsandbytes with its moments in 8 bits."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn, optim

from spr.config import TrainingConfig
from spr.core.errors import SprError


def check_optimizer(settings: TrainingConfig) -> None:
    """Raise `SprError` if `training.optim` needs a package that is not installed."""
    if settings.optim == "adamw_8bit" and find_spec("bitsandbytes") is None:
        fix = "pip install 'bitsandbytes>=0.45', or set training.optim=adamw_torch"
        raise SprError("`training.optim: adamw_8bit` needs bitsandbytes", got="it is not installed", fix=fix)


def make_optimizer(parameters: Iterable[nn.Parameter], settings: TrainingConfig) -> optim.Optimizer:
    """AdamW with β 0.9 and 0.999 and ε 1e-8 on the trained parameters.

    ``adamw_8bit`` keeps both moments of a matrix in blocks of 256 numbers, 8 bits each and a factor per block (Dettmers
    et al., 2022, "8-bit Optimizers via Block-wise Quantization"); those of matrices with fewer than 4,096 numbers are
    float32. Raises `SprError` if its package is not installed.
    """
    check_optimizer(settings)
    if settings.optim is None:
        return optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    optimizer: optim.Optimizer = adamw_8bit()(parameters, **options, betas=(0.9, 0.999), eps=1e-8)
    return optimizer


def adamw_8bit() -> Any:
    """The class of bitsandbytes."""
    return import_module("bitsandbytes.optim").AdamW8bit
