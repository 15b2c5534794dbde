"""The public API: `import spr` gives every documented name, lazily and typed."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spr

ROOT = Path(__file__).parents[1]
SOURCE = (ROOT / "src" / "spr" / "__init__.py").read_text(encoding="utf-8")


def typed_names():
    """What type checkers see: name → (module, name there)."""
    (block,) = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.If)]
    return {alias.asname or alias.name: (node.module, alias.name) for node in block.body for alias in node.names}


@pytest.mark.parametrize("name", spr.__all__)
def test_every_public_name_can_be_imported_and_has_a_docstring(name):
    value = getattr(spr, name)
    module, attribute = typed_names()[name]
    assert value is getattr(importlib.import_module(module), attribute)
    if callable(value):
        assert value.__doc__


def test_type_checkers_see_exactly_the_public_names():
    assert sorted(typed_names()) == sorted(spr.__all__)


def test_the_documentation_describes_exactly_the_public_names():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| `([A-Za-z_]+)`", text, re.MULTILINE)
    assert sorted(tables) == sorted(spr.__all__)


def test_dir_lists_the_public_names():
    assert set(spr.__all__) <= set(dir(spr))


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        spr.nothing  # noqa: B018 (the access is the test)


def test_import_spr_imports_nothing_else():
    code = "import sys, spr\nprint(*[m for m in sys.modules if m.startswith('spr.') or m in ('torch', 'numpy')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def blocks():
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_documentation_run_one_after_another(dataset):
    code = "\n".join(blocks())
    result = subprocess.run([sys.executable, "-c", code], cwd=dataset.folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout
