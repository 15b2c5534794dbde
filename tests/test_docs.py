"""The documentation: every snippet is run or checked, and commands, fields and messages are those of the code.

A snippet that can't be run has a comment before it, `<!-- not run: REASON -->`; its commands, options, fields and
imports are still checked. Snippets share a folder with a finished run, as a reader would have.
"""

import ast
import importlib.util
import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from spr.cli import app
from spr.config import Config, find_config, load_config
from spr.config.reference import sections
from spr.models.families import FAMILIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
# Their snippets are run by other tests.
ELSEWHERE = {
    "api.md": "tests/test_api.py",
    "data.md": "tests/test_data_page.py",
    "how-to/add-a": "tests/plugins/test_adding.py",
    "your-data-to-adapter.md": "tests/test_your_data.py",
}
FENCE = re.compile(r"^( *)(?:<!-- not run: ([^\n]+) -->\n\1)?```([a-z]*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"sh", "python", "yaml", "toml", "json", "text"}
GROUP = typer.main.get_command(app)


@dataclass(frozen=True)
class Snippet:
    page: str
    language: str
    code: str
    reason: str | None

    def __str__(self):
        return f"{self.page}: {self.code[:60]!r}"


def snippets(language=None):
    for path in PAGES:
        page = str(path.relative_to(DOCS))
        for indent, reason, kind, code in FENCE.findall(path.read_text(encoding="utf-8")):
            plain = re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
            if not page.startswith(tuple(ELSEWHERE)) and language in (None, kind):
                yield Snippet(page, kind, plain, reason or None)


def lines(snippet):
    """The commands of a shell snippet, without comments and with continued lines joined."""
    joined = snippet.code.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def command(words):
    """The command of a line that starts with `spr`, and its own arguments."""
    found, rest = GROUP, words[1:]
    while hasattr(found, "list_commands"):
        found, rest = found.get_command(None, rest[0]), rest[1:]
        assert found is not None, words
    return found, rest


def test_every_fence_is_found_and_names_its_language():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(FENCE.findall(text)), path
    wrong = [str(snippet) for snippet in snippets() if snippet.language not in LANGUAGES]
    assert wrong == []
    assert [str(s) for s in snippets("text") if re.search(r"^(spr|pip|make) [a-z]", s.code, re.MULTILINE)] == []
    assert all((ROOT / test).is_file() for test in ELSEWHERE.values())


def test_every_command_line_is_one_that_spr_accepts():
    checked = 0
    for snippet in snippets("sh"):
        for words in lines(snippet):
            words = words[words.index("spr") :] if {"spr", "-m"} <= set(words) else words
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
            elif words[0] == "spr":
                found, arguments = command(words)
                assert found.make_context(words[1], list(arguments)) is not None
                overrides = [word for word in arguments if re.match(r"[a-z_0-9]+(\.[a-z_0-9]+)+=", word)]
                load_config("quickstart", overrides)
                checked += 1
            else:
                assert snippet.reason is not None, f"{snippet}: {words[0]} is not run, and nothing says why"
    assert checked >= 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_dataset):
    """Where the snippets are run: annotations, images, a config and a finished run."""
    folder = tmp_path_factory.mktemp("docs")
    make_dataset(folder, ids=range(44, 84))  # some of which are held out
    (folder / "mine.yaml").write_text(
        "annotations: {path: instances.json, images: images/, max_images: 6}\n"
        "describer: {backend: fake, model: embedded/describer}\nscorer: {backend: fake}\ndetector: {backend: none}\n"
    )
    return folder


def invoke(arguments):
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, (arguments, result.output)


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    if not (folder / "runs" / "mine").exists():
        invoke(["run", "mine.yaml", "--out", "runs/mine"])


@pytest.mark.slow
@pytest.mark.usefixtures("inside")
def test_the_commands_run_one_after_another():
    ran = 0
    for snippet in snippets("sh"):
        for words in lines(snippet):
            if snippet.reason is None and words[0] == "spr":
                invoke([str(Path(word).expanduser()) if word.startswith("~") else word for word in words[1:]])
                ran += 1
    assert ran >= 10


@pytest.mark.slow  # some read what the commands wrote
@pytest.mark.usefixtures("inside")
def test_the_python_snippets_run_page_by_page():
    names, ran = {}, 0
    for snippet in snippets("python"):
        tree = ast.parse(snippet.code)
        if snippet.reason is None:
            exec(compile(tree, snippet.page, "exec"), names.setdefault(snippet.page, {}))  # noqa: S102 (our own pages)
            ran += 1
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("spr"):
                assert all(hasattr(import_module(node.module), alias.name) for alias in node.names), snippet
    assert ran >= 5


def test_configs_and_data_in_other_languages_are_valid():
    for snippet in snippets("yaml"):
        content = yaml.safe_load(snippet.code)
        if set(content) <= set(Config.model_fields):
            Config.model_validate({"annotations": {"path": "a.json", "images": "i"}, **content})
        else:
            assert snippet.reason is not None, snippet
    for snippet in snippets("toml"):
        tomllib.loads(snippet.code)
    for snippet in snippets("json"):
        decoder, rest = json.JSONDecoder(), snippet.code.strip()
        while rest:
            rest = rest[decoder.raw_decode(rest)[1] :].lstrip()


def test_the_table_of_families_has_a_row_per_entry(hooks):
    filled = hooks.on_page_markdown((DOCS / "families.md").read_text(encoding="utf-8"))
    rows = [line.split(" | ") for line in filled.splitlines() if re.match(r"\| .* \| `[\w-]+` \| \[`\w+`\]", line)]
    assert [row[1].strip("`") for row in rows] == list(FAMILIES)
    (qwen,) = (row for row in rows if row[1] == "`qwen3_5`")
    assert qwen[4:6] == ["no", "can"]
    assert "| `qwen3_5` | `Qwen3_5ForConditionalGeneration` |" in filled


def test_help_and_readme_list_the_same_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `spr ([a-z-]+)", readme, re.MULTILINE))
    assert named == set(GROUP.list_commands(None))


def test_quoted_messages_are_messages_of_the_code():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    quoted = re.findall(r"^\*\*`([^`]+)`\*\*", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) >= 20
    assert [message for message in quoted if message not in source] == []


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_and_option_has_its_place_on_a_generated_page(hooks):
    pages = hooks.generated_pages()
    for name in GROUP.list_commands(None):
        assert f"[`spr {name}`]({name}.md)" in pages["commands/index.md"]
        page, found = pages[f"commands/{name}.md"], GROUP.get_command(None, name)
        subcommands = getattr(found, "list_commands", lambda _: [])(None)
        for sub in subcommands:
            assert f"## spr {name} {sub}\n" in page
        for each in [found.get_command(None, sub) for sub in subcommands] or [found]:
            for option in (parameter for parameter in each.params if parameter.param_type_name == "option"):
                assert option.hidden or f"`{option.opts[0]}`" in page
    assert "spr train RUN|CONFIG [KEY=VALUE]... [OPTIONS]" in pages["commands/train.md"]
    run = pages["commands/run.md"]
    assert "| `--workers` | integer, ≥ 1 | 1; on Ray, all CPUs | Processes for stages that load no model. |" in run


def test_every_config_field_is_in_the_generated_table(hooks):
    page = hooks.generated_pages()["config-fields.md"]
    rows = re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(field.name for section in sections() for field in section.fields)
    assert "| `training.lora.r` | an integer, at least 1 | `128` | Rank. | supplement, Sec. 2 |" in page
    # A bar in a cell would end it.
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in page.splitlines() if line.startswith("| `")} == {6}


def test_pages_show_the_examples_as_they_are(hooks):
    shown = set()
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        names = re.findall(r"^<!-- example: (\S+) -->$", page, re.MULTILINE)
        filled = hooks.on_page_markdown(page)
        assert "<!-- example" not in filled
        assert all(f"\n{(ROOT / 'examples' / name).read_text(encoding='utf-8')}```\n" in filled for name in names)
        shown.update(names)
    assert len(shown) >= 7


def test_the_tables_of_memory_disk_and_time_are_those_worked_out(hooks):
    page = (DOCS / "memory.md").read_text(encoding="utf-8")
    filled = hooks.on_page_markdown(page)
    assert set(re.findall(r"<!-- table: (\w+) -->", page)) == set(hooks.TABLES) - {"families", "classes"}
    assert "<!-- table" not in filled
    shipped = {path.stem for path in find_config("quickstart").parent.glob("*.yaml")} - {"quickstart"}
    for name in shipped:
        assert len(re.findall(rf"^\| `{re.escape(name)}` ", filled, re.MULTILINE)) == 1 + 1 + 3
    # Ferret-7B: weights 7.09 billion · 2 bytes; its adapter of 319.8 million float32 numbers; 10,000 · 577 · 4096 · 2.
    assert "| `ferret-7b` | 14 | " in filled
    assert re.search(r"^\| `ferret-7b` \| [\d.]+ \| 1\.3 \| [\d.]+ \| 47\.3 \|$", filled, re.MULTILINE)
