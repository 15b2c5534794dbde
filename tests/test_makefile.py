"""`make test` and `make test-slow` choose every test once, except those that take minutes; CI runs both."""

import itertools
import re
import tomllib
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
MARKERS = [
    line.partition(":")[0]
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
]


def recipe(target: str) -> str:
    return re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]


def chosen(target: str) -> Expression:
    """The expression after -m in a target's command, with the Makefile's variables replaced."""
    written = re.search(r'-m "([^"]*)"', recipe(target))[1]
    named = dict(re.findall(r"^([A-Z]+) := (.*)$", MAKEFILE, re.MULTILINE))
    return Expression.compile(re.sub(r"\$\(([A-Z]+)\)", lambda match: named[match[1]], written))


@pytest.mark.parametrize("marks", [set(m) for n in range(len(MARKERS) + 1) for m in itertools.combinations(MARKERS, n)])
def test_a_test_with_any_markers_is_run_by_one_of_the_two_commands_unless_it_is_long(marks):
    running = [target for target in ("test", "test-slow") if chosen(target).evaluate(lambda name, **_: name in marks)]
    if "long" in marks:
        assert running == []
    elif marks & {"slow", "browser", "processes"}:
        assert running == ["test-slow"]
    else:
        assert running == ["test"]


def test_test_all_leaves_none_out():
    every = re.search(r"^PYTEST = .* -m pytest (.*)$", MAKEFILE, re.MULTILINE)[1] + recipe("test-all")
    assert "$(PYTEST)" in every
    assert re.findall(r"(?<!\S)(-m|-k|--deselect|--ignore\S*)(?!\S)", every) == []


def test_ci_runs_both_commands():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make test", "make test-slow", "export CI=true"} <= set(lines)
