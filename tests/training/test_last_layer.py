"""A last layer without the prompt's rows gives the log-probabilities and the gradients of a whole one."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForImageTextToText

from spr.models.families import FAMILIES
from spr.training.loss import PairLogps, pair_losses
from spr.training.pairs import trl_pairs
from spr.training.shared_prefix import PairModel, collate
from spr.training.trainee import load_trainee
from spr.training.vision_cache import Features


@pytest.fixture
def steps(trainable_folder, pairs_folder, stir, settings, tmp_path):
    """One step as it is, and one with all rows: log-probabilities, gradients, and rows of the last layer's MLP."""

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
        layers = model.base.get_submodule(f"{trainee.model.family.language_model.removesuffix('.layers')}.layers")
        made = []
        for given in (batch, dataclasses.replace(batch, begin=0)):
            # Behind the hook that cuts, so that it sees what the MLP is given.
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
@pytest.mark.parametrize("model_type", list(FAMILIES))
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


def test_a_second_pair_model_takes_the_place_of_the_first(trainable_folder, pairs_folder, settings, tmp_path):
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
    for given, wanted in zip(second(batch), expected, strict=True):
        assert torch.equal(given, wanted)


def test_without_gradients_the_model_computes_all_rows_again_after_each_batch(steps, trainable_folder):
    batch, *_ = steps("llava_onevision")
    model = AutoModelForImageTextToText.from_pretrained(trainable_folder("llava_onevision"))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        PairModel(model, FAMILIES["llava_onevision"])(batch)
        assert torch.equal(model(input_ids=ids).logits, expected)
