"""Products by oneDNN are those of float64 within float32's rounding, in all strides, and have the input's gradient."""

import os

import pytest
import torch
from torch import nn

from spr.models import products
from spr.models.products import frozen_linear, keep_few_kernels, linear, replaceable


def matrix(rows, columns, layout):
    torch.manual_seed(rows + columns)
    match layout:
        case "rows":
            return torch.randn(rows, columns)
        case "columns":
            return torch.randn(columns, rows).t()
        case "part":  # neither contiguous nor the transpose of a contiguous one
            return torch.randn(rows, 2 * columns)[:, :columns]


@pytest.mark.parametrize("layout", ["rows", "columns", "part"])
@pytest.mark.parametrize("other", ["rows", "columns", "part"])
def test_products_of_any_strides(layout, other):
    inputs, weight, bias = matrix(200, 100, layout), matrix(80, 100, other), torch.randn(80)
    exact = inputs.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(linear(inputs, weight, bias).double(), exact, rtol=1e-5, atol=1e-4)


def test_large_products_of_float32_are_onednns_and_others_are_not(monkeypatch):
    calls = []

    def counted(inputs, weight, bias, *_):
        calls.append((len(inputs), inputs.dtype))
        return nn.functional.linear(inputs, weight, bias)

    monkeypatch.setattr(products, "_onednn", lambda: counted)
    large, small = torch.randn(200, 100), torch.randn(2, 100)
    weight = torch.randn(80, 100)
    for inputs in (large, small, large.double()):
        linear(inputs, weight.to(inputs.dtype))
    assert calls == [(200, torch.float32)]  # 1.6 million multiply-adds


def test_without_onednn_the_products_are_torchs(monkeypatch):
    monkeypatch.setattr(products, "_onednn", lambda: None)
    inputs, weight = torch.randn(200, 100), torch.randn(80, 100)
    assert torch.equal(linear(inputs, weight), nn.functional.linear(inputs, weight))


def test_a_frozen_layer_has_the_gradient_of_its_inputs():
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda given: frozen_linear(given, weight, bias), inputs)
    assert not frozen_linear(inputs.detach(), weight, bias).requires_grad


def test_layers_that_something_else_changes_are_not_replaced():
    class Packed(nn.Linear):
        pass

    frozen, trained, packed, hooked = nn.Linear(2, 2), nn.Linear(2, 2), Packed(2, 2), nn.Linear(2, 2)
    for layer in (frozen, packed, hooked):
        layer.requires_grad_(False)
    hooked.register_forward_hook(lambda *_: None)
    assert [replaceable(layer) for layer in (frozen, trained, packed, hooked)] == [True, False, False, False]
    assert replaceable(trained, frozen=False)


@pytest.mark.parametrize(("given", "expected"), [(None, "64"), ("200", "200")])
def test_few_kernels_are_kept_unless_the_environment_says_otherwise(given, expected, monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, given or "")  # restored after the test
    if given is None:
        monkeypatch.delenv(name)
    keep_few_kernels()
    assert os.environ[name] == expected
