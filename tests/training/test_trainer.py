"""A whole training: what it changes, how it resumes, and what it refuses."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from spr.config import LoraSection
from spr.core.errors import InputError, RunError, SprError
from spr.training import trainer as trainer_module
from spr.training.batches import collate
from spr.training.checkpoint import TrainingState, merge_adapter
from spr.training.loss import PairLogps, dpo
from spr.training.pair_model import PairModel
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee, renamed_properties
from spr.training.trainer import train
from spr.training.vision_cache import Features


def steps_of(out):
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


def losses_of(out):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in steps_of(out)]


@pytest.fixture
def model(trainable_folder):
    return str(trainable_folder("llava_onevision"))


def test_twenty_steps_lower_the_loss_raise_the_margin_and_leave_what_is_frozen_alone(
    model, pairs_folder, settings, tmp_path
):
    config = settings(per_device_train_batch_size=3, num_train_epochs=10)
    kept = {}

    def remember(line):
        kept.setdefault("remarks", []).append(line)

    summary = train(trl_pairs(pairs_folder), model, config, tmp_path / "run", report=remember)
    steps = steps_of(tmp_path / "run")
    assert summary.steps == len(steps) == 20
    assert steps[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: policy and reference are one model
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]
    assert steps[-1]["margin"] > 1 > steps[0]["margin"]
    assert steps[-1]["accuracy"] == 1
    assert "LoRA of rank 4 on 2 × q_proj" in kept["remarks"][0]


@pytest.mark.parametrize(("features", "looks"), [("auto", 1), ("memory", 1), ("disk", 1), ("none", 1 + 3)])
def test_the_vision_tower_sees_each_image_once_where_features_are_kept_else_once_a_pass(
    features, looks, model, pairs_folder, settings, tmp_path, monkeypatch
):
    pairs = list(trl_pairs(pairs_folder))
    seen, forward = [], PairModel.forward

    def watched(self, batch=None, vision=None):
        if vision is not None:
            seen.append(vision)
        return forward(self, batch, vision)

    monkeypatch.setattr(PairModel, "forward", watched)
    images = len({pair.load().tobytes() for pair in pairs})
    assert images == len(pairs)
    train(
        pairs,
        model,
        settings(per_device_train_batch_size=2, num_train_epochs=3, vision_cache=features),
        tmp_path / "run",
    )
    assert len(seen) == looks * images


@pytest.mark.parametrize("model_type", ["llava_onevision", "qwen2_5_vl"])
def test_training_changes_no_frozen_tensor_by_a_bit(
    model_type, trainable_folder, pairs_folder, settings, tmp_path, monkeypatch
):
    seen = {}

    def spy(*arguments, **options):
        seen["trainee"] = load_trainee(*arguments, **options)
        named = seen["trainee"].model.named_parameters()
        seen["before"] = {name: p.detach().clone() for name, p in named}
        return seen["trainee"]

    monkeypatch.setattr(trainer_module, "load_trainee", spy)
    folder = str(trainable_folder(model_type))
    train(trl_pairs(pairs_folder), folder, settings(max_steps=20, num_train_epochs=20), tmp_path / "run")
    after = dict(seen["trainee"].model.named_parameters())
    changed = {name for name, p in seen["before"].items() if not torch.equal(p, after[name])}
    assert changed == {name for name in after if ".lora_" in name}
    assert all(".language_model.layers." in name for name in changed)


def test_the_adapter_and_the_merged_model_give_the_trained_models_logps(model, pairs_folder, settings, tmp_path):
    config = settings(per_device_train_batch_size=2, num_train_epochs=2)
    train(trl_pairs(pairs_folder), model, config, tmp_path / "run")
    merge_adapter(tmp_path / "run" / "adapter", tmp_path / "merged", model=model)

    trainee = load_trainee(model, config, torch.device("cpu"), features=tmp_path)
    planned, _ = trainee.encoder.plan(list(trl_pairs(pairs_folder)), 4096)

    def logps_of(base):
        whole = PairModel(base, trainee.model.family)
        made = [
            trainee.encoder.finish(p, trainee.encoder.process(p), lambda v: Features(*whole(vision=v))) for p in planned
        ]
        with torch.no_grad():
            return PairLogps(*whole(collate(made, trainee.encoder.pad, shared=True)))

    plain = AutoModelForImageTextToText.from_pretrained(model).eval()
    before = logps_of(plain)
    with renamed_properties():
        adapted = logps_of(PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter").eval())
    merged = logps_of(AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval())
    assert (adapted.chosen - before.chosen).abs().min() > 0.01
    torch.testing.assert_close(merged.chosen, adapted.chosen, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(merged.rejected, adapted.rejected, rtol=1e-5, atol=1e-3)
    # The trained model itself: its last margin, one step before its last update, is near; the file holds its values.
    config_file = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config_file["base_model_name_or_path"] == model
    assert config_file["r"] == 4


@pytest.fixture
def resumable(settings):
    """Ten steps of three pairs, with dropout, of which each is a checkpoint."""
    lora = LoraSection(r=4, lora_alpha=8, lora_dropout=0.2)
    return settings(
        per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=5, save_steps=1, lora=lora
    )


def test_a_training_stopped_again_and_again_gives_the_losses_of_an_undisturbed_one(
    model, pairs_folder, resumable, tmp_path, monkeypatch
):
    pairs = list(trl_pairs(pairs_folder))
    train(pairs, model, resumable, tmp_path / "whole", seed=3)
    expected = losses_of(tmp_path / "whole")
    assert [step for step, _, _ in expected] == list(range(1, 11))

    class Killed(Exception):  # noqa: N818
        pass

    save, stops = TrainingState.save, iter([1, 2, 5, 9])

    def save_then_die(self, folder, step, *arguments):
        path = save(self, folder, step, *arguments)
        if step == save_then_die.stop:
            raise Killed
        return path

    monkeypatch.setattr(TrainingState, "save", save_then_die)
    for save_then_die.stop in stops:
        with pytest.raises(Killed):
            train(pairs, model, resumable, tmp_path / "cut", seed=3)
        # What was begun of the next checkpoint is not mistaken for one.
        (tmp_path / "cut" / "training" / "checkpoints" / "step-000099").mkdir(exist_ok=True)
    save_then_die.stop = None
    train(pairs, model, resumable, tmp_path / "cut", seed=3)
    assert losses_of(tmp_path / "cut") == expected
    ours, theirs = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_second_run_does_nothing_and_another_config_is_refused_by_name(model, pairs_folder, settings, tmp_path):
    config = settings(per_device_train_batch_size=3)
    train(trl_pairs(pairs_folder), model, config, tmp_path / "run")
    assert train(trl_pairs(pairs_folder), model, config, tmp_path / "run").done_before
    with pytest.raises(RunError, match=r"training\.beta: 0\.1 → 0\.2"):
        train(trl_pairs(pairs_folder), model, settings(per_device_train_batch_size=3, beta=0.2), tmp_path / "run")


def test_the_reference_is_computed_once_and_used_by_other_seeds_and_rates(model, pairs_folder, settings, tmp_path):
    said = []
    train(trl_pairs(pairs_folder), model, settings(per_device_train_batch_size=3), tmp_path / "a", report=said.append)
    assert any("Reference log-probabilities of 6 pairs" in line for line in said)
    (tmp_path / "b" / "training").mkdir(parents=True)
    (tmp_path / "b" / "training" / "reference.parquet").write_bytes(
        (tmp_path / "a" / "training" / "reference.parquet").read_bytes()
    )
    said.clear()
    other = settings(per_device_train_batch_size=2, learning_rate=1e-3)
    train(trl_pairs(pairs_folder), model, other, tmp_path / "b", seed=9, report=said.append)
    assert not any("Reference" in line for line in said)


def test_the_reference_of_another_model_is_refused(trainable_folder, pairs_folder, settings, tmp_path):
    train(
        trl_pairs(pairs_folder), str(trainable_folder("llava")), settings(per_device_train_batch_size=3), tmp_path / "a"
    )
    (tmp_path / "b" / "training").mkdir(parents=True)
    (tmp_path / "b" / "training" / "reference.parquet").write_bytes(
        (tmp_path / "a" / "training" / "reference.parquet").read_bytes()
    )
    with pytest.raises(RunError, match="belongs to another reference model") as caught:
        train(
            trl_pairs(pairs_folder),
            str(trainable_folder("internvl")),
            settings(per_device_train_batch_size=3),
            tmp_path / "b",
        )
    assert "model: llava@" in str(caught.value)
    assert "now internvl@" in str(caught.value)


@pytest.mark.parametrize("features", ["memory", "disk"])
def test_kept_features_change_no_loss(features, model, pairs_folder, settings, tmp_path):
    train(
        trl_pairs(pairs_folder),
        model,
        settings(per_device_train_batch_size=2, num_train_epochs=2),
        tmp_path / "none",
        seed=1,
    )
    kept = settings(per_device_train_batch_size=2, num_train_epochs=2, vision_cache=features)
    train(trl_pairs(pairs_folder), model, kept, tmp_path / "kept", seed=1)
    assert losses_of(tmp_path / "kept") == losses_of(tmp_path / "none")


def test_gradient_checkpointing_gives_the_same_losses(model, pairs_folder, settings, tmp_path):
    train(trl_pairs(pairs_folder), model, settings(per_device_train_batch_size=2), tmp_path / "plain", seed=1)
    checkpointed = settings(per_device_train_batch_size=2, gradient_checkpointing=True)
    train(trl_pairs(pairs_folder), model, checkpointed, tmp_path / "checkpointed", seed=1)
    for ours, theirs in zip(losses_of(tmp_path / "checkpointed"), losses_of(tmp_path / "plain"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_family_without_a_proof_takes_two_sequences_and_says_so(trainable_folder, pairs_folder, settings, tmp_path):
    said = []
    folder = str(trainable_folder("paligemma"))
    train(
        trl_pairs(pairs_folder), folder, settings(per_device_train_batch_size=2), tmp_path / "run", report=said.append
    )
    assert said[0] == (
        "Image and prompt are computed once per answer, not once per pair: "
        "no test shows that it gives the same result for paligemma."
    )
    assert len(steps_of(tmp_path / "run")) == 3


def test_pairs_that_are_too_long_are_dropped_with_their_reason_and_never_cut(model, pairs_folder, settings, tmp_path):
    trainee = load_trainee(model, settings(), torch.device("cpu"), features=tmp_path)
    planned, _ = trainee.encoder.plan(list(trl_pairs(pairs_folder)), 4096)
    longest = sorted(max(p.prompt_tokens + len(p.chosen), p.prompt_tokens + len(p.rejected)) for p in planned)
    summary = train(trl_pairs(pairs_folder), model, settings(max_length=longest[2]), tmp_path / "run")
    assert summary.pairs == 3
    assert summary.dropped == {"too_long": 3}
    with pytest.raises(InputError, match="No pair is left to train on"):
        train(trl_pairs(pairs_folder), model, settings(max_length=5), tmp_path / "none")


def test_a_loss_that_is_not_finite_stops_the_training_names_the_pair_and_saves_the_batch(
    model, pairs_folder, settings, tmp_path, add_loss
):
    def broken(inputs, settings):
        losses = dpo(inputs, settings)
        losses.data[0] = float("nan")
        return losses

    config = settings(per_device_train_batch_size=2, loss_type=add_loss("broken", broken))
    with pytest.raises(SprError, match="The loss of step 1 is not finite") as caught:
        train(trl_pairs(pairs_folder), model, config, tmp_path / "run")
    (saved,) = (tmp_path / "run" / "training").glob("not-finite-step-1.pt")
    batch = torch.load(saved, weights_only=True)
    assert f"pairs {batch['pair_ids'][0]};" in str(caught.value)
    assert batch["input_ids"].shape[0] == 2


def test_out_of_memory_says_what_to_lower(model, pairs_folder, settings, tmp_path, add_loss):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    config = settings(per_device_train_batch_size=2, loss_type=add_loss("full", full))
    with pytest.raises(SprError, match="does not fit into the device's memory") as caught:
        train(trl_pairs(pairs_folder), model, config, tmp_path / "run")
    assert "training.per_device_train_batch_size (now 2)" in str(caught.value)
    assert "training.gradient_checkpointing=true" in str(caught.value)


def test_a_named_gpu_is_made_the_current_one(model, pairs_folder, settings, tmp_path, monkeypatch):
    class ChosenError(Exception):
        pass

    def choose(device):
        raise ChosenError(device)

    # Accelerate would move the model to the current GPU, whatever the config names.
    monkeypatch.setattr(torch.cuda, "set_device", choose)
    with pytest.raises(ChosenError, match=r"^cuda:1$"):
        train(trl_pairs(pairs_folder), model, settings(device="cuda:1"), tmp_path / "run")
