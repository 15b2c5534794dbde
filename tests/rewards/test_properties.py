"""Properties that rewards claim (docs/rewards.md, "Exploits"), for generated answers.

`SPR_REWARD_EXAMPLES` sets how many answers each test gets (200 by default in CI, 50 elsewhere):

    SPR_REWARD_EXAMPLES=20000 pytest tests/rewards/test_properties.py
"""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from example_counts import examples
from reward_answers import (
    SIZE,
    answer_of,
    best_sum,
    boxes,
    edited,
    perfect,
    placements,
    slow_iou,
    slow_ious,
    truths,
)
from spr.grounding import GroundedText
from spr.records import Span
from spr.rewards import REWARDS, Answer, Truth, TruthObject, assign, get_reward, measure

OF_BOXES = ("iou", "iou_squared", "f1", "recall", "precision", "s_loc", "map")
SUMS = (
    "0.5*f1 + 0.5*iou",
    "0.5*s_loc + 0.5*precision",
    "0.4*recall + 0.4*precision@0.75 + 0.2*iou_squared",
    "0.7*f1@0.75 + 0.2*iou + 0.1*format",
)
ALL = (*OF_BOXES, "count", "point_in_box", "format", "length", "rejection", *SUMS)
# Besides the rewards OF_BOXES, sums of them.
NEVER_RAISED = (*OF_BOXES, *SUMS[:3], "f1@0.75", "recall@0.9", "precision@0.6", "s_loc@0.7")
CLOSE = 1e-12
some = settings(
    max_examples=int(os.environ.get("SPR_REWARD_EXAMPLES", examples(200))),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def value(name: str, placed: list, truth: Truth) -> float:
    return get_reward(name)(answer_of(placed), truth)


@given(data=st.data(), truth=truths())
@some
def test_no_edit_of_a_perfect_answer_scores_more_than_it(data: st.DataObject, truth: Truth) -> None:
    best, other = answer_of(perfect(truth)), answer_of(data.draw(edited(truth)))
    for name in ALL:
        top, found = get_reward(name)(best, truth), get_reward(name)(other, truth)
        assert top == pytest.approx(float(name != "point_in_box"), abs=CLOSE), name
        assert not math.isnan(found), name
        assert 0 <= found <= top + CLOSE, name


@given(
    truth=truths(),
    placed=placements(),
    phrase=st.sampled_from(("dog", "a tree", "")),
    box=boxes(),
    at=st.integers(0, 5),
)
@some
def test_a_box_that_matches_nothing_never_raises_a_reward(
    truth: Truth, placed: list, phrase: str, box: tuple, at: int
) -> None:
    most = max(slow_iou(item.box, box) for item in truth.objects)
    assume(most < 0.5)
    more = answer_of([*placed[:at], (phrase, box), *placed[at:]])
    for name in NEVER_RAISED:
        # `iou` and `iou_squared` have no threshold: to match nothing is to overlap with nothing.
        if "iou" not in name or not most:
            assert get_reward(name)(more, truth) <= value(name, placed, truth) + CLOSE, name


@given(truth=truths(), phrase=st.sampled_from(("dog", "a tree")), box=boxes(), at=st.integers(0, 5))
@some
def test_each_further_box_costs_a_perfect_answer(truth: Truth, phrase: str, box: tuple, at: int) -> None:
    more = perfect(truth)
    more.insert(at, (phrase, box))
    boxes_over_objects = len(more) / len(truth.objects)
    for name in ("iou", "iou_squared", "precision", "count"):
        assert value(name, more, truth) == pytest.approx(1 / boxes_over_objects), name
    assert value("f1", more, truth) == pytest.approx(2 / (1 + boxes_over_objects))


@given(truth=truths(), placed=placements(), more=placements())
@some
def test_no_box_ever_lowers_recall_and_s_loc(truth: Truth, placed: list, more: list) -> None:
    for name in ("recall", "s_loc"):
        assert value(name, [*placed, *more], truth) >= value(name, placed, truth) - CLOSE, name


@given(data=st.data(), truth=truths(), placed=placements())
@some
def test_the_order_of_boxes_and_objects_changes_nothing(data: st.DataObject, truth: Truth, placed: list) -> None:
    other = Truth(tuple(data.draw(st.permutations(truth.objects))), truth.dialect, SIZE, truth.labels)
    again = answer_of(data.draw(st.permutations(placed)))
    for name in (*OF_BOXES, "count", *SUMS):
        if name != "map":
            assert get_reward(name)(again, other) == pytest.approx(value(name, placed, truth), abs=CLOSE), name


@given(data=st.data(), truth=truths())
@some
def test_the_order_of_a_perfect_answer_changes_nothing_for_map(data: st.DataObject, truth: Truth) -> None:
    assert value("map", data.draw(st.permutations(perfect(truth))), truth) == pytest.approx(1, abs=CLOSE)


@given(truth=truths(most=4), placed=placements(), threshold=st.sampled_from((0.3, 0.5, 0.75, 0.9)))
@some
def test_measures_equal_their_definitions(truth: Truth, placed: list, threshold: float) -> None:
    ious = slow_ious(placed, truth)
    assume(all(abs(v - threshold) > 1e-6 or v == threshold for row in ious for v in row))
    pairs = round(best_sum([[float(v >= threshold) for v in row] for row in ious]))
    fitting = sum(any(row[k] >= threshold for row in ious) for k in range(len(placed)))
    own = [max([v for v in row if v > 0.5], default=0.0) for row in ious]
    found = measure(answer_of(placed), truth, threshold)
    b, g = len(placed), len(truth.objects)
    assert (found.boxes, found.objects, found.duplicates) == (b, g, fitting - pairs)
    assert found.precision == pytest.approx(pairs / b if b else 0)
    assert found.recall == pytest.approx(pairs / g)
    assert found.mean_iou == pytest.approx(best_sum(ious) / g)
    assert found.s_loc == pytest.approx(sum(own) / g)
    p, r = found.precision, found.recall
    assert found.f1 == pytest.approx(2 * p * r / (p + r) if p + r else 0)  # the harmonic mean
    assert found.valid == (b > 0)
    named = (("precision", found.precision), ("recall", found.recall), ("f1", found.f1))
    for name, expected in named:
        assert value(f"{name}@{threshold}", placed, truth) == expected


@given(truth=truths(), placed=placements())
@some
def test_iou_takes_the_best_of_all_assignments(truth: Truth, placed: list) -> None:
    for name, power in (("iou", 1), ("iou_squared", 2)):
        best = best_sum([[v**power for v in row] for row in slow_ious(placed, truth)])
        assert value(name, placed, truth) == pytest.approx(best / max(len(placed), len(truth.objects))), name


@given(truth=truths(), placed=placements(8), threshold=st.sampled_from((0.0, 0.5, 0.8)), power=st.sampled_from((1, 2)))
@some
def test_the_assignment_is_one_to_one_and_keeps_to_its_threshold(
    truth: Truth, placed: list, threshold: float, power: int
) -> None:
    found = assign(answer_of(placed), truth, threshold, power=power)
    assert len(set(found.objects)) == len(found.objects) == len(set(found.boxes)) == len(found.ious)
    ious = slow_ious(placed, truth)
    assert found.ious == pytest.approx([ious[g][b] for g, b in zip(found.objects, found.boxes, strict=True)])
    assert all(v > 0 and v >= threshold - 1e-8 for v in found.ious)
    assert found.box_count == len(placed)


@given(truth=truths(labels=("ignore",)), placed=placements(7))
@some
def test_rewards_bound_each_other(truth: Truth, placed: list) -> None:
    of = {name: value(name, placed, truth) for name in (*OF_BOXES, "count", "f1@0.75", "s_loc@0.75")}
    found = measure(answer_of(placed), truth)
    assert of["iou_squared"] <= of["iou"] + CLOSE  # a square is at most the number, which is at most 1
    assert of["iou"] <= min(of["count"], found.mean_iou) + CLOSE
    assert of["f1@0.75"] <= of["f1"] + CLOSE
    assert of["s_loc@0.75"] <= of["s_loc"] + CLOSE
    low, high = sorted((of["precision"], of["recall"]))
    assert low - CLOSE <= of["f1"] <= high + CLOSE
    # The levels of recall are 0, 0.01, …: one more than the recall in hundredths is reached.
    reached = math.floor(of["recall"] * 100 + 1e-9) + 1
    assert of["map"] <= (reached / 101 if of["recall"] else 0) + CLOSE


@given(truth=truths(labels=("ignore", "name")), placed=placements())
@some
def test_labels_never_help(truth: Truth, placed: list) -> None:
    free = Truth(truth.objects, truth.dialect, SIZE)
    named = Truth(truth.objects, truth.dialect, SIZE, "name")
    loose = Truth(truth.objects, truth.dialect, SIZE, "phrase")
    for name in ("iou", "iou_squared", "f1", "recall", "precision", "s_loc"):
        strict, middle, most = (value(name, placed, how) for how in (named, loose, free))
        assert strict <= middle + CLOSE
        assert middle <= most + CLOSE


@given(one=boxes(), share=st.floats(0, 1), other=boxes())
@some
def test_a_box_that_comes_closer_to_its_object_earns_more(one: tuple, share: float, other: tuple) -> None:
    # Corners that move straight to those of the object: for a box in or around it, the IoU only rises.
    inside = (max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3]))
    assume(inside[0] < inside[2] and inside[1] < inside[3])
    truth = Truth((TruthObject("dog", one),), "ferret", SIZE)
    closer = tuple(a + (b - a) * share for a, b in zip(inside, one, strict=True))
    for name in ("iou", "iou_squared", "f1", "recall", "precision", "s_loc", "map"):
        assert value(name, [("dog", closer)], truth) >= value(name, [("dog", inside)], truth) - 1e-9


points = st.tuples(st.floats(0, 640), st.floats(0, 480))


@given(truth=truths(most=4), found=st.lists(points, max_size=5), beside=points)
@some
def test_points_count_one_to_one(truth: Truth, found: list, beside: tuple) -> None:
    def read(xy: list) -> float:
        return REWARDS["point_in_box"](Answer.of(GroundedText("it", (Span("it", 0, 2, (), tuple(xy)),))), truth)

    def within(point: tuple, box: tuple) -> float:
        return float(box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3])

    pairs = best_sum([[within(point, item.box) for point in found] for item in truth.objects])
    assert read(found) == pytest.approx(2 * pairs / (len(found) + len(truth.objects)) if found else 0)
    if not any(within(beside, item.box) for item in truth.objects):
        assert read([*found, beside]) <= read(found) + CLOSE
    centres = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for _, b in perfect(truth)]
    assert read(centres) == 1
