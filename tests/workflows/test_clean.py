"""`spr clean` deletes what a run no longer needs, and nothing else."""

import json
import os
import shutil

import pytest
from typer.testing import CliRunner

from spr.cli import app
from spr.config import make_config
from spr.core.errors import ConfigError, RunError
from spr.core.outputs import write_marker
from spr.pipeline import runner
from spr.runs.folder import lock_run

DEAD = 2**22 + 1  # a number that no process has


def invoke(*arguments):
    result = CliRunner().invoke(app, ["clean", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def train(place, *, finished):
    """What a training leaves: an adapter, two checkpoints of 1,000 bytes, features of 500 and the reference."""
    training, adapter = place / "training", place / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    files = write_marker(adapter, "spr train")
    for step in (1, 2):
        folder = training / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "state.pt").write_bytes(b"0" * 998)
        (folder / "checkpoint.json").write_text("{}")
    (training / "features" / "ab").mkdir(parents=True)
    (training / "features" / "ab" / "x.safetensors").write_bytes(b"0" * 500)
    (training / "reference.parquet").write_bytes(b"reference")
    if finished:
        (training / "finished.json").write_text(json.dumps({"adapter": files}))


@pytest.fixture
def run(tmp_path):
    """A run with a finished training and one that is not, files of a killed process, and the user's own."""
    folder = tmp_path / "run"
    with lock_run(folder):
        pass
    train(folder, finished=True)
    train(folder / "trainings" / "slow", finished=False)
    (folder / f".adapter.{DEAD}.spr-tmp").mkdir()
    (folder / "pairs").mkdir()
    (folder / "pairs" / f".part-00000.parquet.{DEAD}.spr-tmp").write_bytes(b"0" * 300)
    (folder / "pairs" / f".mine.{DEAD}.tmp").write_bytes(b"mine")
    (folder / "trainings" / f".gone.{DEAD}.spr-old").mkdir()  # its successor is missing: it will be put back
    (folder / "notes").mkdir()
    (folder / "notes" / "step-000001").write_text("mine")
    return folder


def paths(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_it_says_what_goes_then_deletes_it_and_keeps_everything_else(run):
    before = paths(run)
    with pytest.raises(ConfigError, match="add --yes"):
        invoke(run)
    assert paths(run) == before
    out = invoke(run, "--yes")
    # Two checkpoints of 1,000 bytes, features of twice 500, and 300 of a killed process.
    assert "3.3 kB freed" in out
    assert "kept: 2 checkpoints of unfinished trainings, 2.0 kB" in out
    gone = {path.split("/")[0] + "/" + "/".join(path.split("/")[1:3]) for path in before - paths(run)}
    assert {path.rstrip("/") for path in gone} == {
        f".adapter.{DEAD}.spr-tmp",
        f"pairs/.part-00000.parquet.{DEAD}.spr-tmp",
        *(f"training/checkpoints/step-00000{k}" for k in (1, 2)),
        *("training/features", "training/features/ab", "trainings/slow/training"),
    }
    assert (run / "trainings/slow/training/checkpoints/step-000002/state.pt").is_file()
    assert not (run / "trainings/slow/training/features").exists()
    assert (run / "training/reference.parquet").is_file()
    assert "nothing to delete" in invoke(run)


def test_only_one_kind_is_deleted_on_request(run):
    invoke(run, "--caches", "--yes")
    assert not (run / "training/features").exists()
    assert (run / "training/checkpoints/step-000001").is_dir()
    out = invoke(run, "--checkpoints", "--yes")
    assert "2.0 kB freed" in out
    assert not (run / "training/checkpoints/step-000001").exists()


def test_checkpoints_of_unfinished_trainings_go_only_when_asked_for(run):
    out = invoke(run, "--unfinished", "--yes")
    assert "(a checkpoint of a training that is NOT finished)" in out
    assert not (run / "trainings/slow/training/checkpoints/step-000002").exists()
    assert (run / "trainings/slow/adapter/adapter_model.safetensors").is_file()


def test_the_checkpoints_stay_where_the_adapter_is_damaged_or_missing(run):
    """They are what it would be written again from."""
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"damaged")
    assert "kept: 4 checkpoints" in invoke(run, "--yes")
    assert (run / "training/checkpoints/step-000002/state.pt").is_file()


def test_links_are_not_followed(run, tmp_path):
    shared = tmp_path / "shared"
    (run / "training" / "features").rename(shared)
    (run / "training" / "features").symlink_to(shared)
    other = tmp_path / "other"
    (run / "trainings" / "slow").rename(other)
    (run / "trainings" / "slow").symlink_to(other)
    shutil.copytree(other / "training" / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(run / "training" / "checkpoints")
    (run / "training" / "checkpoints").symlink_to(tmp_path / "checkpoints")
    before = paths(tmp_path / "other"), paths(tmp_path / "checkpoints"), paths(shared)
    invoke(run, "--unfinished", "--yes")
    (run / "trainings").rename(tmp_path / "trainings")
    (run / "trainings").symlink_to(tmp_path)
    assert "nothing to delete" in invoke(run, "--unfinished", "--yes")
    assert (paths(tmp_path / "other"), paths(tmp_path / "checkpoints"), paths(shared)) == before
    assert "checkpoints/step-000002/state.pt" in {name.partition("/")[2] for name in before[0]}


def test_what_is_no_run_or_in_use_is_left_alone(run, tmp_path):
    (tmp_path / "other" / "training" / "features").mkdir(parents=True)
    for folder in (tmp_path / "other", tmp_path / "missing"):
        with pytest.raises(RunError, match="is not a run folder"):
            invoke(folder, "--yes")
    assert paths(tmp_path / "other") == {"training", "training/features"}
    assert not (tmp_path / "missing").exists()
    before = paths(run)
    with lock_run(run), pytest.raises(RunError, match="in use"):
        invoke(run, "--yes")
    assert paths(run) == before


def test_files_of_a_living_process_stay(run):
    path = run / "pairs" / f".part-00001.parquet.{os.getppid()}.spr-tmp"
    path.write_bytes(b"0")
    invoke(run, "--yes")
    assert path.is_file()


def test_a_cleaned_run_is_still_trained_reported_and_merged(make_dataset, tmp_path):
    from spr.report.page import write_report
    from spr.training.checkpoint import merge_adapter
    from spr.training.run import run as train_run

    dataset = make_dataset(tmp_path / "data", images=6)
    training = {"num_train_epochs": 1, "device": "cpu", "vision_cache": "disk", "save_steps": 1}
    describer = {"backend": "fake", "model": "embedded/describer"}
    fakes = {"describer": describer, "scorer": {"backend": "fake"}, "detector": {"backend": "none"}}
    config = make_config(dataset.config(**fakes, training=training))
    run = tmp_path / "run"
    runner.run(config, run)
    first = train_run(config, run)
    assert (run / "training" / "features").is_dir()
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert "freed" in invoke(run, "--yes")
    assert not list((run / "training" / "checkpoints").glob("*"))
    again = train_run(config, run)
    assert (again.done_before, again.steps, again.last) == (True, first.steps, first.last)
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == weights
    write_report(run)
    merge_adapter(run / "adapter", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
