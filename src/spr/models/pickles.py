"""Weights in pickles → safetensors beside them, once; no code in a pickle is ever run."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from spr.models.loading import ModelError, Source

_INDEX = "model.safetensors.index.json"


def convert_pickles(source: Source) -> bool:
    """Write a folder's ``pytorch_model*.bin`` as ``model*.safetensors``, shard by shard, unless it has safetensors.

    A file has its name only once it is whole; the index, which makes several files a model, comes last.

    Args:
        source: A folder; a hub id is left alone.

    Returns:
        Whether anything was written.

    Raises:
        ModelError: if a pickle is damaged or holds anything but tensors, two hold the same one, or the folder can't be
            written to.
    """
    folder = Path(source)
    shards = sorted(folder.glob("pytorch_model*.bin")) if folder.is_dir() else []
    if not shards or (folder / "model.safetensors").is_file() or (folder / _INDEX).is_file():
        return False
    where: dict[str, str] = {}
    size = 0
    for path in shards:
        name = "model" + path.name.removeprefix("pytorch_model").removesuffix(".bin") + ".safetensors"
        tensors = read_pickle(path)
        for key in tensors:
            if key in where:
                raise ModelError(
                    f"Two files of {folder} hold tensor {key}", got=f"{where[key]} and {name}", fix="keep one copy"
                )
            where[key] = name
        size += sum(tensor.nbytes for tensor in tensors.values())
        _write(folder / name, tensors)
    if len(shards) > 1:
        index = json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=1)
        part = folder / f"{_INDEX}.part"
        part.write_text(index, encoding="utf-8")
        part.rename(folder / _INDEX)
    return True


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, by name, on the CPU; contiguous, and none sharing memory with another.

    Raises:
        ModelError: if it is damaged, or holds anything but tensors.
    """
    try:
        # What torch wrote before version 1.6 is no zip archive, and can't be mapped.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} can't be loaded safely",
            got=" ".join(f"{type(error).__name__}: {error}".split())[:300],
            expected="a pickle of tensors alone, which is loaded without running code",
            fix="fetch the file again, or get the weights as safetensors from someone you trust",
        ) from error
    others = [] if isinstance(loaded, dict) else [type(loaded).__name__]
    others = others or [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(f"{path} holds more than tensors", got=", ".join(others[:8]), expected="name → tensor")
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for key, value in loaded.items():
        shared = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        tensors[str(key)] = value.clone().contiguous() if shared else value.contiguous()
    return tensors


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        save_file(tensors, part, metadata={"format": "pt"})
        part.rename(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        fix = "make room in the folder, and let it be written to; or convert a copy"
        raise ModelError(f"{path} can't be written", got=error, fix=fix) from error
