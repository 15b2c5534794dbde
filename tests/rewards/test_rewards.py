"""Rewards against numbers worked out by hand."""

import itertools
import random

import pytest

from spr.core import boxes as bx
from spr.core.errors import GroundingError, RecordError
from spr.grounding import GroundedText, parse
from spr.records import ImageObject, RegionObject, RegionQuery, Span
from spr.rewards import REWARDS, Truth, assign, read_answer

# Two cups of 10 × 10 pixels, 20 pixels apart.
CUPS = Truth((ImageObject("1", "cup", (0, 0, 10, 10)), ImageObject("2", "cup", (30, 0, 40, 10))))


def answer(*boxes):
    return GroundedText("cups", (Span("cups", 0, 4, boxes),))


# Boxes of an answer → s_loc, recall, precision, f1, iou. The reward `points` of an answer without points is 0.
CASES = {
    "both objects exactly": ([(0, 0, 10, 10), (30, 0, 40, 10)], (1, 1, 1, 1, 1)),
    # IoU of (0, 0, 10, 8) and the first cup: 80 / 100.
    "one object, IoU 0.8": ([(0, 0, 10, 8)], (0.4, 1 / 2, 1, 2 / 3, 0.4)),
    # A repeated box earns nothing and costs precision: 1 of 2 boxes; f1 = 2 · 1 / (2 + 2).
    "the same box twice": ([(0, 0, 10, 10), (0, 0, 10, 10)], (0.5, 0.5, 0.5, 0.5, 0.5)),
    # IoU 0.5 is not over 0.5; `iou` counts it all the same: 0.5 / 2.
    "one object, IoU 0.5": ([(0, 0, 10, 5)], (0, 0, 0, 0, 0.25)),
    # 1 + 1 + 0 over three boxes; f1 = 2 · 2 / (3 + 2).
    "an extra box": ([(0, 0, 10, 10), (30, 0, 40, 10), (60, 0, 70, 10)], (1, 1, 2 / 3, 0.8, 2 / 3)),
    "no boxes": ([], (0, 0, 0, 0, 0)),
    "a box without area": ([(5, 5, 5, 5)], (0, 0, 0, 0, 0)),
}


@pytest.mark.parametrize(("boxes", "expected"), CASES.values(), ids=CASES)
def test_rewards_have_the_values_worked_out_by_hand(boxes, expected):
    values = [reward(answer(*boxes), CUPS) for reward in REWARDS.values()]
    assert list(REWARDS) == ["s_loc", "recall", "precision", "f1", "iou", "points"]
    assert values == pytest.approx((*expected, 0), abs=1e-12)


@pytest.mark.parametrize(
    ("points", "value"),
    [
        ([(5, 5), (35, 5)], 1),
        ([(5, 5)], 2 / 3),  # 2 · 1 / (1 + 2)
        ([(0, 0), (40, 10)], 1),  # edges belong to the box
        ([(5, 5), (6, 6)], 0.5),  # a second point in the same cup: 2 · 1 / (2 + 2)
        ([(5, 5), (35, 5), (20, 5)], 0.8),  # 2 · 2 / (3 + 2)
        ([(10.1, 5)], 0),
        ([], 0),
    ],
)
def test_points_count_if_they_lie_in_an_objects_box(points, value):
    text = GroundedText("cups", (Span("cups", 0, 4, (), points),))
    assert REWARDS["points"](text, CUPS) == pytest.approx(value)


def test_a_point_in_two_boxes_is_assigned_so_that_most_points_count():
    # The first point lies in both cups, the second only in the first: both count.
    truth = Truth((ImageObject("1", "cup", (0, 0, 10, 10)), ImageObject("2", "cup", (5, 0, 15, 10))))
    generated = '<points coords="1 1 070 050 2 020 050">cups</points>'
    assert REWARDS["points"](read_answer(generated, "molmo2", (100, 100)), truth) == 1


RIGHT, WRONG = "two cups [0, 0, 100, 100] [300, 0, 400, 100]", "a cup [500, 500, 900, 900]"


@pytest.mark.parametrize(
    ("generated", "value"),
    [
        (RIGHT, 1),
        (f"<think>{WRONG}</think>{RIGHT}", 1),
        (f"{WRONG} </think> {RIGHT}", 1),  # the template has opened the reasoning
        (f"<think>{WRONG}</think> So: <answer>{RIGHT}</answer> and not {WRONG}", 1),
        (f"<think>{RIGHT}</think>{WRONG}", 0),
        (f"<think>{RIGHT}", 0),
        (f"<think>{WRONG}</think><think>{RIGHT}", 0),
    ],
)
def test_rewards_are_for_the_answer_and_not_for_the_reasoning(generated, value):
    read = read_answer(generated, "ferret", (100, 100))
    assert [reward(read, CUPS) for name, reward in REWARDS.items() if name != "points"] == [value] * 5


def test_reasoning_that_is_not_closed_is_an_empty_answer_with_a_problem():
    read = read_answer(f"<think>{RIGHT}", "ferret", (100, 100))
    assert (read.plain_text, read.boxes) == ("", ())
    assert [problem.reason for problem in read.problems] == ["reasoning is not closed: no answer"]


def test_the_answer_is_read_as_parse_reads_it():
    text = "a cup [0, 0, 100, 100] and [1, 2, 3]"
    assert read_answer(text, "ferret", (100, 100)) == parse(text, "ferret", (100, 100))
    assert read_answer(f"<think>[9]</think>{text}", "ferret", (100, 100)) == parse(text, "ferret", (100, 100))
    with pytest.raises(GroundingError):
        read_answer(text, "feret", (100, 100))


def test_one_large_box_serves_two_objects_in_s_loc_but_one_in_recall():
    # Two objects share 9 of 11 columns: IoU of (0, 0, 10, 10) with each is 1 and 9 / 11.
    truth = Truth((ImageObject("1", "cup", (0, 0, 10, 10)), ImageObject("2", "cup", (1, 0, 11, 10))))
    assert REWARDS["s_loc"](answer((0, 0, 10, 10)), truth) == pytest.approx((1 + 9 / 11) / 2)
    assert REWARDS["recall"](answer((0, 0, 10, 10)), truth) == 0.5


def test_the_assignment_has_the_most_pairs_even_if_a_greedy_one_starts_better():
    # IoUs: first box 9/11 with each object, second box 0.8 with the first and 6/12 with the second. A greedy assignment
    # that gives the first object its best box leaves the second object with an IoU of 0.5, which is not over 0.5.
    truth = Truth((ImageObject("1", "cup", (0, 0, 10, 10)), ImageObject("2", "cup", (2, 0, 12, 10))))
    assignment = assign(answer((1, 0, 11, 10), (0, 0, 8, 10)), truth, 0.5)
    assert (assignment.objects, assignment.boxes) == ((0, 1), (1, 0))
    assert assignment.ious == pytest.approx((0.8, 9 / 11))


def test_the_assignment_is_the_best_of_all_permutations():
    draw = random.Random(0)

    def box():
        x, y = draw.randint(0, 6), draw.randint(0, 6)
        return (x, y, x + draw.randint(3, 8), y + draw.randint(3, 8))

    for _ in range(60):
        objects = [box() for _ in range(draw.randint(1, 4))]
        boxes = [box() for _ in range(draw.randint(0, 4))]
        truth = Truth(tuple(ImageObject(str(k), "cup", item) for k, item in enumerate(objects)))
        assignment = assign(answer(*boxes), truth, 0.5)
        overlaps = bx.iou_matrix(objects, boxes)
        slots = [*range(len(boxes)), *[None] * len(objects)]
        sums = []
        for chosen in itertools.permutations(slots, len(objects)):
            pairs = [overlaps[k, c] for k, c in enumerate(chosen) if c is not None and bx.over(overlaps[k, c], 0.5)]
            sums.append((len(pairs), sum(pairs)))
        best = max(sums)
        assert len(assignment.ious) == best[0]
        assert sum(assignment.ious) == pytest.approx(max(total for count, total in sums if count == best[0]))


def test_a_ground_truth_needs_an_object():
    with pytest.raises(RecordError, match="no objects"):
        Truth(())


def test_the_ground_truth_of_a_query_is_what_lies_inside_its_region():
    inside = RegionObject("1", "cup", (0, 0, 10, 10), inside=True)
    outside = RegionObject("2", "cup", (30, 0, 40, 10))
    query = RegionQuery("7/0", "7", "7.png", 50, 20, (0, 0, 12, 12), "1", (inside, outside))
    assert Truth.from_query(query).objects == (inside,)


def test_the_nearest_reward_is_named_for_an_unknown_one():
    with pytest.raises(Exception, match=r"did you mean `recall`"):
        REWARDS.find("recal", "--reward")
