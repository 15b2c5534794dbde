"""The documentation covers the public names, and names only what exists."""

import re
from pathlib import Path

import spr

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def test_the_reference_covers_every_public_name():
    documented = re.findall(r"^::: (\S+)", REFERENCE, re.MULTILINE)
    assert len(documented) == len(set(documented))
    for name, (module, attribute) in spr._WHERE.items():
        parts = module.split(".")
        places = {".".join(parts[:k]) for k in range(2, len(parts) + 1)} | {f"{module}.{attribute}"}
        assert any(place in places or place.startswith(f"{module}.") for place in documented), name


def test_the_tests_that_the_page_on_reliability_names_exist():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) >= 15
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), (file, test)
    for path in re.findall(r"`(?:python )?((?:tests|tools)/[\w/.]+)", page):
        assert (ROOT / path).exists(), path
