"""The reference documents the module of every public name."""

import re
from pathlib import Path

import spr

REFERENCE = (Path(__file__).parents[1] / "docs" / "reference.md").read_text(encoding="utf-8")


def test_the_reference_covers_every_public_name():
    documented = re.findall(r"^::: (\S+)", REFERENCE, re.MULTILINE)
    assert len(documented) == len(set(documented))
    for name, (module, attribute) in spr._WHERE.items():
        parts = module.split(".")
        places = {".".join(parts[:k]) for k in range(2, len(parts) + 1)} | {f"{module}.{attribute}"}
        assert any(place in places or place.startswith(f"{module}.") for place in documented), name
