"""Image features from the frozen vision tower: computed once per pair, and kept where `training.vision_cache` says."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from spr.core.atomic import leftovers, write_atomically
from spr.models.image_features import Features

if TYPE_CHECKING:
    from spr.training.batches import EncodedPair
    from spr.training.encoding import PairEncoder, PlannedPair, ProcessedPair

UNSHARDED = {DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.MULTI_XPU}
"""Kinds of training in which every process has all weights and can run a part of the model without the others."""


class MemoryFeatures:
    """A store in this process's main memory. Features that exceed its limit in bytes are not kept."""

    def __init__(self, limit: int | None = None) -> None:
        self._kept: dict[str, Features] = {}
        self._left = float("inf") if limit is None else limit

    def get(self, key: str) -> Features | None:
        """Return the features of this key, or None if they have to be computed."""
        return self._kept.get(key)

    def put(self, key: str, features: Features) -> None:
        """Keep a copy, if there is room."""
        if key not in self._kept and features.nbytes <= self._left:
            self._left -= features.nbytes
            # A blocking copy: a non-blocking one takes page-locked memory, in blocks of up to twice the size.
            self._kept[key] = features.to("cpu", non_blocking=False)


class DiskFeatures:
    """A store on disk with one safetensors file per key; damaged files are computed again.

    Several runs may share its folder, since a key covers all that determines the features.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for path in folder.iterdir() if folder.is_dir() else ():
            for leftover in leftovers(path):
                leftover.unlink(missing_ok=True)

    def get(self, key: str) -> Features | None:
        """Read the features of this key, or return None if they have to be computed."""
        try:
            tensors = load_file(self._path(key))
        except (OSError, SafetensorError):
            return None
        names = {"tokens", *(f"deep{k}" for k in range(len(tensors) - 1))}
        if set(tensors) != names:
            return None
        return Features(tensors["tokens"], tuple(tensors[f"deep{k}"] for k in range(len(tensors) - 1)))

    def put(self, key: str, features: Features) -> None:
        """Write a file atomically."""
        tensors = {"tokens": features.tokens, **{f"deep{k}": part for k, part in enumerate(features.deep)}}
        write_atomically(self._path(key), save({name: part.cpu().contiguous() for name, part in tensors.items()}))

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"


FeatureStore = MemoryFeatures | DiskFeatures
"""A place where features are kept, by `feature_key`."""


def open_store(kind: Literal["auto", "none", "memory", "disk"], folder: Path) -> FeatureStore:
    """Make the store that `training.vision_cache` names; ``auto`` is a quarter of the free memory."""
    match kind:
        case "auto":
            return MemoryFeatures(free_memory() // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        case "memory":
            return MemoryFeatures()
        case "disk":
            return DiskFeatures(folder)
        case "none":
            return MemoryFeatures(limit=0)


def free_memory(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of main memory that can still be used, by the machine and by the limits of a container or job.

    Limits are those of Linux control groups (version 2), mounted at ``groups``; the file ``own`` names this process's.
    """
    free = [int(psutil.virtual_memory().available)]
    name = re.search(r"^0::/(.*)$", own.read_text(), re.MULTILINE) if own.is_file() else None
    group = groups / name[1] if name else None
    for folder in (group, *group.parents) if group else ():
        try:
            limit, used, stat = ((folder / f"memory.{file}").read_text() for file in ("max", "current", "stat"))
            # Cached files count as used memory, but are released when memory is needed.
            cached = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)
            free.append(max(0, int(limit) - int(used) + int(cached[1] if cached else 0)))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(free)


def feature_key(vision_inputs: Mapping[str, Tensor], model: str) -> str:
    """Hex digest of everything that determines an image's features; ``model`` identifies model and processor."""
    digest = hashlib.sha256(model.encode())
    for name, tensor in sorted(vision_inputs.items()):
        digest.update(f"\0{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()[:40]


class BatchEncoder:
    """Adds image features to this process's batches; the vision tower runs where features are missing.

    Engines that shard weights gather them in every call, from all processes. With these, every process runs the vision
    tower as often as the process that lacks the most features. ``wrapped`` is the model as the engine wrapped it.
    """

    def __init__(self, encoder: PairEncoder, model: Any, wrapped: Any, accelerator: Accelerator) -> None:
        self._encoder, self._accelerator = encoder, accelerator
        self._unsharded = accelerator.distributed_type in UNSHARDED
        # Not the wrapped module where there is a choice: DDP synchronizes buffers in each call.
        self._model = model if self._unsharded else wrapped
        self._runs = 0
        self._spare: dict[str, Tensor] = {}

    def encode(self, pairs: Sequence[PlannedPair], processed: Sequence[ProcessedPair]) -> list[EncodedPair]:
        """Complete the pairs of one batch after `PairEncoder.process`; all processes call this together."""
        before, most = self._runs, 0
        # Pairs whose features are on disk have vision inputs as well, so there is always an input for extra runs.
        self._spare = next((part.vision for part in processed if part.vision), self._spare)
        if not self._unsharded:
            missing = sum(bool(part.key) and self._encoder.store.get(part.key) is None for part in processed)
            counts = torch.tensor([missing], device=self._accelerator.device)
            most = int(self._accelerator.gather(counts).max())
        encoded = [self._encoder.finish(pair, part, self._compute) for pair, part in zip(pairs, processed, strict=True)]
        while self._runs < before + most:
            self._compute(self._spare)
        return encoded

    def _compute(self, vision: dict[str, Tensor]) -> Features:
        self._runs += 1
        with torch.no_grad():
            tokens, deep = self._model(vision=vision)
        # Accelerate's mixed precision returns float32.
        dtype = self._encoder.model.dtype
        return Features(tokens.to(dtype), tuple(part.to(dtype) for part in deep))
