"""Reading configs: a YAML file and `key=value` overrides, validated together.

All errors are reported together, each with the field's name, the given value and, for an unknown key, the nearest one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from spr.config.annotations import HF_PREFIX
from spr.config.engine import SHORT
from spr.config.experiment import Config, TrainingPart
from spr.config.problems import explain
from spr.config.section import Section
from spr.core import FORMAT_VERSION
from spr.core.documents import has_surrogates, parse_yaml
from spr.core.errors import ConfigError, nearest
from spr.core.paths import as_path, is_dir, is_file
from spr.core.text_input import read_text

PRESETS = Path(__file__).parent / "presets"
Part = TypeVar("Part", bound=Section)


def load_training(source: str | Path, overrides: Iterable[str] = ()) -> TrainingPart:
    """Read the seed, the describer and the training section of a config. Other sections are not validated.

    Raises:
        ConfigError: as for `load_config`.
    """
    path = find_config(source)
    raw = _read(path)
    changes = list(overrides)
    other = Config.model_fields.keys() - TrainingPart.model_fields.keys()
    kept = {key: value for key, value in apply_overrides(raw, changes).items() if key not in other}
    return _validate(TrainingPart, kept, str(path), _keys(changes))


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a config.

    Args:
        source: A YAML file, or the name of a preset that ships with SPR (`spr doctor` lists them).
        overrides: `dotted.key=value` strings; each value is parsed as YAML.

    Raises:
        ConfigError: if the file is missing or not YAML, or keys or values are not valid; it lists every problem.
    """
    path = find_config(source)
    raw = _read(path)
    changes = list(overrides)
    return make_config(apply_overrides(raw, changes), str(path), _keys(changes))


def make_config(raw: Mapping[str, Any], where: str = "config", overridden: Collection[str] = ()) -> Config:
    """Validate a mapping, reporting all errors together. Relative paths are resolved against the current folder.

    Args:
        raw: The sections and fields.
        where: Name of the mapping in error messages.
        overridden: Dotted names of the fields that were given on the command line, for error messages.
    """
    config = _validate(Config, raw, where, overridden)
    section = config.annotations
    absolute = {name: _absolute(getattr(section, name), f"annotations.{name}") for name in ("path", "images")}
    return config.model_copy(update={"annotations": section.model_copy(update=absolute)})


def make_section(schema: type[Part], source: Part | str | PathLike[str], **fields: Any) -> Part:
    """A section from the arguments of a model's constructor: a section, or a model id or folder with further fields.

    Raises:
        ConfigError: if a field is unknown or its value is not valid, or if both a section and fields are given.

    >>> from spr.config import DetectorConfig
    >>> make_section(DetectorConfig, "IDEA-Research/grounding-dino-tiny", box_threshold=0.3).box_threshold
    0.3
    """
    if isinstance(source, schema):
        if fields:
            fix = "set them in the section: section.model_copy(update={…})"
            raise ConfigError("Both a config section and fields are given", got=", ".join(fields), fix=fix)
        return source
    given = {"model": source, **fields}
    plain = {name: str(value) if isinstance(value, PathLike) else value for name, value in given.items()}
    return _validate(schema, plain, schema.__name__)


def presets() -> dict[str, Path]:
    """The configs that ship with SPR, by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}


def read_section(schema: type[Part], source: str | Path) -> Part:
    """A section from a YAML file of its own; raises `ConfigError` as `load_config` does."""
    path = as_path(source)
    if not is_file(path):
        got = "a folder" if is_dir(path) else "no such file"
        raise ConfigError(f"There is no file {source}", got=got, expected="a YAML file", fix="check the path")
    return _validate(schema, _read(path), str(path))


def find_config(source: str | Path) -> Path:
    """The file of a config, given its path or the name of a preset."""
    path = as_path(source)
    shipped = presets()
    if is_file(path):
        return path
    if str(source) in shipped:
        return shipped[str(source)]
    fix = nearest(str(source), shipped, "give a YAML file, or one of")
    raise ConfigError(f"There is no config {source}", got="a folder" if is_dir(path) else "no such file", fix=fix)


def apply_overrides(raw: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply `dotted.key=value` overrides to a copy of a mapping.

    >>> apply_overrides({"regions": {"per_image": 1}}, ["regions.per_image=2", "seed=3"])
    {'regions': {'per_image': 2}, 'seed': 3}
    """
    result = deepcopy(dict(raw))
    for text in overrides:
        key, sign, value = text.partition("=")
        parts = key.strip().split(".")
        if not sign or not all(parts):
            raise ConfigError("An override is malformed", got=text, expected="key=value, such as regions.per_image=2")
        if has_surrogates(text):
            raise ConfigError("An override is not UTF-8", got=text, expected="key=value, such as regions.per_image=2")
        try:
            parsed = parse_yaml(value)
        except ValueError:
            raise ConfigError(f"The value of `{key}` is not YAML", got=value, fix="quote it") from None
        here = result
        for depth, part in enumerate(parts[:-1]):
            if here.get(part) is None:
                here[part] = {}
            if part in SHORT and isinstance(here[part], str):
                here[part] = {SHORT[part]: here[part]}
            here = here[part]
            if not isinstance(here, dict):
                parent = ".".join(parts[: depth + 1])
                raise ConfigError(f"`{parent}` is a value and has no fields", got=text, fix=f"set `{parent}` itself")
        if key in SHORT and isinstance(parsed, str) and isinstance(here.get(key), dict):
            here, parts = here[key], [SHORT[key]]
        here[parts[-1]] = parsed
    return result


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ: ``(old, new)`` by dotted name. A missing field counts as None.

    >>> changed_fields({"seed": 0, "regions": {"per_image": 1}}, {"seed": 0, "regions": {"per_image": 2}})
    {'regions.per_image': (1, 2)}
    """
    changed: dict[str, tuple[Any, Any]] = {}
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changed |= changed_fields(a, b, f"{prefix}{key}.")
        elif a != b:
            changed[prefix + key] = (a, b)
    return changed


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = parse_yaml(read_text(path, expected="a YAML file", error=ConfigError))
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML", got=error) from None
    if not isinstance(raw, dict):
        what = "an empty file" if raw is None else type(raw).__name__
        raise ConfigError(f"{path} is not a config", got=what, expected="a mapping such as `annotations: {path: …}`")
    return raw


def _validate(schema: type[Part], raw: Mapping[str, Any], where: str, overridden: Collection[str] = ()) -> Part:
    content = dict(raw)
    version = content.pop("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        fix = "use the SPR version that wrote it, or remove the line and update the field names"
        raise ConfigError(f"{where} has another format version", got=version, expected=FORMAT_VERSION, fix=fix)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        lines = explain(error.errors(), schema)
        given = {name for name in lines if any(_touches(name, key) for key in overridden)}
        count = f"{len(lines)} problems" if len(lines) > 1 else "a problem"
        source = "The command line" if given == lines.keys() else where
        marks = {name: " (from the command line)" if source == where and name in given else "" for name in lines}
        told = "\n".join(f"  - {line}{marks[name]}" for name, line in lines.items())
        raise ConfigError(f"{source} has {count}:\n{told}") from None


def _keys(overrides: Iterable[str]) -> list[str]:
    return [text.partition("=")[0].strip() for text in overrides]


def _touches(name: str, key: str) -> bool:
    return f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.") if name else False


def _absolute(path: Path, field: str) -> Path:
    dataset = str(path).removeprefix(HF_PREFIX)
    if field == "annotations.path" and dataset != str(path):
        is_folder = dataset.startswith(("/", ".", "~"))
        return Path(f"{HF_PREFIX}{_absolute(Path(dataset), 'the folder of a dataset')}") if is_folder else path
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"`{field}` can't be resolved", got=path, expected=error, fix="give the full path") from None
