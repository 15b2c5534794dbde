"""What is installed, which devices there are, and which names configs and commands accept."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pkgutil import resolve_name

from spr import __version__
from spr.config import presets
from spr.core.errors import missing_package
from spr.report.environment import version_of

BASE = ("numpy", "pillow", "pyarrow", "msgspec", "pydantic", "scipy")
OPTIONAL = {
    **dict.fromkeys(("torch", "transformers", "peft", "accelerate", "datasets"), "extra `models`"),
    "bitsandbytes": "optional: 4-bit base models, 8-bit optimizer",
    "httpx": "optional: describers behind a server",
    "torchvision": "optional: the full processors of some model families",
}
REGISTRIES = {
    "Dialects": "spr.grounding:DIALECTS",
    "Model families": "spr.models.families:FAMILIES",
    "Stages": "spr.pipeline.stage:STAGES",
    "Tasks": "spr.evaluation.task:TASKS",
    "Export formats": "spr.exports.formats:FORMATS",
    "Rewards": "spr.rewards:REWARDS",
    "Describers": "spr.config.backends:DESCRIBERS",
    "Scorers": "spr.config.backends:SCORERS",
    "Detectors": "spr.config.backends:DETECTORS",
    "Losses": "spr.config.backends:LOSSES",
}
"""The registries that other packages can add to, by the name that `diagnose` shows."""


def diagnose() -> Iterator[str]:
    """Lines for people to read: versions, devices, and the names in each registry. Reports what is missing."""
    yield f"spr {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield ""
    yield "Packages"
    for name in BASE:
        yield f"  {name:<14}{version_of(name) or 'MISSING: pip install ' + name}"
    for name, why in OPTIONAL.items():
        yield f"  {name:<14}{version_of(name) or 'not installed'} ({why})"
    yield ""
    yield "Devices"
    yield from (f"  {line}" for line in _devices())
    yield ""
    yield f"{'Configs':<16}{', '.join(presets())}"
    for title, registry in REGISTRIES.items():
        try:
            names = ", ".join(resolve_name(registry))
        except ImportError as error:
            names = _unavailable(error)
        yield f"{title:<16}{names}"


def cuda_devices() -> dict[str, int]:
    """Bytes of memory of each CUDA device, by its name in a config; none without PyTorch."""
    try:
        import torch
    except ImportError:
        return {}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {f"cuda:{index}": torch.cuda.get_device_properties(index).total_memory for index in range(count)}


def _unavailable(error: ImportError) -> str:
    missing = missing_package(error) if isinstance(error, ModuleNotFoundError) else None
    return f"not installed: {missing.fix}" if missing else f"can't be imported: {error}"


def _devices() -> Iterator[str]:
    free = shutil.disk_usage(".").free / 1e9
    yield f"{os.cpu_count()} CPU cores, {free:,.0f} GB free in this folder"
    try:
        import torch
    except ImportError as error:
        yield f"PyTorch {_unavailable(error)}"
        return
    if not torch.cuda.is_available():
        yield "no CUDA device that PyTorch can use"
    for name, size in cuda_devices().items():
        yield f"{name} {torch.cuda.get_device_properties(name).name}, {size / 2**30:,.0f} GiB"
    if torch.backends.mps.is_available():
        yield "mps (Apple)"
