"""Imports point one way, and the command line starts without heavy libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "spr"

# A package imports only from earlier lines; packages on one line don't import each other.
LAYERS = [
    {"core"},
    {"config"},
    {"records"},
    {"grounding"},
    {"runs"},
    {"annotations", "models"},
    {"pipeline", "training", "evaluation", "rewards"},
    {"report", "exports"},
    {"embedded", "workflows"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(SOURCE.rglob("*.py"))


def unit(path: Path) -> str:
    """The module or package directly under `spr` that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_units(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("spr.")}
    return {name for name in found if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file()}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path):
    own = unit(path)
    if own == "__init__":
        return  # imports lazily; see tests/test_api.py
    for other in imported_units(path) - {own}:
        assert RANK[other] < RANK[own], f"{own} may not import {other}"


def test_the_layers_name_every_package():
    present = {unit(path) for path in FILES} - {"__init__"}
    assert present <= set(RANK)


HEAVY = {"torch", "transformers", "pyarrow", "numpy", "datasets", "PIL"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["export", "--help"]])
def test_help_and_version_import_nothing_heavy(arguments):
    code = "import sys\nfrom spr.cli import main\nsys.argv = ['spr', *sys.argv[1:]]\ntry:\n    main()\n"
    code += "finally:\n    print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert set(result.stderr.split()) & HEAVY == set()
    assert "spr" in result.stdout.lower()


@pytest.mark.parametrize("module", ["spr", "spr.core.boxes", "spr.grounding", "spr.core.images", "spr.annotations"])
def test_these_modules_work_without_torch(module):
    code = f"import sys, {module}\nprint({{'torch', 'transformers'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
