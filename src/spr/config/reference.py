"""What each config field means, for `spr config` and the documentation: from the sections and their docstrings."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from spr.config.experiment import Config
from spr.config.loading import presets
from spr.config.problems import in_words, section_of
from spr.core import FORMAT_VERSION
from spr.core.terminal import count_text

_PARENTHESES = re.compile(r"\s*\(([^()]*)\)")
_SOURCE = re.compile(
    r"(?:paper|supplement)(?:, Sec\. [\d.]*\d)?(?=$|[;:,])|ablation of the paper|(?:.*\b)?our choice\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """A config field: its dotted name, its type and default in words, what it means, and where its default is from.

    ``source`` is a section of the paper or supplement, "our choice", several of these, or empty for fields about which
    the paper has nothing to say, such as paths and devices.
    """

    name: str
    type: str
    default: str
    meaning: str
    source: str


@dataclass(frozen=True, slots=True)
class SectionInfo:
    """A section of the config: its dotted name (empty for the fields outside of sections), meaning and fields."""

    name: str
    meaning: str
    fields: tuple[FieldInfo, ...]


def sections(schema: type[BaseModel] = Config, name: str = "", note: str = "") -> Iterator[SectionInfo]:
    """A section and the sections in it, each with its own fields.

    >>> [section.name for section in sections()][:4]
    ['', 'annotations', 'regions', 'describer']
    >>> next(field for section in sections() for field in section.fields if field.name == "scoring.semantic_weight")
    FieldInfo(name='scoring.semantic_weight', type='a number, at least 0 and at most 1', default='0.8', \
meaning='λ, 0..1, in S = λ S_sem + (1 − λ) S_loc.', source='paper, Sec. 3.2')
    """
    prefix = f"{name}." if name else ""
    meaning, source = _split(schema.__doc__ or "")
    found = []
    for key, field in schema.model_fields.items():
        if section_of(field.annotation) is not None:
            continue
        text, own = _split(field.description or "")
        kind = in_words(field.annotation, field.metadata).replace("a finite number", "a number")
        found.append(FieldInfo(prefix + key, kind, _default(field), text, own))
    if name and not any(field.source for field in found):  # the docstring of the section is about all of its fields
        found = [FieldInfo(f.name, f.type, f.default, f.meaning, source) for f in found]
    yield SectionInfo(name, f"{meaning} {note}".strip(), tuple(found))
    for key, field in schema.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            yield from sections(inner, prefix + key, _split(field.description or "")[0])


def describe(name: str | None) -> Iterator[str] | None:
    """Lines for people to read: the sections if no name is given, else the fields of a section, or a field.

    None if there is no section or field of this name. Sections have dotted names; those of fields may lack the section.
    """
    known = list(sections())
    if name is None:
        return _overview(known)
    chosen = [s for s in known if s.name and f"{s.name}.".startswith(f"{name}.")]
    if not chosen:
        fields = [field for section in known for field in section.fields]
        chosen = [SectionInfo("", "", (field,)) for field in fields if name in (field.name, field.name.split(".")[-1])]
    return _details(chosen) if chosen else None


def names() -> list[str]:
    """The dotted names of all sections and fields."""
    return [name for s in sections() for name in (s.name, *(field.name for field in s.fields)) if name]


def _overview(known: Iterable[SectionInfo]) -> Iterator[str]:
    yield "Sections of a config (`spr config SECTION` lists the fields of one):"
    yield ""
    for section in known:
        if section.name:
            fields = count_text(len(section.fields), "fields")
            yield from _wrapped(f"  {section.name:<18}{fields:<11}", section.meaning)
    yield ""
    yield "Fields outside of sections:"
    yield ""
    yield from _details(section for section in known if not section.name)
    yield ""
    yield from _wrapped("Configs that ship with SPR: ", ", ".join(presets()))
    yield "`spr config CONFIG [key=value]...` prints all values of a config, and marks those that are not the default."


def _details(chosen: Iterable[SectionInfo]) -> Iterator[str]:
    first = True
    for section in chosen:
        if section.name:
            yield from ([] if first else [""])
            yield from _wrapped(f"{section.name}: ", section.meaning)
            yield ""
        for field in section.fields:
            yield f"  {field.name}: {field.default}"
            yield from _wrapped("      ", " · ".join(filter(None, [field.type, field.source])))
            yield from _wrapped("      ", field.meaning)
        first = False


def _wrapped(start: str, text: str) -> list[str]:
    width = min(shutil.get_terminal_size().columns, 120)
    indent = " " * len(start) if len(start) < 40 else "    "
    return textwrap.wrap(
        text, width, initial_indent=start, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def annotated_yaml(config: Config) -> str:
    r"""The config as YAML, with a comment after each value that is not the default.

    >>> config = Config.model_validate({"annotations": {"path": "a.json", "images": "i"}, "seed": 3})
    >>> print(*annotated_yaml(config).splitlines()[:5], sep="\n")
    format_version: 2
    seed: 3  # default: 0
    annotations:
      path: a.json  # no default
      images: i  # no default
    """
    content = config.model_dump(mode="json")
    return "\n".join([f"format_version: {FORMAT_VERSION}", *_lines(content, Config, "")]) + "\n"


def _lines(content: Mapping[str, Any], schema: type[BaseModel], indent: str) -> Iterator[str]:
    for key, value in content.items():
        field = schema.model_fields[key]
        inner = section_of(field.annotation)
        if inner is not None and isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _lines(value, inner, indent + "  ")
            continue
        line = f"{indent}{key}: {_flow(value)}"
        if field.is_required():
            yield f"{line}  # no default"
        elif value != (default := _plain(field)):
            yield f"{line}  # default: {_flow(default)}"
        else:
            yield line


def _default(field: Any) -> str:
    return "required" if field.is_required() else _flow(_plain(field))


def _plain(field: Any) -> Any:
    value = field.get_default(call_default_factory=True)
    return list(value) if isinstance(value, tuple) else value


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    style = '"' if isinstance(value, str) and "\n" in value else None
    text = yaml.safe_dump(
        value, default_flow_style=True, default_style=style, width=2**20, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _split(docstring: str) -> tuple[str, str]:
    """The meaning and the source of a docstring: what its parentheses say of the paper, the supplement or our choice.

    Parentheses that say nothing else are left out of the meaning.

    >>> _split("Rank (supplement, Sec. 2).")
    ('Rank.', 'supplement, Sec. 2')
    >>> _split("Dropout (our choice: 0, for exact log-probabilities).")
    ('Dropout (our choice: 0, for exact log-probabilities).', 'our choice')
    """
    text, found = " ".join(docstring.split()), list[str]()

    def keep(match: re.Match[str]) -> str:
        parts = re.split(r"; |: (?=our choice)", match[1])
        sources = [source[0] for part in parts if (source := _SOURCE.match(part))]
        found.extend("our choice" if "our choice" in source else source for source in sources)
        return "" if sources == parts else match[0]

    text = _PARENTHESES.sub(keep, text)
    return text, "; ".join(dict.fromkeys(found))
