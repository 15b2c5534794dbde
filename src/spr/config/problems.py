"""What is wrong with a config, in words: the field, the given value and the expected one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from spr.config.renamed import ALSO_KNOWN_AS, RENAMED
from spr.core.errors import closest

_NUMBERS = {int: "an integer", float: "a finite number"}
_WORDS = {bool: "true or false", str: "text", Path: "a path", tuple: "a list", dict: "a mapping"}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def explain(problems: Iterable[Mapping[str, Any]], schema: type[BaseModel]) -> dict[str, str]:
    """One line per field with a problem, by the field's dotted name; problems of several fields have the name ""."""
    lines: dict[str, str] = {}
    for problem in problems:
        name, field = _find(problem["loc"], schema)
        if name not in lines or not name:
            line = _explain(problem, name, field, schema)
            lines[name] = f"{lines[name]}\n  - {line}" if name in lines else line
    return lines


def _find(location: tuple[int | str, ...], schema: type[BaseModel]) -> tuple[str, FieldInfo | None]:
    # What follows a field's own name are positions and the types of a union, which are pydantic's.
    names: list[str] = []
    field: FieldInfo | None = None
    section: type[BaseModel] | None = schema
    for part in location:
        if section is None:
            break
        names.append(str(part))
        if isinstance(part, int) and field is not None:  # an entry in a list of sections
            continue
        field = section.model_fields.get(str(part))
        section = section_of(field.annotation) if field else None
    return ".".join(names), field


def section_of(kind: Any) -> type[BaseModel] | None:
    """The section that a field's type names, also of an optional one, which is a union with None."""
    return next((part for part in (*get_args(kind), kind) if hasattr(part, "model_fields")), None)


def _explain(problem: Mapping[str, Any], name: str, field: FieldInfo | None, schema: type[BaseModel]) -> str:
    own = str(problem["msg"]).removeprefix("Value error, ")
    if not name and problem["type"] != "extra_forbidden":  # about several sections, which the message names
        return own
    if field is None:
        return _explain_unknown(name, schema)
    if problem["type"] == "missing":
        return f"`{name}` is missing; it has no default"
    given = problem["input"]
    whole = len(problem["loc"]) == len(name.split(".")) or not _has_entries(field.annotation)
    if problem["type"] == "value_error" and own != "not a number":
        told = isinstance(given, Mapping | BaseModel) or f"`{given}`" in own
        return f"`{name}`: {own}" + ("" if told else f", got {given!r}")
    got = repr(given) if whole else f"{given!r} in it"
    return f"`{name}` is not valid: got {got}, expected {in_words(field.annotation, field.metadata)}"


def _explain_unknown(name: str, schema: type[BaseModel]) -> str:
    if name in RENAMED:
        return f"`{name}` is now called `{RENAMED[name]}`"
    parents, key, top = list[str](), name, schema
    while (field := schema.model_fields.get(key.partition(".")[0])) and (section := section_of(field.annotation)):
        parent, _, key = key.partition(".")
        parents.append(parent)
        schema = section
        if (position := key.partition("."))[0].isdecimal():  # an entry in a list of sections
            parents.append(position[0])
            key = position[2]
    if key in schema.model_fields:
        return f"`{name}` is one key; nest it: `{': {'.join([*parents, key])}: …{'}' * len(parents)}`"
    near = closest(key, schema.model_fields)
    suggested = [ALSO_KNOWN_AS[name]] if name in ALSO_KNOWN_AS else _fields_named(key, top)
    if near and not suggested:
        suggested = [".".join([*parents, near])]
    if suggested:
        return f"`{name}` is not a known key; did you mean {' or '.join(f'`{other}`' for other in suggested)}?"
    return f"`{name}` is not a known key; known keys: {', '.join(schema.model_fields)}"


def _fields_named(key: str, schema: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of fields that are called ``key``, or that users of other tools call so, in any section."""
    found = [other for name, other in ALSO_KNOWN_AS.items() if name.rpartition(".")[2] == key and not prefix]
    for name, field in schema.model_fields.items():
        if name == key:
            found.append(prefix + name)
        if section := section_of(field.annotation):
            found += _fields_named(key, section, f"{prefix}{name}.")
    return list(dict.fromkeys(found))


def in_words(kind: Any, metadata: Collection[Any] = ()) -> str:
    """A field's type with its bounds, for people to read.

    >>> from annotated_types import Ge
    >>> in_words(int | None, [Ge(1)])
    'null or an integer, at least 1'
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        own = [m for part in parts[1:] for m in (part.metadata if isinstance(part, FieldInfo) else [part])]
        return in_words(parts[0], [*own, *metadata])
    if origin in (Union, UnionType):
        null_first = sorted(parts, key=lambda part: part is not NoneType)
        return " or ".join(in_words(part, metadata) for part in null_first)
    if kind is NoneType:
        return "null"
    if origin is Literal:
        return "one of " + ", ".join(map(str, parts)) if len(parts) > 1 else str(parts[0])
    if kind in _NUMBERS:
        bounds = [f"{word} {_value(m, key)}" for key, word in _BOUNDS.items() for m in metadata if hasattr(m, key)]
        return ", ".join([_NUMBERS[kind], *([" and ".join(bounds)] if bounds else [])])
    if origin is tuple and Ellipsis not in parts:
        return f"a list of {len(parts)}, each {in_words(parts[0])}"
    if origin in (tuple, dict):
        return f"{_WORDS[origin]}, each entry {in_words(parts[0] if origin is tuple else parts[1])}"
    if hasattr(kind, "model_fields"):
        return f"a mapping with fields such as `{next(iter(kind.model_fields))}`"
    return _WORDS.get(kind, "any value")


def _has_entries(kind: Any) -> bool:
    """Whether a value can be a list or a mapping."""
    if get_origin(kind) in (Annotated, Union, UnionType):
        return any(map(_has_entries, get_args(kind)))
    return get_origin(kind) in (tuple, dict) or hasattr(kind, "model_fields")


def _value(bound: Any, key: str) -> str:
    value = getattr(bound, key)
    return f"{value:g}" if isinstance(value, float) else "2⁶³" if value == 2**63 else str(value)
