"""What an installation declares and what it can do without the optional dependencies."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
USERS = ("models", "openai", "storage", "ray", "vllm")
"""The extras for users."""

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
    declared = names([*PROJECT["dependencies"], *(package for extra in USERS for package in EXTRAS[extra])])
    imported = third_party_imports()
    assert {name: path for name, path in imported.items() if name not in declared} == {}
    assert declared - set(imported) == set()


def test_the_base_install_brings_no_deep_learning_framework():
    assert names(PROJECT["dependencies"]) & names(EXTRAS["models"]) == set()
    assert {"torch", "transformers", "peft", "accelerate", "datasets"} <= names(EXTRAS["models"])


def test_the_tests_run_with_every_extra_but_that_which_needs_a_gpu():
    assert "spatial-preference-rewarding[models,openai,storage,ray]" in EXTRAS["dev"]
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
    modules = {name.replace("-", "_") for name in names(package for extra in USERS for package in EXTRAS[extra])} | {
        "torchvision"
    }
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
from spr.rewards import REWARDS, Truth, TruthObject
truth = Truth((TruthObject("dog", (0, 0, 320, 240)),), "ferret", (640, 480))
truth = Truth.from_json(truth.to_json())
answer = truth.read("a dog [0, 0, 500, 500]")
print(*[f"{name}={reward(answer, truth):.2f}" for name, reward in REWARDS.items()])
print(len(read_coco(Path(sys.argv[1])).image_ids))
"""
    result = run_bare(code, str(dataset.json))
    assert result.returncode == 0, result.stderr
    rewards, images = result.stdout.splitlines()
    values = dict(item.split("=") for item in rewards.split())
    assert values.pop("point_in_box") == "0.00"  # the answer has no points
    assert set(values.values()) == {"1.00"}
    assert len(values) >= 11
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


VERSION = re.search(r'__version__ = "(.*)"', (ROOT / "src" / "spr" / "__init__.py").read_text())[1]


def test_the_version_is_the_same_in_every_file():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == VERSION
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == VERSION


def test_the_citation_names_the_paper_and_the_software():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = citation["preferred-citation"]
    assert citation["type"] == "software"
    assert citation["license"] == PROJECT["license"]
    assert paper["identifiers"][0]["value"] == "arXiv:2510.14374"
    assert paper["authors"][0]["family-names"] == "Qiu"
    assert paper["year"] == 2025


def test_only_pyproject_holds_the_address_of_the_repository():
    tracked = [*ROOT.glob("*.md"), *ROOT.glob("*.yml"), *ROOT.glob("*.cff"), *(ROOT / "docs").rglob("*.md")]
    tracked += [path for path in (ROOT / ".github").rglob("*") if path.is_file()]
    assert "OWNER" in PROJECT["urls"]["Repository"]
    assert [path.name for path in tracked if re.search(r"github\.com/[^/]+/spatial-preference", path.read_text())] == []


def workflow(name):
    # YAML 1.1 reads the key `on` as a boolean.
    content = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    return content["jobs"], content[True]


def steps(job):
    return [step.get("run", step.get("uses")) for step in job["steps"]]


def test_ci_runs_what_a_change_must_pass_and_every_supported_version():
    jobs, _ = workflow("ci")
    assert ".ci/run" in steps(jobs["full"])
    matrix = jobs["test"]["strategy"]["matrix"]
    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert matrix["python"] == supported
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "macos"}
    assert matrix["transformers"] == ["oldest", "newest"]


def test_ci_can_read_the_oldest_transformers_from_pyproject():
    (allowed,) = [item for item in EXTRAS["models"] if item.startswith("transformers")]
    assert re.fullmatch(r"transformers>=([0-9.]+),<\d+", allowed)


def test_paths_in_the_workflows_exist():
    for name in ("ci", "release"):
        jobs, _ = workflow(name)
        for job in jobs.values():
            for line in filter(None, steps(job)):
                for path in re.findall(r"(?:^|\s)((?:tests|src|\.ci)/[\w/.]+)", line):
                    assert (ROOT / path).exists(), path


def test_a_release_is_built_then_tested_then_published_without_a_token():
    jobs, triggers = workflow("release")
    assert triggers == {"push": {"tags": ["v*"]}}
    assert (jobs["test"]["needs"], jobs["publish"]["needs"]) == ("build", "test")
    assert "actions/checkout@v4" not in steps(jobs["test"])
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets" not in (ROOT / ".github" / "workflows" / "release.yml").read_text()


def test_issue_forms_have_what_github_requires():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.stem != "config":
            assert {"name", "description", "body"} <= set(form)
            fields = [item["id"] for item in form["body"]]
            assert len(fields) == len(set(fields))
            assert all(item["attributes"]["label"] for item in form["body"])


def docker_instructions():
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]


def test_the_dockerfile_installs_what_is_there_and_starts_spr():
    instructions = docker_instructions()
    known = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions} <= known
    assert instructions[0][0] == "FROM"
    python = re.match(r"python:(3\.\d+)-slim", instructions[0][1])[1]
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]
    copied = [source for name, rest in instructions if name == "COPY" for source in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    # What the build reads: the project, its README and licence, and the sources.
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "src"} <= set(copied)
    (install,) = [rest for name, rest in instructions if name == "RUN" and "pip install" in rest]
    extras = re.search(r"\.\[([a-z,]+)\]", install)[1].split(",")
    assert set(extras) <= set(EXTRAS)
    assert "models" in extras
    assert ("ENTRYPOINT", '["spr"]') in [tuple(item) for item in instructions]
    # Containers don't run as root.
    assert [name for name, _ in instructions].index("USER") < [name for name, _ in instructions].index("ENTRYPOINT")
