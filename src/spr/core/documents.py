"""JSON and YAML from files that anyone may have written: what can't be parsed is a ValueError, whatever the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def parse_json(text: str | bytes) -> Any:
    """Like ``json.loads``, but for too deeply nested values, too, a ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8; raises OSError or ValueError."""
    return parse_json(path.read_text(encoding="utf-8"))


def has_surrogates(text: str) -> bool:
    """Whether a text contains half a surrogate pair, so that no file can contain it."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


_DEEPEST = 100


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but texts must be texts that a file can contain, and brackets are nested 100 deep at most.

    The scanner's time grows with the square of that depth.
    """

    def fetch_flow_collection_start(self, kind: type[yaml.Token]) -> None:
        if self.flow_level >= _DEEPEST:
            raise ValueError("the YAML is nested too deeply")
        super().fetch_flow_collection_start(kind)

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        if has_surrogates(text):
            raise ValueError(f"{text!a} contains half a surrogate pair")
        return text


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)


def parse_yaml(text: str) -> Any:
    """Like ``yaml.safe_load``, but whatever goes wrong is a ValueError.

    >>> parse_yaml("when: 2024-13-45")
    Traceback (most recent call last):
    ValueError: month must be in 1..12
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise ValueError("the YAML is nested too deeply") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # PyYAML's constructors fail in many ways on malformed dates and numbers.
        raise ValueError(" ".join(str(error).split())) from None
