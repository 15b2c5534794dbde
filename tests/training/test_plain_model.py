"""Every family: a training step's numbers are those of the plain model on one whole conversation at a time."""

import pytest
import torch

from spr.models.families import FAMILIES
from spr.models.image_processors import encode
from spr.training.batches import collate
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee
from spr.training.vision_cache import Features

CPU = torch.device("cpu")
TRAINABLE = [name for name, family in FAMILIES.items() if family.trainable]


@pytest.fixture
def prepared(trainable_folder, pairs_folder, settings, stir, tmp_path):
    """A family's trainee, whose adapter has been changed, and three planned pairs."""

    def make(model_type, **changes):
        trainee = load_trainee(str(trainable_folder(model_type)), settings(**changes), CPU, features=tmp_path)
        stir(trainee.model)
        planned, dropped = trainee.encoder.plan(list(trl_pairs(pairs_folder))[:3], 4096)
        assert not dropped
        return trainee, planned

    return make


def gradients_of(model, logps):
    """Gradients of a weighted sum of log-probabilities, by the name of the parameter."""
    model.zero_grad()
    (logps * torch.linspace(0.5, 1.5, len(logps))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain_logp(model, processor, family, turn, image, answer):
    """The log-probability of an answer by one pass of the plain model, which gets no positions and no mask from us."""
    inputs = encode(processor, [turn], [image])
    start = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    fill = {"attention_mask": 1, "token_type_ids": int(family.bidirectional_prompt), "mm_token_type_ids": 0}
    for name, value in fill.items():
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.full_like(answer[None], value)], dim=1)
    logits = model(**inputs, use_cache=False).logits[0, start - 1 : -1]
    return logits.log_softmax(-1).gather(1, answer[:, None]).sum()


def our_logps(trainee, planned, *, shared):
    def features(vision):
        with torch.no_grad():
            return Features(*trainee.model(vision=vision))

    encoder = trainee.encoder
    pairs = [encoder.finish(one, encoder.process(one), features) for one in planned]
    chosen, rejected, *_ = trainee.model(collate(pairs, encoder.pad, shared=shared))
    return torch.cat([chosen, rejected])


def assert_as_the_plain_model(trainee, planned):
    model, family = trainee.model, trainee.model.family
    parts = [
        plain_logp(model.peft, trainee.encoder.processor, family, one.turn, one.pair.load(), answer)
        for side in ("chosen", "rejected")
        for one in planned
        for answer in (getattr(one, side),)
    ]
    expected = torch.stack(parts)
    gradients = gradients_of(model, expected)
    assert trainee.shared == family.shared_prefix
    for shared in {False, trainee.shared}:
        found = our_logps(trainee, planned, shared=shared)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        for name, gradient in gradients_of(model, found).items():
            tolerance = 1e-4 * gradients[name].abs().max().item()
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("model_type", TRAINABLE)
def test_log_probabilities_and_gradients_are_those_of_the_plain_model(model_type, prepared):
    assert_as_the_plain_model(*prepared(model_type))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("size", ["_e2b", "", "_31b"])
def test_so_are_those_of_every_size_of_gemma_4(size, kernel, mllm_folder, tmp_path, pairs_folder, settings, stir):
    # E2B has causal images, layers that share keys, and embeddings per layer; the windows are shorter than the image.
    folder, config = mllm_folder(f"gemma4{size}"), settings(attn_implementation=kernel)
    trainee = load_trainee(str(folder), config, CPU, features=tmp_path)
    stir(trainee.model)
    planned, _ = trainee.encoder.plan(list(trl_pairs(pairs_folder))[:2], 4096)
    assert trainee.model.base.config.text_config.sliding_window < planned[0].prompt_tokens
    assert_as_the_plain_model(trainee, planned)


@pytest.mark.parametrize("model_type", ["gemma3", "gemma4_e2b", "kimi_k25"])
def test_gradients_with_checkpointing_are_those_without(
    model_type, mllm_folder, tmp_path, pairs_folder, settings, stir
):
    # E2B's last layers take their keys and values from earlier ones, which are computed again in the backward pass.
    found = []
    for checkpointing in (False, True):
        config = settings(gradient_checkpointing=checkpointing)
        trainee = load_trainee(str(mllm_folder(model_type)), config, CPU, features=tmp_path)
        stir(trainee.model.train())
        planned, _ = trainee.encoder.plan(list(trl_pairs(pairs_folder))[:2], 4096)
        layers = trainee.model.base.get_submodule(trainee.model.family.decoder).layers
        assert {layer.gradient_checkpointing for layer in layers} == {checkpointing}
        found.append(gradients_of(trainee.model, our_logps(trainee, planned, shared=True)))
    assert found[0]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
