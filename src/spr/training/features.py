"""What the frozen vision tower makes of an image, computed once a pair and kept where the config says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from spr.core.atomic import write_atomically


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """An image as the language model reads it.

    Attributes:
        tokens: ``(n, D)``, one row an image token of the prompt.
        deep: ``(n, D)`` each, what is added in the first layers of the language model (Qwen3-VL), else empty.
    """

    tokens: Tensor
    deep: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.nbytes for part in (self.tokens, *self.deep))

    def to(self, device: torch.device) -> Features:
        """The same on a device."""
        deep = tuple(part.to(device, non_blocking=True) for part in self.deep)
        return Features(self.tokens.to(device, non_blocking=True), deep)


@dataclass(frozen=True, slots=True, eq=False)
class ImageOutputs:
    """The features of a batch's images, as transformers' models take them (``mm_encoder_outputs``)."""

    pooler_output: Any
    deepstack_features: list[list[Tensor]] | None = None


def image_outputs(features: tuple[Features, ...], *, joined: bool) -> ImageOutputs:
    """Features of several images → what the model's forward takes instead of pixels.

    Args:
        features: In the order of the sequences.
        joined: One tensor instead of a list.
    """
    tokens = [part.tokens for part in features]
    depth = len(features[0].deep)
    deep = [[part.deep[level] for part in features] for level in range(depth)]
    return ImageOutputs(torch.cat(tokens) if joined else tokens, deep or None)


def compute_features(model: Any, vision_inputs: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One image through vision tower and projector: the fields of `Features`.

    Args:
        model: The whole model of transformers (not its adapter).
        vision_inputs: What the processor made of the image: ``pixel_values`` and, by family, sizes or grids.
    """
    device, dtype = model.device, model.dtype
    inputs = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in vision_inputs.items()
    }
    made = model.model.get_image_features(**inputs, return_dict=True)
    pooled = made.pooler_output
    parts = [pooled] if isinstance(pooled, Tensor) else list(pooled)
    tokens = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
    deep = getattr(made, "deepstack_features", None) or ()
    return tokens, tuple(torch.cat(list(level)) for level in deep)


class FeatureStore(Protocol):
    """Where features are kept, by the digest of what they are made of."""

    def get(self, key: str) -> Features | None:
        """The features, or None where they have to be made."""
        ...

    def put(self, key: str, features: Features) -> None:
        """Keep them."""
        ...


class NoFeatures:
    """Keeps nothing."""

    def get(self, key: str) -> Features | None:
        """None."""
        del key
        return None

    def put(self, key: str, features: Features) -> None:
        """Does nothing."""


class MemoryFeatures:
    """Keeps features in the main memory of this process.

    Args:
        limit: The most bytes; what comes when they are full is not kept. None: no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._kept: dict[str, Features] = {}
        self._left = limit

    def get(self, key: str) -> Features | None:
        """The features of this key."""
        return self._kept.get(key)

    def put(self, key: str, features: Features) -> None:
        """Keep a copy in main memory, where there is room."""
        if self._left is not None and key not in self._kept:
            size = features.nbytes
            if size > self._left:
                return
            self._left -= size
        # Waiting for the copy: one that doesn't wait lies in page-locked memory, in blocks of up to twice the size.
        self._kept[key] = Features(features.tokens.cpu(), tuple(part.cpu() for part in features.deep))


class DiskFeatures:
    """Keeps features as a safetensors file each; a damaged one is made anew.

    Args:
        folder: Made where it is not there. Other runs may use it, too: a key holds all that decides the features.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> Features | None:
        """The features of this key, read from disk."""
        path = self._path(key)
        try:
            tensors = load_file(path)
        except (FileNotFoundError, SafetensorError):
            return None
        return Features(tensors["tokens"], tuple(tensors[f"deep{k}"] for k in range(len(tensors) - 1)))

    def put(self, key: str, features: Features) -> None:
        """Write them, whole or not at all."""
        tensors = {"tokens": features.tokens, **{f"deep{k}": part for k, part in enumerate(features.deep)}}
        write_atomically(self._path(key), save({name: part.cpu().contiguous() for name, part in tensors.items()}))

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"


def open_store(kind: Literal["auto", "none", "memory", "disk"], folder: Path) -> FeatureStore:
    """The store that the config names; ``auto`` is memory, at most a quarter of what is free."""
    match kind:
        case "auto":
            return MemoryFeatures(free_memory() // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        case "memory":
            return MemoryFeatures()
        case "disk":
            return DiskFeatures(folder)
        case "none":
            return NoFeatures()


def free_memory(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of main memory that may still be used: what the machine has free, at most what a container or job has left.

    Args:
        groups: Where Linux shows control groups of version 2; elsewhere only the machine's own figure counts.
        own: The file that names this process's group.
    """
    limits = [int(psutil.virtual_memory().available)]
    try:
        names = [line[3:] for line in own.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        names = []
    for name in names:
        group = PurePosixPath(name.lstrip("/"))
        for part in (group, *group.parents):
            try:
                limit, used = (int((groups / part / f"memory.{kind}").read_text()) for kind in ("max", "current"))
                # Files that were read count as used, and make room when it is needed.
                lines = (groups / part / "memory.stat").read_text().splitlines()
            except (OSError, ValueError):  # no such file, or "max"
                continue
            cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
            limits.append(max(0, limit - used + cached))
    return min(limits)


def feature_key(vision_inputs: Mapping[str, Tensor], made_by: str) -> str:
    """The digest of what a vision tower reads, and of what sees it.

    Args:
        vision_inputs: What the processor made of the image: pixels, sizes or grids, regions.
        made_by: Model and processor.
    """
    digest = hashlib.sha256(made_by.encode())
    for name, tensor in sorted(vision_inputs.items()):
        digest.update(f"\0{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()[:40]
