"""The config of an experiment: a YAML file plus `key=value` from the command line, checked as a whole.

Each field's docstring is its help. `load_config` reports every error at once, each with the field's name, what came and
the nearest known key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from spr.errors import ConfigError

SHIPPED = Path(__file__).parent / "configs"


def _not_a_text(value: object) -> object:
    # YAML reads "1e-5" and quoted numbers as texts; a number in quotes is a typing error that must not pass silently.
    if isinstance(value, str | bool):
        raise ValueError("not a number")
    return value


Int = Annotated[int, BeforeValidator(_not_a_text)]
Float = Annotated[float, BeforeValidator(_not_a_text)]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values don't change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class AnnotationsConfig(Section):
    """Annotations → objects (METHOD §1)."""

    path: Path
    """COCO, LVIS or Objects365 JSON."""
    images: Path
    """The folder that the file names in the JSON are relative to."""
    min_area: Float = Field(default=300.0, ge=0)
    """Objects whose box area is under this, in px², are removed [seed]."""
    min_objects: Int = Field(default=9, ge=1)
    """Images with fewer objects left are dropped [seed: "containing more than eight objects"]."""
    max_images: Int | None = Field(default=10_000, ge=1)
    """How many images are sampled [seed]; null keeps all."""
    crowd_nms_iou: Float = Field(default=0.5, ge=0, le=1)
    """Non-maximum suppression among what the detector finds in a crowd [ours]."""
    crowd_duplicate_iou: Float = Field(default=0.5, ge=0, le=1)
    """A find over this IoU with an object of the same category is that object, and dropped [ours]."""
    check_images: bool = True
    """Whether the sampled images are opened and decoded: finds files that are missing, truncated or of another size."""
    orientation: Literal["auto", "apply", "ignore"] = "auto"
    """What to do with EXIF rotation: `auto` rotates where only that fits the annotated size, and drops what can't be
    told; `apply` always rotates; `ignore` never does [ours]."""
    max_pixels: Int = Field(default=178_956_970, ge=1)
    """Larger images are dropped without being decoded (decompression bombs)."""


class RegionsConfig(Section):
    """Objects → region queries (METHOD §2)."""

    per_image: Int = Field(default=1, ge=1)
    """Region queries an image, each from another start object [ours]."""
    min_inside: Int = Field(default=5, ge=1)
    """A region grows until this many objects are inside [paper: "more than 4"]."""
    min_aspect: Float = Field(default=1 / 3, ge=0, lt=1)
    """Short side over long side must be over this [seed]."""
    inside_fraction: Float = Field(default=0.5, gt=0, le=1)
    """An object is inside when at least this share of its area is [seed]."""
    distance: Literal["edge", "centre"] = "edge"
    """What "closest" means: the gap between the edges (ties by the centres), or between the centres [ours]."""
    failed_aspect: Literal["grow", "next_start"] = "grow"
    """A region with enough objects but too narrow goes on growing, or the next start object is tried [ours]."""


class Config(Section):
    """A whole experiment; `spr run` writes it, resolved, to `RUN/config.yaml`."""

    seed: Int = Field(default=0, ge=0)
    """Every random choice comes from a hash of this and a record's id."""
    annotations: AnnotationsConfig
    regions: RegionsConfig = RegionsConfig()
    shard_rows: Int = Field(default=512, ge=1)
    """Rows a shard; changes the files' layout, never the rows."""
    engine: Literal["local"] = "local"
    """What runs the stages: `local`, this machine's processes. Never changes the rows."""

    def to_yaml(self) -> str:
        """The resolved config as YAML, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a config.

    Args:
        source: A YAML file, or the name of a config that ships with SPR (`spr doctor` lists them).
        overrides: `dotted.key=value` texts; the value is read as YAML.

    Raises:
        ConfigError: listing every problem, if the file is missing or not YAML, or any key or value is wrong.
    """
    path = find_config(source)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML", got=" ".join(str(error).split())) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read", got=error, fix="give a YAML file in UTF-8") from None
    if not isinstance(raw, dict):
        what = "nothing" if raw is None else type(raw).__name__
        raise ConfigError(f"{path} holds no config", got=what, expected="a mapping such as `annotations: {path: …}`")
    return make_config(apply_overrides(raw, overrides), str(path))


def find_config(source: str | Path) -> Path:
    """The file of a config given by path or by shipped name."""
    path = Path(source)
    shipped = {p.stem: p for p in sorted(SHIPPED.glob("*.yaml"))}
    if path.is_file():
        return path
    if str(source) in shipped:
        return shipped[str(source)]
    near = difflib.get_close_matches(str(source), shipped, n=1)
    fix = f"did you mean `{near[0]}`?" if near else f"give a YAML file, or one of: {', '.join(shipped)}"
    raise ConfigError(f"There is no config {source}", got="a folder" if path.is_dir() else "no such file", fix=fix)


def make_config(raw: Mapping[str, Any], where: str = "config") -> Config:
    """Validate a mapping, reporting every error at once; paths become absolute (relative to the current folder)."""
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors()]
        many = f"{len(lines)} problems" if len(lines) > 1 else "a problem"
        raise ConfigError(f"{where} has {many}:\n" + "\n".join(f"  - {line}" for line in lines)) from None
    section = config.annotations
    absolute = {name: getattr(section, name).expanduser().absolute() for name in ("path", "images")}
    return config.model_copy(update={"annotations": section.model_copy(update=absolute)})


def apply_overrides(raw: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of the mapping with each `dotted.key=value` put in.

    >>> apply_overrides({"regions": {"per_image": 1}}, ["regions.per_image=2", "seed=3"])
    {'regions': {'per_image': 2}, 'seed': 3}
    """
    result: dict[str, Any] = _copy(raw)
    for text in overrides:
        key, sign, value = text.partition("=")
        parts = key.strip().split(".")
        if not sign or not all(parts):
            raise ConfigError("An override is malformed", got=text, expected="key=value, such as regions.per_image=2")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"The value of `{key}` is not YAML", got=value, fix="quote it") from None
        here = result
        for depth, part in enumerate(parts[:-1]):
            if here.get(part) is None:
                here[part] = {}
            here = here[part]
            if not isinstance(here, dict):
                parent = ".".join(parts[: depth + 1])
                raise ConfigError(f"`{parent}` is a value and has no fields", got=text, fix=f"set `{parent}` itself")
        here[parts[-1]] = parsed
    return result


def _copy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in raw.items()}


def _explain(problem: dict[str, Any]) -> str:
    path = [str(part) for part in problem["loc"]]
    name = f"`{'.'.join(path)}`"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{'.'.join([*path[:-1], near[0]])}`?" if near else f"known keys: {', '.join(known)}"
        return f"{name} is not a known key; {hint}"
    if problem["type"] == "missing":
        return f"{name} is missing; it has no default"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{name}: {message}, got {problem['input']!r}"


def _known_keys(path: list[str]) -> list[str]:
    section: Any = Config
    for part in path:
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        section = field.annotation if field is not None else None
    return list(section.model_fields) if hasattr(section, "model_fields") else []


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ, by dotted name: (old, new); a field that only one side has gives None for the other.

    >>> changed_fields({"seed": 0, "regions": {"per_image": 1}}, {"seed": 0, "regions": {"per_image": 2}})
    {'regions.per_image': (1, 2)}
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= changed_fields(a, b, f"{prefix}{key}.")
        elif a != b:
            found[prefix + key] = (a, b)
    return found
