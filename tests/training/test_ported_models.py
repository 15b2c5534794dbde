"""Ferret and CogVLM in training: regions, kept features, half precision, and frozen parts."""

import dataclasses
import json

import pytest
import torch

from spr.models.ported.ferret.regions import RegionError
from spr.training.batches import collate
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee
from spr.training.trainer import train
from spr.training.vision_cache import Features

NATIVE = ["ferret", "cogvlm"]
REGIONS = ["[50, 50, 350, 350]", "[600, 500, 950, 950]"]


def steps_of(folder):
    lines = [json.loads(line) for line in (folder / "training" / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


def features_of(model):
    def compute(vision):
        with torch.no_grad():
            return Features(*model(vision=vision))

    return compute


@pytest.fixture
def about_regions(pairs_folder):
    """Two pairs that differ in nothing but the region their prompts name."""
    first = next(iter(trl_pairs(pairs_folder)))
    pairs = []
    for number, region in enumerate(REGIONS):
        content = [{"type": "image"}, {"type": "text", "text": f"Describe {region} <region_fea>."}]
        pairs.append(dataclasses.replace(first, pair_id=str(number), messages=[{"role": "user", "content": content}]))
    return pairs


def test_kept_features_are_those_of_the_prompts_own_region(about_regions, trainable_folder, settings, tmp_path):
    logged = {}
    for kept in ("none", "memory", "disk"):
        config = settings(vision_cache=kept, per_device_train_batch_size=2, num_train_epochs=3)
        train(about_regions, str(trainable_folder("ferret")), config, tmp_path / kept)
        names = ("loss", "margin", "chosen_logps", "rejected_logps", "grad_norm")
        logged[kept] = [[step[name] for name in names] for step in steps_of(tmp_path / kept)]
    assert len(logged["none"]) == 3
    assert logged["memory"] == logged["none"]
    assert logged["disk"] == logged["none"]
    assert len(list((tmp_path / "disk" / "training" / "features").rglob("*.safetensors"))) == 2


def test_the_features_of_one_image_differ_by_region(about_regions, trainable_folder, settings, tmp_path):
    # Else the test above could not fail.
    trainee = load_trainee(str(trainable_folder("ferret")), settings(), torch.device("cpu"), features=tmp_path)
    planned, _ = trainee.encoder.plan(about_regions, 4096)
    reads = [trainee.encoder.process(pair) for pair in planned]
    assert reads[0].key != reads[1].key
    with torch.no_grad():
        tokens = [trainee.model(vision=read.vision)[0] for read in reads]
    # Nine patches, which are equal, and then the region.
    assert [len(part) for part in tokens] == [10, 10]
    assert torch.equal(tokens[0][:9], tokens[1][:9])
    assert (tokens[0][9] - tokens[1][9]).abs().max() > 1e-3


def test_a_prompt_whose_region_is_not_in_the_image_ends_the_training_before_a_step(
    about_regions, trainable_folder, settings, tmp_path
):
    text = "Describe [100, 100, 1200, 300] <region_fea>."
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    about_regions[1] = dataclasses.replace(about_regions[1], messages=messages)
    with pytest.raises(RegionError, match=r"outside the image[\s\S]*\[100, 100, 1200, 300\] <region_fea>"):
        train(about_regions, str(trainable_folder("ferret")), settings(), tmp_path)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", NATIVE)
def test_steps_change_the_adapter_alone(model_type, dtype, pairs_folder, trainable_folder, settings, stir, tmp_path):
    config = settings(dtype=dtype, gradient_checkpointing=dtype == "bfloat16")
    trainee = load_trainee(str(trainable_folder(model_type)), config, torch.device("cpu"), features=tmp_path)
    model = trainee.model.train()
    stir(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = {tensor.dtype for name, tensor in before.items() if ".lora_" not in name and "inv_freq" not in name}
    assert frozen == {getattr(torch, dtype)}
    assert {tensor.dtype for name, tensor in before.items() if ".lora_" in name} == {torch.float32}

    planned, _ = trainee.encoder.plan(list(trl_pairs(pairs_folder))[:2], 4096)
    made = [trainee.encoder.finish(pair, trainee.encoder.process(pair), features_of(model)) for pair in planned]
    batch = collate(made, trainee.encoder.pad, shared=trainee.shared)
    layers = model.base.get_submodule(trainee.model.family.decoder).layers
    assert {layer.gradient_checkpointing for layer in layers} == {config.gradient_checkpointing}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        chosen, rejected, *_ = model(batch)
        loss = (rejected - chosen).mean()
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    after = model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {name for name in before if ".lora_" in name}
    vision = ("vision", "region_sampler", "multi_modal_projector", "embed_tokens", "lm_head")
    for part in vision[:1] if model_type == "cogvlm" else vision:
        assert any(part in name for name in before), part
        assert not any(part in name for name in changed), part


@pytest.mark.parametrize("model_type", NATIVE)
def test_gradients_with_checkpointing_are_those_without(
    model_type, pairs_folder, trainable_folder, settings, stir, tmp_path
):
    gradients = []
    for checkpointing in (False, True):
        config = settings(gradient_checkpointing=checkpointing)
        trainee = load_trainee(str(trainable_folder(model_type)), config, torch.device("cpu"), features=tmp_path)
        model = trainee.model.train()
        stir(model)
        planned, _ = trainee.encoder.plan(list(trl_pairs(pairs_folder))[:2], 4096)
        made = [trainee.encoder.finish(pair, trainee.encoder.process(pair), features_of(model)) for pair in planned]
        chosen, rejected, *_ = model(collate(made, trainee.encoder.pad, shared=trainee.shared))
        (rejected - chosen).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model_type", NATIVE)
def test_a_half_precision_training_runs_to_its_end(model_type, pairs_folder, trainable_folder, settings, tmp_path):
    train(trl_pairs(pairs_folder), str(trainable_folder(model_type)), settings(dtype="bfloat16"), tmp_path)
    steps = steps_of(tmp_path)
    assert len(steps) == 3  # six pairs, two a step
    # The first step's policy is its reference: −log σ(0) = log 2. Sequences padded otherwise may round otherwise.
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-2)
    assert all(step["grad_norm"] > 0 for step in steps)
