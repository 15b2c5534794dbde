"""What a run and its report were created with: models and their revisions, versions, times."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from spr import __version__
from spr.config import Config
from spr.config.public import public_name

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "pillow", "pyarrow")


def models_of(config: Config) -> list[dict[str, str]]:
    """The models that a config names: role, backend, model, revision, dtype."""
    rows = []
    for role in ("describer", "scorer", "detector"):
        section = getattr(config, role)
        backend = "none" if section is None else section.backend
        row = {"role": role, "backend": backend, "model": "–", "revision": "–", "dtype": "–"}
        if backend not in ("none", "fake"):
            row |= {
                "model": public_name(str(section.model)),
                "revision": section.revision or "not pinned",
                "dtype": section.dtype,
            }
        rows.append(row)
    return rows


def versions() -> list[tuple[str, str]]:
    """Versions of the software that creates this report."""
    packages = [(name, version_of(name) or "not installed") for name in _PACKAGES]
    system = f"{platform.system()} {platform.machine()}"
    return [("SPR", __version__), ("Python", platform.python_version()), *packages, ("system", system)]


def version_of(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def time_span(events: list[dict[str, Any]]) -> tuple[str, str] | None:
    """The times of the first and the last line of a log, to the second; None if no line has one."""
    times = sorted(event["time"] for event in events if isinstance(event.get("time"), str))
    shown = [t[:19].replace("T", " ") + (" UTC" if t.endswith("+00:00") else "") for t in times[:1] + times[-1:]]
    return (shown[0], shown[-1]) if shown else None


def duration(seconds: float | None) -> str:
    """A duration in units that people read.

    >>> duration(0.42), duration(75), duration(7384)
    ('0.4 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
