"""Training that continues an adapter: what it starts from, its reference, how it resumes, and what it refuses."""

import json
import math
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from spr.config import DescriberConfig, LoraSection, TrainingConfig, load_config
from spr.core.errors import ConfigError, RunError
from spr.models.errors import ModelError
from spr.models.registry import trained_model
from spr.training.batches import collate
from spr.training.pair_model import PairModel
from spr.training.pairs import trl_pairs
from spr.training.reference import ReferenceFile
from spr.training.run import run as train_run
from spr.training.session import Session
from spr.training.stopping import InterruptedTrainingError
from spr.training.trainee import load_trainee, open_model, renamed_properties
from spr.training.trainer import train
from spr.training.vision_cache import Features
from spr.workflows.check import check

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def model(trainable_folder):
    return str(trainable_folder("llava_onevision"))


@pytest.fixture
def adapter(model, pairs_folder, settings, tmp_path):
    """An adapter after four steps, far from the model without it."""
    config = settings(per_device_train_batch_size=3, num_train_epochs=2, learning_rate=0.05)
    train(trl_pairs(pairs_folder), model, config, tmp_path / "first")
    return tmp_path / "first" / "adapter"


def log_of(out, event):
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl"])
def test_the_reference_is_the_policy_at_the_start_so_the_first_step_has_no_log_ratios(
    family, trainable_folder, pairs_folder, settings, tmp_path
):
    model = str(trainable_folder(family))
    first = settings(per_device_train_batch_size=6, num_train_epochs=4, learning_rate=0.05)
    train(trl_pairs(pairs_folder), model, first, tmp_path / "first")
    # All six pairs are one batch in the reference pass and in the step: the same numbers in the same order.
    config = settings(per_device_train_batch_size=6, init_adapter=tmp_path / "first" / "adapter", learning_rate=0.05)
    lines = []
    train(trl_pairs(pairs_folder), model, config, tmp_path / "second", report=lines.append)
    (step,) = log_of(tmp_path / "second", "step")
    assert (step["chosen_rewards"], step["rejected_rewards"], step["margin"]) == (0.0, 0.0, 0.0)
    assert step["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert any(f"continued from {tmp_path / 'first' / 'adapter'}" in line for line in lines)
    # Against the model without an adapter, the same policy has a margin: the reference is not that model.
    last = log_of(tmp_path / "first", "step")[-1]
    assert last["margin"] > 1
    known = ReferenceFile(tmp_path / "second" / "training" / "reference.parquet", identity_of(tmp_path / "second"))
    assert known.identity["init_adapter"].startswith("lora@")


def identity_of(out):
    import pyarrow.parquet as pq

    return json.loads(pq.read_schema(out / "training" / "reference.parquet").metadata[b"identity"])


def test_the_reference_file_holds_the_log_probabilities_of_the_model_with_the_adapter(
    adapter, model, pairs_folder, settings, tmp_path
):
    config = settings(per_device_train_batch_size=2, init_adapter=adapter, max_steps=1)
    train(trl_pairs(pairs_folder), model, config, tmp_path / "second")
    # The same through PEFT's own loader, pair by pair.
    trainee = load_trainee(model, settings(), torch.device("cpu"), features=tmp_path / "features")
    planned, _ = trainee.encoder.plan(list(trl_pairs(pairs_folder)), 4096)
    base = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    with renamed_properties():
        loaded = PairModel(PeftModel.from_pretrained(base, str(adapter)), trainee.model.family).eval()
    known = ReferenceFile(tmp_path / "second" / "training" / "reference.parquet", identity_of(tmp_path / "second"))
    assert len(planned) == 6
    encoder = trainee.encoder
    for pair in planned:
        with torch.no_grad():
            encoded = encoder.finish(pair, encoder.process(pair), lambda v: Features(*loaded(vision=v)))
            batch = collate([encoded], encoder.pad, shared=trainee.shared)
            (chosen, rejected, *_), (plain, *_) = loaded(batch), trainee.model(batch)
        assert known.of(pair) == pytest.approx((float(chosen), float(rejected)), rel=1e-5)
        assert abs(float(plain) - float(chosen)) > 0.01


def test_training_starts_from_the_adapters_weights_and_changes_them(adapter, model, pairs_folder, settings, tmp_path):
    before = load_file(adapter / WEIGHTS)
    config = settings(init_adapter=adapter, max_steps=1, learning_rate=1e-4)
    train(trl_pairs(pairs_folder), model, config, tmp_path / "second")
    after = load_file(tmp_path / "second" / "adapter" / WEIGHTS)
    assert before.keys() == after.keys()
    moved = torch.cat([(after[name] - before[name]).abs().flatten() for name in before])
    # The first step of AdamW moves a weight by at most the learning rate.
    assert 0 < moved.max() <= 1.01e-4
    assert load_file(adapter / WEIGHTS).keys() == before.keys()


def test_it_resumes_from_its_checkpoint_to_the_same_bytes(
    adapter, model, pairs_folder, settings, tmp_path, monkeypatch
):
    config = settings(per_device_train_batch_size=2, num_train_epochs=2, save_steps=1, init_adapter=adapter)
    train(trl_pairs(pairs_folder), model, config, tmp_path / "whole")
    forward, calls = Session.forward, []

    def stopping(self, pairs, processed):
        calls.append(1)
        if len(calls) == 3 + 4:  # three batches of the reference pass, then the fourth step
            raise InterruptedTrainingError("Interrupted")
        return forward(self, pairs, processed)

    monkeypatch.setattr(Session, "forward", stopping)
    with pytest.raises(InterruptedTrainingError):
        train(trl_pairs(pairs_folder), model, config, tmp_path / "half")
    monkeypatch.setattr(Session, "forward", forward)
    lines = []
    train(trl_pairs(pairs_folder), model, config, tmp_path / "half", report=lines.append)
    assert any("after step 3 of 6" in line for line in lines)
    assert not any("Reference log-probabilities" in line for line in lines)
    whole, half = (tmp_path / name / "adapter" / WEIGHTS for name in ("whole", "half"))
    assert whole.read_bytes() == half.read_bytes()
    assert train(trl_pairs(pairs_folder), model, config, tmp_path / "half").done_before


def test_another_adapter_is_another_training_and_a_moved_one_is_the_same(
    adapter, model, pairs_folder, settings, tmp_path
):
    train(trl_pairs(pairs_folder), model, settings(init_adapter=adapter, max_steps=1), tmp_path / "second")
    shutil.copytree(adapter, tmp_path / "elsewhere")
    moved = settings(init_adapter=tmp_path / "elsewhere", max_steps=1)
    assert train(trl_pairs(pairs_folder), model, moved, tmp_path / "second").done_before
    other = settings(init_adapter=tmp_path / "second" / "adapter", max_steps=1)
    with pytest.raises(RunError, match="was made under another config") as caught:
        train(trl_pairs(pairs_folder), model, other, tmp_path / "second")
    assert "init_adapter: lora@" in caught.value.got
    with pytest.raises(RunError, match="was made under another config") as caught:
        train(trl_pairs(pairs_folder), model, settings(max_steps=1), tmp_path / "second")
    assert caught.value.got.endswith("→ None")


def test_the_runs_other_trainings_keep_their_reference(run_with_pairs):
    run = run_with_pairs({"device": "cpu", "dtype": "float32", "max_steps": 1, "lora": {"r": 4, "lora_alpha": 8}})
    train_run(load_config(run / "config.yaml"), run)
    shared = (run / "training" / "reference.parquet").read_bytes()
    # A run stands for its adapter.
    config = load_config(run / "config.yaml", [f"training.init_adapter={run}"])
    train_run(config, run, name="next")
    assert (run / "training" / "reference.parquet").read_bytes() == shared
    own = run / "trainings" / "next" / "training" / "reference.parquet"
    assert own.is_file()
    assert own.read_bytes() != shared


@pytest.mark.parametrize("name", [None, "next"])
def test_a_refused_adapter_does_not_stay_in_the_runs_config(name, run_with_pairs, tmp_path):
    run = run_with_pairs({"device": "cpu", "dtype": "float32", "max_steps": 1, "lora": {"r": 4, "lora_alpha": 8}})
    before = (run / "config.yaml").read_bytes()
    wrong = load_config(run / "config.yaml", [f"training.init_adapter={tmp_path / 'nowhere'}"])
    with pytest.raises(ConfigError, match="does not exist"):
        train_run(wrong, run, name=name)
    assert (run / "config.yaml").read_bytes() == before
    assert not list(run.glob("trainings/*/config.yaml"))


@pytest.mark.parametrize(
    ("lora", "message", "got", "fix"),
    [
        ({"r": 8}, "`training.lora` differs", "r: 8", "set training.lora.r=4, or remove training.init_adapter"),
        (
            {"r": 2, "lora_alpha": 16},
            "`training.lora` differs",
            "r: 2, lora_alpha: 16",
            "set training.lora.r=4 training.lora.lora_alpha=8, or remove training.init_adapter",
        ),
        (
            {"target_modules": ("q_proj", "v_proj")},
            "`training.lora.target_modules` differs",
            "q_proj, v_proj",
            "set training.lora.target_modules=[down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj], "
            "or remove training.init_adapter",
        ),
    ],
)
def test_another_rank_alpha_or_other_layers_are_refused_before_weights_are_loaded(
    lora, message, got, fix, adapter, model, settings
):
    config = settings(init_adapter=adapter, lora=LoraSection(**{"r": 4, "lora_alpha": 8, **lora}))
    with pytest.raises(ConfigError, match=message) as caught:
        open_model(model, config)
    assert (caught.value.got, caught.value.fix) == (got, fix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "is of another kind"),
        ({"use_rslora": True}, "is not a plain LoRA adapter"),
        ({"alpha_pattern": {"q_proj": 3}}, "is not a plain LoRA adapter"),
        ({"modules_to_save": ["lm_head"]}, "is not a plain LoRA adapter"),
    ],
)
def test_an_adapter_that_the_section_can_not_express_is_refused(change, message, adapter, model, settings, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=message):
        open_model(model, settings(init_adapter=other))


def test_an_adapter_of_another_model_or_with_a_missing_tensor_is_refused(adapter, model, settings, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    (other / "spr.json").unlink()  # the marker with the file's sha256
    tensors = load_file(adapter / WEIGHTS)
    name = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != name}, other / WEIGHTS)
    with pytest.raises(ModelError, match="was not trained on this model") as caught:
        open_model(model, settings(init_adapter=other))
    assert caught.value.got == f"missing: {name}"
    save_file(tensors | {name: tensors[name][:, :3].contiguous()}, other / WEIGHTS)
    with pytest.raises(ModelError, match="was not trained on this model") as caught:
        open_model(model, settings(init_adapter=other))
    assert caught.value.got == f"{name} (4, 3) for {tuple(tensors[name].shape)}"


def test_a_damaged_or_missing_adapter_is_refused(adapter, model, settings, tmp_path):
    with pytest.raises(ConfigError, match=r"`training\.init_adapter` does not exist"):
        open_model(model, settings(init_adapter=tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"`training\.init_adapter` is a model, not an adapter") as merged:
        open_model(model, settings(init_adapter=model))
    assert f"set describer.model={model}" in str(merged.value)
    with pytest.raises(ConfigError, match=r"`training\.init_adapter` is not an adapter"):
        open_model(model, settings(init_adapter=tmp_path))
    weights = bytearray((adapter / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (adapter / WEIGHTS).write_bytes(weights)
    with pytest.raises(ModelError, match="is damaged"):
        open_model(model, settings(init_adapter=adapter))


def test_a_url_is_no_adapter():
    with pytest.raises(ValueError, match="an adapter is read from a local folder"):
        TrainingConfig(init_adapter="s3://bucket/adapter")


def test_a_describer_with_an_adapter_is_trained_if_the_training_continues_one(tmp_path):
    section = DescriberConfig(model="owner/name", peft_adapter="runs/a/adapter")
    with pytest.raises(ConfigError, match=r"training\.init_adapter=runs/a/adapter"):
        trained_model(section)
    assert trained_model(section, tmp_path) == "owner/name"


@pytest.mark.parametrize("there", [True, False])
def test_doctor_looks_for_the_adapter(there, tmp_path):
    folder = tmp_path / "adapter"
    if there:
        folder.mkdir()
    lines = list(check(load_config("quickstart", [f"training.init_adapter={folder}"])))
    (found,) = [line for line in lines if line[1] == "training.init_adapter"]
    assert found[0] == ("ok" if there else "MISSING")
