"""The objects that the passes of a running training share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spr.config import TrainingConfig
from spr.training.batches import Batch, collate
from spr.training.checkpoint import (
    TrainingState,
)
from spr.training.encoding import PlannedPair, ProcessedPair
from spr.training.held_out import Evaluate
from spr.training.loss import (
    PairLogps,
)
from spr.training.trainee import Trainee
from spr.training.vision_cache import BatchEncoder


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """The objects of a running training; ``state`` holds model and optimizer as Accelerate prepared them."""

    settings: TrainingConfig
    folder: Path
    trainee: Trainee
    planned: Sequence[PlannedPair]
    held_out: Sequence[PlannedPair]
    per_epoch: int  # how many of the planned ones an epoch has
    fingerprint: dict[str, Any]
    state: TrainingState
    batches: BatchEncoder
    evaluate: Evaluate | None
    saved: Callable[[], None]
    tell: Callable[[str], None]

    def process(self, pairs: Sequence[PlannedPair]) -> list[ProcessedPair]:
        """The work for a batch that threads do ahead: images and the processor."""
        return [self.trainee.encoder.process(pair) for pair in pairs]

    def forward(self, pairs: Sequence[PlannedPair], processed: Sequence[ProcessedPair]) -> tuple[Batch, PairLogps]:
        """From the pairs of a batch to the log-probabilities of their answers."""
        encoded, trainee = self.batches.encode(pairs, processed), self.trainee
        model, pad = trainee.model, trainee.encoder.pad
        batch = collate(encoded, pad, shared=trainee.shared, dense=model.dense_masks).to(model.base.device)
        return batch, PairLogps(*self.state.model(batch))


@dataclass(frozen=True, slots=True, eq=False)
class Kinds:
    """Which rows of a batch are mixed in, and which of them have no rejected answer: ``(B,)`` bool each."""

    mixed: Tensor
    supervised: Tensor

    @classmethod
    def of(cls, pairs: Sequence[PlannedPair], device: torch.device) -> Kinds:
        """Those of a batch."""
        mixed, supervised = ([getattr(pair.pair, name) for pair in pairs] for name in ("mixed", "supervised"))
        return cls(torch.tensor(mixed, device=device), torch.tensor(supervised, device=device))
