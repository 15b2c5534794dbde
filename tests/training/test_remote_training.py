"""A training of a run in object storage: whole checkpoints in the store, from which any machine resumes."""

import json

import obstore
import pytest

from s3_server import upload
from spr.core.errors import RunError, StorageError
from spr.core.object_store import connect
from spr.pipeline.runner import run as run_pipeline
from spr.runs.adapters import find_adapter
from spr.runs.training_copy import CACHE, TrainingCopy
from spr.runs.trainings import open_training, run_config, training_names
from spr.training.run import run as train_run

TRAINING = {
    "device": "cpu",
    "dtype": "float32",
    "learning_rate": 0.01,
    "num_train_epochs": 2,
    "max_steps": 3,
    "save_steps": 1,
    "lora": {"r": 4, "lora_alpha": 8},
}


@pytest.fixture
def run(run_with_pairs):
    return run_with_pairs(TRAINING)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Begin on a new machine, whose cache is empty."""
    count = iter(range(9))

    def begin():
        monkeypatch.setenv(CACHE, str(tmp_path / f"machine-{next(count)}"))

    begin()
    return begin


def train(run, *overrides, name=None):
    lines = []
    summary = train_run(run_config(run, overrides, name), run, name=name, report=lines.append)
    return summary, "\n".join(lines)


def losses(run):
    events = map(json.loads, (run / "training" / "log.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["event"] == "step"]


@pytest.mark.parametrize(
    ("pattern", "after"), [("^PUT .*step-000003/checkpoint.json", 2), ("^PUT .*(step-000003/|files.json)", 0)]
)
def test_a_training_in_a_store_is_that_of_a_local_run_and_resumes_on_another_machine(
    run, bucket, machine, s3, monkeypatch, pattern, after
):
    upload(run, bucket)
    train(run)
    monkeypatch.setenv("SPR_STORAGE_TIMEOUT", "1")
    s3.inject("507 StorageFull", pattern)
    with pytest.raises(StorageError, match="the store is full"):
        train(bucket)
    s3.calm()
    monkeypatch.setenv("SPR_STORAGE_TIMEOUT", "20")
    machine()
    summary, said = train(bucket)
    assert (f"after step {after} of 3" in said) == (after > 0)
    assert not summary.done_before
    assert losses(bucket) == losses(run)
    adapter = find_adapter(bucket)
    assert adapter == bucket / "adapter"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (adapter / name).read_bytes() == (run / "adapter" / name).read_bytes()
    machine()
    assert train(bucket)[0].done_before
    assert training_names(bucket) == [None]
    names = {path.relative_to(bucket).as_posix() for path in bucket.below()}
    assert {name.split("/")[2] for name in names if "/checkpoints/" in name} == {"step-000002", "step-000003"}


def test_what_could_not_be_uploaded_is_uploaded_later(run, bucket, machine):
    upload(run, bucket)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingCopy, "upload", lambda _: None)
        train(bucket, name="other")
    assert training_names(bucket) == []
    assert train(bucket, name="other")[0].done_before
    assert training_names(bucket) == ["other"]
    assert find_adapter(bucket) == bucket / "trainings" / "other" / "adapter"
    machine()
    assert train(bucket, name="other")[0].done_before


@pytest.mark.usefixtures("machine")
def test_a_local_copy_of_a_training_that_was_deleted_is_not_used(run, bucket):
    upload(run, bucket)
    train(bucket)
    for path in (bucket / "training").below() + (bucket / "adapter").below():
        path.unlink()
    summary, said = train(bucket)
    assert not summary.done_before
    assert "Resuming" not in said


def test_files_of_the_store_that_are_missing_or_changed_are_named(run, bucket, machine):
    upload(run, bucket)
    train(bucket)
    path = bucket / "training" / "reference.parquet"
    obstore.put(connect("s3", path.bucket), path.key, b"other")  # by another tool
    machine()
    with pytest.raises(RunError, match=r"is damaged(.|\n)*reference.parquet has changed"):
        train(bucket)
    path.unlink()
    with pytest.raises(RunError, match=r"is damaged(.|\n)*reference.parquet is missing"):
        train(bucket)
    (bucket / "training" / "files.json").write_bytes(b'{"files": {"../../x": {"size": 1, "sha256": "0"}}}')
    with pytest.raises(RunError, match="wrong value"):
        train(bucket)


@pytest.mark.usefixtures("machine")
def test_two_machines_can_not_train_the_same(run, bucket):
    upload(run, bucket)
    config = run_config(bucket)
    with open_training(bucket, config), pytest.raises(RunError, match="is in use by another training"):
        train(bucket)
    with open_training(bucket, config, "other"):
        train(bucket)
    with open_training(bucket, config), pytest.raises(RunError, match="is in use by another run"):
        run_pipeline(config, bucket)
