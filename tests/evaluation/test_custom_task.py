"""A benchmark of another package works like a built-in one.

The package is a folder on the path, with the metadata that `pip install` would write.
"""

import json
import os
import subprocess

import pytest

import warm_python

MODULE = '''
import json
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from spr.evaluation.inference import Question
from spr.evaluation.metrics import Share
from spr.evaluation.result import Result
from spr.evaluation.task import Option, Task


@dataclass(frozen=True, kw_only=True)
class Counting(Task[list]):
    """How many dogs are in the image?

    A second paragraph.
    """

    name: ClassVar[str] = "counting"
    reads_boxes: ClassVar[bool] = False

    noun: Annotated[str, Option("What is counted.")]
    tolerance: Annotated[int, Option("The largest difference that counts as right.")] = 0
    digits: Annotated[Literal["arabic", "words"], Option("How numbers are written.", asks=True)] = "arabic"

    def load(self, path):
        return json.loads(path.read_text())

    def ids(self, items):
        return [row["id"] for row in items]

    def questions(self, items, dialect, model):
        prompt = f"How many {self.noun} are there?"
        return prompt, [Question(row["id"], row["image"], None, prompt) for row in items]

    def score(self, items, answers):
        rows = zip(items, answers.texts, strict=True)
        right = [text is not None and abs(int(text) - row["n"]) <= self.tolerance for row, text in rows]
        shares = {"accuracy": Share.mean(right)}
        return Result(self.name, {"noun": self.noun}, tuple(self.ids(items)), tuple(self.ids(items)), shares)
'''


@pytest.fixture
def spr(tmp_path):
    """Run `spr` with the package on the path; returns exit status, output and errors."""
    folder = tmp_path / "site"
    info = folder / "my_tasks-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "my_tasks.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[spr.tasks]\ncounting = my_tasks:Counting\n")

    def call(*arguments):
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "120", "NO_COLOR": "1"}
        command = [*warm_python.start(), "-m", "spr", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    return call


def test_the_command_line_offers_the_task_of_another_package_with_its_options(spr):
    status, output, _ = spr("evaluate", "--help")
    assert status == 0
    assert "How many dogs are in the image?" in output
    status, output, _ = spr("evaluate", "counting", "--help")
    assert status == 0
    for text in ("--noun", "[required]", "--tolerance", "The largest difference", "[arabic|words]", "--annotations"):
        assert text in output
    assert "--areas" not in output
    assert "second paragraph" not in output


def test_the_task_of_another_package_scores_predictions_with_its_options(spr, tmp_path):
    (tmp_path / "items.json").write_text(json.dumps([{"id": str(k), "image": "a.jpg", "n": k} for k in range(3)]))
    (tmp_path / "answers.jsonl").write_text("".join(f'{{"id": "{k}", "answer": "{2 * k}"}}\n' for k in range(3)))
    files = ("--annotations", tmp_path / "items.json", "--predictions", tmp_path / "answers.jsonl")
    common = ("evaluate", "counting", *files, "--out", tmp_path / "r.json")
    # The answers 0, 2, 4 are off by 0, 1, 2.
    status, output, errors = spr(*common, "--noun", "dogs", "--tolerance", 1)
    assert status == 0, errors
    assert "0.6667" in output
    assert json.loads((tmp_path / "r.json").read_text())["protocol"]["noun"] == "dogs"
    assert spr(*common)[0] == 2  # --noun is required
    for wrong, message in (
        (("--digits", "roman"), "arabic | words"),
        (("--digits", "words"), "no effect on a predictions file"),
        (("--areas", "share"), "the options of this task (--noun, --tolerance, --digits)"),
        (("--tolerance", "one"), "--tolerance"),
    ):
        status, _, errors = spr(*common, "--noun", "dogs", *wrong)
        assert (status, message in errors) == (2, True), errors
