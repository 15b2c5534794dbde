"""The fast linear layers compute what PEFT's compute, and the same gradients."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from spr.models.families import FAMILIES
from spr.training.batches import collate
from spr.training.lora_layers import _LoraLinear, _merges, speed_up_layers
from spr.training.loss import PairLogps
from spr.training.norm_layers import speed_up_norms
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee
from spr.training.vision_cache import Features


def layers(width=6, *, dropout=0.0, dtype=torch.float64, targets=("0", "2")):
    """Three layers, the first and the last one with an adapter whose B is not zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, width), nn.Linear(width, 8, bias=False), nn.Linear(8, 4)).to(dtype)
    config = LoraConfig(r=2, lora_alpha=3, lora_dropout=dropout, target_modules=list(targets))
    peft = get_peft_model(model, config, autocast_adapter_dtype=False)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return peft


def both(model, inputs, **how):
    """Output and gradients of a model as it is, and with fast layers."""
    found = []
    for fast in (False, True):
        made = copy.deepcopy(model)
        if fast:
            speed_up_layers(made)
        torch.manual_seed(1)  # of dropout
        given = inputs.clone().requires_grad_()
        output = made(given)
        (output.double() ** 2).sum().backward()
        gradients = {name: p.grad for name, p in made.named_parameters() if p.requires_grad}
        found.append((output.detach(), {**gradients, "inputs": given.grad}))
    torch.testing.assert_close(*found, **how)


@pytest.mark.parametrize("tokens", [1, 3, 50])  # 5 · 6 / (5 + 6) = 2.7: from 3 tokens on the weights are merged
def test_outputs_and_gradients_are_those_of_peft(tokens):
    both(layers(), torch.randn(2, tokens, 5, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_layers_with_dropout_compute_as_before():
    both(layers(dropout=0.5), torch.randn(9, 5, dtype=torch.float64), rtol=0, atol=0)


def test_float32_products_are_those_of_float64_within_its_rounding():
    torch.manual_seed(0)
    model = layers(width=1024, dtype=torch.float32)
    inputs = torch.randn(300, 5)  # 300 · 1,024 · 8 multiply-adds are enough for oneDNN
    exact, fast = copy.deepcopy(model).double(), copy.deepcopy(model)
    speed_up_layers(fast)
    output = fast(inputs)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.double(), exact(inputs.double()), rtol=1e-4, atol=1e-2)
    scale = exact(inputs.double()).abs().mean()
    assert (output - exact(inputs.double())).abs().mean() < 1e-6 * scale


def test_bfloat16_adds_the_adapter_without_merging_it_into_rounded_weights():
    model = layers(dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # as `spr train` has them
            parameter.data = parameter.data.float()
            if "lora_B" in name:
                parameter.data *= 1e-3  # below the rounding of most weights
    for module in model.modules():
        module.cast_input_dtype_enabled = False
    inputs = torch.randn(64, 5)
    exact = copy.deepcopy(model).double()(inputs.double())
    without = copy.deepcopy(model).double()
    with without.disable_adapter():
        plain = without(inputs.double())
    speed_up_layers(model)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(inputs)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), exact, rtol=0.05, atol=0.1)
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert (exact - plain).abs().max() > 0  # the adapter matters


def test_float16_keeps_the_gradients_of_a_float32_adapter_in_float32():
    model = layers(dtype=torch.float16)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float() * (1e-4 if "lora_B" in name else 1.0)
    inputs = torch.randn(16, 5, dtype=torch.float16)
    expected = None
    for fast in (False, True):
        made = copy.deepcopy(model)
        if fast:
            speed_up_layers(made)
        (made(inputs).float().sum() * 1e-6).backward()
        found = {name: p.grad for name, p in made.named_parameters() if p.requires_grad}
        expected = expected or found
    assert all((gradient != 0).any() for gradient in expected.values())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_weights_are_not_merged_where_products_round_them(precision):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert _merges(1000, torch.zeros(8, 8)) == (precision == "highest")
        assert _merges(1000, torch.zeros(8, 8, dtype=torch.float64))
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_disabled_adapter_that_was_merged_is_taken_out():
    model, inputs = layers(), torch.randn(7, 5, dtype=torch.float64)
    with model.disable_adapter():
        without = model(inputs)
    speed_up_layers(model)
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(inputs), without, rtol=1e-12, atol=1e-12)


def test_a_disabled_adapter_and_a_merged_one_are_respected():
    model, inputs = layers(), torch.randn(7, 5, dtype=torch.float64)
    with_adapter = model(inputs)
    with model.disable_adapter():
        without = model(inputs)
    speed_up_layers(model)
    torch.testing.assert_close(model(inputs), with_adapter, rtol=1e-12, atol=1e-12)
    with model.disable_adapter():
        torch.testing.assert_close(model(inputs), without, rtol=1e-12, atol=1e-12)
    model.merge_adapter()
    torch.testing.assert_close(model(inputs), with_adapter, rtol=1e-12, atol=1e-12)
    model.unmerge_adapter()
    torch.testing.assert_close(model(inputs), with_adapter, rtol=1e-12, atol=1e-12)
    assert (with_adapter - without).abs().max() > 0.01


@pytest.mark.parametrize("tokens", [1, 6])
def test_gradients_agree_with_finite_differences(tokens):
    torch.manual_seed(0)
    sizes = {"inputs": (tokens, 4), "weight": (3, 4), "bias": (3,), "a": (2, 4), "b": (3, 2)}
    values = {name: torch.randn(*size, dtype=torch.float64) for name, size in sizes.items()}
    for name in ("inputs", "a", "b"):
        values[name].requires_grad_()
    assert torch.autograd.gradcheck(_LoraLinear.apply, (*values.values(), 1.5))


@pytest.mark.parametrize("model_type", [name for name, family in FAMILIES.items() if family.trainable])
def test_a_step_of_each_family(model_type, trainable_folder, pairs_folder, stir, settings, tmp_path):
    config = settings()
    trainee = load_trainee(str(trainable_folder(model_type)), config, torch.device("cpu"), features=tmp_path)
    model, encoder = trainee.model.double().train(), trainee.encoder
    model.base.set_experts_implementation("eager")  # torch's grouped products know no float64
    stir(model)
    planned, _ = encoder.plan(list(trl_pairs(pairs_folder))[:2], 4096)

    def look(vision):
        with torch.no_grad():
            return Features(*model(vision=vision))

    found = []
    for speed_up in (None, speed_up_layers, speed_up_norms):
        if speed_up is not None:
            speed_up(model.base)
        pairs = [encoder.finish(one, encoder.process(one), look) for one in planned]
        logps = PairLogps(*model(collate(pairs, encoder.pad, shared=trainee.shared)))
        (logps.chosen - 2 * logps.rejected).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        model.zero_grad()
        found.append((logps.chosen.detach(), logps.rejected.detach(), gradients))
    # The log-probabilities of tokens are float32 in any case, and transformers normalizes in float32.
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=1e-3, atol=1e-4)
    assert any(gradient.abs().max() > 0 for gradient in found[0][2].values())
