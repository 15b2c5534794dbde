"""Metrics, intervals and p-values against values computed by hand or known in closed form."""

from itertools import product

import numpy as np
import pytest

from spr.core import boxes as bx
from spr.evaluation.metrics import (
    ENUMERATED,
    MOST_CLUSTERS,
    Share,
    cluster_numbers,
    intervals,
    paired_difference,
    percentile_interval,
    resampled,
    sign_flip,
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
    ((low, high), _) = intervals([Share.mean(hits)], np.arange(count))[0]
    half = 1.96 * np.sqrt(0.21 / count)
    assert low == pytest.approx(0.3 - half, abs=half / 5)
    assert high == pytest.approx(0.3 + half, abs=half / 5)


def test_items_of_one_image_are_resampled_together():
    # 100 images of 9 items that are all right or all wrong: as uncertain as 100 items, not as 900.
    right = np.repeat(np.arange(100) % 2, 9)
    clusters = cluster_numbers([str(k // 9) for k in range(900)])
    ((low, high), _) = intervals([Share.mean(right)], clusters)[0]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 100), rel=0.1)


def test_the_same_seed_gives_the_same_interval_and_another_seed_a_different_one():
    share, clusters = Share.mean(np.sqrt(np.arange(100))), np.arange(100)
    assert intervals([share], clusters) == intervals([share], clusters)
    assert intervals([share], clusters) != intervals([share], clusters, seed=1)


def test_metrics_have_the_same_intervals_together_and_alone():
    hits = np.arange(60) % 3 == 0
    shares = [Share.mean(hits), Share.ratio(hits * 1.0, 1.0 + np.arange(60) % 2)]
    assert intervals(shares, np.arange(60)) == [intervals([share], np.arange(60))[0] for share in shares]


def test_percentiles_are_those_of_students_t_for_few_images():
    # √(6/5) · t(0.975, 5) = 1.0954 · 2.5706 = 2.8159, and Φ(−2.8159) = 0.00243.
    low, high = percentile_interval(np.append(np.linspace(0, 1, 100_001), np.nan), 6)
    assert (low, high) == pytest.approx((0.00243, 0.99757), abs=1e-5)


def test_resamples_without_a_value_are_ignored():
    # The metric of six of twelve images: a resample with none of them has no recall, which 10,000 · (1/2)¹² or two to
    # three resamples show. The interval is that of the others.
    wholes = np.repeat([1.0, 0.0], 6)
    ((low, high), _) = intervals([Share.ratio(wholes * (np.arange(12) < 3), wholes)], np.arange(12), resamples=10_000)[
        0
    ]
    assert (low, high) == (0.0, 1.0)


def test_images_that_do_not_count_do_not_help():
    # Objects are in 5 of 100 images only; the sixth one makes the interval possible.
    parts, wholes = np.arange(100) % 2.0, (np.arange(100) < 5) * 1.0
    assert intervals([Share.ratio(parts * wholes, wholes)], np.arange(100))[0] == (None, "5 images, fewer than 6")
    wholes[5] = 1.0
    assert intervals([Share.ratio(parts * wholes, wholes)], np.arange(100))[0].ci95 is not None


@pytest.mark.parametrize(
    ("share", "clusters", "reason"),
    [
        (Share.mean([1, 0, 1, 1, 0, 1, 1]), np.zeros(7, dtype=np.int64), "1 image, fewer than 6"),
        (Share.mean([1, 0, 1, 1, 0]), np.arange(5), "5 images, fewer than 6"),
        (Share.mean([]), np.array([], dtype=np.int64), "0 images, fewer than 6"),
        (Share.mean([1.0] * 300), np.arange(300), "the same value in all 300 images"),
        (Share.mean([0.0] * 300), np.arange(300), "the same value in all 300 images"),
        # One of three objects in each image: thirds are not exact in binary.
        (Share.ratio(np.arange(1, 31) / 3, np.arange(1, 31)), np.arange(30), "the same value in all 30 images"),
    ],
)
def test_there_is_no_interval_for_few_images_or_equal_ones_and_the_reason_is_given(share, clusters, reason):
    assert intervals([share], clusters) == [(None, reason)]


def test_no_interval_has_a_width_of_zero():
    draw = np.random.default_rng(3)
    for _ in range(200):
        count = int(draw.integers(1, 12))
        shares = [Share.mean(draw.random(count) < draw.choice([0.0, 0.5, 0.9, 1.0])) for _ in range(2)]
        clusters = draw.integers(0, count, count)
        found = [interval.ci95 for interval in intervals(shares, clusters)]
        found.append(paired_difference(*shares, clusters, resamples=500).ci95)
        assert all(ci95 is None or ci95[0] < ci95[1] for ci95 in found)


def test_equal_results_have_a_p_value_of_one_and_no_interval():
    share = Share.mean(np.arange(100) % 3 == 0)
    difference = paired_difference(share, Share.mean(share.parts.copy()), np.arange(100))
    assert (difference.value, difference.ci95, difference.p) == (0.0, None, 1.0)
    assert difference.reason == "a difference in 0 of 100 images, fewer than 6"


def test_one_image_says_nothing():
    difference = paired_difference(Share.mean(np.zeros(50)), Share.mean(np.ones(50)), np.zeros(50, dtype=np.int64))
    assert (difference.value, difference.ci95, difference.p) == (1.0, None, 1.0)
    assert difference.reason == "a difference in 1 of 1 images, fewer than 6"


@pytest.mark.parametrize("count", range(1, 9))
def test_the_smallest_p_value_of_a_few_images_is_two_of_all_exchanges(count):
    # B is better in every image of twenty: only the observed exchange and its opposite are as large.
    a = np.zeros(20)
    b = (np.arange(20) < count) * (1.0 + np.arange(20))
    assert sign_flip(Share.mean(a), Share.mean(b), np.arange(20)) == 2 / 2**count


def test_the_p_value_is_that_of_the_exact_sign_test_for_right_and_wrong():
    # Of 200 items, B turns 10 wrong ones right and 2 right ones wrong. Of the 2¹² exchanges of those 12, the ones with
    # at most 2 or at least 10 for B are as large: 2 (1 + 12 + 66) / 4096, McNemar's exact test.
    a = np.arange(200) < 100
    b = a.copy()
    b[100:110], b[:2] = True, False
    difference = paired_difference(Share.mean(a), Share.mean(b), np.arange(200))
    assert difference.value == pytest.approx(0.04)
    assert difference.p == 2 * 79 / 4096
    assert difference.ci95[0] > 0


def test_the_p_value_is_the_share_of_the_exchanges_that_a_plain_loop_counts():
    # Ratios with different wholes on both sides: boxes that match something, of all boxes that were said.
    draw = np.random.default_rng(5)
    for _ in range(20):
        clusters = np.array([0, 0, 1, 1, 1, 2, 3, 4, 5, 6])
        wholes = draw.integers(0, 4, (2, 10)).astype(float)
        parts = np.minimum(draw.integers(0, 4, (2, 10)), wholes)
        values = []
        for exchanged in product([False, True], repeat=7):
            swap = np.array(exchanged)[clusters]
            part_a, part_b = (np.where(swap, parts[1 - k], parts[k]).sum() for k in range(2))
            whole_a, whole_b = (np.where(swap, wholes[1 - k], wholes[k]).sum() for k in range(2))
            values.append(part_b / whole_b - part_a / whole_a if whole_a and whole_b else np.inf)
        expected = np.mean(np.abs(values) >= abs(values[0]) - 1e-12)
        assert sign_flip(*(Share(parts[k], wholes[k]) for k in range(2)), clusters) == expected


def test_an_exchange_that_leaves_no_value_counts_as_large():
    # B says 1 box in two images and A only in the first: 1/2 − 1. Exchanging the second image gives 1 − 1/2, exchanging
    # both as well; no side is ever empty. Without A's box, exchanging one of two images gives 1/1 and 0/1.
    a, b = Share.ratio([1.0, 0.0], [1.0, 0.0]), Share.ratio([1.0, 0.0], [1.0, 1.0])
    assert sign_flip(a, b, np.arange(2)) == 1.0
    # A has boxes in image 0 only, and B in 1 and 2. Of the 8 exchanges, those that put all boxes on one side (exchange
    # only 0, only 1 and 2) have no value and are counted; 4 more have |difference| of at least 1/2 − 1/3 or so.
    a, b = Share.ratio([2.0, 0.0, 0.0], [3.0, 0.0, 0.0]), Share.ratio([0.0, 1.0, 0.0], [0.0, 1.0, 1.0])
    values = {"none": 1 / 2 - 2 / 3, "1": 0 / 1 - 3 / 4, "2": 1 / 1 - 2 / 4}  # the others are their opposites
    as_large = 1 + sum(abs(value) >= abs(values["none"]) for value in values.values())
    assert sign_flip(a, b, np.arange(3)) == as_large / 4


def test_enumeration_and_random_exchanges_agree_and_the_latter_are_never_zero():
    draw = np.random.default_rng(2)
    a, b = (Share.mean(draw.normal(0.0, 1.0, ENUMERATED) + shift) for shift in (0.0, 0.7))
    exact = sign_flip(a, b, np.arange(ENUMERATED))
    # One more image that hardly differs: now 10,000 random exchanges, with a standard error of √(p q / 10,000).
    a, b = Share.mean(np.append(a.parts, 0.0)), Share.mean(np.append(b.parts, 1e-6))
    sampled = sign_flip(a, b, np.arange(ENUMERATED + 1))
    assert 0.01 < exact < 0.2
    assert sampled == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000))
    zeros, ones = Share.mean(np.zeros(300)), Share.mean(np.ones(300))
    assert sign_flip(zeros, ones, np.arange(300)) == 1 / 10_001
    assert sign_flip(zeros, ones, np.arange(300), resamples=99) == 1 / 100
    many = Share.mean(np.zeros(2 * MOST_CLUSTERS)), Share.mean(np.ones(2 * MOST_CLUSTERS))
    assert sign_flip(*many, np.arange(2 * MOST_CLUSTERS)) == 1 / 10_001


def null_results(kind, count, draw):
    """Two results of the same quality on ``count`` images with one to three items each."""
    clusters = np.repeat(np.arange(count), draw.integers(1, 4, count))
    ease = draw.random(count)[clusters]
    if kind == "binary":
        return [Share.mean(draw.random(len(ease)) < ease) for _ in range(2)], clusters
    if kind == "continuous":
        return [Share.mean(ease + draw.exponential(1.0, count)[clusters] ** 2) for _ in range(2)], clusters
    boxes = [draw.integers(0, 5, len(ease)) for _ in range(2)]
    return [Share.ratio(draw.binomial(said, ease), said) for said in boxes], clusters


@pytest.mark.parametrize("kind", ["binary", "continuous", "ratio"])
@pytest.mark.parametrize("count", [1, 5, 10, 20, 50])
def test_equal_results_seem_different_in_no_more_than_five_of_a_hundred_cases(kind, count):
    draw = np.random.default_rng([count, len(kind)])
    cases, alarms, intervals_without_zero = 0, 0, 0
    for _ in range(200 if count == ENUMERATED else 400):
        shares, clusters = null_results(kind, count, draw)
        difference = paired_difference(*shares, clusters, resamples=999)
        if difference is not None:
            cases += 1
            alarms += difference.p <= 0.05
            intervals_without_zero += difference.ci95 is not None and not (
                difference.ci95[0] <= 0 <= difference.ci95[1]
            )
    assert cases > 150
    # Three standard errors over 5 %: 8.3 % of 400 cases, 9.6 % of 200. The p-values of a bootstrap gave 46 to 100 % for
    # one image, and 9 to 21 % for five.
    assert alarms / cases <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / cases)
    if kind != "continuous":  # intervals of very skewed values need more images
        assert intervals_without_zero / cases <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / cases)


def test_a_real_difference_is_found():
    # Mean difference 1 and standard deviation 1 in 20 images: Student's t is 4.5 on average, so p is below 0.01.
    draw = np.random.default_rng(0)
    ease = draw.random(20)
    difference = paired_difference(Share.mean(ease), Share.mean(ease + draw.normal(1, 1, 20)), np.arange(20))
    assert difference.p < 0.01
    assert difference.ci95[0] > 0


def test_pairing_shows_a_difference_that_separate_intervals_hide():
    # Items differ a lot, but the runs differ little on one item: ± 0.07 for both shares, ± 0.001 for the difference.
    a, change = np.linspace(0, 1, 200), 0.01 + 0.007 * (-1.0) ** np.arange(200)
    difference = paired_difference(Share.mean(a), Share.mean(a + change), np.arange(200))
    assert difference.ci95 == pytest.approx((0.009, 0.011), abs=1e-4)
    assert difference.p == 1 / 10_001  # none of 10,000 exchanges is as large


def test_the_same_difference_in_every_image_has_a_p_value_but_no_interval():
    a = np.linspace(0, 1, 200)
    difference = paired_difference(Share.mean(a), Share.mean(a + 0.01), np.arange(200))
    assert (difference.ci95, difference.reason) == (None, "the same difference in all 200 images")
    assert difference.p == 1 / 10_001


def test_the_difference_from_a_metric_without_a_value_is_none():
    empty = Share.ratio([0.0], [0.0])
    assert paired_difference(empty, Share.mean([1.0]), np.array([0])) is None
