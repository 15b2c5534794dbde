"""`spr check` as users see it: output, exit codes, the report folder and the converted file."""

import json

import pytest
from typer.testing import CliRunner

from checking_cases import write
from spr.cli import app
from spr.core.errors import SprError


def spr_check(*arguments, expect=0):
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    if isinstance(result.exception, SprError):
        return str(result.exception), result.exception.exit_code
    assert result.exit_code == expect, (result.output, result.exception)
    return result.output, result.exit_code


def test_the_exit_code_says_whether_the_given_reading_is_refuted(lines):
    answer = "a dog [0.10, 0.20, 0.30, 0.40] and a cat [0.50, 0.50, 0.75, 0.90]"
    row = {"image": "a.jpg", "conversations": [{"from": "gpt", "value": answer}]}
    path = lines(*[row] * 30)
    output, _ = spr_check(path, "--dialect", "llava_onevision")
    assert "rows.jsonl: LLaVA or ShareGPT JSON, 30 lines, 60 boxes" in output
    assert "fits         xyxy, 0–1 (given): llava_onevision" in output
    assert "29  rows are there before" in output
    assert "first: rows.jsonl, line 2" in output
    output, _ = spr_check(path, "--dialect", "ferret", expect=1)
    assert "REFUTED  boxes in texts: xyxy, 0–1000: " in output
    assert "rows.jsonl, line 1: [0.1, 0.2, 0.3, 0.4]" in output
    output, _ = spr_check(path, "--model", "Qwen/Qwen2-VL-2B-Instruct", expect=1)
    assert "qwen2_vl writes boxes as" in output


def test_a_report_is_written_and_written_again(tmp_path):
    path, out = write(tmp_path, "llava"), tmp_path / "report"
    output, _ = spr_check(path, "--out", out)
    assert str(out / "index.html") in output
    found = json.loads((out / "check.json").read_text())
    assert (found["layout"], found["rows"], found["boxes"], found["refuted"]) == ("llava", 2, 2, [])
    assert "a.jpg" in (out / "index.html").read_text()
    spr_check(path, "--out", out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    message, code = spr_check(path, "--out", tmp_path / "mine")
    assert "is not a report of `spr check`, so it is left unchanged" in message
    assert code == 1


def test_fix_writes_a_new_file_and_says_what_it_did(tmp_path):
    path, out = write(tmp_path, "llava"), tmp_path / "new.json"
    message, code = spr_check(path, "--dialect", "pixels", "--fix", "--to", "internvl", "--out", out)
    assert "the size of the image is not known: give --images" in message
    assert not out.exists()
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([rows[0] | {"width": 640, "height": 480}, rows[1]]))
    output, _ = spr_check(path, "--dialect", "pixels", "--fix", "--to", "internvl", "--out", out)
    assert f"{out}: 1 box in dialect internvl" in output
    assert "1  rows refused and left out" in output
    assert "first: llava.json, row 2: the size of the image is not known" in output
    (row,) = json.loads(out.read_text())
    value = row["conversations"][1]["value"]
    assert value == "<ref>The dog</ref><box>[[156, 312, 468, 833]]</box> is here."
    message, code = spr_check(path, "--dialect", "pixels", "--fix", "--to", "internvl", "--out", out)
    assert "is not a new data file" in message
    assert code == 1


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--fix"], "--fix needs a dialect and a new file", 2),
        (["--to", "ferret"], "--to belongs to --fix", 2),
        (["--dialect", "ferret", "--model", "qwen2_vl"], "two ways to say the same", 2),
        (["--format", "lava"], "--format is not a layout", 2),
        (["--context", "100"], "--context needs a tokenizer", 2),
        (["--max-length", "100"], "--max-length needs a tokenizer", 2),
        (["--images", "nowhere"], "There is no image folder nowhere", 1),
        (["--reference", "nowhere.json"], "nowhere.json", 1),
        (["--dialect", "molmo"], "can't be checked in dialect molmo", 2),
        (["--dialect", "feret"], "Unknown dialect", 2),
        (["--dialect", "qwen2_5_vl:colour=1"], "colour", 2),
        (["--dialect", "qwen2_5_vl", "--min-pixels", "9000", "--max-pixels", "4000"], "leave no size", 2),
        (["--fix", "--to", "feret", "--out", "new.json"], "Unknown dialect", 2),
    ],
)
def test_options_that_can_not_be_honoured_are_errors(tmp_path, arguments, message, code):
    path = write(tmp_path, "llava")
    found, exit_code = spr_check(path, *arguments)
    assert message in found
    assert exit_code == code


def test_where_fix_can_not_write_is_said_before_the_data_are_read(tmp_path):
    broken, taken = tmp_path / "broken.json", tmp_path / "taken.json"
    broken.write_text("[{")
    taken.write_text("mine")
    arguments = ("--dialect", "pixels", "--fix", "--to", "internvl", "--out")
    for out, message in ((taken, "is not a new data file"), (broken, "--out is the data file")):
        assert message in spr_check(broken, *arguments, out)[0]
    assert taken.read_text() == "mine"
    assert broken.read_text() == "[{"
    (tmp_path / "new.json.report.jsonl").write_text("mine")
    assert "is not a new report" in spr_check(broken, *arguments, tmp_path / "new.json")[0]


def test_wrong_paths_are_errors(tmp_path):
    message, _ = spr_check(tmp_path / "no.json")
    assert "no such file" in message
    message, _ = spr_check(tmp_path)
    assert "a folder" in message
