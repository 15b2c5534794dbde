"""The arithmetic of benchmarks, batched, in numpy: every figure is a ratio of sums, with a bootstrap interval.

A figure is Σ parts / Σ wholes over the items: accuracy has parts of 0 and 1 and wholes of 1, recall an item's hits and
its objects. What is resampled are images, with all of their items, since items of one image are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from spr.core import boxes as bx

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

RESAMPLES = 1000
"""Resamples of an interval."""
MOST_CLUSTERS = 4096
"""More images than this are put together at random into so many groups, of nearly one size, which are resampled in
their place (Wolter 2007, "Introduction to Variance Estimation", ch. 2, "random groups"). An interval's width is then
uncertain by 1 / √(2 · 4096), a hundredth, less than by the number of resamples; its cost no longer grows with them."""
_CHUNK = 2**20  # numbers drawn at once: 4 MB as float32


def reaches(values: npt.ArrayLike, threshold: float) -> Bools:
    """``values >= threshold``, where what is equal on paper is equal here.

    IoUs are ratios of products of float64; one that is 0.7 on paper may come out 1e-16 lower. Ratios of whole pixels
    can't come this near a threshold without being equal to it.

    >>> reaches([0.7 - 1e-15, 0.6999999], 0.7).tolist()
    [True, False]
    """
    return np.asarray(np.asarray(values, dtype=np.float64) >= threshold * (1 - 1e-9))


def first_box_iou(boxes_xyxy: npt.ArrayLike, truth_xyxy: npt.ArrayLike) -> Floats:
    """IoU of each item's box with its true box; a row of NaN, which stands for no box, gives 0.

    Args:
        boxes_xyxy: ``(N, 4)`` pixels.
        truth_xyxy: ``(N, 4)`` pixels.

    >>> first_box_iou([[0, 0, 2, 2], [np.nan] * 4], [[0, 0, 2, 1], [0, 0, 1, 1]]).tolist()
    [0.5, 0.0]
    """
    boxes, truth = bx.as_boxes(boxes_xyxy), bx.as_boxes(truth_xyxy)
    return np.where(np.isnan(boxes).any(axis=-1), 0.0, bx.iou(np.nan_to_num(boxes), truth))


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A figure, Σ parts / Σ wholes, by item.

    Attributes:
        parts: float64 ``(N,)``.
        wholes: float64 ``(N,)``.
    """

    parts: Floats
    wholes: Floats

    @classmethod
    def mean(cls, values: npt.ArrayLike) -> Share:
        """The mean of values ``(N,)``."""
        parts = np.asarray(values, dtype=np.float64)
        return cls(parts, ones(len(parts)))

    @classmethod
    def ratio(cls, parts: npt.ArrayLike, wholes: npt.ArrayLike) -> Share:
        """Σ parts / Σ wholes."""
        return cls(np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64))

    def value(self, chosen: Bools | None = None) -> float | None:
        """The figure, of the chosen items where given; None where there is nothing to divide by.

        >>> Share.ratio([1, 2], [2, 4]).value(), Share.mean([]).value()
        (0.5, None)
        """
        parts, wholes = (self.parts, self.wholes) if chosen is None else (self.parts[chosen], self.wholes[chosen])
        whole = float(wholes.sum())
        return float(parts.sum()) / whole if whole else None


@lru_cache(maxsize=4)
def ones(count: int) -> Floats:
    """Ones ``(count,)``, the same array each time, so that sums over it are made once."""
    made = np.ones(count)
    made.flags.writeable = False
    return made


def cluster_numbers(names: Sequence[str]) -> Ints:
    """Numbers 0 … C − 1 of the images that items ``(N,)`` belong to, in the order in which they first come.

    >>> cluster_numbers(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    known: dict[str, int] = {}
    return np.fromiter((known.setdefault(name, len(known)) for name in names), np.int64, len(names))


def resampled(clusters: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
    """How often each cluster is drawn in each resample, a few resamples at a time: float32 ``(rows, clusters)``."""
    rng = np.random.default_rng(seed)
    rows = max(1, min(resamples, _CHUNK // max(clusters, 1)))
    for first in range(0, resamples, rows):
        count = min(rows, resamples - first)
        drawn = rng.integers(0, clusters, (count, clusters)) + clusters * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * clusters).reshape(count, clusters).astype(np.float32)


def bootstrap(
    shares: Sequence[Share], clusters: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> npt.NDArray[np.float32]:
    """The figures of resampled images, all figures from the same resamples.

    Args:
        shares: K figures of the same N items.
        clusters: int64 ``(N,)``: the number of each item's image, from 0.
        resamples: How many.
        seed: Of the draws; the same seed, the same numbers.

    Returns:
        float32 ``(resamples, K)``; NaN where a resample has nothing to divide by.
    """
    count = int(clusters.max(initial=-1)) + 1
    if count > MOST_CLUSTERS:
        clusters = (np.random.default_rng([seed, 1]).permutation(count) % MOST_CLUSTERS)[clusters]
        count = MOST_CLUSTERS
    columns: dict[int, int] = {}
    sums: list[Floats] = []

    def column(values: Floats) -> int:
        # Figures share their wholes, mostly.
        if id(values) not in columns:
            columns[id(values)] = len(sums)
            sums.append(np.bincount(clusters, weights=values, minlength=count).astype(np.float64))
        return columns[id(values)]

    parts = [column(share.parts) for share in shares]
    wholes = [column(share.wholes) for share in shares]
    matrix = np.stack(sums, axis=1).astype(np.float32) if sums else np.zeros((count, 0), np.float32)
    drawn = np.concatenate([weights @ matrix for weights in resampled(count, resamples, seed)])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(drawn[:, parts] / drawn[:, wholes])


def intervals(draws: npt.ArrayLike) -> list[tuple[float, float] | None]:
    """The middle 95 % of each column of draws ``(R, K)``, without its NaN; None for a column of nothing else.

    >>> low, high = intervals(np.linspace(0, 1, 1001)[:, None])[0]
    >>> round(low, 3), round(high, 3)
    (0.025, 0.975)
    """
    columns = np.asarray(draws, dtype=np.float64).T
    found: list[tuple[float, float] | None] = []
    for column in columns:
        known = column[np.isfinite(column)]
        low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
        found.append((float(low), float(high)) if len(known) else None)
    return found


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much B is over A, its 95 % interval, and the two-sided p-value that it is nothing."""

    value: float
    ci95: tuple[float, float]
    p: float


def paired_difference(
    a: Share, b: Share, clusters: Ints, *, resamples: int = 10_000, seed: int = 0
) -> Difference | None:
    """Paired bootstrap of B − A, both figures of the same items: each resample draws the same images for both.

    p = 2 min(P(d* ≤ 0), P(d* ≥ 0)) over the resampled differences d*, at most 1, each count with one added to it and to
    the number of resamples (Davison and Hinkley 1997, §4.2), so p is never 0: with 10,000 resamples at least 0.0002.

    Returns:
        None where a figure has nothing to divide by.
    """
    value_a, value_b = a.value(), b.value()
    if value_a is None or value_b is None:
        return None
    draws = bootstrap([a, b], clusters, resamples=resamples, seed=seed).astype(np.float64)
    differences = draws[:, 1] - draws[:, 0]
    differences = differences[np.isfinite(differences)]
    # float32 sums of the same items can differ in their last digit.
    differences[np.abs(differences) < 1e-6] = 0.0
    low, high = np.percentile(differences, [2.5, 97.5])
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(differences) + 1))
    return Difference(value_b - value_a, (float(low), float(high)), p)
