"""The page "From your data to your adapter": a stranger's path, with every command of the page in its order."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from playwright.sync_api import expect
from typer.testing import CliRunner

from annotations.test_convert import write_yolo
from spr.cli import app
from spr.embedded.scenes import write_scenes
from spr.runs.reader import Run

PAGE = (Path(__file__).parents[1] / "docs" / "your-data-to-adapter.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
REVIEW = ["spr", "review", "runs/mine", "--reviewer", "ana"]


def run(command):
    """Run a command of the page in this process; returns its output, or writes it where `>` points."""
    arguments, target = (command[:-2], command[-1]) if ">" in command else (command, None)
    result = CliRunner().invoke(app, arguments[1:], catch_exceptions=False)
    assert result.exit_code == 0, (command, result.output)
    if target is not None:
        Path(target).write_text(result.stdout)
    return result.output


def use_fakes(path):
    """Generated answers and scores instead of models, which are tested elsewhere; the model to train stays."""
    config = yaml.safe_load(path.read_text())
    config["annotations"]["crowds"] = "drop"
    config["detector"]["backend"] = "none"
    config["scoring"]["ground_truth"] = "annotations"
    config["describer"]["backend"] = config["scorer"]["backend"] = "fake"
    config["training"]["num_train_epochs"] = 1
    path.write_text(yaml.safe_dump(config))


def review_three_pairs(folder, browser):
    """Accept, reject and accept with the keyboard, in the page that the command serves."""
    command = [sys.executable, "-m", *REVIEW, "--no-browser"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://\S+", server.stdout.readline())[0]
            page = browser.new_page()
            page.goto(address)
            page.wait_for_selector("article.card")
            for number, key in enumerate("ara", start=1):
                page.keyboard.press(key)
                expect(page.get_by_text("All saved")).to_be_visible(timeout=20_000)
                page.wait_for_function(
                    f"fetch('state/ana').then(r => r.json()).then(s => s.mine.filter(Boolean).length === {number})"
                )
        finally:
            server.kill()  # loses nothing: every decision is saved at once


@pytest.mark.slow
@pytest.mark.browser
def test_from_a_yolo_folder_to_compared_adapters_a_review_and_an_export(tmp_path, monkeypatch, browser):
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path / "scenes", 24, 3)
    coco = json.loads((tmp_path / "scenes" / "instances.json").read_text())
    write_yolo(coco, tmp_path / "scenes" / "images", tmp_path / "yolo")
    (tmp_path / "yolo" / "images").unlink()  # a link, which could lead anywhere
    (tmp_path / "scenes" / "images").rename(tmp_path / "yolo" / "images")
    outputs = {}
    for command in COMMANDS:
        if command == REVIEW:
            review_three_pairs(tmp_path, browser)
        else:
            outputs[" ".join(command)] = run(command)
        if command[:2] == ["spr", "config"]:
            use_fakes(tmp_path / "mine.yaml")
    assert len(outputs) == len(COMMANDS) - 1 >= 13

    source = Run("runs/mine")
    pairs = source.table("pairs").to_pylist()
    held_out = {pair["image_id"] for pair in pairs if pair["split"] == "holdout"}
    assert 0 < len(held_out) < len(pairs)
    before, *after = (
        json.loads(Path(f"runs/mine/evaluation/{name}-description.json").read_text())
        for name in ("before", "lr1e-4", "lr3e-4")
    )
    assert before["n"] == after[0]["n"] == after[1]["n"] == len(held_out)
    compared = outputs["spr compare runs/mine"]
    assert "before → mine lr1e-4" in compared
    assert "95 % interval" in compared
    assert "Conclusion" in compared
    report = Path("runs/mine/report/index.html").read_text()
    for name in ("lr1e-4", "lr3e-4"):
        trained = {
            row["id"] for row in pq.read_table(f"runs/mine/trainings/{name}/training/dropped.parquet").to_pylist()
        }
        assert trained == {pair["query_id"] for pair in pairs if pair["image_id"] in held_out}
        assert name in report
    assert [json.loads(line)["action"] for line in Path("runs/mine/reviews.jsonl").read_text().splitlines()] == [
        "accept",
        "reject",
        "accept",
    ]
    rejected = json.loads(Path("runs/mine/reviews.jsonl").read_text().splitlines()[1])["pair"]
    exported = {
        row["query_id"]: path.name.partition("-")[0]
        for path in Path("exported/data").glob("*.parquet")
        for row in pq.read_table(path, columns=["query_id"]).to_pylist()
    }
    kept = {pair["query_id"]: "test" if pair["image_id"] in held_out else "train" for pair in pairs}
    del kept[rejected]
    assert exported == kept
    assert (tmp_path / "merged" / "config.json").is_file()
