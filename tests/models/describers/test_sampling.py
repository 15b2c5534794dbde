"""Samples have the right frequencies and nucleus, and depend only on the seed of the request."""

import math

import pytest
import torch

from spr.core.errors import ConfigError
from spr.models.describers.sampling import Sampler, SeededSampling, gumbel_noise, nucleus, random_streams

INF = math.inf


def draw(logits, seeds, *, step=0, temperature=1.0, top_p=1.0):
    """One token per seed, all from the same logits."""
    processor = SeededSampling(seeds, 3, temperature=temperature, top_p=top_p)
    ids = torch.zeros(len(seeds), 3 + step, dtype=torch.int64)
    return processor(ids, logits.expand(len(seeds), -1)).argmax(-1)


def chi_square(tokens, probabilities):
    expected = probabilities * len(tokens)
    return float(((torch.bincount(tokens, minlength=len(probabilities)) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_are_sampled_with_the_probabilities_of_the_softmax(temperature):
    logits = torch.linspace(-1, 1.5, 11)
    tokens = draw(logits, range(40_000), temperature=temperature)
    # The 99.9 % quantile of chi-square with 10 degrees of freedom is 29.6.
    assert chi_square(tokens, (logits / temperature).softmax(-1)) < 29.6


def test_steps_of_one_seed_are_as_independent_as_seeds():
    logits = torch.tensor([0.0, 0.5, 1.0, -0.5])
    joint = logits.softmax(-1).outer(logits.softmax(-1)).flatten()
    pairs = 4 * draw(logits, range(20_000), step=0) + draw(logits, range(20_000), step=1)
    steps = torch.stack([draw(logits, [5, 6], step=k) for k in range(4_000)])
    # 15 degrees of freedom: 37.7 at 99.9 %.
    assert chi_square(pairs, joint) < 37.7
    assert chi_square(4 * steps[:, 0] + steps[:, 1], joint) < 37.7
    assert chi_square(4 * steps[:-1:2, 0] + steps[1::2, 0], joint) < 37.7


def test_noise_is_gumbel_and_finite():
    noise = gumbel_noise(random_streams(torch.tensor([1, 2**63 - 1]), 1)[0], torch.arange(200_000))
    assert noise.isfinite().all()
    # Mean: Euler's constant 0.5772; standard deviation π/√6 = 1.2825, so the standard error of 200,000 is 0.003.
    assert noise.mean(-1) == pytest.approx([0.5772] * 2, abs=0.012)
    assert noise.std(-1) == pytest.approx([1.2825] * 2, abs=0.02)
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 0.01


def test_noise_is_splitmix64_on_every_machine():
    # Computed with Python integers.
    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    for seed, step, token in [(0, 0, 0), (2**63 - 1, 511, 151_645), (12345, 7, 9)]:
        stream = mix((mix(seed) + (step + 1) * golden) % 2**64)
        uniform = ((mix((stream + (token + 1) * golden) % 2**64) >> 11) + 0.5) / 2**53
        expected = -math.log(-math.log1p(-uniform))
        found = gumbel_noise(random_streams(torch.tensor([seed]), step + 1)[step], torch.tensor([[token]]))
        assert float(found) == pytest.approx(expected, abs=1e-5)


def test_the_nucleus_is_the_fewest_tokens_that_reach_the_mass():
    probabilities = torch.tensor([[0.05, 0.4, 0.1, 0.25, 0.2]])

    def kept(top_p, searched=5):
        top, tokens, last = nucleus(probabilities.log(), top_p, searched)
        every = torch.arange(5)[None] if tokens is None else tokens
        return sorted(every[top > -INF].tolist()), int(last)

    # In order: 0.4, 0.65, 0.85, 0.95, 1.
    assert kept(0.3) == kept(0.3, 2) == ([1], 0)
    assert kept(0.6) == kept(0.6, 4) == ([1, 3], 1)
    assert kept(0.8) == kept(0.8, 4) == ([1, 3, 4], 2)
    assert kept(0.9) == ([1, 2, 3, 4], 3)
    assert kept(0.97) == ([0, 1, 2, 3, 4], 4)
    assert kept(0.8, 2)[1] == 2  # two tokens are too few
    assert kept(0.8, 3)[1] == 3  # there may be others as likely as the third


def test_tokens_that_tie_with_the_last_one_stay_in_the_nucleus():
    logps = torch.tensor([[0.4, 0.125, 0.1, 0.125, 0.25]]).log()
    top, tokens, last = nucleus(logps, 0.7, 5)
    assert (tokens, last.tolist()) == (None, [[2]])
    assert (top > -INF).tolist() == [[True, True, False, True, True]]
    top, tokens, last = nucleus(logps, 0.7, 3)
    assert last.tolist() == [[3]]  # the fourth ties with the third


@pytest.mark.parametrize("searched", [40, 5_000, 20_000])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_a_full_sort(searched):
    draw_ = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 20_000, generator=draw_) * torch.tensor([[1.0], [4.0], [0.0]])
    logps = logits.log_softmax(-1)
    top, tokens, last = nucleus(logps, 0.95, searched)
    every = torch.arange(20_000).expand(3, -1) if tokens is None else tokens
    complete = [searched > count for count in (9_000, 1_000, 19_999)]
    assert (last[:, 0] < searched).tolist() == complete
    for row in torch.tensor(complete).nonzero()[:, 0].tolist():
        probabilities, order = logps[row].exp().double().sort(descending=True)
        count = int((probabilities.cumsum(0) < 0.95).sum()) + 1
        kept = set(every[row][top[row] > -INF].tolist())
        if row == 2:
            assert len(kept) == 20_000  # all are ties
        else:
            assert set(order[: max(count - 2, 0)].tolist()) <= kept <= set(order[: count + 2].tolist())
            assert abs(int(last[row]) + 1 - count) <= 2


@pytest.mark.parametrize("size", [(4, 100), (4, 3_000), (40, 300)])
@pytest.mark.parametrize("top_p", [0.3, 0.95])
def test_the_number_of_tokens_that_are_searched_changes_no_draw(size, top_p):
    draw_ = torch.Generator().manual_seed(2)
    sampler, expected = Sampler(1.0, top_p), SeededSampling(range(size[0]), 0, temperature=1.0, top_p=top_p)
    streams, used = random_streams(torch.arange(size[0]), 40), set()
    for step in range(40):  # peaked and flat
        logits = torch.randn(*size, generator=draw_) * (8.0 if step % 7 else 0.5)
        tokens, listed = sampler(logits, streams[step])
        expected._sampler._searched = size[1]
        used.add(sampler._searched)
        assert tokens.tolist() == listed == expected(torch.zeros(size[0], step), logits).argmax(-1).tolist()
    assert len(used) > 2 or size == (4, 100)


def test_after_a_wide_nucleus_the_whole_vocabulary_is_not_searched_for_long():
    draw_ = torch.Generator().manual_seed(3)
    sampler, streams = Sampler(1.0, 0.95), random_streams(torch.arange(2), 30)
    searched = []
    for step in range(30):  # one flat step, before it and after it peaked ones
        sampler(torch.randn(2, 5_000, generator=draw_) * (0.1 if step == 1 else 12.0), streams[step])
        searched.append(sampler._searched)
    assert searched[0] < 200
    assert searched[1] > 4_000
    assert searched[-1] < 200


def test_samples_stay_in_the_nucleus_and_keep_their_odds():
    logits = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2]).log()
    tokens = draw(logits, range(20_000), top_p=0.8)
    assert set(tokens.tolist()) == {1, 3, 4}
    # 2 degrees of freedom: 13.8 at 99.9 %.
    renumbered = torch.searchsorted(torch.tensor([1, 3, 4]), tokens)
    assert chi_square(renumbered, torch.tensor([0.4, 0.25, 0.2]) / 0.85) < 13.8


def test_a_row_is_the_same_in_any_batch():
    draw_ = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 5_000, generator=draw_)
    seeds = [11, 7, 7, 2**62, 0, 5]
    ids = torch.zeros(6, 9, dtype=torch.int64)
    together = SeededSampling(seeds, 4, temperature=1.0, top_p=0.9)(ids, logits).argmax(-1)
    for row, seed in enumerate(seeds):
        # Another padded length before it, the same number of tokens after.
        alone = SeededSampling([seed], 2, temperature=1.0, top_p=0.9)(ids[:1, :7], logits[row : row + 1])
        assert alone.argmax(-1) == together[row]


def test_a_single_likely_token_is_taken_whatever_the_noise():
    logits = torch.full((1000,), -INF)
    logits[17] = 0.0
    assert set(draw(logits, range(2_000), top_p=0.95).tolist()) == {17}
    assert set(draw(logits, range(200)).tolist()) == {17}


@pytest.mark.parametrize("top_p", [0.02, 0.9, 1])
@pytest.mark.parametrize("broken", [math.nan, INF])
def test_logits_that_are_not_numbers_give_a_token_of_the_vocabulary(broken, top_p):
    logits = torch.zeros(2, 1500)
    logits[0, 7] = broken
    streams = random_streams(torch.tensor([0, 1]), 1)[0]
    _, tokens = Sampler(1.0, top_p)(logits, streams)
    assert 0 <= min(tokens) <= max(tokens) < 1500
    assert tokens[1:] == Sampler(1.0, top_p)(logits[1:], streams[1:])[1]


@pytest.mark.parametrize(("temperature", "top_p"), [(-0.1, 1), (INF, 1), (math.nan, 1), (1, 0), (1, 1.01), (0, 1)])
def test_values_out_of_range_are_refused(temperature, top_p):
    with pytest.raises(ConfigError):
        SeededSampling([0], 1, temperature=temperature, top_p=top_p)
