"""RMS normalization in one function has the values and gradients of transformers' own."""

import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from spr.training.norm_layers import _RmsNorm, speed_up_norms


def frozen(layer):
    torch.manual_seed(0)
    nn.init.normal_(layer.weight)
    return layer.requires_grad_(False)


def output_and_gradient(layer, inputs):
    given = inputs.clone().requires_grad_()
    output = layer(given)
    (output**3).sum().backward()
    return output.detach(), given.grad


def test_values_and_gradients_are_those_of_transformers():
    layer, inputs = frozen(Qwen2RMSNorm(16)), torch.randn(2, 5, 16)
    before = output_and_gradient(layer, inputs)
    assert speed_up_norms(nn.Sequential(layer)) == 1
    after = output_and_gradient(layer, inputs)
    assert "_RmsNorm" in type(layer(inputs.requires_grad_()).grad_fn).__name__
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_one_row_by_hand():
    # mean(x²) = (9 + 16) / 2 = 12.5, so x / √12.5 = 0.848528, 1.131371
    found = _RmsNorm.apply(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(found, torch.tensor([[0.848528, 2.262742]]), rtol=1e-6, atol=0)


def test_the_gradient_agrees_with_finite_differences():
    torch.manual_seed(0)
    inputs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda given: _RmsNorm.apply(given, weight, 1e-6), inputs)


def test_a_norm_with_a_matrix_of_weights_stays_as_it_is():
    class PerHeadRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 4), requires_grad=False)
            self.variance_epsilon = 1e-6

    assert speed_up_norms(nn.Sequential(PerHeadRMSNorm())) == 0


def test_other_formulas_trained_weights_and_sixteen_bits_stay_as_they_are():
    gemma, trained = frozen(GemmaRMSNorm(16)), Qwen2RMSNorm(16)
    half = frozen(Qwen2RMSNorm(16)).bfloat16()
    assert speed_up_norms(nn.ModuleList([gemma, trained, half])) == 0
    layer, inputs = frozen(Qwen2RMSNorm(16)), torch.randn(3, 16)
    exact = layer(inputs.bfloat16())
    speed_up_norms(nn.Sequential(layer))
    assert torch.equal(layer(inputs.bfloat16()), exact)
