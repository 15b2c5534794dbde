"""A step's figures, over all pairs of all processes, and the speed since the step before."""

from __future__ import annotations

import resource
import sys
import time

import torch
from accelerate import Accelerator

from spr.training.loss import PairLogps, PairLosses


class Meter:
    """Sums over a step's pairs.

    Args:
        accelerator: Of the training; all processes read together.
    """

    _NAMES = (
        "loss",
        "margin",
        "accuracy",
        "chosen_logps",
        "rejected_logps",
        "chosen_rewards",
        "rejected_rewards",
    )

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator, self._sums = accelerator, torch.zeros(len(self._NAMES) + 2, dtype=torch.float64)
        self._start = self._before = time.monotonic()

    def add(self, logps: PairLogps, losses: PairLosses, tokens: int, weight: float) -> None:
        """Note a batch; with weight 0 it does not count."""
        columns = (
            losses.loss,
            losses.margins,
            losses.accuracies,
            logps.chosen,
            logps.rejected,
            losses.chosen_rewards,
            losses.rejected_rewards,
        )
        sums = [column.detach().double().sum().cpu() for column in columns]
        self._sums += weight * torch.stack([*sums, torch.tensor(len(losses.loss)), torch.tensor(tokens)])

    def read(self, norm: float | None) -> dict[str, float]:
        """The step's means and its speed; the next step begins."""
        sums = self._sums.to(
            self._accelerator.device, torch.float32 if self._accelerator.device.type == "mps" else None
        )
        *means, count, tokens = self._accelerator.reduce(sums, reduction="sum").tolist()
        now = time.monotonic()
        values = {name: value / count for name, value in zip(self._NAMES, means, strict=True)}
        values["grad_norm"] = norm or 0.0
        values["tokens_per_second"] = tokens / max(now - self._before, 1e-9)
        values["seconds"] = now - self._start
        if torch.cuda.is_available():
            values["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        else:
            values["memory_gib"] = _resident_gib()
        self._before = now
        self._sums.zero_()
        return values


def _resident_gib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
