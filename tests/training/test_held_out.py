"""Evaluation while training: its numbers, that it changes no weight, what it decides, and resuming."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from accelerate import Accelerator
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from spr.config import LoraSection, TrainingConfig
from spr.core.errors import ConfigError, RunError
from spr.training.batches import collate
from spr.training.encoding import context_length
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee
from spr.training.trainer import train
from spr.training.vision_cache import BatchEncoder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(trainable_folder):
    return str(trainable_folder("llava_onevision"))


@pytest.fixture(scope="module")
def pairs(pairs_folder):
    """Four pairs to train on, and two held out."""
    found = list(trl_pairs(pairs_folder))
    return [dataclasses.replace(pair, split="holdout" if k in (1, 4) else "train") for k, pair in enumerate(found)]


@pytest.fixture
def settings(registered_loss):
    """Six steps of one batch, with dropout; a checkpoint after each."""

    def make(**changes) -> TrainingConfig:
        lora = LoraSection(r=4, lora_alpha=8, lora_dropout=0.2)
        fields = {"num_train_epochs": 3, "save_steps": 1, "lora": lora, "loss_type": registered_loss.name, **changes}
        return TrainingConfig(device="cpu", dtype="float32", learning_rate=1e-2, **fields)

    return make


def evaluations(out):
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "eval"]


def adapter_of(out):
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def margins(model, settings, out, pairs):
    """β times the difference of the log-ratios of each pair under the adapter in ``out``, one pair at a time."""
    trainee = load_trainee(model, settings, torch.device("cpu"), features=out / "features")
    encoder = trainee.encoder
    planned, _ = encoder.plan(pairs, context_length(trainee.model.base.config, None))
    set_peft_model_state_dict(trainee.model.peft, load_file(out / "adapter" / "adapter_model.safetensors"))
    trainee.model.eval()
    batches = BatchEncoder(encoder, trainee.model, trainee.model, Accelerator(cpu=True))
    found = []
    for pair in planned:
        batch = collate(batches.encode([pair], [encoder.process(pair)]), encoder.pad, shared=trainee.shared)
        with torch.no_grad():
            chosen, rejected = (logps.item() for logps in trainee.model(batch)[:2])
            with trainee.model.peft.disable_adapter():
                chosen_reference, rejected_reference = (logps.item() for logps in trainee.model(batch)[:2])
        found.append(settings.beta * (chosen - chosen_reference - rejected + rejected_reference))
    return found


def test_it_gives_the_losses_of_the_held_out_pairs_and_changes_no_weight(model, pairs, settings, tmp_path):
    lines = []
    summary = train(pairs, model, settings(eval_steps=4), tmp_path / "a", seed=3, report=lines.append)
    assert (summary.pairs, summary.steps, summary.dropped) == (4, 6, {"held_out": 2})
    found = evaluations(tmp_path / "a")
    assert [line["step"] for line in found] == [4, 6]  # the last step as well
    train(pairs, model, settings(), tmp_path / "b", seed=3)
    assert adapter_of(tmp_path / "a") == adapter_of(tmp_path / "b")
    assert evaluations(tmp_path / "b") == []

    held_out = [dataclasses.replace(pair, split="train") for pair in pairs if pair.split == "holdout"]
    expected = margins(model, settings(), tmp_path / "a", held_out)
    assert found[-1]["eval_margin"] == pytest.approx(sum(expected) / 2, rel=1e-3, abs=1e-5)
    losses = [math.log1p(math.exp(-margin)) for margin in expected]  # −log σ(m) = log(1 + e⁻ᵐ)
    assert found[-1]["eval_loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert found[-1]["eval_accuracy"] == sum(margin > 0 for margin in expected) / 2
    assert lines[-1].startswith("held out, step 6: loss ")
    # Whether there are evaluations is no part of the training: it is finished under either setting.
    assert train(pairs, model, settings(eval_steps=2), tmp_path / "b", seed=3).done_before


class StopError(Exception):
    pass


def test_an_interrupted_training_ends_with_the_same_adapter_and_evaluations(model, pairs, settings, watched, tmp_path):
    chosen = settings(eval_steps=2, load_best_model_at_end=True)
    train(pairs, model, chosen, tmp_path / "whole", seed=3)
    whole = evaluations(tmp_path / "whole")

    def stop():
        raise StopError

    # Per two steps: two losses of steps, and one of an evaluation (the third, the sixth and the ninth).
    for number in (3, 4, 6, 7):
        watched.at(number, stop)
        out = tmp_path / str(number)
        with pytest.raises(StopError):
            train(pairs, model, chosen, out, seed=3)
        watched.forget()
        train(pairs, model, chosen, out, seed=3)
        assert evaluations(out) == whole
        assert adapter_of(out) == adapter_of(tmp_path / "whole")


def test_the_best_adapter_is_the_result_and_training_stops_without_a_better_one(model, pairs, settings, tmp_path):
    chosen = settings(
        eval_steps=1,
        eval_tasks=["description"],
        metric_for_best_model="s_loc",
        load_best_model_at_end=True,
        early_stopping_patience=2,
        loss_type="dpo",
    )
    values, weights = iter([0.2, 0.6, 0.6, None, 0.9, 0.9]), []

    def evaluate(base, *_):
        weights.append({key: value.clone() for key, value in base.state_dict().items() if "lora_A" in key})
        value = next(values)
        return {} if value is None else {"s_loc": value}  # a metric without a value is missing: not better

    lines = []
    summary = train(pairs, model, chosen, tmp_path, seed=3, evaluate=evaluate, report=lines.append)
    assert summary.steps == 4
    assert "Stopped early, after step 4 of 6: no better s_loc after 2 evaluations since step 2." in lines
    assert "The adapter is that of step 2, whose s_loc was best." in lines
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for key, value in weights[1].items():
        assert torch.equal(saved[f"base_model.model.{key.replace('.default', '')}"], value)
    assert [path.name for path in (tmp_path / "training" / "best").iterdir()] == ["step-000002"]
    assert json.loads((tmp_path / "training" / "finished.json").read_text())["steps"] == 4

    again = train(pairs, model, chosen, tmp_path, seed=3, evaluate=evaluate)
    assert again.done_before
    # A damaged adapter is written again, without another step.
    before = adapter_of(tmp_path)
    shutil.rmtree(tmp_path / "adapter")
    assert train(pairs, model, chosen, tmp_path, seed=3, evaluate=evaluate).steps == 4
    assert adapter_of(tmp_path) == before
    # What decides the result is part of the training.
    later = chosen.model_copy(update={"early_stopping_patience": None})
    with pytest.raises(RunError, match=r"early_stopping_patience: 2 → None"):
        train(pairs, model, later, tmp_path, seed=3, evaluate=evaluate)
    shutil.rmtree(tmp_path / "adapter")
    (tmp_path / "training" / "best" / "step-000002" / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match=r"The best adapter .*step-000002 is missing or damaged"):
        train(pairs, model, chosen, tmp_path, seed=3, evaluate=evaluate)


def test_a_metric_that_the_loss_does_not_have_decides_nothing(settings):
    settings(eval_steps=1, loss_type="sft", metric_for_best_model="loss")
    for metric in ("margin", "accuracy"):
        settings(eval_steps=1, loss_type={"sft": 1.0, "dpo": 1.0}, metric_for_best_model=metric)
        with pytest.raises(ValueError, match=f"has no {metric}"):
            settings(eval_steps=1, loss_type="sft", metric_for_best_model=metric)


def test_it_needs_held_out_pairs_and_a_function_for_tasks(model, pairs, settings, tmp_path):
    none_held_out = [pair for pair in pairs if pair.split == "train"]
    with pytest.raises(ConfigError, match=r"needs held-out pairs[\s\S]*annotations\.holdout"):
        train(none_held_out, model, settings(eval_steps=2), tmp_path)
    with pytest.raises(ConfigError, match=r"`training\.eval_tasks` can't be evaluated"):
        train(pairs, model, settings(eval_steps=2, eval_tasks="rec"), tmp_path)
