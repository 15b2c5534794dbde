"""Where the adapter of a run is, and to which run an adapter belongs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spr.core.documents import parse_yaml, read_json
from spr.core.errors import InputError, RunError
from spr.core.paths import is_file
from spr.core.text_input import read_text
from spr.runs.folder import check_run_version, is_run
from spr.runs.trainings import TRAININGS, training_place


def find_adapter(source: Path, name: str | None = None) -> Path:
    """The folder of an adapter: ``source`` itself, or that of a run, of its training ``name`` or of its only training.

    Raises:
        ConfigError: if no training can have this name.
        InputError: if ``source`` is neither an adapter nor a run.
        RunError: if the run has no such adapter, or several.
    """
    for folder in ([source] if name is None else []) + [training_place(source, name) / "adapter"]:
        if is_file(folder / "adapter_config.json"):
            return folder
    named = sorted(path.parents[1] for path in source.glob(f"{TRAININGS}/*/adapter/adapter_config.json"))
    if name is None and len(named) == 1:
        return named[0] / "adapter"
    if not named and not is_run(source):
        expected = "adapter_config.json and adapter_model.safetensors"
        fix = "give the folder of an adapter, or of a run with one"
        raise InputError(f"{source} is not an adapter", expected=expected, fix=fix)
    got = f"--name {name}" if name else "no adapter of its own"
    fix = f"give one of its trainings: {', '.join(map(str, named))}" if named else f"spr train {source}"
    raise RunError(f"{source} has no such adapter", got=got, fix=fix)


def run_of(adapter: Path) -> tuple[Path, str | None] | None:
    """The run that an adapter belongs to, with the name of its training if it is not the default one."""
    place = adapter.absolute().parent
    if place.parent.name == "trainings" and is_file(place.parent.parent / "config.yaml"):
        return place.parent.parent, place.name
    return (place, None) if is_file(place / "config.yaml") else None


def raw_config(run: Path) -> dict[str, Any]:
    """The content of a run's ``config.yaml``, which may be that of a training on pairs from elsewhere.

    Raises:
        RunError: if it can't be read, or another version of SPR wrote it.
    """
    check_run_version(run)
    raw = parse_yaml(read_text(run / "config.yaml"))
    return dict(raw) if isinstance(raw, Mapping) else {}


def base_model(adapter: Path) -> str | None:
    """The model that an adapter says it was trained on; None if it does not say."""
    try:
        return str(read_json(adapter / "adapter_config.json")["base_model_name_or_path"])
    except (OSError, ValueError, TypeError, LookupError):
        return None
