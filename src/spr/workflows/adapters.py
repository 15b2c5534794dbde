"""Where the adapter of a run is, and to which run an adapter belongs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spr.core.documents import parse_yaml, read_json
from spr.core.errors import InputError
from spr.core.paths import is_file
from spr.core.text_input import read_text
from spr.runs.folder import check_run_version


def adapter_folder(source: Path) -> Path:
    """The folder of an adapter: ``source`` itself, that of a run or of one of its trainings, or that of its only one.

    Raises:
        InputError: if there is none, or there are several.
    """
    for folder in (source, source / "adapter"):
        if is_file(folder / "adapter_config.json"):
            return folder
    named = sorted(path.parent for path in source.glob("trainings/*/adapter/adapter_config.json"))
    if len(named) == 1:
        return named[0]
    got = f"the trainings {', '.join(folder.parent.name for folder in named)}" if named else "no adapter"
    fix = f"give one of them, such as {named[0].parent}" if named else "train one with `spr train`"
    raise InputError(f"{source} is not an adapter", got=got, expected="a run, or a folder of PEFT's format", fix=fix)


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
