"""What ran: models and their revisions, versions, input and times."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from spr import __version__
from spr.config import Config

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "pillow", "pyarrow")


def models_of(config: Config) -> list[dict[str, str]]:
    """The models that a config names: role, backend, model, revision, dtype."""
    rows = []
    for role in ("describer", "scorer", "detector"):
        section = getattr(config, role)
        if section is None or section.backend == "none":
            rows.append({"role": role, "backend": "none", "model": "–", "revision": "–", "dtype": "–"})
            continue
        fake = section.backend == "fake"
        rows.append(
            {
                "role": role,
                "backend": section.backend,
                "model": "none (fake)" if fake else str(section.model),
                "revision": "–" if fake else section.revision or "not pinned",
                "dtype": "–" if fake else section.dtype,
            }
        )
    return rows


def versions() -> list[tuple[str, str]]:
    """What this report was made with."""
    found = [("SPR", __version__), ("Python", platform.python_version())]
    for name in _PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return [*found, ("system", f"{platform.system()} {platform.machine()}")]


def input_of(run: Path) -> dict[str, str]:
    """What identifies the run's annotations, as `RUN/inputs.json` says; empty where it can't be read."""
    try:
        known = json.loads((run / "inputs.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in known.items()} if isinstance(known, dict) else {}


def span_of(events: list[dict[str, Any]]) -> tuple[str, str] | None:
    """The times of the log's first and last lines, to the second, or None."""
    times = sorted(event["time"] for event in events if isinstance(event.get("time"), str))
    return (_short(times[0]), _short(times[-1])) if times else None


def _short(time: str) -> str:
    return time[:19].replace("T", " ") + (" UTC" if time.endswith("+00:00") else "")


def duration(seconds: float | None) -> str:
    """Seconds in words.

    >>> duration(0.42), duration(75), duration(7384)
    ('0.4 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
