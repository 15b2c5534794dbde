"""What is installed, which devices there are, and what ships with SPR."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator

from spr import __version__
from spr.config import PRESETS
from spr.grounding import DIALECTS

REQUIRED = ("numpy", "pillow", "pyarrow", "msgspec", "pydantic", "torch", "transformers", "peft", "accelerate")
OPTIONAL = {
    "bitsandbytes": "4-bit base models",
    "httpx": "describers behind a server",
    "torchvision": "the full processors of some model families",
}


def diagnose() -> Iterator[str]:
    """Lines for people to read: versions, devices, configs, dialects. Never raises for what is missing."""
    yield f"spr {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield ""
    yield "Packages"
    for name in REQUIRED:
        yield f"  {name:<14}{_version(name) or 'MISSING: pip install ' + name}"
    for name, use in OPTIONAL.items():
        yield f"  {name:<14}{_version(name) or 'not installed'} (optional: {use})"
    yield ""
    yield "Devices"
    yield from (f"  {line}" for line in _devices())
    yield ""
    yield f"Configs        {', '.join(sorted(p.stem for p in PRESETS.glob('*.yaml')))}"
    yield f"Dialects       {', '.join(DIALECTS)}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[str]:
    free = shutil.disk_usage(".").free / 1e9
    yield f"{os.cpu_count()} CPU cores, {free:,.0f} GB free in this folder"
    try:
        import torch
    except ImportError as error:
        yield f"PyTorch does not import: {error}"
        return
    if not torch.cuda.is_available():
        yield "no CUDA device that PyTorch can use"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield f"cuda:{index} {device.name}, {device.total_memory / 2**30:,.0f} GiB"
    if torch.backends.mps.is_available():
        yield "mps (Apple)"
