"""Sampling that depends on the request only: the same seed gives the same answer in any batch.

The noise of each token is a hash of (seed, step, token), which is the same on every device. The token with the highest
sum of log-probability and Gumbel noise is an exact sample of the softmax ("Gumbel-max trick", Gumbel 1954). Only the
rounding of the model itself still differs between batches of different shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from spr.core.errors import ConfigError

_STEP = 0x9E3779B97F4A7C15  # the odd integer nearest to 2⁶⁴ / golden ratio, splitmix64's increment
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_FIRST_SEARCHED, _LEAST_SEARCHED = 128, 32  # numbers of most likely tokens to search for the nucleus
_FEW = 4096  # so many logits are searched and drawn from as a whole: a smaller number is not faster


def check_sampling(temperature: float, top_p: float) -> None:
    """Raise `ConfigError` unless 0 ≤ temperature < ∞ and 0 < top_p ≤ 1."""
    if not 0 <= temperature < math.inf:
        raise ConfigError("Config field `describer.temperature` is out of range", got=temperature, expected="0 or more")
    if not 0 < top_p <= 1:
        raise ConfigError("Config field `describer.top_p` is out of range", got=top_p, expected="over 0, at most 1")


class Sampler:
    """Draws a token from each row of logits.

    It looks for the nucleus among the most likely tokens, more than the last nuclei had. Their number changes no token.

    Args:
        temperature: With 0, the most likely tokens are taken.
        top_p: The probability of the `nucleus`.
    """

    def __init__(self, temperature: float, top_p: float) -> None:
        self.temperature, self.top_p = temperature, top_p
        self._searched = _FIRST_SEARCHED
        self._all: Tensor | None = None

    def __call__(self, logits: Tensor, streams: Tensor) -> tuple[Tensor, list[int]]:
        """Token ids ``(rows,)``, and the same as a list, from logits ``(rows, vocabulary)``.

        ``streams``, ``(rows, 1)``, are those of `random_streams` for the rows' steps; they are not used if the
        temperature is 0. Unless more tokens must be searched, the device is waited for once.
        """
        if self.temperature == 0:
            drawn = logits.argmax(-1)
            return drawn, drawn.tolist()
        logits = logits.float()
        logps = (logits if self.temperature == 1 else logits / self.temperature).log_softmax(-1)
        vocabulary = logps.shape[-1]
        if self._all is None or len(self._all) != vocabulary:
            self._all = torch.arange(vocabulary, device=logps.device)
        if self.top_p == 1:
            drawn = logps.sub_(_log_exponentials(streams, self._all)).argmax(-1)
            return drawn, drawn.tolist()
        few = logps.numel() <= _FEW
        while True:
            k = vocabulary if few or 4 * self._searched > 3 * vocabulary else self._searched
            top, tokens, last = nucleus(logps, self.top_p, k)
            scores = top.sub_(_log_exponentials(streams, self._all if tokens is None else tokens))
            drawn = scores.argmax(-1) if tokens is None else _first_of_highest(scores, tokens, vocabulary)
            if few:
                return drawn, drawn.tolist()
            found: list[int] = torch.cat([drawn, last[:, 0]]).tolist()
            widest = max(found[len(logps) :]) + 1
            if widest <= k or k == vocabulary:
                before = min(self._searched, vocabulary)  # k may be more
                self._searched = max(_LEAST_SEARCHED, widest + widest // 4, before - before // 8)
                return drawn, found[: len(logps)]
            self._searched = 8 * k


def _first_of_highest(scores: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
    """Of the tokens with exactly the highest score, the first one of the vocabulary, as by `argmax` over all of it."""
    # NaN, which is not lower than anything, must not lead to a token outside of the vocabulary.
    lower = scores < scores.amax(-1, keepdim=True)
    return tokens.masked_fill(lower, vocabulary).amin(-1)


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
        self.prompt_length, self._sampler = prompt_length, Sampler(temperature, top_p)
        self._streams = self.seeds.new_zeros(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits ``(rows, vocabulary)`` → 0 for the drawn token of each row, −∞ for all others; float32."""
        step = input_ids.shape[1] - self.prompt_length
        if step >= len(self._streams):
            self._streams = random_streams(self.seeds.to(scores.device), 2 * step + 64)
        tokens, _ = self._sampler(scores, self._streams[step])
        return torch.full_like(scores, -math.inf, dtype=torch.float32).scatter_(-1, tokens[:, None], 0.0)


def nucleus(logps: Tensor, top_p: float, searched: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """The smallest set of most likely tokens whose probabilities sum to at least ``top_p``, below 1.

    Tokens as likely as the last of them are included, so that the set doesn't depend on how a device sorts ties.

    From log-probabilities ``(rows, vocabulary)``, it returns log-probabilities, −∞ outside of the nucleus, and token
    ids, both ``(rows, searched)``, of this number of most likely tokens; if it is the vocabulary, token ids are None,
    and all are in their order. The last tensor, ``(rows, 1)``, has the number of tokens needed before the last one, or
    ``searched`` if those are not all of the nucleus.

    >>> logps = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    >>> top, tokens, last = nucleus(logps, 0.7, 3)  # 0.5 does not reach 0.7, 0.5 + 0.25 does
    >>> print(tokens[top > -math.inf], last)
    tensor([1, 3]) tensor([[1]])
    """
    everything = searched == logps.shape[-1]
    top, tokens = (_descending(logps), None) if everything else logps.topk(searched)
    mass = top.exp().cumsum(-1)
    last = torch.searchsorted(mass, mass.new_full((len(mass), 1), top_p))
    cutoff = top.gather(-1, last.clamp(max=searched - 1))
    if everything:
        return logps.masked_fill(logps < cutoff, -math.inf), None, last
    last.masked_fill_(top[:, -1:] >= cutoff, searched)  # too little mass, or ties that may not be among these
    return top.masked_fill_(top < cutoff, -math.inf), tokens, last


def _descending(values: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return values.sort(descending=True).values
    return torch.from_numpy(np.sort(values.numpy())).flip(-1)  # many times as fast as PyTorch's on a CPU


def random_streams(seeds: Tensor, steps: int) -> Tensor:
    """What the noise of the first tokens of answers depends on, ``(steps, rows, 1)``, from seeds ``(rows,)``, int64.

    The noise of a token is the hash of a stream plus the token's multiple of a constant (splitmix64, Steele et al.
    2014): it depends on (seed, step, token) only.
    """
    # Products of int64 tensors keep the lowest 64 bits.
    number = torch.arange(1, steps + 1, device=seeds.device)[:, None]
    return _hash(_hash(seeds.clone()) + number * _signed(_STEP)).add_(_signed(_STEP))[..., None]


def gumbel_noise(streams: Tensor, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise ``(rows, k)``, float32, all finite, of streams ``(rows, 1)`` and tokens ``(rows, k)``."""
    return -_log_exponentials(streams, tokens)


def _log_exponentials(streams: Tensor, tokens: Tensor) -> Tensor:
    bits = _hash(torch.add(streams, tokens, alpha=_signed(_STEP)))
    uniform = _shift(bits, 11).float().add_(0.5).mul_(2.0**-53)
    # −log1p(−u) is exponentially distributed, and exact for small u, where the noise is large. u must not be 1.
    return uniform.clamp_(max=1 - 2.0**-24).neg_().log1p_().neg_().log_()


def _hash(bits: Tensor) -> Tensor:
    """Splitmix64's hash, in place."""
    for shift, factor in _MIX:
        bits.bitwise_xor_(_shift(bits, shift)).mul_(_signed(factor))
    return bits.bitwise_xor_(_shift(bits, 31))


def _shift(bits: Tensor, by: int) -> Tensor:
    # torch has no unsigned shift, so the copies of the sign bit are masked.
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """The lowest 64 bits of an integer as int64."""
    return (number + 2**63) % 2**64 - 2**63
