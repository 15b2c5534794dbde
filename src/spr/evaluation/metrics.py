"""Metrics as ratios of sums, their confidence intervals, and tests of differences.

Intervals resample images, and tests exchange the two answers of an image. Both treat an image with all of its items as
one unit, a cluster, because items of the same image are not independent. Few images give no interval and no small
p-value, however much they agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spr.core.terminal import count_text

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

RESAMPLES = 1000
"""Bootstrap resamples per confidence interval."""
MOST_CLUSTERS = 4096
"""With more images, this many random groups of nearly equal size are resampled instead (Wolter 2007, "Introduction to
Variance Estimation", ch. 2). Their effect on an interval's width, about 1 %, is less than that of 1,000 resamples."""
LEAST_CLUSTERS = 6
"""Fewer images give no interval. Of five, even if all agree, the smallest two-sided p-value is 2 / 2⁵ = 0.0625: a 95 %
interval would need an assumption about the distribution."""
ENUMERATED = 20
"""Up to this many images that differ, `sign_flip` goes through all exchanges: at most 2¹⁹ sums, 8 MB."""
_CHUNK = 2**20  # random numbers drawn at once: 4 MB as float32
_ROUNDING = 1e-9  # sums of float64 that differ by less, relative to their largest terms, are equal


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A metric, Σ parts / Σ wholes, as float64 ``(N,)`` arrays of the parts and wholes of each item.

    For accuracy, an item's part is 0 or 1 and its whole is 1; for recall, its part is the number of hits and its whole
    the number of objects.
    """

    parts: Floats
    wholes: Floats

    @classmethod
    def mean(cls, values: npt.ArrayLike) -> Share:
        """The mean of values ``(N,)``: every whole is 1."""
        parts = np.asarray(values, dtype=np.float64)
        return cls(parts, ones(len(parts)))

    @classmethod
    def ratio(cls, parts: npt.ArrayLike, wholes: npt.ArrayLike) -> Share:
        """Σ parts / Σ wholes."""
        return cls(np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64))

    def value(self, chosen: Bools | None = None) -> float | None:
        """The value, over the chosen items if given; None if the wholes sum to 0.

        >>> Share.ratio([1, 2], [2, 4]).value(), Share.mean([]).value()
        (0.5, None)
        """
        share = self if chosen is None else self.take(chosen)
        whole = float(share.wholes.sum())
        return float(share.parts.sum()) / whole if whole else None

    def take(self, chosen: Bools | Ints) -> Share:
        """The metric of some items, given as a mask or as positions."""
        return Share(self.parts[chosen], self.wholes[chosen])


@lru_cache(maxsize=4)
def ones(count: int) -> Floats:
    """Ones ``(count,)``, always the same read-only array, so that `intervals` sums it only once."""
    array = np.ones(count)
    array.flags.writeable = False
    return array


def cluster_numbers(names: Sequence[str]) -> Ints:
    """The number of each item's image, from 0 in order of first appearance; int64 ``(N,)``.

    >>> cluster_numbers(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    known: dict[str, int] = {}
    return np.fromiter((known.setdefault(name, len(known)) for name in names), np.int64, len(names))


def resampled(clusters: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
    """Yield how often each cluster is drawn, for a few resamples at a time: float32 ``(rows, clusters)``."""
    rng = np.random.default_rng(seed)
    rows = max(1, min(resamples, _CHUNK // max(clusters, 1)))
    for first in range(0, resamples, rows):
        count = min(rows, resamples - first)
        drawn = rng.integers(0, clusters, (count, clusters)) + clusters * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * clusters).reshape(count, clusters).astype(np.float32)


class _Sums:
    """Parts and wholes of K metrics, summed over the items of each cluster.

    An array that several metrics share is summed once. More than `MOST_CLUSTERS` clusters are merged at random.
    """

    def __init__(self, shares: Sequence[Share], clusters: Ints, seed: int) -> None:
        self.clusters = int(clusters.max(initial=-1)) + 1
        rows = min(self.clusters, MOST_CLUSTERS)
        if rows < self.clusters:
            clusters = (np.random.default_rng([seed, 1]).permutation(self.clusters) % MOST_CLUSTERS)[clusters]
        halves = [share.parts for share in shares] + [share.wholes for share in shares]
        arrays = {id(values): values for values in halves}
        columns = {key: k for k, key in enumerate(arrays)}
        self._columns = [columns[id(values)] for values in halves]
        self._sums = np.zeros((rows, len(arrays)))
        for key, values in arrays.items():
            self._sums[:, columns[key]] = np.bincount(clusters, weights=values, minlength=rows)
        self.parts, self.wholes = np.split(self._sums[:, self._columns], 2, axis=1)

    def influence(self) -> tuple[Floats, Floats]:
        """How much each cluster moves each metric, ``(clusters, K)``, and the rounding errors of it, ``(K,)``."""
        wholes = self.wholes.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = self.parts.sum(axis=0) / wholes
            moved = (self.parts - self.wholes * values) / wholes
            return moved, _ROUNDING * np.abs(self.parts).max(axis=0, initial=0.0) / wholes

    def resample(self, resamples: int, seed: int) -> Floats:
        """The metrics of resampled clusters, ``(resamples, K)``; NaN where the wholes of a resample sum to 0."""
        sums = self._sums.astype(np.float32)
        drawn = np.concatenate([weights @ sums for weights in resampled(len(sums), resamples, seed)])
        parts, wholes = np.split(drawn[:, self._columns].astype(np.float64), 2, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(parts / wholes)


class Interval(NamedTuple):
    """A 95 % confidence interval; None if the images can't give one, and the reason."""

    ci95: tuple[float, float] | None
    reason: str | None = None


def intervals(shares: Sequence[Share], clusters: Ints, *, resamples: int = RESAMPLES, seed: int = 0) -> list[Interval]:
    """95 % confidence intervals of K metrics, from the same resamples; ``clusters`` are the items' `cluster_numbers`.

    An interval reaches between two percentiles of the resampled values. For few images, it is wider, by the ratio of
    Student's t to the normal distribution: by 10 % for 20 images, by 1 % for 200 (Hesterberg 2015, "What Teachers
    Should Know About the Bootstrap", expanded percentile interval). There is none if fewer than `LEAST_CLUSTERS` images
    count (their whole is not 0), or if all of them have the same value: resamples can't show values that no image has.

    >>> right = Share.mean([1, 0, 1, 1, 0, 1, 1, 0])
    >>> intervals([right], np.arange(8) // 2)
    [Interval(ci95=None, reason='4 images, fewer than 6')]
    >>> intervals([Share.mean(np.ones(8))], np.arange(8))
    [Interval(ci95=None, reason='the same value in all 8 images')]
    """
    sums = _Sums(shares, clusters, seed)
    counts = np.count_nonzero(sums.wholes, axis=0)
    moved, rounding = sums.influence()
    varies = np.abs(moved).max(axis=0, initial=0.0) > rounding
    usable = varies & (counts >= LEAST_CLUSTERS)
    draws = sums.resample(resamples, seed) if usable.any() else np.empty((0, len(counts)))
    return [
        Interval(percentile_interval(draws[:, k], counts[k]))
        if usable[k]
        else Interval(None, _too_few(counts[k]) or f"the same value in all {count_text(counts[k], 'images')}")
        for k in range(len(counts))
    ]


def _too_few(count: int) -> str | None:
    return f"{count_text(count, 'images')}, fewer than {LEAST_CLUSTERS}" if count < LEAST_CLUSTERS else None


def percentile_interval(draws: Floats, clusters: int) -> tuple[float, float]:
    """The 95 % interval of the draws ``(R,)`` of a metric, which resample ``clusters`` images; NaN is ignored.

    The percentiles are 2.5 and 97.5 for many images and further apart for few (`intervals`).

    >>> low, high = percentile_interval(np.linspace(0, 1, 1001), 10**9)
    >>> round(low, 3), round(high, 3)
    (0.025, 0.975)
    """
    from scipy.special import ndtr, stdtrit  # takes memory that a report doesn't need

    tail = float(ndtr(np.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, 0.025)))
    low, high = np.quantile(draws[np.isfinite(draws)], [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference B − A of two metrics, its 95 % confidence interval, and its two-sided p-value.

    If ``ci95`` is None, ``reason`` says why there is no interval.
    """

    value: float
    ci95: tuple[float, float] | None
    p: float
    reason: str | None = None


def paired_difference(
    a: Share, b: Share, clusters: Ints, *, resamples: int = 10_000, seed: int = 0
) -> Difference | None:
    """B − A over the same items; None if one of the two metrics has no value.

    The interval is made as in `intervals`, with the same images for both in each resample. The number of images that
    counts is the number of those in which A and B differ. The p-value is that of `sign_flip`. Interval and p-value have
    different assumptions, so for a p-value close to 0.05 one may exclude no difference and the other not.
    """
    value_a, value_b = a.value(), b.value()
    if value_a is None or value_b is None:
        return None
    value, p = value_b - value_a, sign_flip(a, b, clusters, resamples=resamples, seed=seed)
    sums = _Sums([a, b], clusters, seed)
    count = int(_differ(sums).sum())
    if count < LEAST_CLUSTERS:
        reason = f"a difference in {count:,} of {sums.clusters:,} images, fewer than {LEAST_CLUSTERS}"
        return Difference(value, None, p, reason)
    moved, rounding = sums.influence()
    if np.abs(moved[:, 1] - moved[:, 0]).max() <= rounding.max():
        return Difference(value, None, p, f"the same difference in all {count_text(sums.clusters, 'images')}")
    draws = sums.resample(resamples, seed)
    return Difference(value, percentile_interval(draws[:, 1] - draws[:, 0], count), p)


def _differ(sums: _Sums) -> Bools:
    """In which clusters the two metrics have different parts or wholes."""
    return np.asarray((np.diff(sums.parts) != 0) | (np.diff(sums.wholes) != 0))[:, 0]


def sign_flip(a: Share, b: Share, clusters: Ints, *, resamples: int = 10_000, seed: int = 0) -> float:
    """The two-sided p-value of B − A by a paired randomization test, exact for any number of images.

    If A and B do not differ, then exchanging the results of A and B in any of the images, parts and wholes together,
    gives a difference that was as likely as the observed one. p is the share of these differences that are at least as
    large, in either direction. An image in which A and B are equal changes nothing. For n images that differ:

    - Up to `ENUMERATED`, all 2ⁿ exchanges are counted, so p is at least 2 / 2ⁿ; for one image it is 1.
    - Above, ``resamples`` random exchanges are. One is added to their number and to the count (Phipson and Smyth 2010,
      "Permutation P-values Should Never Be Zero"), so p is at least 1 / (resamples + 1).

    Where A and B have the same wholes, as in accuracy and recall, this is the sign-flip test: an exchange flips the
    sign of an image's difference. For other ratios, let P and W be the sums of parts and wholes over both A and B, and
    d and e their differences, B − A. The difference of the metrics is 2 (d W − e P) / (W² − e²), and an exchange flips
    the sign of an image's terms in d and in e. An exchange that leaves A or B without a value counts as large.

    >>> right, wrong = Share.mean(np.ones(8)), Share.mean(np.zeros(8))
    >>> sign_flip(wrong, right, np.arange(8)), 2 / 2**8
    (0.0078125, 0.0078125)
    """
    sums = _Sums([a, b], clusters, seed)
    terms = np.stack([np.diff(sums.parts)[:, 0], np.diff(sums.wholes)[:, 0]], axis=1)[_differ(sums)]
    part, whole = float(sums.parts.sum()), float(sums.wholes.sum())

    def size(flipped: Floats) -> Floats:
        """The absolute difference of the metrics, from their differences d and e ``(M, 2)``; NaN without a value."""
        d, e = flipped.T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(2 * np.abs(d * whole - e * part) / (whole**2 - e**2))

    scale = 2 * (np.abs(terms[:, 0]).sum() * whole + abs(part) * np.abs(terms[:, 1]).sum()) / whole**2
    observed = float(size(terms.sum(axis=0, keepdims=True))[0]) - _ROUNDING * scale
    if len(terms) <= ENUMERATED:
        return float(np.mean(~(size(_all_flips(terms)) < observed)))
    larger = sum(int((~(size(signs @ terms) < observed)).sum()) for signs in _signs(len(terms), resamples, seed))
    return (larger + 1) / (resamples + 1)


def _all_flips(terms: Floats) -> Floats:
    """The sums of the terms ``(n, 2)`` with all combinations of signs, without those that only change every sign."""
    sums = terms[:1] if len(terms) else np.zeros((1, 2))
    for term in terms[1:]:
        sums = np.concatenate([sums + term, sums - term])
    return sums


def _signs(count: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Random signs, 1 or −1, a few resamples at a time, ``(rows, count)``."""
    rng = np.random.default_rng([seed, 2])
    rows = max(1, _CHUNK // count)
    for first in range(0, resamples, rows):
        flipped = rng.integers(0, 2, (min(rows, resamples - first), count), dtype=np.int8)
        yield 1.0 - 2.0 * flipped.astype(np.float64)
