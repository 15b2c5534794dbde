"""`spr train` and `spr merge` from the command line."""

import fcntl
import json
import shutil
import sys

import pyarrow as pa
import pytest
import yaml
from datasets import load_from_disk
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from spr.cli import main
from spr.config import make_config
from spr.pipeline.runner import run as run_pipeline
from spr.runs.store import StageOutput, StageStore, dropped_table, read_table

TRAINING = {
    "device": "cpu",
    "dtype": "float32",
    "learning_rate": 0.01,
    "per_device_train_batch_size": 2,
    "lora": {"r": 4, "lora_alpha": 8},
}


@pytest.fixture
def spr(monkeypatch, capsys):
    """Arguments → what the command printed, on standard output and standard error."""

    def call(*arguments, expect=0):
        monkeypatch.setattr(sys, "argv", ["spr", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        output, errors = capsys.readouterr()
        assert left.value.code == expect, (left.value.code, output, errors)
        return output, errors

    return call


@pytest.fixture(scope="module")
def raw(mllm_folder, make_dataset, tmp_path_factory):
    """A config whose descriptions are made up, but whose describer names a tiny model of a real class."""
    data = make_dataset(tmp_path_factory.mktemp("cli-train") / "data", images=6)
    describer = {"backend": "fake", "model": str(mllm_folder("llava_onevision"))}
    return data.config(describer=describer, scorer={"backend": "fake"}, detector={"backend": "fake"}, training=TRAINING)


@pytest.fixture
def config(raw, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def run(raw, tmp_path):
    """A run with its pairs."""
    run_pipeline(make_config(raw), tmp_path / "run")
    return tmp_path / "run"


def test_held_out_images_are_never_trained_on(spr, make_dataset, raw, tmp_path):
    data = make_dataset(tmp_path / "data", images=8, ids=range(44, 52))
    config, run = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(
        yaml.safe_dump(data.config(**{name: part for name, part in raw.items() if name != "annotations"}))
    )
    output, _ = spr("run", config, "--out", run)
    assert "2  images held out from training (annotations.holdout)" in output
    assert "2  of held-out images: for evaluation, not trained on" in output
    output, _ = spr("train", config, "--out", run)
    assert "6 pairs" in output
    assert "2  dropped held_out" in output
    listed = read_table(run / "training" / "dropped.parquet").to_pylist()
    files = {f"{entry['id']}/0": entry["file_name"] for entry in data.coco["images"]}
    assert sorted((row["id"], row["reason"], row["file_name"]) for row in listed) == [
        (id_, "held_out", files[id_]) for id_ in ("47/0", "50/0")
    ]
    # The same through an export, as a folder and as one file of held-out pairs.
    spr("export", run, "--format", "trl", "--out", tmp_path / "trl")
    spr("export", run, "--format", "llava", "--out", tmp_path / "llava")
    output, _ = spr("train", config, "--pairs", tmp_path / "trl", "--out", tmp_path / "two")
    assert "6 pairs" in output
    assert "2  dropped held_out" in output
    _, errors = spr("train", config, "--pairs", tmp_path / "llava" / "test.json", "--out", tmp_path / "three", expect=1)
    assert "No pair is left to train on" in errors
    assert "dropped: held_out 2" in errors


def losses_of(run):
    lines = [json.loads(line) for line in (run / "training" / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"]


def test_a_run_is_trained_once_and_merged_into_a_model_that_loads_without_peft(spr, config, run, raw, tmp_path):
    output, _ = spr("train", config, "--out", run)
    assert "LoRA of rank 4 on 2 × q_proj" in output
    assert "steps on " in output
    assert f"Adapter (PEFT format):  {run / 'adapter'}" in output
    assert {path.name for path in (run / "adapter").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert "Tokens per answer: " in output
    before = losses_of(run)
    again, _ = spr("train", config, "--out", run)
    assert "(done before)" in again
    assert losses_of(run) == before

    assert "Tokens per answer: " not in again

    output, _ = spr("merge", run, "--out", tmp_path / "merged")
    assert f"Merged model:  {tmp_path / 'merged'}" in output
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    plain = AutoModelForImageTextToText.from_pretrained(raw["describer"]["model"])
    # W + (alpha / rank) B A, and all else as it was.
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    changed = set()
    frozen = plain.state_dict()
    for name, tensor in merged.state_dict().items():
        low = [adapter.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{k}.weight") for k in "AB"]
        if low[0] is None:
            assert (tensor == frozen[name]).all(), name
        else:
            changed.add(name)
            assert (tensor - (frozen[name] + 2 * low[1] @ low[0])).abs().max() < 1e-5, name
    assert len(changed) == 14


def test_pairs_from_elsewhere_need_no_annotations(spr, config, pairs_folder, tmp_path):
    only = {
        name: part for name, part in yaml.safe_load(config.read_text()).items() if name in ("describer", "training")
    }
    config.write_text(yaml.safe_dump(only))
    load_from_disk(str(pairs_folder)).to_parquet(str(tmp_path / "pairs.parquet"))
    for name in ("pairs.parquet", pairs_folder):
        out = tmp_path / f"out-{str(name)[-5:]}"
        output, _ = spr("train", config, "--out", out, "--pairs", tmp_path / name)
        assert "training: 3 steps on 6 pairs" in output
        assert yaml.safe_load((out / "config.yaml").read_text())["training"]["lora"]["r"] == 4
    # The same command again finds it done.
    again, _ = spr("train", config, "--out", out, "--pairs", tmp_path / name)
    assert "(done before)" in again


def test_another_runs_reference_is_used(spr, config, run, raw, tmp_path):
    output, _ = spr("train", config, "--out", run)
    assert "Reference log-probabilities of " in output
    other = tmp_path / "other"
    run_pipeline(make_config(raw), other)
    known = run / "training" / "reference.parquet"
    output, _ = spr("train", config, "--out", other, "--reference", known, "training.learning_rate=0.001")
    assert "Reference log-probabilities" not in output
    assert losses_of(other)[0] == losses_of(run)[0]
    assert losses_of(other)[-1] != losses_of(run)[-1]


def test_a_run_without_pairs_says_which_command_makes_them_and_leaves_no_folder(spr, config, tmp_path):
    _, errors = spr("train", config, "--out", tmp_path / "none", expect=1)
    assert "does not hold a finished stage" in errors
    assert f"spr run CONFIG --out {tmp_path / 'none'} --until pairs" in errors
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.parquet", "There is nothing at"), ("c.yaml", "can't be read as pairs")],
)
def test_pairs_that_are_none_are_refused_before_anything_is_written(name, message, spr, config, tmp_path):
    _, errors = spr("train", config, "--out", tmp_path / "out", "--pairs", tmp_path / name, expect=1)
    assert message in errors
    assert ".parquet, .jsonl or .json" in errors
    assert not (tmp_path / "out").exists()


def test_allowing_outside_images_needs_pairs_that_name_them(spr, config, run):
    _, errors = spr("train", config, "--out", run, "--allow-outside-images", expect=2)
    assert "annotations.allow_outside_images" in errors


def test_pairs_from_elsewhere_are_not_trained_on_in_a_run_with_its_own(spr, config, run, pairs_folder):
    before = (run / "config.yaml").read_bytes()
    _, errors = spr("train", config, "--out", run, "--pairs", pairs_folder, expect=1)
    assert "leave --pairs out" in errors
    assert (run / "config.yaml").read_bytes() == before


def test_a_training_that_is_refused_leaves_config_adapter_and_log_as_they_were(spr, config, run):
    spr("train", config, "--out", run)
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    _, errors = spr("train", config, "--out", run, "training.beta=0.5", expect=1)
    assert "training.beta: 0.1 → 0.5" in errors
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_reference_that_does_not_fit_is_refused_and_does_not_stay(spr, config, run, tmp_path):
    (tmp_path / "reference.parquet").write_bytes(b"something else")
    for name, message in (
        ("reference.parquet", "not a file of reference log-prob"),
        ("gone.parquet", "check the path given to --reference"),
    ):
        _, errors = spr("train", config, "--out", run, "--reference", tmp_path / name, expect=1)
        assert message in errors
    output, _ = spr("train", config, "--out", run)
    assert "Reference log-probabilities of " in output


def test_two_trainings_into_one_folder_are_refused(spr, config, run):
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _, errors = spr("train", config, "--out", run, expect=1)
    assert "is in use by another run" in errors
    assert not (run / "training").exists()


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["describer.model=null"], "set describer.model", 2),
        (["describer.model=embedded/nothing"], "There is no such embedded model", 2),
        (["training.lora.target_modules=[q_prj]"], "did you mean `q_proj`?", 2),
        (["training.report_to=[tensorbord]"], "did you mean `tensorboard`?", 2),
        (["training.learning_rte=1"], "did you mean `training.learning_rate`", 2),
        (["training.max_length=5"], "dropped: too_long 6", 1),
    ],
)
def test_mistakes_get_one_clear_message(arguments, message, code, spr, config, pairs_folder, tmp_path):
    _, errors = spr("train", config, *arguments, "--out", tmp_path / "out", "--pairs", pairs_folder, expect=code)
    assert message in errors
    assert errors.count("spr: ") == 1


def test_what_needs_no_weights_is_answered_before_the_model_is_loaded(
    spr, config, pairs_folder, mllm_folder, tmp_path, monkeypatch
):
    out, more = tmp_path / "out", ["--pairs", pairs_folder, "training.max_steps=2", "training.save_steps=1"]
    spr("train", config, "--out", out, *more)

    def refuse(*_args, **_kwargs):
        raise AssertionError("the weights were loaded")

    for module in ("spr.training.trainee", "spr.training.checkpoint"):
        monkeypatch.setattr(f"{module}.load_mllm", refuse)
    output, _ = spr("train", config, "--out", out, *more)
    assert "2 steps on" in output
    assert "(done before)" in output
    (out / "training" / "finished.json").unlink()
    for arguments, message, code in (
        ([*more, "training.learning_rate=0.5"], "learning_rate: 0.01 → 0.5", 1),  # by the checkpoint
        ([*more[:2], "training.max_length=5"], "dropped: too_long 6", 1),
        ([*more[:2], "training.lora.target_modules=[q_prj]"], "did you mean `q_proj`?", 2),
        ([*more[:2], "--reference", tmp_path / "gone"], "There is no file", 1),
    ):
        _, errors = spr("train", config, "--out", out, *arguments, expect=code)
        assert message in errors
    _, errors = spr("merge", out, "--out", tmp_path / "m", "--model", mllm_folder("qwen2_vl"), expect=1)
    assert "does not fit" in errors


def test_merge_refuses_what_is_no_adapter_what_does_not_fit_and_a_folder_that_is_not_empty(
    spr, config, pairs_folder, mllm_folder, tmp_path
):
    _, errors = spr("merge", tmp_path, "--out", tmp_path / "merged", expect=1)
    assert "is not an adapter" in errors
    out = tmp_path / "out"
    spr("train", config, "--out", out, "--pairs", pairs_folder, "training.max_steps=1")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("x")
    _, errors = spr("merge", out, "--out", full, expect=1)
    assert "is not a merged model, so it is left unchanged" in errors
    assert "a folder with mine.txt" in errors
    _, errors = spr("merge", out, "--out", full / "mine.txt", expect=1)
    assert "is not a merged model" in errors
    assert "a file" in errors
    _, errors = spr("merge", out, "--out", tmp_path / "merged", "--model", mllm_folder("qwen2_vl"), expect=1)
    assert "does not fit" in errors
    assert "expected: LlavaOnevisionForConditionalGeneration" in errors
    assert not (tmp_path / "merged").exists()
    assert [path.name for path in full.iterdir()] == ["mine.txt"]


@pytest.fixture
def run_in_order(run):
    """The run, with four pairs whose chosen boxes are in reading order and whose rejected boxes are not."""
    store = StageStore(run / "pairs")
    (table,) = store.tables()
    assert len(table) >= 4
    boxes = [[0.0, 0.0, 9.0, 9.0], [20.0, 0.0, 29.0, 9.0]]
    rows = [
        {
            **row,
            "chosen": f"a dog [0.1, 0.2, 0.3, 0.4] {k}",
            "rejected": f"a cat [0.1, 0.2, 0.3, 0.4] {k}",
            "chosen_spans": [{"phrase": "", "start": 0, "end": 0, "boxes": boxes}],
            "rejected_spans": [{"phrase": "", "start": 0, "end": 0, "boxes": boxes[::-1]}],
        }
        for k, row in enumerate(table.to_pylist()[:4])
    ]
    manifest = store.manifest()
    output = StageOutput(pa.Table.from_pylist(rows, schema=table.schema), dropped_table("pairs", "query", []))
    manifest.shards[:] = [store.write_shard(0, output, inputs=4, source=manifest.shards[0].source)]
    store.save(manifest)
    return run


def test_training_warns_of_cues_unless_the_loss_uses_chosen_answers_only(spr, config, run_in_order):
    warning = "Warning: 100 % of chosen and 0 % of rejected answers list their boxes in reading order."
    output, _ = spr("train", config, "--out", run_in_order, "training.max_steps=1", "training.loss_type=sft")
    assert "Warning: " not in output
    assert "Tokens per answer" not in output
    shutil.rmtree(run_in_order / "training")
    output, _ = spr("train", config, "--out", run_in_order, "training.max_steps=1")
    assert warning in output
    assert output.index(warning) < output.index("Tokens per answer: ") < output.index("training: 1 step on")
    assert "words per chosen" not in output  # the length is said once, in tokens
