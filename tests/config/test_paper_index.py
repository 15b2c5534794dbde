"""docs/paper.md names code and config fields that exist, and every field that is our choice."""

import re
from importlib import import_module
from pathlib import Path
from typing import get_args

from spr.config import Config

TEXT = (Path(__file__).parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")
NAMES = set(re.findall(r"`([A-Za-z_.]+)`", TEXT))


def fields(section, prefix=""):
    """Every field by its dotted name, with its description; sections without their own description are included."""
    for name, field in section.model_fields.items():
        yield prefix + name, field.description or ""
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if hasattr(kind, "model_fields")]
        for kind in kinds:
            yield from fields(kind, f"{prefix}{name}.")


FIELDS = dict(fields(Config))


def test_every_function_and_module_exists():
    for name in sorted(name for name in NAMES if name.startswith("spr.")):
        module, _, attribute = name.rpartition(".")
        try:
            import_module(name)
        except ModuleNotFoundError:
            assert hasattr(import_module(module), attribute), name


def test_every_config_field_exists():
    named = {name for name in NAMES if name.partition(".")[0] in Config.model_fields}
    assert named - FIELDS.keys() == set()


def test_every_field_that_is_our_choice_is_listed():
    assert {name for name, description in FIELDS.items() if "our choice" in description} - NAMES == set()
