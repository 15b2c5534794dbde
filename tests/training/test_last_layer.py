"""Skipping the prompt's rows in the last layer changes neither log-probabilities nor gradients."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForImageTextToText

from spr.models.families import FAMILIES
from spr.training.batches import collate
from spr.training.loss import PairLogps, pair_losses
from spr.training.pair_model import PairModel
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee
from spr.training.vision_cache import Features

TRAINABLE = [name for name, family in FAMILIES.items() if family.trainable]


@pytest.fixture
def steps(trainable_folder, pairs_folder, stir, settings, tmp_path):
    """A step with skipped rows and one with all: log-probabilities, gradients, and rows of the last layer's MLP."""

    def make(model_type, **changes):
        config = settings(**changes)
        trainee = load_trainee(str(trainable_folder(model_type)), config, torch.device("cpu"), features=tmp_path)
        model, encoder = trainee.model.train(), trainee.encoder
        stir(model)
        planned, _ = encoder.plan(list(trl_pairs(pairs_folder))[:3], 4096)

        def look(vision):
            with torch.no_grad():
                return Features(*model(vision=vision))

        pairs = [encoder.finish(one, encoder.process(one), look) for one in planned]
        batch = collate(pairs, encoder.pad, shared=trainee.shared)
        layers = model.base.get_submodule(f"{trainee.model.family.decoder}.layers")
        made = []
        for given in (batch, dataclasses.replace(batch, begin=0)):
            # Runs after the hook that skips rows, so it sees the MLP's own input.
            rows = []
            watch = layers[-1].mlp.register_forward_pre_hook(lambda _, parts, rows=rows: rows.append(parts[0].shape[1]))
            logps = PairLogps(*model(given))
            reference = logps.chosen.detach() - 1, logps.rejected.detach() + 1
            pair_losses(logps, reference, config).loss.sum().backward()
            watch.remove()
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
            model.zero_grad()
            made.append((logps, gradients, rows))
        return batch, *made

    return make


def equal(one, other):
    for name in ("chosen", "rejected"):
        torch.testing.assert_close(getattr(one[0], name), getattr(other[0], name), rtol=1e-5, atol=1e-4)
    for name, gradient in other[1].items():
        torch.testing.assert_close(one[1][name], gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item())


@pytest.mark.parametrize("prefix", ["auto", "separate"])
@pytest.mark.parametrize("model_type", TRAINABLE)
def test_it_changes_no_number(model_type, prefix, steps):
    batch, short, whole = steps(model_type, prefix_sharing=prefix)
    width = batch.input_ids.shape[1]
    assert 0 < batch.begin < width
    assert whole[2] == [width]
    # CogVLM's layers have two experts and compute all rows.
    assert short[2] == [width if model_type == "cogvlm" else width - batch.begin]
    equal(short, whole)


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"attn_implementation": "eager"}])
def test_it_changes_no_number_with_activations_computed_again_or_another_kernel(changes, steps):
    batch, short, whole = steps("llava_onevision", **changes)
    times = 2 if "gradient_checkpointing" in changes else 1
    assert short[2] == [batch.input_ids.shape[1] - batch.begin] * times
    equal(short, whole)


def test_two_pair_models_of_one_model_do_not_disturb_each_other(trainable_folder, pairs_folder, settings, tmp_path):
    trainee = load_trainee(str(trainable_folder("llava_onevision")), settings(), torch.device("cpu"), features=tmp_path)
    first = trainee.model
    planned, _ = trainee.encoder.plan(list(trl_pairs(pairs_folder))[:2], 4096)
    with torch.no_grad():
        pairs = [
            trainee.encoder.finish(one, trainee.encoder.process(one), lambda vision: Features(*first(vision=vision)))
            for one in planned
        ]
    batch = collate(pairs, trainee.encoder.pad, shared=True)
    expected = first(batch)
    assert batch.begin > 0
    second = PairModel(first.peft, first.family)
    for model in (second, first):
        for given, wanted in zip(model(batch), expected, strict=True):
            assert torch.equal(given, wanted)


def test_a_model_generates_as_before_after_each_batch(steps, trainable_folder):
    batch, *_ = steps("llava_onevision")
    model = AutoModelForImageTextToText.from_pretrained(trainable_folder("llava_onevision"))
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = model(input_ids=ids).logits
    pair_model = PairModel(model, FAMILIES["llava_onevision"])
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            pair_model(batch)
        assert torch.equal(model(input_ids=ids).logits, expected)
        assert model.model.language_model.config._attn_implementation == "sdpa"
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_an_error_in_the_forward_pass_leaves_the_model_as_it_was(steps, trainable_folder):
    batch, *_ = steps("llava_onevision")
    model = AutoModelForImageTextToText.from_pretrained(trainable_folder("llava_onevision"))
    too_few = dataclasses.replace(batch, positions=batch.positions[:, :, :-1])
    with pytest.raises(RuntimeError):
        PairModel(model, FAMILIES["llava_onevision"])(too_few)
    assert model.model.language_model.config._attn_implementation == "sdpa"
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_checkpointed_activations_of_two_batches_are_each_recomputed_with_their_own_rows(
    steps, trainable_folder, settings, stir, tmp_path
):
    # The second forward pass comes before the first backward pass.
    batch, *_ = steps("llava_onevision")
    gradients = []
    for checkpointing in (False, True):
        config, folder = settings(gradient_checkpointing=checkpointing), str(trainable_folder("llava_onevision"))
        model = load_trainee(folder, config, torch.device("cpu"), features=tmp_path).model.train()
        stir(model)
        outputs = [model(given) for given in (batch, dataclasses.replace(batch, begin=0))]
        sum((rejected - chosen).sum() for chosen, rejected, *_ in outputs).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)
