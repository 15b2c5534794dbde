"""What a model expects of the data: its dialect, and how its processor resizes images. Loads and fetches nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from spr.core.documents import parse_json
from spr.core.errors import ConfigError, GroundingError, SprError
from spr.core.paths import is_file
from spr.core.text_input import read_text
from spr.grounding import DIALECTS, Dialect, get_dialect
from spr.models.families import FAMILIES, unknown_family
from spr.models.family import Family
from spr.models.hub_cache import find_model
from spr.models.model_dialect import choose_dialect

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
PIXELS = "pixels"
"""The value of ``--dialect`` for x1, y1, x2, y2 in pixels of the original image, in any form."""
_PIXELS_NOTE = "of the original image"
_RESIZES = ("min_pixels", "max_pixels")


@dataclass(frozen=True, slots=True)
class Target:
    """The model that the data are for.

    Attributes:
        dialect: How it writes boxes, with the trainer's resize settings; None if neither it nor a model is given.
        model: The model as it was given.
        family: Its family; None without a model.
        folder: The folder with its files; None if they are not on this machine.
        note: Where the dialect comes from, for people.
        min_pixels, max_pixels: The trainer's resize settings as they were given.
        is_pixels: Whether the boxes should be pixels of the original image, which is no dialect's.
    """

    dialect: Dialect | None
    model: str | None = None
    family: Family | None = None
    folder: Path | None = None
    note: str = ""
    min_pixels: int | None = None
    max_pixels: int | None = None
    is_pixels: bool = False


def find_target(
    dialect: str | Dialect | None = None,
    model: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Target:
    """The target by a dialect or a model, with the trainer's resize settings.

    A model is a folder, an id of the Hub, or the name of a family such as ``qwen2_5_vl``. Its family is that of its
    config.json, or if that is not on this machine, the one that its name begins with.

    Raises:
        ConfigError: if both are given, the dialect is unknown, or ``min_pixels`` is above ``max_pixels``.
        ModelError: if the model's family is not known.

    >>> find_target(model="Qwen/Qwen2.5-VL-3B-Instruct", max_pixels=1003520).dialect.spec
    'qwen2_5_vl:max_pixels=1003520'
    """
    if dialect is not None and model is not None:
        got = f"--dialect {dialect if isinstance(dialect, str) else dialect.key} --model {model}"
        raise ConfigError("--dialect and --model are two ways to say the same", got=got, fix="give one of them")
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    if model is not None:
        return _of_model(model, limits)
    if dialect == PIXELS:
        return Target(None, note=_PIXELS_NOTE, min_pixels=min_pixels, max_pixels=max_pixels, is_pixels=True)
    if dialect is None:
        return Target(None, min_pixels=min_pixels, max_pixels=max_pixels)
    chosen = _with_limits(dialect_option(dialect), limits)
    return Target(chosen, note="given", min_pixels=min_pixels, max_pixels=max_pixels)


def _of_model(model: str, limits: dict[str, int | None]) -> Target:
    found = find_model(model)
    model_type, folder = (found.config or {}).get("model_type"), found.folder if found.config is not None else None
    if isinstance(model_type, str):
        if model_type not in FAMILIES:
            raise unknown_family(model_type, f"The dialect of {model} is not known", instead="give --dialect")
        note = f"of the family {model_type}"
    else:
        model_type = _family_by_name(model)
        if model_type is None:
            what = f"The family of {model} is not known"
            got = f"no config.json on this machine ({found.lacking}), and a name that no family has"
            fix = "give --dialect, or download the model's config.json: no other file is needed"
            raise ConfigError(what, got=got, expected=", ".join(FAMILIES), fix=fix)
        note = f"of the family {model_type}, by its name: its config.json is not on this machine"
    processor = processor_settings(folder) if folder is not None else None
    dialect = choose_dialect(None, model_type, processor)
    if processor is not None and dialect != DIALECTS.get(dialect.key):
        note += "; resize settings of its preprocessor_config.json"
    chosen = _with_limits(dialect, limits)
    return Target(chosen, model, FAMILIES[model_type], folder, note, limits["min_pixels"], limits["max_pixels"])


def _with_limits(dialect: Dialect, limits: dict[str, int | None]) -> Dialect:
    """The dialect with the settings; those of a dialect that is relative to the image only count its tokens."""
    try:
        return dialect.with_options(**{name: limits[name] for name in _RESIZES if name in dialect.options})
    except GroundingError as error:
        raise _wrong_option(error) from None


def dialect_option(dialect: str | Dialect) -> Dialect:
    """The dialect that an option names.

    Raises:
        ConfigError: if it is unknown, or has no such option.
    """
    try:
        return get_dialect(dialect)
    except GroundingError as error:
        raise _wrong_option(error) from None


def _wrong_option(error: GroundingError) -> ConfigError:
    return ConfigError(error.what, got=error.got, expected=error.expected, fix=error.fix)


def _family_by_name(model: str) -> str | None:
    name = _plain(model.rstrip("/").rpartition("/")[2])
    known = {_plain(text): key for key, family in FAMILIES.items() for text in (*family.models.split(","), key)}
    best = max((text for text in known if text and name.startswith(text)), key=len, default=None)
    return None if best is None else known[best]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def processor_settings(folder: Path) -> Any:
    """The settings of the image processor that dialects in resized pixels depend on; None if they are not there."""
    for name in _PROCESSOR_FILES:
        path = folder / name
        if not is_file(path):
            continue
        try:
            settings = parse_json(read_text(path))
        except (SprError, ValueError):
            continue
        settings = settings.get("image_processor", settings) if isinstance(settings, dict) else {}
        size = settings["size"] if isinstance(settings.get("size"), dict) else {}
        least = settings.get("min_pixels") or size.get("shortest_edge")
        most = settings.get("max_pixels") or size.get("longest_edge")
        patch, merge = settings.get("patch_size"), settings.get("merge_size")
        if all(isinstance(value, int) and value > 0 for value in (least, most, patch, merge)):
            limits = {"shortest_edge": least, "longest_edge": most}
            return SimpleNamespace(patch_size=patch, merge_size=merge, size=limits)
    return None
