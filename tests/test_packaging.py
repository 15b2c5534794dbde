"""What an installation declares and what it can do without the optional dependencies."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

# The package that provides a module of another name.
PROVIDER = {"PIL": "pillow", "yaml": "pyyaml"}


def names(requirements):
    return {re.match(r"[A-Za-z0-9-]+", requirement)[0].lower() for requirement in requirements}


def third_party_imports():
    """Packages that src/spr imports anywhere, each with the first file that does."""
    found = {}
    for path in sorted((ROOT / "src" / "spr").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            for module in {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"spr"}:
                found.setdefault(PROVIDER.get(module, module).replace("_", "-").lower(), path.relative_to(ROOT))
    return found


def test_every_import_is_declared_and_every_declared_dependency_is_imported():
    declared = names([*PROJECT["dependencies"], *EXTRAS["models"], *EXTRAS["openai"]])
    imported = third_party_imports()
    assert {name: path for name, path in imported.items() if name not in declared} == {}
    assert declared - set(imported) == set()


def test_the_base_install_brings_no_deep_learning_framework():
    assert names(PROJECT["dependencies"]) & names(EXTRAS["models"]) == set()
    assert {"torch", "transformers", "peft", "accelerate", "datasets"} <= names(EXTRAS["models"])


def test_the_tests_run_with_every_extra():
    assert "spatial-preference-rewarding[models,openai]" in EXTRAS["dev"]
    assert "spatial-preference-rewarding[models]" in EXTRAS["docs"]


def test_constraints_pin_only_what_something_declares_or_depends_on():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+==[0-9.]+", pin) for pin in pins)
    assert len(names(pins)) == len(pins)


# Runs `code` in a Python that has none of the optional dependencies.
BARE = """
import sys
MISSING = {missing!r}
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Missing())
"""


def run_bare(code, *arguments, cwd=None):
    modules = {name.replace("-", "_") for name in names([*EXTRAS["models"], *EXTRAS["openai"]])} | {"torchvision"}
    command = [sys.executable, "-c", BARE.format(missing=modules) + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize(
    "module",
    [
        "spr",
        "spr.grounding",
        "spr.rewards",
        "spr.evaluation.compare",
        "spr.annotations",
        "spr.pipeline.runner",
        "spr.cli",
    ],
)
def test_these_modules_import_on_the_base_install(module):
    result = run_bare(f"import {module}")
    assert result.returncode == 0, result.stderr


def test_the_base_install_parses_rewards_and_reads_annotations(dataset):
    code = """
from pathlib import Path
from spr.annotations import read_coco
from spr.grounding import convert, parse
from spr.records import ImageObject
from spr.rewards import REWARDS, Truth
answer = parse("a dog [0, 0, 500, 500]", "ferret", (640, 480))
truth = Truth((ImageObject("1", "dog", (0, 0, 320, 240)),))
print(*[f"{reward(answer, truth):.2f}" for reward in REWARDS.values()])
print(len(list(read_coco(Path(sys.argv[1])))))
"""
    result = run_bare(code, str(dataset.json))
    assert result.returncode == 0, result.stderr
    rewards, images = result.stdout.splitlines()
    assert rewards.split() == ["1.00"] * 5
    assert images == "40"


def test_the_base_install_makes_regions_and_pairs_with_the_fakes(dataset):
    config = dataset.folder / "config.yaml"
    config.write_text(
        "annotations: {path: instances.json, images: images/, max_images: 8}\n"
        "describer: {backend: fake, dialect: ferret}\nscorer: {backend: fake}\ndetector: {backend: none}\n"
    )
    code = "from spr.cli import main\nsys.argv = ['spr', 'run', 'config.yaml', '--out', 'run']\nmain()"
    result = run_bare(code, cwd=dataset.folder)
    assert result.returncode == 0, result.stderr
    assert (dataset.folder / "run" / "pairs" / "manifest.json").is_file()


def test_the_base_install_evaluates_a_file_of_answers(tmp_path):
    (tmp_path / "questions.jsonl").write_text(
        '{"question_id": 1, "image": "1.jpg", "text": "Is there a dog?", "label": "yes"}\n'
    )
    (tmp_path / "answers.jsonl").write_text('{"id": "1", "text": "Yes."}\n')
    code = "from spr.cli import main\nsys.argv = ['spr', 'evaluate', 'pope', '--annotations', 'questions.jsonl', "
    code += "'--predictions', 'answers.jsonl', '--out', 'result.json']\nmain()"
    result = run_bare(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "result.json").is_file()
