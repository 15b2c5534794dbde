"""Which models are on this machine: folders, and the cache of the Hugging Face Hub. Nothing is loaded or fetched."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from spr.core.documents import parse_json
from spr.core.errors import SprError
from spr.core.paths import is_dir, is_file
from spr.core.text_input import read_text


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of a model.

    ``lacking`` names the first thing that is missing, or is None if config and weights are complete. ``weights`` are
    the bytes of its weight files, ``config`` the content of its config.json.
    """

    folder: Path | None
    lacking: str | None
    weights: int = 0
    config: dict[str, Any] | None = None


def hub_cache() -> Path:
    """The folder of the Hub's cache, as the environment variables of huggingface_hub set it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def find_model(model: str, revision: str | None = None) -> Found:
    """Look for a model: an embedded one, a folder, or a model id of the Hub in its cache."""
    if model.startswith("embedded/"):
        return _look(Path(str(files("spr"))) / "embedded" / "weights" / model.removeprefix("embedded/"))
    if is_dir(model):
        return _look(Path(model))
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        return Found(None, "there is no such folder")
    cached = hub_cache() / f"models--{model.replace('/', '--')}"
    if not is_dir(cached):
        return Found(None, "not in the cache")
    ref = cached / "refs" / (revision or "main")
    commit = read_text(ref).strip() if is_file(ref) else revision or ""
    folder = cached / "snapshots" / commit
    if not commit or not is_dir(folder):
        return Found(None, f"the cache has no revision {revision or 'main'} of it")
    found = _look(folder)
    unfinished = list((cached / "blobs").glob("*.incomplete"))
    if found.lacking and unfinished:
        return Found(folder, f"the download is not complete: {found.lacking}", found.weights, found.config)
    return found


def _look(folder: Path) -> Found:
    config = _object(folder / "config.json")
    if config is None:
        return Found(folder, "config.json is missing")
    lacking, weights = "no weights (model.safetensors)", list[Path]()
    for pattern in ("model.safetensors", "pytorch_model.bin"):
        index = _object(folder / f"{pattern}.index.json")
        if index is not None:
            names = sorted(set(map(str, (index.get("weight_map") or {}).values())))
            weights = [folder / name for name in names]
            absent = [path.name for path in weights if not is_file(path)]
            lacking = f"{len(absent)} of {len(weights)} weight files are missing, such as {absent[0]}" if absent else ""
        elif is_file(folder / pattern):
            weights, lacking = [folder / pattern], ""
        if weights:
            break
    size = sum(path.stat().st_size for path in weights if is_file(path))
    return Found(folder, lacking or None, size, config)


def _object(path: Path) -> dict[str, Any] | None:
    if not is_file(path):
        return None
    try:
        value = parse_json(read_text(path))
    except (SprError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def command_for(model: str) -> str:
    """The command that brings a model onto this machine.

    >>> command_for("org/name"), command_for("checkpoints/ferret-7b-v1-3")
    ('hf download org/name', 'spr convert ferret --out checkpoints/ferret-7b-v1-3 …')
    """
    return f"spr convert ferret --out {model} …" if model.startswith("checkpoints/ferret-") else f"hf download {model}"
