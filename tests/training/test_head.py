"""Log-probabilities of answer tokens, against log_softmax and its gradient."""

import pytest
import torch
from torch import nn

from spr.training.loss import token_logps

TOKENS, WIDTH, WORDS = 11, 6, 13


@pytest.fixture
def case():
    draw = torch.Generator().manual_seed(5)
    hidden = torch.randn(TOKENS, WIDTH, generator=draw)
    labels = torch.randint(WORDS, (TOKENS,), generator=draw)
    weights = torch.randn(TOKENS, generator=draw)
    torch.manual_seed(5)
    return hidden, labels, weights, nn.Linear(WIDTH, WORDS)


def plain(hidden, labels, head, softcap=None):
    logits = head(hidden).float()
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits, dim=-1)[torch.arange(len(labels)), labels]


def with_gradient(function, case, **options):
    hidden, labels, weights, head = case
    head.zero_grad()
    hidden = hidden.clone().requires_grad_()
    logps = function(hidden, labels, head, **options)
    (logps * weights).sum().backward()
    return logps.detach(), hidden.grad, [p.grad for p in head.parameters() if p.grad is not None]


def test_equal_logits_give_minus_log_of_the_words():
    head = nn.Linear(2, 4, bias=False)
    nn.init.zeros_(head.weight)
    logps = token_logps(torch.ones(3, 2), torch.tensor([0, 1, 3]), head.requires_grad_(False))
    assert logps.tolist() == pytest.approx([-1.3862944] * 3)  # log 4


def test_two_words_give_a_sigmoid_and_its_slope():
    # Logits h and 0: log p(0) = −log(1 + e^−h), with the slope 1 − σ(h). At h = 1: −0.3132617 and 0.2689414.
    head = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [0.0]]))
    hidden = torch.ones(1, 1, requires_grad=True)
    logps = token_logps(hidden, torch.tensor([0]), head.requires_grad_(False))
    logps.sum().backward()
    assert logps.item() == pytest.approx(-0.3132617)
    assert hidden.grad.item() == pytest.approx(0.2689414)


@pytest.mark.parametrize("chunk", [1, 4, 11, 1024])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_values_and_gradients_are_those_of_log_softmax_in_chunks_of_any_size(chunk, frozen, softcap, case):
    case[3].requires_grad_(not frozen)
    logps, gradient, of_head = with_gradient(token_logps, case, softcap=softcap, chunk=chunk)
    wanted, wanted_gradient, wanted_of_head = with_gradient(plain, case, softcap=softcap)
    torch.testing.assert_close(logps, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-5, atol=1e-6)
    assert len(of_head) == (0 if frozen else 2)
    torch.testing.assert_close(of_head, wanted_of_head, rtol=1e-5, atol=1e-6)


def test_a_head_without_bias_is_differentiated_too(case):
    hidden, labels, weights, _ = case
    head = nn.Linear(WIDTH, WORDS, bias=False).requires_grad_(False)
    ours, theirs = (with_gradient(f, (hidden, labels, weights, head)) for f in (token_logps, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_half_precision_gives_float32_values_and_a_gradient_in_its_own_type(case):
    hidden, labels, weights, head = case
    half = hidden.bfloat16(), labels, weights, head.bfloat16().requires_grad_(False)
    logps, gradient, _ = with_gradient(token_logps, half)
    wanted, wanted_gradient, _ = with_gradient(plain, half)
    assert logps.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(logps, wanted, rtol=1e-5, atol=1e-5)
    # bfloat16 has eight bits of mantissa: 2 ** −8 is 0.004.
    torch.testing.assert_close(gradient, wanted_gradient, rtol=0.02, atol=0.02)


def test_without_gradients_the_values_are_the_same(case):
    hidden, labels, _, head = case
    with torch.no_grad():
        torch.testing.assert_close(token_logps(hidden, labels, head), plain(hidden, labels, head))


def test_no_tokens_give_no_values():
    assert token_logps(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), nn.Linear(2, 3)).shape == (0,)
