"""The notebooks in examples/ run from top to bottom in an empty folder, and are committed without outputs."""

import json
import subprocess
from pathlib import Path

import pytest

import warm_python

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def cells(path, kind):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def run(path, folder):
    """Run the code cells of a notebook as one program in a separate process."""
    code = "\n\n".join("".join(cell["source"]) for cell in cells(path, "code"))
    return subprocess.run([*warm_python.start(), "-c", code], cwd=folder, capture_output=True, text=True)


def test_own_photos_become_pairs(tmp_path):
    result = run(EXAMPLES / "own_photos_to_pairs.ipynb", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "12 images, 24 regions" in result.stdout
    assert "chosen:" in result.stdout


@pytest.mark.slow
def test_a_model_is_trained_compared_and_looked_at(tmp_path):
    result = run(EXAMPLES / "train_compare_look.ipynb", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "before" in result.stdout
    assert (tmp_path / "runs" / "scenes" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "runs" / "scenes" / "report" / "index.html").is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid_and_have_no_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert cells(path, "markdown")
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path, "code"))
    identifiers = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identifiers)) == len(identifiers)


def test_there_are_two_notebooks():
    assert len(NOTEBOOKS) == 2
