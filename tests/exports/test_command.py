"""`spr export` as a user meets it."""

import subprocess
from typing import get_args

import pytest

import warm_python
from spr.exports.formats import FORMATS, ImageMode


def spr(*arguments, expect=0):
    command = [*warm_python.start(), "-m", "spr", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode == expect, (result.returncode, result.stdout, result.stderr)
    return result.stdout + result.stderr


def test_the_command_knows_the_formats_there_are():
    help_text = spr("export", "--help")
    assert all(name in help_text for name in FORMATS)
    assert all(f"{mode}:" in help_text for mode in get_args(ImageMode))


def test_it_reports_what_it_wrote_what_it_left_out_and_what_to_fill_in(make_dataset, make_run, tmp_path):
    dataset = make_dataset(tmp_path / "data", images=3)
    run, out = make_run(dataset), tmp_path / "out"
    (dataset.images / "1000.png").unlink()
    output = spr("export", run, "--format", "llava", "--out", out, "--dialect", "ferret", "--license", "cc-by-4.0")
    assert f"llava: 2 pairs in {out} (images: copy, dialect: ferret)" in output
    assert "1  left out image_missing" in output
    assert "Fill in the license" in output
    assert "<region_fea>" in (out / "train.json").read_text()
    assert "license: cc-by-4.0" in (out / "README.md").read_text()


def test_prompts_are_reported_as_prompts(make_dataset, make_run, tmp_path):
    run, out = make_run(make_dataset(tmp_path / "data", images=3)), tmp_path / "out"
    arguments = ["--format", "grpo-ms-swift", "--out", out, "--tasks", "describe,locate", "--labels", "phrase"]
    output = spr("export", run, *arguments)
    assert f"grpo-ms-swift: 3 prompts in {out} (images: copy, dialect: llava_onevision)" in output
    assert "3  left out no_category_to_ask" in output
    assert "3 prompts" in (again := spr("export", run, *arguments))
    assert "done before" in again


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--format", "llama-factory"], "did you mean `llamafactory`", 2),
        (["--format", "trl", "--images", "embedded"], "expected: embed", 2),
        (["--format", "llava", "--images", "embed"], "expected: copy | path", 2),
        (["--format", "trl", "--dialect", "cogvml"], "did you mean `cogvlm`", 1),
        (["--format", "trl"], "is not a run folder", 1),
        (["--format", "trl", "--tasks", "detect"], "--questions are for prompts", 2),
        (["--format", "grpo-trl", "--tasks", "detekt"], "did you mean `detect`", 2),
        (["--format", "grpo-trl", "--reviews", "use"], "reviewers decide about pairs", 2),
    ],
)
def test_mistakes_get_one_clear_message(arguments, message, code, tmp_path):
    assert message in spr("export", tmp_path / "nowhere", "--out", tmp_path / "out", *arguments, expect=code)
    assert list(tmp_path.iterdir()) == []
