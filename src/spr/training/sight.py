"""Encoding a batch in one of several processes: the vision tower runs where features are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from spr.training.collate import EncodedPair
from spr.training.encode import PairEncoder, PlannedPair, Read
from spr.training.features import Features

WHOLE = {DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.MULTI_XPU}
"""Where each process has all weights: it may run a part of the model without the others."""


class BatchEncoder:
    """Encodes this process's batches.

    Engines that shard weights gather them in every call, from all processes. So there the vision tower runs in all of
    them as often as in the one that lacks the most features.

    Args:
        encoder: Of the pairs.
        model: The module that is trained, as it was before it was wrapped.
        wrapped: As the engine made it.
        accelerator: Of the training.
    """

    def __init__(self, encoder: PairEncoder, model: Any, wrapped: Any, accelerator: Accelerator) -> None:
        self._encoder, self._accelerator = encoder, accelerator
        self._alone = accelerator.distributed_type in WHOLE
        # Not wrapped where there is a choice: DDP sends buffers around in each call.
        self._model = model if self._alone else wrapped
        self._runs = 0
        self._spare: dict[str, Tensor] = {}

    def encode(self, pairs: Sequence[PlannedPair], read: Sequence[Read]) -> list[EncodedPair]:
        """Pairs with their images' features; every process takes part, each with its own batch.

        Args:
            pairs: Of one batch.
            read: What `PairEncoder.read` made of each.
        """
        begun = self._runs
        # What is on disk comes with its vision inputs, too; so there is one to run on where another process lacks some.
        self._spare = next((part.vision for part in read if part.vision), self._spare)
        most = 0 if self._alone else self._most_missing(read)
        made = [self._encoder.finish(pair, part, self._look) for pair, part in zip(pairs, read, strict=True)]
        while self._runs < begun + most:
            self._look(self._spare)
        return made

    def _most_missing(self, read: Sequence[Read]) -> int:
        missing = sum(self._encoder.store.get(part.key) is None for part in read)
        counts = torch.tensor([missing], device=self._accelerator.device)
        return int(self._accelerator.gather(counts).max())

    def _look(self, vision: dict[str, Tensor]) -> Features:
        self._runs += 1
        with torch.no_grad():
            tokens, deep = self._model(vision=vision)
        # Accelerate's mixed precision hands them on in float32.
        dtype = self._encoder.model.dtype
        return Features(tokens.to(dtype), tuple(part.to(dtype) for part in deep))
