"""Sampling that depends on the request only: the same seed gives the same answer in any batch.

The noise of each token is a hash of (seed, step, token), which is the same on every device. The token with the highest
sum of log-probability and Gumbel noise is an exact sample of the softmax ("Gumbel-max trick", Gumbel 1954). Only the
rounding of the model itself still differs between batches of different shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from spr.core.errors import ConfigError

_STEP = 0x9E3779B97F4A7C15  # the odd integer nearest to 2⁶⁴ / golden ratio, splitmix64's increment
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_FIRST_GUESS = 128  # number of most likely tokens to search for the nucleus first


def check_sampling(temperature: float, top_p: float) -> None:
    """Raise `ConfigError` unless 0 ≤ temperature < ∞ and 0 < top_p ≤ 1."""
    if not 0 <= temperature < math.inf:
        raise ConfigError("Config field `describer.temperature` is out of range", got=temperature, expected="0 or more")
    if not 0 < top_p <= 1:
        raise ConfigError("Config field `describer.top_p` is out of range", got=top_p, expected="over 0, at most 1")


def draw(logits: Tensor, seeds: Tensor, steps: Tensor | int, *, temperature: float, top_p: float) -> Tensor:
    """Sample a token for each row of logits ``(rows, vocabulary)``; token ids ``(rows,)``.

    ``seeds`` are ``(rows,)``, int64; ``steps``, one for all or ``(rows,)``, are the numbers of tokens drawn before.
    With a temperature of 0, it takes the most likely tokens.
    """
    if temperature == 0:
        return logits.argmax(-1)
    noisy, tokens = _noisy(logits, seeds, steps, temperature, top_p)
    # Of tokens with exactly the same sum, the first one of the vocabulary, as by `argmax` over all of it. NaN, which is
    # not lower than anything, must not lead to a token outside of the vocabulary.
    lower = noisy < noisy.amax(-1, keepdim=True)
    return tokens.masked_fill(lower, logits.shape[-1]).amin(-1)


def _noisy(
    logits: Tensor, seeds: Tensor, steps: Tensor | int, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    logps = (logits.float() / temperature).log_softmax(-1)
    top, tokens = nucleus(logps, top_p)
    return top + gumbel_noise(seeds, steps, tokens), tokens


class SeededSampling(LogitsProcessor):  # type: ignore[misc]
    """Turns logits into scores whose argmax is a sample, for use with ``generate(do_sample=False)``.

    It takes a seed for each row of the batch, 0 ≤ seed < 2⁶³, and the number of tokens before the first generated one,
    including padding.
    """

    def __init__(self, seeds: Sequence[int], prompt_length: int, *, temperature: float, top_p: float) -> None:
        check_sampling(temperature, top_p)
        if temperature == 0:
            fix = "don't use this processor for greedy decoding"
            raise ConfigError("A temperature of 0 has nothing to sample", fix=fix)
        self.seeds = torch.tensor(seeds, dtype=torch.int64)
        self.prompt_length, self.temperature, self.top_p = prompt_length, temperature, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits ``(rows, vocabulary)`` → noisy log-probabilities, −∞ outside of the nucleus; float32."""
        self.seeds = self.seeds.to(scores.device)
        step = input_ids.shape[1] - self.prompt_length
        noisy, tokens = _noisy(scores, self.seeds, step, self.temperature, self.top_p)
        return torch.full_like(scores, -math.inf, dtype=torch.float32).scatter(-1, tokens, noisy)


def nucleus(logps: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest set of most likely tokens whose probabilities sum to at least ``top_p``.

    Tokens as likely as the last of them are included, so that the set doesn't depend on how a device sorts ties.

    From log-probabilities ``(rows, vocabulary)``, it returns log-probabilities, −∞ outside of the nucleus, and token
    ids, both ``(rows, k)``, where k is the number of tokens in the largest of the nuclei.

    >>> logps = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    >>> top, tokens = nucleus(logps, 0.7)  # 0.5 does not reach 0.7, 0.5 + 0.25 does
    >>> tokens[top > -math.inf].tolist()
    [1, 3]
    """
    vocabulary = logps.shape[-1]
    if top_p == 1:
        return logps, torch.arange(vocabulary, device=logps.device).expand_as(logps)
    k = min(_FIRST_GUESS, vocabulary)
    while True:
        top, tokens = logps.topk(k)
        mass = top.exp().cumsum(-1)
        reached = (mass < top_p).sum(-1, keepdim=True)  # index of the last token needed; k if these are too few
        cutoff = top.gather(-1, reached.clamp(max=k - 1))
        # Done if every row reaches top_p and includes all tokens that tie with its last one.
        if k == vocabulary or bool(((reached < k) & (top[:, -1:] < cutoff)).all()):
            outside = top < cutoff
            widest = int((~outside).sum(-1).amax())
            return top.masked_fill_(outside, -math.inf)[:, :widest], tokens[:, :widest]
        k = min(8 * k, vocabulary)


def gumbel_noise(seeds: Tensor, step: Tensor | int, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise from (seed, step, token) only, by the hash of splitmix64 (Steele et al. 2014).

    Seeds ``(rows,)`` and token ids ``(rows, k)``, both int64, give ``(rows, k)`` float32, all finite; ``step``, one for
    all rows or ``(rows,)``, is the index of the drawn token in the answer, from 0.
    """
    # Products of int64 tensors keep the lowest 64 bits.
    before = (step + 1) * _signed(_STEP) if isinstance(step, Tensor) else _signed((step + 1) * _STEP)
    stream = _hash(_hash(seeds) + before)
    bits = _hash(stream[:, None] + (tokens + 1) * _signed(_STEP))
    uniform = (_shift(bits, 11).float() + 0.5) * 2.0**-53
    # −log1p(−u) is exponentially distributed, and exact for small u, where the noise is large. u must not be 1.
    return -torch.log(-torch.log1p(-uniform.clamp(max=1 - 2.0**-24)))


def _hash(bits: Tensor) -> Tensor:
    for shift, factor in _MIX:
        bits = (bits ^ _shift(bits, shift)) * _signed(factor)
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    # torch has no unsigned shift, so the copies of the sign bit are masked.
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """The lowest 64 bits of an integer as int64."""
    return (number + 2**63) % 2**64 - 2**63
