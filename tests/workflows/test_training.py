"""Training with `training.eval_tasks`: the model that is trained answers questions about held-out images."""

import dataclasses
import itertools
import json

import pytest
from typer.testing import CliRunner

from run_folders import rows
from spr.cli import app
from spr.config import make_config
from spr.core.errors import ConfigError
from spr.pipeline.runner import run as run_pipeline
from spr.runs.store import StageStore
from spr.training import run as training_run
from spr.workflows import training
from spr.workflows.training import train

TASKS = {"eval_steps": 1, "eval_tasks": ["description", "rec"], "eval_samples": 3}


@pytest.fixture
def config(mllm_folder, make_dataset, tmp_path):
    """Images with one object that is the only one of its category, and a run with its pairs."""
    data = make_dataset(tmp_path / "data", images=6)
    data.coco["categories"].append({"id": 3, "name": "lamp"})
    for first in range(0, len(data.coco["annotations"]), 12):
        data.coco["annotations"][first]["category_id"] = 3
    data.write()
    describer = {"backend": "fake", "model": str(mllm_folder("llava_onevision")), "dialect": "ferret"}
    fakes = {"scorer": {"backend": "fake"}, "detector": {"backend": "fake"}}
    settings = {"device": "cpu", "dtype": "float32", "max_steps": 2, "lora": {"r": 4, "lora_alpha": 8}, **TASKS}
    raw = data.config(describer={**describer, "max_new_tokens": 4}, training=settings, **fakes)
    run_pipeline(make_config(raw), tmp_path / "run")
    return make_config(raw)


def test_a_hugging_face_dataset_goes_from_a_folder_to_an_evaluated_adapter(make_dataset, mllm_folder, tmp_path):
    data = make_dataset(tmp_path / "data", images=8, ids=range(44, 52))
    names = {category["id"]: category["name"] for category in data.coco["categories"]}
    with (data.images / "metadata.jsonl").open("w") as file:
        for image in data.coco["images"]:
            entries = [entry for entry in data.coco["annotations"] if entry["image_id"] == image["id"]]
            objects = {"bbox": [e["bbox"] for e in entries], "categories": [names[e["category_id"]] for e in entries]}
            line = {"file_name": image["file_name"], "image_id": image["id"], "objects": objects}
            file.write(json.dumps(line) + "\n")
    path, images, run = f"hf:{data.images}:train", tmp_path / "written", str(tmp_path / "run")
    model = str(mllm_folder("llava_onevision"))
    raw = {
        "annotations": {"path": path, "images": str(images)},
        "describer": {"backend": "fake", "model": model, "dialect": "ferret", "max_new_tokens": 4},
        "scorer": {"backend": "fake"},
        "detector": {"backend": "fake"},
        "training": {"device": "cpu", "dtype": "float32", "max_steps": 1, "lora": {"r": 4, "lora_alpha": 8}},
    }
    (tmp_path / "hf.yaml").write_text(json.dumps(raw))
    evaluate = [
        "evaluate",
        "description",
        "--annotations",
        run,
        "--split",
        "holdout",
        "--model",
        model,
        "--adapter",
        run,
    ]
    evaluate += ["--into", run, "--as", "after", "--dialect", "ferret"]
    for command in (
        ["run", str(tmp_path / "hf.yaml"), "--out", run],
        ["export", run, "--format", "trl", "--out", str(tmp_path / "exported")],
        ["train", run],
        [*evaluate, "describer.max_new_tokens=4", "describer.device=cpu"],
        ["report", run],
        ["run", str(tmp_path / "hf.yaml"), "--out", run],
    ):
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == (3 if command[0] == "evaluate" else 0), result.output  # 3: the answers have no box
    held_out = {row["image_id"] for row in rows(tmp_path / "run", "objects")} & {"47", "50"}
    assert held_out == {"47", "50"}
    assert json.loads((tmp_path / "run" / "evaluation" / "after-description.json").read_text())["n"] == len(held_out)
    assert (tmp_path / "exported" / "README.md").is_file()
    assert sorted(file.suffix for file in images.iterdir()) == [".json"] * 2 + [".png"] * 8
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert str(tmp_path) not in page


def test_tasks_are_evaluated_on_held_out_images_with_the_adapter_as_it_is(config, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="nothing to evaluate `description` on"):
        train(config, out)

    def everything(run, stage, kind):
        return [kind.from_row(row) for table in StageStore(run / stage).tables() for row in table.to_pylist()]

    def first_held_out(*arguments, **options):
        splits = ("holdout" if k == 0 else "train" for k in itertools.count())
        return [
            dataclasses.replace(pair, split=split)
            for pair, split in zip(pairs(*arguments, **options), splits, strict=False)
        ]

    pairs = training_run.run_pairs
    monkeypatch.setattr(training, "_held_out", everything)
    monkeypatch.setattr(training_run, "run_pairs", first_held_out)
    items = training._held_out_items(config, out)
    assert len(items["description"].queries) == 3
    assert items["rec"].sentences == ("the lamp",) * 3
    lines = []
    train(config, out, report=lines.append)
    events = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    found = [event for event in events if event["event"] == "eval"]
    assert [event["step"] for event in found] == [1, 2]
    names = {
        "eval_loss",
        "eval_margin",
        "eval_accuracy",
        "eval_s_loc",
        "eval_recall@0.5",
        "eval_acc@0.5",
        "eval_mean_iou",
    }
    assert names <= set(found[0])
    assert any("acc@0.5 0." in line for line in lines)


def test_tasks_need_the_images_of_a_run(config, tmp_path):
    with pytest.raises(ConfigError, match="needs a run with its own images"):
        train(config, tmp_path / "other", pairs=tmp_path / "pairs.parquet")
