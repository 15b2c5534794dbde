"""A sweep: trainings in one run, runs that take over stages, evaluations, one table, and what a second call does."""

import csv
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

import spr
from spr.cli import app
from spr.config import load_config
from spr.core.errors import ConfigError, RunError
from spr.evaluation.compare import compare
from spr.pipeline.runner import run
from spr.runs.trainings import lock_folder, training_names
from spr.training.pair_model import PairModel
from spr.training.stopping import InterruptedTrainingError
from spr.workflows import sweep as sweeps
from spr.workflows.sweep import Sweep, sweep, table

TRAINING = {"device": "cpu", "dtype": "float32", "max_steps": 1, "lora": {"r": 4, "lora_alpha": 8}}


@pytest.fixture
def passes(monkeypatch):
    """One entry per forward pass over pairs."""
    found, forward = [], PairModel.forward

    def watched(self, batch=None, vision=None):
        found.extend([1] if batch is not None else [])
        return forward(self, batch, vision)

    monkeypatch.setattr(PairModel, "forward", watched)
    return found


@pytest.fixture
def plan(mllm_folder, make_dataset, tmp_path):
    """Two learning rates in one run and one other margin, on made-up descriptions; a tiny model is evaluated."""
    data = make_dataset(tmp_path / "data", images=4)
    describer = {"backend": "fake", "model": str(mllm_folder("llava_onevision")), "dialect": "ferret"}
    fakes = {"scorer": {"backend": "fake"}, "detector": {"backend": "fake"}}
    raw = data.config(describer=describer, training=TRAINING, **fakes)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    content = {
        "config": str(tmp_path / "config.yaml"),
        "grid": {"training.learning_rate": ["1e-2", 0.5]},
        "variants": [{"name": "wide", "pairing.min_margin": 0.05, "training.learning_rate": 0.5}],
        "evaluate": [{"task": "description", "describer": {"max_new_tokens": 4, "device": "cpu"}}],
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "sweep.yaml"


def test_a_sweep_trains_and_evaluates_each_variant_once_and_ends_with_a_table(plan, tmp_path, passes, monkeypatch):
    out, lines, asked = tmp_path / "sweep", [], []
    plain_evaluate, plain_train = sweeps.evaluate, sweeps.train
    monkeypatch.setattr(sweeps, "evaluate", lambda *a, **k: (asked.append(1), plain_evaluate(*a, **k))[1])

    # Stopped at the second variant: what came before is kept.
    def stop(config, run, *, name, **options):
        if name == "learning_rate=0.5":
            raise InterruptedTrainingError("Interrupted")
        return plain_train(config, run, name=name, **options)

    monkeypatch.setattr(sweeps, "train", stop)
    with pytest.raises(InterruptedTrainingError):
        sweep(plan, out)
    assert len(asked) == 2
    reference, trained = len(passes) - 1, 1
    monkeypatch.setattr(sweeps, "train", plain_train)
    rows = sweep(plan, out, report=lines.append)
    assert [row.name for row in rows] == ["before", "learning_rate=1e-2", "learning_rate=0.5", "wide"]
    assert not any(row.error for row in rows)
    assert "  description: done before" in lines
    assert len(asked) == 4  # before, and each variant, once
    # One step per training; the reference values were computed once, for the first one.
    trained += 2
    assert len(passes) == reference + trained

    assert training_names(out / "run") == ["learning_rate=0.5", "learning_rate=1e-2"]
    other = out / "runs" / "min_margin=0.05"
    assert training_names(other) == ["learning_rate=0.5"]
    assert (other / "scores" / "part-00000.parquet").samefile(out / "run" / "scores" / "part-00000.parquet")

    content = json.loads((out / "table.json").read_text())
    assert [row["name"] for row in content["rows"]] == [row.name for row in rows]
    results = [out / "results" / f"{name}.description.json" for name in ("before", "wide")]
    (comparison,) = compare(results)
    expected = comparison.to_json()["metrics"]["words"]
    difference = content["rows"][3]["differences"]["description"]["words"]
    assert difference == {name: value for name, value in expected.items() if name not in ("base", "other")}
    assert content["rows"][0]["differences"] == {}
    with (out / "table.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert written[2]["training.learning_rate"] == "0.5"
    assert float(written[3]["description words"]) == content["rows"][3]["results"]["description"]["words"]["value"]

    passes.clear()
    again = sweep(plan, out)
    assert (len(passes), len(asked)) == (0, 4)
    assert [row.training for row in again] == [row.training for row in rows]
    with lock_folder(out, "sweep", "wait"), pytest.raises(RunError, match="in use by another sweep"):
        sweep(plan, out)

    # A variant that is edited is not taken for the training that has its name, not even if it lost a field.
    edited = {
        "config": str(tmp_path / "config.yaml"),
        "variants": [{"name": "learning_rate=0.5", "training.beta": 0.1}],
    }
    (row,) = sweep(Sweep.model_validate(edited), out)
    assert "learning_rate: 0.5 → 1e-05" in row.error
    assert "another `name`" in row.error
    assert training_names(out / "run") == ["learning_rate=0.5", "learning_rate=1e-2"]


def test_a_variant_that_fails_is_reported_and_the_others_are_still_trained(plan, tmp_path):
    content = yaml.safe_load(plan.read_text()) | {"evaluate": [], "grid": {"training.max_length": [5, None]}}
    content["variants"] = []
    plan.write_text(yaml.safe_dump(content))
    done = CliRunner().invoke(app, ["sweep", str(plan), "--out", str(tmp_path / "sweep")])
    assert done.exit_code == 1
    assert "max_length=5 failed: No pair is left to train on" in done.output
    assert "max_length=None  " in done.output
    rows = json.loads((tmp_path / "sweep" / "table.json").read_text())["rows"]
    assert "too_long" in rows[0]["error"]
    assert rows[1]["training"]["steps"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": None}, "give either `config` or `run`"),
        ({"grid": {}, "variants": []}, "give a `grid` or a list of `variants`"),
        ({"grid": {"training.beta": []}}, "`grid` has no values of training.beta"),
        ({"grid": {"training.bta": [1]}}, "did you mean `training.beta`"),
        ({"grid": {"training.beta": [-1]}}, "variant beta=-1 has a problem|command line has a problem"),
        ({"baseline": "wid"}, "`baseline` is not a variant"),
        ({"variants": [{"name": "a/b", "training.beta": 1}]}, "can't have this name"),
        ({"variants": [{"name": "before", "training.beta": 1}]}, "the same name"),
        ({"evaluate": [{"task": "descripton"}]}, "descripton"),
        ({"evaluate": [{"task": "description", "options": {"sampels": 1}}]}, "sampels"),
        ({"evaluate": [{"task": "rec"}, {"task": "rec"}]}, "give them a `name`"),
        ({"varaints": []}, "did you mean `variants`"),
        ({"evaluate": [{"task": "rec", "image": "a"}]}, "`evaluate.0.image` is not a known key; did you mean"),
        ({"evaluate": [{"task": "rec"}]}, "The evaluation `rec` has no annotations"),
        ({"evaluate": [{"task": "rec", "annotations": "none.json"}]}, "annotations: none.json"),
    ],
)
def test_mistakes_are_found_before_anything_runs(change, message, plan, tmp_path):
    plan.write_text(yaml.safe_dump(yaml.safe_load(plan.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        sweep(plan, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_the_output_must_be_new_or_a_sweep_and_one_process_runs_it(plan, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(RunError, match="is not a sweep"):
        sweep(plan, tmp_path / "full")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        sweep(plan, tmp_path / "sweep")


@pytest.mark.parametrize("left", [".lock", ".sweep.json.12.spr-tmp"])
def test_killed_before_its_first_file_it_can_be_repeated(left, plan, tmp_path, monkeypatch):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / left).touch()
    monkeypatch.setattr(sweeps._Job, "run", lambda *_: ["row"])
    assert sweep(plan, tmp_path / "sweep") == ["row"]
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["format"] == "spr sweep"


def test_the_first_file_is_written_under_the_lock(plan, tmp_path):
    with lock_folder(tmp_path / "sweep", "sweep", "wait"), pytest.raises(RunError, match="in use by another sweep"):
        sweep(plan, tmp_path / "sweep")
    assert not (tmp_path / "sweep" / "sweep.json").exists()


def test_the_table_calls_a_difference_whose_interval_contains_0_not_significant():
    plan = Sweep(run="r", variants=[{"training.beta": 1}], evaluate=[{"task": "rec"}])
    value = {"acc@0.5": {"value": 0.5, "ci95": [0.4, 0.6]}}
    rows = [
        sweeps.Row("before", {}, results={"rec": value}),
        sweeps.Row(
            "a",
            {},
            results={"rec": value},
            differences={"rec": {"acc@0.5": {"difference": 0.1, "ci95": [-0.01, 0.2], "p": 0.07}}},
        ),
        sweeps.Row(
            "b",
            {},
            results={"rec": value},
            differences={"rec": {"acc@0.5": {"difference": 0.1, "ci95": [0.01, 0.2], "p": 0.02}}},
        ),
        sweeps.Row(
            "c",
            {},
            results={"rec": value},
            differences={"rec": {"acc@0.5": {"difference": 0.1, "ci95": None, "no_ci95": "2 images", "p": 0.5}}},
        ),
    ]
    assert table(rows, plan) == [
        "",
        "rec acc@0.5 (higher is better), differences to `before`",
        "before    0.5000 [0.4000, 0.6000]",
        "a         0.5000 [0.4000, 0.6000]    +0.1000 [-0.0100, +0.2000]  no significant difference",
        "b         0.5000 [0.4000, 0.6000]    +0.1000 [+0.0100, +0.2000]",
        "c         0.5000 [0.4000, 0.6000]    +0.1000 (no interval: 2 images)",
    ]


@pytest.mark.usefixtures("plan")
def test_the_documented_search_uses_the_public_functions(tmp_path, monkeypatch):
    run(load_config(tmp_path / "config.yaml"), tmp_path / "runs" / "mine")
    docs = Path(__file__).parents[2] / "docs" / "sweeps.md"
    (code,) = re.findall(r"```python\n(from pathlib.*?)```", docs.read_text(encoding="utf-8"), re.DOTALL)
    trials, tried = [], []

    def ask():
        trials.append(SimpleNamespace(number=len(trials), suggest_float=lambda *_, **__: 10.0 ** -len(trials)))
        return trials[-1]

    def train(config, out, *, name):
        tried.append((config.training.learning_rate, out, name))

    def evaluate(task, annotations, *, describer):
        assert describer.peft_adapter == f"runs/mine/trainings/{tried[-1][2]}/adapter"
        return SimpleNamespace(value=lambda metric: (task, annotations, metric))

    told = []
    study = SimpleNamespace(trials=trials, ask=ask, tell=lambda _, value: told.append(value), best_params={})
    optuna = SimpleNamespace(create_study=lambda **_: study)
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    monkeypatch.setattr(spr, "train", train)
    monkeypatch.setattr(spr, "evaluate", evaluate)
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # noqa: S102 (our own page)
    mine = Path("runs/mine")
    assert tried == [(0.1, mine, "trial-0"), (0.01, mine, "trial-1"), (0.001, mine, "trial-2")]
    assert told == [("description", mine, "s_loc")] * 3
