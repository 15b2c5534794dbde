"""The commands and examples of the README work as described."""

import os
import re
import subprocess
from pathlib import Path

import pytest

import warm_python

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


SHELL = [block for block in blocks("sh") if "make " not in block and "pip install" not in block]


def test_readme_gives_the_two_set_up_commands_that_the_makefile_has():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.findall(r"^make ([a-z]+)", README, re.MULTILINE) == ["quickstart", "test"]
    assert {"quickstart", "test", "lint", "docs"} <= set(targets)


@pytest.mark.slow
def test_shell_blocks_run_one_after_another(make_dataset, tmp_path):
    dataset = make_dataset(tmp_path / "data", ids=range(41, 81))  # some of which are held out
    # In a folder with `instances.json` and `images/`. The `spr` of this environment replaces the one in .venv.
    environment = {**os.environ, "PATH": warm_python.path()}
    assert len(SHELL) >= 3
    for block in SHELL:
        runnable = re.sub(r"^\. \.venv/bin/activate.*$", "", block, flags=re.MULTILINE)
        command = ["bash", "-euo", "pipefail", "-c", runnable]
        result = subprocess.run(command, cwd=dataset.folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout
        for drawn in re.findall(r"--draw (\S+)", block):
            assert (dataset.folder / drawn).is_file()


def test_the_first_block_that_needs_spr_activates_the_environment():
    first = next(block for block in SHELL if "spr run" in block)
    assert first.index(". .venv/bin/activate") < first.index("spr run")


def test_the_python_block_gives_what_its_comments_say():
    (block,) = blocks("python")
    names: dict[str, object] = {}
    checked = 0
    for line in block.splitlines():
        code, _, comment = line.partition("  # ")
        if line.startswith(("from ", "answer =")):
            exec(code, names)  # noqa: S102 (the README's own lines)
        elif comment.startswith(("'", "(")):
            expected = re.match(r"('[^']*'|\(.*\)),?", comment)[0]
            assert eval(code, names) == eval(expected.removesuffix(","))  # noqa: S307 (the README's own lines)
            checked += 1
    assert checked == 3
    assert len(names["answer"].problems) == 1


def test_the_tree_in_readme_names_every_package():
    tree = README.split("```\nsrc/spr/\n")[1].split("```")[0]
    named = set(re.findall(r"^  ([a-z_]+(?:\.py|/)) ", tree, re.MULTILINE))
    source = ROOT / "src" / "spr"
    present = {path.name for path in source.glob("*.py")} | {f"{path.parent.name}/" for path in source.glob("*/*.py")}
    assert named == present - {"__init__.py", "__main__.py"}
    folders = re.findall(r"^([a-z/]+)/ ", tree, re.MULTILINE)
    assert {"tests", "docs", "examples", "benchmarks", "tools/embedded"} == set(folders)
    assert all((ROOT / folder).is_dir() for folder in folders)


GENERATED = re.compile(r"(?:\.\./)?(?:commands/[a-z-]+|config-fields)\.md")  # by docs/hooks.py; its links: `make docs`


def test_links_in_the_markdown_files_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"`[^`\n]*`", "", path.read_text(encoding="utf-8"))
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            known = link.startswith("http") or GENERATED.fullmatch(link) or (path.parent / link).exists()
            assert known, f"{path.name}: {link}"


def test_texts_refer_only_to_what_a_reader_can_open():
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py")]
    texts += [*(ROOT / "src").rglob("*.yaml"), *(ROOT / "tools").rglob("*.py"), *(ROOT / "examples").glob("*.ipynb")]
    internal = re.compile(r"\bMETHOD\b|\bARCHITECTURE\b|(?<!\w)\[(?:seed|ours|paper)\]")
    assert [str(path.relative_to(ROOT)) for path in texts if internal.search(path.read_text(encoding="utf-8"))] == []
