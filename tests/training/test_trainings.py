"""Several trainings in one run: their folders, configs, locks and shared reference."""

import fcntl
import json
import sys

import pytest
import yaml
from typer.testing import CliRunner

from spr.cli import app
from spr.config import TrainingPart, load_config
from spr.core.errors import ConfigError, RunError
from spr.pipeline.runner import run as run_pipeline
from spr.runs.adapters import find_adapter
from spr.runs.trainings import open_training, run_config, training_names, training_place
from spr.training.run import run as train_run

TRAINING = {
    "device": "cpu",
    "dtype": "float32",
    "learning_rate": 0.01,
    "max_steps": 1,
    "lora": {"r": 4, "lora_alpha": 8},
}


@pytest.fixture
def run(run_with_pairs):
    return run_with_pairs(TRAINING)


def train(run, *overrides, name=None):
    lines = []
    summary = train_run(run_config(run, overrides, name), run, name=name, report=lines.append)
    return summary, "\n".join(lines)


def test_trainings_lie_beside_each_other_and_the_reference_is_computed_once(run, forward_passes):
    passes = []
    forward_passes(lambda: passes.append(1))
    first, said = train(run)
    pairs = first.pairs
    assert f"Reference log-probabilities of {pairs:,} pairs" in said
    before = (run / "config.yaml").read_bytes()
    reference = (run / "training" / "reference.parquet").read_bytes()
    # One optimizer step of two pairs, after the reference pass in batches of two.
    assert len(passes) == -(-pairs // 2) + 1
    passes.clear()
    summary, said = train(run, "training.learning_rate=0.5", "seed=7", name="fast")
    assert "Reference log-prob" not in said
    assert len(passes) == 1
    assert not summary.done_before
    assert (run / "config.yaml").read_bytes() == before
    assert (run / "training" / "reference.parquet").read_bytes() == reference
    own = yaml.safe_load((run / "trainings" / "fast" / "config.yaml").read_text())
    assert (own["seed"], own["training"]["learning_rate"]) == (7, 0.5)
    weights = [path.read_bytes() for path in sorted(run.rglob("adapter_model.safetensors"))]
    assert len(set(weights)) == 2
    assert training_names(run) == [None, "fast"]

    # The same command again, and without the overrides: it is the same training.
    assert train(run, name="fast")[0].done_before
    assert train(run, "training.learning_rate=0.5", name="fast")[0].done_before
    # Another learning rate: the hint keeps both.
    with pytest.raises(RunError, match=r"training\.learning_rate: 0\.5 → 0\.1") as caught:
        train(run, "training.learning_rate=0.1", name="fast")
    assert "--name NAME" in caught.value.fix
    assert "delete" not in caught.value.fix
    with pytest.raises(RunError, match=r"0\.01 → 0\.1") as caught:
        train(run, "training.learning_rate=0.1")
    assert "--name NAME" in caught.value.fix
    assert (run / "config.yaml").read_bytes() == before
    assert yaml.safe_load((run / "trainings" / "fast" / "config.yaml").read_text()) == own

    # Another data type has other reference values, which go to the training's own folder.
    train(run, "training.dtype=bfloat16", name="half")
    assert (run / "trainings" / "half" / "training" / "reference.parquet").is_file()
    assert (run / "training" / "reference.parquet").read_bytes() == reference

    assert find_adapter(run) == run / "adapter"
    assert find_adapter(run, "fast") == run / "trainings" / "fast" / "adapter"
    assert find_adapter(run / "trainings" / "fast") == run / "trainings" / "fast" / "adapter"
    assert find_adapter(run / "adapter") == run / "adapter"
    with pytest.raises(RunError, match=r"(?s)--name slow.*trainings/fast, .*trainings/half"):
        find_adapter(run, "slow")


def test_only_the_training_can_be_changed_in_a_run(run):
    with pytest.raises(ConfigError, match=r"`pairing.min_margin` can't be changed") as caught:
        run_config(run, ["pairing.min_margin=0.3"])
    assert f"--out NEW --reuse {run}" in caught.value.fix
    with pytest.raises(ConfigError, match=r"add --name NAME"):
        run_config(run, ["seed=3"])
    assert run_config(run, ["seed=3"], "b").seed == 3
    with pytest.raises(ConfigError, match=r"did you mean `training.learning_rate`"):
        run_config(run, ["training.learning_rte=1"])
    with pytest.raises(RunError, match="spr train CONFIG --out"):
        run_config(run / "pairs")
    with pytest.raises(RunError, match=r"is a training[\s\S]*--name b"):
        run_config(run / "trainings" / "b")
    for name in ("", "..", ".hidden", "a/b", "a" * 101, "ends."):
        with pytest.raises(ConfigError, match="can't have this name"):
            training_place(run, name)


def test_trainings_run_at_the_same_time_unless_they_have_the_same_name(run):
    config = load_config(run / "config.yaml")
    with open_training(run, config), open_training(run, config, "a"), open_training(run, config, "b"):
        with pytest.raises(RunError, match="in use by another training"), open_training(run, config, "a"):
            pass
        with pytest.raises(RunError, match="in use by another run"):
            run_pipeline(config, run)
        changed = config.model_copy(update={"training": config.training.model_copy(update={"beta": 0.7})})
    with (
        open_training(run, config, "a"),
        pytest.raises(RunError, match=r"config.yaml is in use by another training[\s\S]*--name NAME"),
        open_training(run, changed),
    ):
        pass
    with (run / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="in use by another run"), open_training(run, config, "a"):
            pass
    run_pipeline(config, run)  # all locks are released


def test_pairs_from_elsewhere_can_be_trained_on_several_times(tmp_path):
    part = TrainingPart(seed=3)
    with open_training(tmp_path / "run", part):
        pass
    assert run_config(tmp_path / "run", ["seed=5"]).seed == 5
    with open_training(tmp_path / "run", run_config(tmp_path / "run", ["training.beta=0.5"], "b"), "b"):
        pass
    assert run_config(tmp_path / "run").training.beta == 0.1
    assert run_config(tmp_path / "run", (), "b").training.beta == 0.5


def test_the_command_takes_a_run_or_a_config_with_out(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["spr"])

    def spr(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=True)

    done = spr("train", run, "training.learning_rate=0.2", "--name", "b")
    assert f"Adapter (PEFT format):  {run / 'trainings' / 'b' / 'adapter'}" in done.output
    done = spr("train", run / "config.yaml", "--out", run, "--name", "c")
    assert f"{run / 'trainings' / 'c' / 'adapter'}" in done.output
    assert "--out is missing" in str(spr("train", run / "config.yaml").exception)
    assert "trained in place" in str(spr("train", run, "--out", run / "x").exception)
    # There is no default adapter, so `spr merge` asks which one is meant.
    error = spr("merge", run, "--out", run.parent / "merged").exception
    assert f"give one of its trainings: {run / 'trainings' / 'b'}, {run / 'trainings' / 'c'}" in str(error)
    assert spr("merge", run, "--name", "b", "--out", run.parent / "merged").exit_code == 0
    marker = json.loads((run.parent / "merged" / "spr.json").read_text())
    assert marker["format"] == "spr merge"
