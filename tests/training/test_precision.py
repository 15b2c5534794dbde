"""Half precision: the adapter stays float32 and is computed with in the precision of the frozen weights."""

import pytest
import torch

from spr.training.batches import collate
from spr.training.loss import PairLogps, pair_losses
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee
from spr.training.vision_cache import Features


@pytest.fixture
def trained(trainable_folder, settings, pairs_folder, stir, tmp_path):
    """Log-probabilities, the adapter's gradients, and the dtypes that its products were seen to have."""

    def step(model_type, scale=1.0, **changes):
        config = settings(vision_cache="none", **changes)
        trainee = load_trainee(str(trainable_folder(model_type)), config, torch.device("cpu"), features=tmp_path)
        model = trainee.model
        stir(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(scale)
        seen = set()
        for name, module in model.named_modules():
            if ".lora_A." in name or ".lora_B." in name:
                module.register_forward_hook(lambda _, given, made: seen.add((given[0].dtype, made.dtype)))
        planned, _ = trainee.encoder.plan(list(trl_pairs(pairs_folder))[:3], 4096)

        def look(vision):
            with torch.no_grad():
                return Features(*model(vision=vision))

        pairs = [trainee.encoder.finish(one, trainee.encoder.process(one), look) for one in planned]
        logps = PairLogps(*model.train()(collate(pairs, trainee.encoder.pad, shared=trainee.shared)))
        reference = logps.chosen.detach() - 1, logps.rejected.detach() + 1
        pair_losses(logps, reference, config).loss.sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
        return logps, gradients, seen, frozen

    return step


@pytest.mark.parametrize("model_type", ["llava_onevision", "qwen2_5_vl"])
def test_products_run_in_half_precision_and_weights_and_gradients_stay_float32(model_type, trained):
    whole, exact, seen, _ = trained(model_type)
    assert seen == {(torch.float32, torch.float32)}
    half, gradients, seen, frozen = trained(model_type, dtype="bfloat16")
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    assert frozen == {torch.bfloat16}
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    # Sums over an answer's tokens, of eight bits' precision each.
    torch.testing.assert_close(half.chosen, whole.chosen, rtol=1e-2, atol=0)
    torch.testing.assert_close(half.rejected, whole.rejected, rtol=1e-2, atol=0)
    for name, gradient in gradients.items():
        apart = (gradient - exact[name]).norm() / exact[name].norm()
        assert apart < 0.1, name


def test_checkpointed_activations_are_computed_again_in_the_same_precision(trained):
    kept, expected, _, _ = trained("llava_onevision", dtype="bfloat16")
    again, gradients, seen, _ = trained("llava_onevision", dtype="bfloat16", gradient_checkpointing=True)
    assert all(made == torch.bfloat16 for _, made in seen)
    assert torch.equal(again.chosen, kept.chosen)
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_in_float16_a_young_adapters_gradients_do_not_vanish(trained):
    # After a first step at a learning rate of 2e-7 its second matrices are that small.
    _, exact, _, _ = trained("llava_onevision", scale=5e-7)
    _, gradients, seen, frozen = trained("llava_onevision", scale=5e-7, dtype="float16")
    assert frozen == {torch.float16}
    assert seen == {(torch.float32, torch.float32)}
    for name in gradients:
        assert (gradients[name] == 0).float().mean() <= (exact[name] == 0).float().mean() + 0.01, name


def test_accelerates_mixed_precision_holds_for_float32_weights(trained):
    with torch.autocast("cpu", torch.bfloat16):
        _, _, seen, _ = trained("llava_onevision")
    assert {made for _, made in seen} == {torch.bfloat16}
