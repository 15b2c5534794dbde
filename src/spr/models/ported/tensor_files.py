"""Reads the tensors of a folder of weights, with one file open at a time: safetensors, or pickles of tensors only.

Code in a pickle never runs. `convert_pickles` converts pickles to safetensors, once.
"""

from __future__ import annotations

import itertools
import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spr.core.atomic import atomic_file, write_atomically
from spr.core.paths import is_dir
from spr.models.errors import ModelError
from spr.models.loading import Source, clear_write_errors

_KINDS = ("model*.safetensors", "pytorch_model*.bin")
_INDEX = "model.safetensors.index.json"


class Shards:
    """Names, shapes and values of the tensors in a folder. Tensors are read when they are accessed.

    Safetensors are preferred if they are complete or there are no pickles. Pickles are memory-mapped, so that a tensor
    takes memory only while it is used.

    Args:
        folder: Contains ``model*.safetensors`` or ``pytorch_model*.bin``, in one file or sharded.

    Attributes:
        folder: The folder.
        pickled: Whether the files are pickles.

    Raises:
        ModelError: if there are no weights, a shard of the index is missing, a file is damaged or contains anything
            but tensors, or two files contain the same tensor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        safe, pickles = (sorted(folder.glob(kind)) for kind in _KINDS)
        # Several files without an index may be left from an interrupted conversion.
        self.pickled = bool(pickles) and not _has_safetensors(folder)
        files = pickles if self.pickled else safe
        if not files:
            got = ", ".join(sorted(path.name for path in folder.glob("*"))[:8]) or "an empty folder"
            raise ModelError(f"{folder} has no weights", got=got, expected=" or ".join(_KINDS))
        self._check_index(files)
        self._opened: tuple[Path, Any] | None = None
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in files:
            opened = self._open(path)
            for name in opened.keys():  # noqa: SIM118 (a safetensors file is not a mapping)
                if name in self._files:
                    got = f"{self._files[name].name} and {path.name}"
                    fix = "keep only one of the files"
                    raise ModelError(f"Two files of {folder} contain tensor {name}", got=got, fix=fix)
                shape = opened[name].shape if self.pickled else opened.get_slice(name).get_shape()
                self._files[name], self._shapes[name] = path, tuple(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def by_file(self) -> dict[Path, list[str]]:
        """The names of the tensors in each file."""
        return {path: list(names) for path, names in itertools.groupby(self._files, self._files.__getitem__)}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._shapes[name]

    def __getitem__(self, name: str) -> Tensor:
        """A tensor, on the CPU."""
        opened = self._open(self._files[name])
        tensor: Tensor = opened[name] if self.pickled else opened.get_tensor(name)
        return tensor

    def _open(self, path: Path) -> Any:
        if self._opened is None or self._opened[0] != path:
            self._opened = None  # close it before opening the next
            self._opened = path, _load_pickle(path) if self.pickled else _open_safetensors(path)
        return self._opened[1]

    def _check_index(self, files: list[Path]) -> None:
        index = self.folder / ("pytorch_model.bin.index.json" if self.pickled else _INDEX)
        if not index.is_file():
            return
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index} can't be read", got=error, fix="download the file again") from error
        lost = sorted(named - {path.name for path in files})
        if lost:
            fix = "download the missing files"
            raise ModelError(f"{self.folder} has no file for some shards of its index", got=", ".join(lost), fix=fix)


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a safetensors file", got=error, fix="download the file again") from error


def _load_pickle(path: Path) -> dict[str, Tensor]:
    try:
        # Files of torch before version 1.6 are not zip archives and can't be memory-mapped.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        got = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        expected = "a pickle of tensors only, which can be loaded without running code"
        fix = "download the file again, or get the weights as safetensors from a source that you trust"
        raise ModelError(f"{path} can't be loaded safely", got=got, expected=expected, fix=fix) from error
    strange = [type(loaded).__name__]
    if isinstance(loaded, dict):
        other = {k: v for k, v in loaded.items() if not (isinstance(k, str) and isinstance(v, Tensor))}
        strange = [f"{name}: {type(value).__name__}" for name, value in other.items()]
    if strange:
        raise ModelError(f"{path} holds more than tensors", got=", ".join(strange[:8]), expected="name → tensor")
    return dict(loaded)


def _has_safetensors(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file() or (folder / _INDEX).is_file()


def convert_pickles(source: Source) -> bool:
    """Convert a folder's ``pytorch_model*.bin`` to ``model*.safetensors``, shard by shard, unless it has safetensors.

    The index, without which shards are ignored, is written last. Hub ids are ignored. Returns whether anything was
    written.

    Raises:
        ModelError: as `Shards`.
        RunError: if the folder can't be written to.
    """
    folder = Path(source)
    if not is_dir(folder) or not any(folder.glob(_KINDS[1])) or _has_safetensors(folder):
        return False
    shards = Shards(folder)
    where: dict[str, str] = {}
    size = 0
    files = shards.by_file()
    for path, names in files.items():
        target = "model" + path.name.removeprefix("pytorch_model").removesuffix(".bin") + ".safetensors"
        tensors = _unshared({name: shards[name] for name in names})
        size += sum(tensor.nbytes for tensor in tensors.values())
        where |= dict.fromkeys(names, target)
        with atomic_file(folder / target) as file, clear_write_errors(folder / target):
            save_file(tensors, file.name, metadata={"format": "pt"})
    if len(files) > 1:
        index = json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=1)
        write_atomically(folder / _INDEX, index.encode())
    return True


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory and make all contiguous, as safetensors requires."""
    seen: set[int] = set()
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        copies[name] = (tensor.clone() if storage in seen else tensor).contiguous()
        seen.add(storage)
    return copies
