"""Metrics, intervals and p-values against values computed by hand or known in closed form."""

import numpy as np
import pytest

from spr.core import boxes as bx
from spr.evaluation.metrics import (
    MOST_CLUSTERS,
    Share,
    bootstrap,
    cluster_numbers,
    intervals,
    paired_difference,
    resampled,
)
from spr.grounding.matching import reaches


def test_an_iou_that_equals_the_threshold_reaches_it_and_one_below_does_not():
    # 7/10, 0.1 + 0.2 + 0.4 and 0.7 are equal without rounding; 6999/10000 is the nearest ratio of whole pixels below.
    assert reaches([7 / 10, 0.1 + 0.2 + 0.4, 0.6999], 0.7).tolist() == [True, True, False]


def test_a_missing_box_has_an_iou_of_zero():
    # 10 × 5 shared of 10 × 10 + 10 × 5 − 50 = 100.
    boxes = [[0, 0, 10, 5], [np.nan] * 4]
    assert bx.iou(boxes, [[0, 0, 10, 10], [0, 0, 10, 10]]).tolist() == [0.5, 0.0]


def test_recall_is_the_ratio_of_sums_and_not_the_mean_of_ratios():
    # 1 of 2 and 3 of 3: 4 of 5, where the mean of ratios is 0.75.
    assert Share.ratio([1, 3], [2, 3]).value() == 0.8
    assert Share.ratio([0, 0], [0, 0]).value() is None


@pytest.mark.parametrize("clusters", [50, 4000])
def test_a_resample_draws_as_many_images_as_there_are_with_replacement(clusters):
    counts = np.concatenate(list(resampled(clusters, 400)))
    assert counts.shape == (400, clusters)
    assert (counts.sum(axis=1) == clusters).all()
    # A count is Binomial(C, 1/C), nearly Poisson(1): mean 1 and variance 1 − 1/C.
    # With this many samples, both are known precisely.
    assert counts.mean() == pytest.approx(1.0, abs=0.02)
    assert counts.var() == pytest.approx(1.0, abs=0.06)
    # P(0) = e⁻¹ = 0.368
    assert (counts == 0).mean() == pytest.approx(np.exp(-1), abs=0.01)


@pytest.mark.parametrize("count", [400, 10 * MOST_CLUSTERS])
def test_the_interval_of_a_share_is_the_binomial_one(count):
    # p = 0.3: p ± 1.96 √(p (1 − p) / n) is 0.3 ± 0.0449 for 400 and 0.3 ± 0.0044 for 40,960, ten images per group.
    hits = np.arange(count) % 10 < 3
    ((low, high),) = intervals(bootstrap([Share.mean(hits)], np.arange(count)))
    half = 1.96 * np.sqrt(0.21 / count)
    assert low == pytest.approx(0.3 - half, abs=half / 5)
    assert high == pytest.approx(0.3 + half, abs=half / 5)


def test_items_of_one_image_are_resampled_together():
    # 100 images of 9 items that are all right or all wrong: as uncertain as 100 items, not as 900.
    right = np.repeat(np.arange(100) % 2, 9)
    clusters = cluster_numbers([str(k // 9) for k in range(900)])
    ((low, high),) = intervals(bootstrap([Share.mean(right)], clusters))
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 100), rel=0.1)


def test_the_same_seed_gives_the_same_interval_and_another_seed_a_different_one():
    share, clusters = Share.mean(np.sqrt(np.arange(100))), np.arange(100)
    assert intervals(bootstrap([share], clusters)) == intervals(bootstrap([share], clusters))
    assert intervals(bootstrap([share], clusters)) != intervals(bootstrap([share], clusters, seed=1))


def test_resamples_without_a_value_are_ignored():
    # Only the first image has objects; a resample without it has no recall.
    draws = bootstrap([Share.ratio([1, 0], [2, 0]), Share.ratio([0, 0], [0, 0])], np.array([0, 1]))
    assert intervals(draws) == [(0.5, 0.5), None]
    assert np.isnan(draws[:, 0]).any()


def test_equal_results_have_a_p_value_of_one_and_an_empty_interval():
    share = Share.mean(np.arange(100) % 3 == 0)
    difference = paired_difference(share, Share.mean(share.parts.copy()), np.arange(100))
    assert (difference.value, difference.ci95, difference.p) == (0.0, (0.0, 0.0), 1.0)


def test_the_p_value_is_close_to_that_of_the_sign_test():
    # Of 200 items A is right on 100; B turns 10 wrong ones right and 2 right ones wrong: +8/200. Of the 12 that differ
    # 10 speak for B: the two-sided sign test with mid-p gives 2 (P(X ≥ 11) + ½ P(X = 10)) = 0.0225, the normal
    # approximation of the paired difference z = 8 / √(12 − 64/200) = 2.34, p = 0.019.
    a = np.arange(200) < 100
    b = a.copy()
    b[100:110], b[:2] = True, False
    difference = paired_difference(Share.mean(a), Share.mean(b), np.arange(200))
    assert difference.value == pytest.approx(0.04)
    assert 0.008 < difference.p < 0.035
    assert difference.ci95[0] > 0


def test_pairing_shows_a_difference_that_separate_intervals_hide():
    # Items differ a lot, but the two runs on one item differ little: ± 0.07 for both shares, ± 0.01 for the difference.
    a = np.linspace(0, 1, 200)
    difference = paired_difference(Share.mean(a), Share.mean(a + 0.01), np.arange(200))
    assert difference.ci95 == pytest.approx((0.01, 0.01), abs=1e-4)
    assert difference.p == pytest.approx(2 / 10_001)  # none of 10,000 differences is 0 or less


def test_the_difference_from_a_metric_without_a_value_is_none():
    empty = Share.ratio([0.0], [0.0])
    assert paired_difference(empty, Share.mean([1.0]), np.array([0])) is None
