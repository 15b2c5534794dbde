"""Which weight files a model has: safetensors, or only pickles, as the default scorer on the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers.utils.hub import has_file

from spr.core.documents import read_json

SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")
PICKLES = ("pytorch_model.bin.index.json", "pytorch_model.bin")


def has_only_pickles(source: str | os.PathLike[str], revision: str | None = None) -> bool:
    """Whether a folder or Hub model has ``pytorch_model*.bin`` and no safetensors; the Hub is asked for its files."""
    path = os.fspath(source)

    def exists(name: str) -> bool:
        return bool(has_file(path, name, revision=revision or "main"))

    return any(map(exists, reversed(PICKLES))) and not any(map(exists, reversed(SAFETENSORS)))


def weights_are_cached(model: str, revision: str | None = None) -> bool:
    """Whether the Hub's cache has all weights of a model, as safetensors or as pickles."""
    for index, single in (SAFETENSORS, PICKLES):
        try:
            found = cached(model, index, revision)
            names = set(read_json(found)["weight_map"].values()) if found is not None else {single}
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if all(cached(model, name, revision) is not None for name in names):
            return True
    return False


def cached(model: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a Hub model in the cache, or None."""
    found = try_to_load_from_cache(model, name, revision=revision or "main")
    return Path(found) if isinstance(found, str) else None


@contextmanager
def without_conversion() -> Iterator[None]:
    """Keep transformers from asking a service on the Hub to convert a repository's pickles to safetensors."""
    name = "DISABLE_SAFETENSORS_CONVERSION"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
