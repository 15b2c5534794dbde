"""Training with `training.eval_tasks`: the model that is trained answers questions about held-out images."""

import dataclasses
import itertools
import json

import pytest

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


def test_tasks_are_evaluated_on_held_out_images_with_the_adapter_as_it_is(config, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="nothing to evaluate `description` on"):
        train(config, out)

    def everything(run, stage, kind):
        return [kind.from_row(row) for table in StageStore(run / stage).tables() for row in table.to_pylist()]

    def first_held_out(*arguments):
        splits = ("holdout" if k == 0 else "train" for k in itertools.count())
        return [dataclasses.replace(pair, split=split) for pair, split in zip(pairs(*arguments), splits, strict=False)]

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
