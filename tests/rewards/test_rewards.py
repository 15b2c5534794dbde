"""Rewards against numbers worked out by hand."""

import itertools
import json
import random

import numpy as np
import pytest

from spr.core import boxes as bx
from spr.core.errors import GroundingError, RewardError
from spr.grounding import DIALECTS, GroundedText, parse
from spr.grounding.matching import spaced_words
from spr.records import ImageObject, RegionObject, RegionQuery, Span
from spr.rewards import REWARDS, Answer, Truth, TruthObject, assign, get_reward, measure, read_answer, rejects
from spr.rewards.matching import best_pairs, count_pairs

# Two cups of 10 × 10 pixels, 20 pixels apart.
CUPS = Truth((TruthObject("cup", (0, 0, 10, 10)), TruthObject("cup", (30, 0, 40, 10))), "ferret", (100, 100))
NOTHING = Truth((), "ferret", (100, 100))
OF_BOXES = ("iou", "iou_squared", "f1", "recall", "precision", "s_loc", "map")


def answer(*boxes):
    return Answer.of(GroundedText("cups", (Span("cups", 0, 4, boxes),)))


# Boxes of an answer → the rewards OF_BOXES.
CASES = {
    "both objects exactly": ([(0, 0, 10, 10), (30, 0, 40, 10)], (1, 1, 1, 1, 1, 1, 1)),
    # IoU of (0, 0, 10, 8) and the first cup: 80 / 100. It counts at 7 of COCO's 10 thresholds, with precision 1 up to a
    # recall of 0.5, which is 51 of 101 levels.
    "one object, IoU 0.8": ([(0, 0, 10, 8)], (0.4, 0.32, 2 / 3, 1 / 2, 1, 0.4, 0.7 * 51 / 101)),
    # A repeated box earns nothing and costs precision: 1 of 2 boxes; f1 = 2 · 1 / (2 + 2).
    "the same box twice": ([(0, 0, 10, 10)] * 2, (0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 51 / 101)),
    # An IoU of 0.5 reaches 0.5, but is not over 0.5, as S_loc wants it. At the first of COCO's thresholds it counts.
    "one object, IoU 0.5": ([(0, 0, 10, 5)], (0.25, 0.125, 2 / 3, 0.5, 1, 0, 0.1 * 51 / 101)),
    # 1 + 1 + 0 over three boxes; f1 = 2 · 2 / (3 + 2). COCO's precision is that before the extra box.
    "an extra box at the end": (
        [(0, 0, 10, 10), (30, 0, 40, 10), (60, 0, 70, 10)],
        (2 / 3, 2 / 3, 0.8, 1, 2 / 3, 1, 1),
    ),
    # The precision is 1/2 after the second box and 2/3 after the third.
    "an extra box at the start": (
        [(60, 0, 70, 10), (0, 0, 10, 10), (30, 0, 40, 10)],
        (2 / 3, 2 / 3, 0.8, 1, 2 / 3, 1, 2 / 3),
    ),
    "no boxes": ([], (0, 0, 0, 0, 0, 0, 0)),
    "a box without area": ([(5, 5, 5, 5)], (0, 0, 0, 0, 0, 0, 0)),
}


@pytest.mark.parametrize(("boxes", "expected"), CASES.values(), ids=CASES)
def test_rewards_have_the_values_worked_out_by_hand(boxes, expected):
    values = [REWARDS[name](answer(*boxes), CUPS) for name in OF_BOXES]
    assert values == pytest.approx(expected, abs=1e-12)


def test_these_are_the_rewards():
    others = ("count", "point_in_box", "format", "length", "rejection")
    assert set(REWARDS) >= {*OF_BOXES, *others}


@pytest.mark.parametrize(
    ("number", "value"),
    [(2, 1), (1, 1 / 2), (3, 2 / 3), (4, 1 / 2), (0, 0)],  # two objects: 1 − |boxes − 2| / max(boxes, 2)
)
def test_count_is_about_the_number_only(number, value):
    assert REWARDS["count"](answer(*[(90, 90, 91, 91)] * number), CUPS) == pytest.approx(value)


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
    assert REWARDS["point_in_box"](Answer.of(text), CUPS) == pytest.approx(value)


def test_a_point_in_two_boxes_is_assigned_so_that_most_points_count():
    # The first point lies in both cups, the second only in the first: both count.
    truth = Truth((TruthObject("cup", (0, 0, 10, 10)), TruthObject("cup", (5, 0, 15, 10))), "molmo2", (100, 100))
    generated = '<points coords="1 1 070 050 2 020 050">cups</points>'
    assert REWARDS["point_in_box"](truth.read(generated), truth) == 1


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
    assert [REWARDS[name](read, CUPS) for name in OF_BOXES] == [value] * len(OF_BOXES)


def test_boxes_in_a_fence_of_json_are_read():
    objects = (TruthObject("cup", (0, 0, 50, 50)), TruthObject("plate", (60, 60, 100, 100)))
    truth = Truth(objects, "qwen3_vl", (100, 100), labels="name")
    boxes = '{"bbox_2d": [0, 0, 500, 500], "label": "cup"}, {"bbox_2d": [600, 600, 1000, 1000], "label": "plates"}'
    read = truth.read(f"<think>two</think>\n<answer>```json\n[{boxes}]\n```</answer>")
    assert [REWARDS[name](read, truth) for name in (*OF_BOXES, "format")] == [1] * 8


def test_reasoning_that_is_not_closed_is_an_empty_answer_with_a_problem():
    read = read_answer(f"<think>{RIGHT}", "ferret", (100, 100))
    assert (read.text, read.boxes, read.is_finished) == ("", (), False)
    assert [problem.reason for problem in read.problems] == ["reasoning is not closed: no answer"]


def test_the_answer_is_read_as_parse_reads_it():
    text = "a cup [0, 0, 100, 100] and [1, 2, 3]"
    assert read_answer(text, "ferret", (100, 100)).grounded == parse(text, "ferret", (100, 100))
    assert read_answer(f"<think>[9]</think>{text}", "ferret", (100, 100)).boxes == ((0, 0, 10, 10),)
    with pytest.raises(GroundingError):
        read_answer(text, "feret", (100, 100))


def test_one_large_box_serves_two_objects_in_s_loc_but_one_in_recall():
    # Two objects share 9 of 11 columns: IoU of (0, 0, 10, 10) with each is 1 and 9 / 11.
    truth = Truth((TruthObject("cup", (0, 0, 10, 10)), TruthObject("cup", (1, 0, 11, 10))))
    assert REWARDS["s_loc"](answer((0, 0, 10, 10)), truth) == pytest.approx((1 + 9 / 11) / 2)
    assert REWARDS["recall"](answer((0, 0, 10, 10)), truth) == 0.5


def test_as_many_boxes_count_as_possible_even_if_a_greedy_assignment_starts_better():
    # IoUs: first box 9/11 with each object, second box 0.8 with the first and 6/14 with the second. A greedy assignment
    # gives the first object its best box and leaves the second object with 6/14.
    truth = Truth((TruthObject("cup", (0, 0, 10, 10)), TruthObject("cup", (2, 0, 12, 10))))
    read = answer((1, 0, 11, 10), (0, 0, 8, 10))
    assignment = assign(read, truth, 0.5)
    assert (assignment.objects, assignment.boxes) == ((0, 1), (1, 0))
    assert assignment.ious == pytest.approx((0.8, 9 / 11))
    assert REWARDS["f1"](read, truth) == 1


def boxes_of(draw, number, size=8):
    corners = [(draw.randint(0, 6), draw.randint(0, 6)) for _ in range(number)]
    return [(x, y, x + draw.randint(3, size), y + draw.randint(3, size)) for x, y in corners]


def test_the_assignment_is_the_best_of_all_permutations():
    draw = random.Random(0)
    for _ in range(60):
        objects, boxes = boxes_of(draw, draw.randint(1, 4)), boxes_of(draw, draw.randint(0, 4))
        truth = Truth(tuple(TruthObject("cup", item) for item in objects))
        read = answer(*boxes)
        overlaps = bx.iou_matrix(objects, boxes)
        slots = [*range(len(boxes)), *[None] * len(objects)]
        for power in (1, 2):
            sums, counts = [], []
            for chosen in itertools.permutations(slots, len(objects)):
                ious = [overlaps[k, c] for k, c in enumerate(chosen) if c is not None]
                sums.append(sum(value**power for value in ious))
                counts.append(sum(value >= 0.5 for value in ious))
            found = assign(read, truth, power=power)
            assert sum(value**power for value in found.ious) == pytest.approx(max(sums))
            most = max(len(objects), len(boxes))
            assert REWARDS["iou" if power == 1 else "iou_squared"](read, truth) == pytest.approx(max(sums) / most)
            assert REWARDS["recall"](read, truth) == pytest.approx(max(counts) / len(objects))


def test_connected_groups_give_the_same_assignment_as_the_whole_matrix():
    from scipy.optimize import linear_sum_assignment

    draw = np.random.default_rng(0)
    for rows, columns in ((40, 60), (60, 40), (33, 1), (1, 33), (50, 50)):
        values = np.where(draw.random((rows, columns)) < 0.03, draw.random((rows, columns)), 0.0)
        found = best_pairs(values)
        best = linear_sum_assignment(values, maximize=True)
        assert values[found].sum() == pytest.approx(values[best].sum(), abs=1e-12)
        assert (values[found] > 0).all()
        assert len(set(found[1].tolist())) == len(found[1])
        assert found[0].tolist() == sorted(set(found[0].tolist()))
        allowed = values > 0.5
        best = linear_sum_assignment(allowed, maximize=True)
        assert count_pairs(allowed) == allowed[best].sum()


# ── labels ────────────────────────────────────────────────────────────────────────────────────────────────────────────

TWO = (TruthObject("non_ng_hose", (0, 0, 10, 10)), TruthObject("wine_glass", (30, 0, 40, 10)))


@pytest.mark.parametrize(
    ("labels", "phrases", "value"),
    [
        ("ignore", ("a tree", ""), 1),
        ("name", ("non_ng_hose", "wine_glass"), 1),
        ("name", ("Non NG hose", "a wine glass"), 1),
        ("name", ("non ng hoses", "Wine Glasses"), 1),
        ("name", ("wine glass", "non ng hose"), 0),  # the right places under each other's names
        ("name", ("a red non ng hose", "wine glass"), 0.5),
        ("name", ("hose", "goblet"), 0),
        ("synonyms", ("hose", "goblet"), 0.5),
        ("synonyms", ("non ng hose", "a goblet"), 1),
        ("phrase", ("a red non ng hose", "the wine glass on the table"), 1),
        ("phrase", ("a hose", "a glass"), 0),
    ],
)
def test_labels_count_as_the_truth_says(labels, phrases, value):
    synonyms = {"wine_glass": ("goblet",)} if labels == "synonyms" else {}
    truth = Truth(TWO, "ferret", (100, 100), labels, synonyms)
    plain, spans = "", []
    for phrase, item in zip(phrases, TWO, strict=True):
        spans.append(Span(phrase, len(plain), len(plain) + len(phrase), (item.box,)))
        plain += phrase + " "
    read = Answer.of(GroundedText(plain, tuple(spans)))
    assert [REWARDS[name](read, truth) for name in ("f1", "iou", "s_loc", "map")] == pytest.approx([value] * 4)
    assert REWARDS["precision"](read, truth) == pytest.approx(value)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ("name", ["🐕"]),
        ("phrase", ["..."]),
        ("synonyms", ["dog", ""]),
        ("name", ["C++", "C#"]),
        ("name", ["dog", "Dog"]),
    ],
)
def test_labels_that_no_answer_can_name_are_an_error(labels, names):
    objects = tuple(TruthObject(name, (0, 0, 10, 10)) for name in names)
    with pytest.raises(RewardError, match=f'No answer can name an object with labels "{labels}"'):
        Truth(objects, "ferret", (100, 100), labels)
    assert Truth(objects, "ferret", (100, 100)).labels == "ignore"


def test_a_phrase_is_compared_once_however_many_boxes_it_has():
    # 400 boxes of one phrase of 40,000 characters, and 40 labels: 16,000 pairs.
    objects = tuple(TruthObject(f"kind {k}", (k, 0, k + 9, 9)) for k in range(40))
    truth = Truth(objects, "ferret", (100, 100), "phrase")
    phrase = "word " * 8000 + "kind 7"
    read = Answer.of(GroundedText(phrase, (Span(phrase, 0, len(phrase), [(7, 0, 16, 9)] * 400),)))
    with pytest.MonkeyPatch.context() as patch:
        texts = []
        patch.setattr("spr.rewards.truth.spaced_words", lambda text: texts.append(text) or spaced_words(text))
        assert REWARDS["recall"](read, truth) == 1 / 40
    assert texts == [phrase]


# ── no objects ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("generated", "says_so"),
    [
        ("There is no cup.", True),
        ("<think>Where? [0, 0, 9, 9]</think>none", True),
        ("", False),
        ("<|im_end|>", False),  # special tokens alone
        (" </s>", False),
        ("none</s>", True),
        ("<think>none", False),
        ("a cup [0, 0, 100, 100]", False),
        ("a cup [0, 0, 100", False),
        ("a cup [2000, 2000, 2100, 2100]", False),
        ("<box>1 2 3 4</box>", False),
    ],
)
def test_without_objects_the_right_answer_says_that_nothing_is_there(generated, says_so):
    read = NOTHING.read(generated)
    assert rejects(read) == says_so
    names = (*OF_BOXES, "count", "point_in_box", "rejection")
    assert [REWARDS[name](read, NOTHING) for name in names] == [float(says_so)] * len(names)


@pytest.mark.parametrize(
    ("dialect", "generated", "after_words"),
    [
        ("qwen2_vl", "<|box_start|>", 0),  # a box that is cut
        ("qwen2_vl", "<|object_ref_start|><|object_ref_end|><|im_end|>", 1),
        ("kosmos2", "<phrase></phrase> <object>", 0),
        ("internvl", "<ref></ref><box></box>", 1),
    ],
)
def test_markup_without_anything_in_it_says_nothing(dialect, generated, after_words):
    nothing = Truth((), dialect, (640, 480))
    names = (*OF_BOXES, "count", "point_in_box", "rejection", "format")
    assert [REWARDS[name](nothing.read(generated), nothing) for name in names] == [0] * len(names)
    assert REWARDS["f1"](nothing.read(f"no dog {generated}"), nothing) == after_words


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_that_is_cut_says_nothing(dialect):
    truth = Truth((), dialect, (100, 100))
    example = DIALECTS[dialect].example
    assert rejects(truth.read("There is no dog."))
    assert not rejects(truth.read(example))
    for cut in ('[{"bbox_2d"', '[{"bbox_', '[{"point_2d"', "<ref>a dog</ref><box>(", '<points coords="'):
        if any(" is not closed" in problem.reason for problem in parse(cut, dialect, (100, 100)).problems):
            assert not rejects(truth.read(cut)), cut


def test_a_list_that_is_cut_before_its_first_number_says_nothing():
    for dialect, cut in (("qwen3_vl", '[{"bbox_2d"'), ("gemini", '[{"box_'), ("internvl", "<ref>a dog</ref><box>[[")):
        assert not rejects(read_answer(cut, dialect, (100, 100))), dialect


def test_an_answer_that_denies_objects_that_are_there_earns_nothing():
    read = CUPS.read("There is no cup.")
    assert {name: reward(read, CUPS) for name, reward in REWARDS.items() if reward(read, CUPS)} == {"length": 1}


# ── format and length ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("generated", "value"),
    [
        (RIGHT, 1),
        (WRONG, 1),  # a wrong place in the right form
        ("cups", 0),
        (f"{RIGHT} and [1, 2, 3]", 0),
        ("a cup [100, 100, 0, 0]", 0),
        ("a cup [0, 0, 4000, 100]", 0),
        (f"<think>{RIGHT}", 0),
    ],
)
def test_the_format_is_right_if_everything_can_be_read(generated, value):
    assert REWARDS["format"](CUPS.read(generated), CUPS) == value


@pytest.mark.parametrize(("characters", "value"), [(0, 1), (2000, 1), (2500, 0.75), (4000, 0), (9000, 0)])
def test_a_long_answer_costs(characters, value):
    assert REWARDS["length"](CUPS.read("x" * characters), CUPS) == pytest.approx(value)
    assert get_reward("length@1000")(CUPS.read("x" * (characters // 2)), CUPS) == pytest.approx(value)


def test_the_measures_of_an_answer():
    # Boxes: the first cup with an IoU of 0.8, a second time exactly, and one beside. Assigned is the exact one.
    found = measure(answer((0, 0, 10, 8), (0, 0, 10, 10), (60, 0, 70, 10)), CUPS)
    assert (found.precision, found.recall, found.f1) == pytest.approx((1 / 3, 1 / 2, 2 / 5))
    assert (found.mean_iou, found.s_loc) == (0.5, 0.5)
    assert (found.duplicates, found.boxes, found.objects, found.valid) == (1, 3, 2, True)
    assert measure(NOTHING.read("none"), NOTHING).f1 == 1


# ── names, thresholds, sums ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_threshold_is_fixed_or_follows_the_step():
    read = answer((0, 0, 10, 8), (30, 0, 40, 10))  # IoUs 0.8 and 1
    assert [get_reward(f"f1@{t}")(read, CUPS) for t in (0.5, 0.8, 0.81)] == [1, 1, 0.5]
    scheduled = get_reward("recall@0.5:0.9/100")
    values = []
    for step in (0, 50, 75, 80, 100, 5000):  # the threshold is 0.5, 0.7, 0.8, 0.82, 0.9, 0.9
        text = GroundedText("cups", (Span("cups", 0, 4, read.boxes),))
        values.append(scheduled(Answer.of(text, step=step), CUPS))
    assert values == [1, 1, 1, 0.5, 0.5, 0.5]
    with pytest.raises(RewardError, match="gives no step"):
        scheduled(read, CUPS)


def test_a_sum_has_weights():
    read = CUPS.read("a cup [0, 0, 100, 80] [1, 2, 3]")
    parts = [REWARDS[name](read, CUPS) for name in ("f1", "iou", "format")]
    assert parts == pytest.approx([2 / 3, 0.4, 0])
    assert get_reward("0.5*f1 + .25 * iou+0.25*format")(read, CUPS) == pytest.approx(0.5 * 2 / 3 + 0.25 * 0.4)
    assert get_reward("f1 + iou")(read, CUPS) == pytest.approx(2 / 3 + 0.4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "This is not a reward"),
        ("f1 +", "This is not a reward"),
        ("f1 iou", "This is not a reward"),
        ("f1 - iou", "This is not a reward"),
        ("f1@x", "This is not a reward"),
        ("fl", "did you mean `f1`"),
        ("0*f1", "not above 0"),
        ("f1@1.5", "at most 1"),
        ("f1@0", "above 0"),
        ("f1@0.5:2/100", "at most 1"),
        ("f1@0.5:0.9/0", "no steps"),
        ("iou@0.5", "takes no number"),
        (None, "This is not a reward"),
        (0.5, "This is not a reward"),
    ],
)
def test_a_wrong_name_is_an_error_that_says_what_is_right(spec, message):
    with pytest.raises(RewardError, match=message):
        get_reward(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "f1@0.1234567",
        "f1@0.0000001",
        "length@1234567",
        "length@2000",
        "length@1000000:2000000/5",
        "0.12345678*f1 + 3*iou",
    ],
)
def test_a_reward_as_text_is_the_same_reward_again(spec):
    assert str(get_reward(spec)) == spec
    assert get_reward(str(get_reward(spec))) == get_reward(spec)


# ── the truth as JSON ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_truth_survives_json():
    truth = Truth(TWO, "qwen2_5_vl:max_pixels=1003520", (640, 480), "synonyms", {"wine_glass": ("goblet",)}, "models/x")
    text = truth.to_json()
    assert "\n" not in text
    assert json.loads(text)["objects"][0] == {"label": "non_ng_hose", "box": [0, 0, 10, 10]}
    assert Truth.from_json(text) == truth
    assert Truth.from_json(json.loads(text)) == truth
    assert Truth.from_json(NOTHING.to_json()) == NOTHING
    with pytest.raises(RewardError, match="no dialect"):
        Truth(TWO).to_json()


def test_a_box_that_rounding_would_empty_survives_json():
    truth = Truth(
        (TruthObject("a", (10, 10.00001, 10.0003, 20)), TruthObject("b", (0, 0, 9.00049, 9))), "ferret", (64, 64)
    )
    read = Truth.from_json(truth.to_json())
    assert [item.box for item in read.objects] == [(10, 10.00001, 10.0003, 20), (0, 0, 9, 9)]


GOOD = {
    "spr_truth": 1,
    "width": 640,
    "height": 480,
    "dialect": "ferret",
    "objects": [{"label": "a", "box": [0, 0, 9, 9]}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spr_truth": 2}, "another version"),
        ({"spr_truth": True}, "another version"),
        ({"width": True}, "wrong `width`"),
        ({"height": True}, "wrong `height`"),
        ({"objects": [{"label": "a", "box": "0099"}]}, "object 0: box is not a box"),
        ({"objects": [{"label": "a", "box": ["0", 0, 9, 9]}]}, "object 0: box is not a box"),
        ({"objects": [{"label": "a", "box": [False, 0, 9, 9]}]}, "object 0: box is not a box"),
        ({"objects": [{"label": "a", "box": [0, 0, 9, 9], "synonyms": ["b"]}]}, "unknown key `synonyms` in object 0"),
        ({"dialect": "feret"}, "did you mean `ferret`"),
        ({"dialect": None}, "no dialect"),
        ({"width": 0}, "Size of the image"),
        ({"width": "640"}, "Size of the image"),
        ({"objects": {}}, "wrong `objects`"),
        ({"objects": [{"label": "a"}]}, "wrong object 0"),
        ({"objects": [{"label": 3, "box": [0, 0, 9, 9]}]}, "wrong object 0"),
        ({"objects": [{"label": "a", "box": [0, 0, 9]}]}, "object 0: box is not a box"),
        ({"objects": [{"label": "a", "box": [9, 0, 0, 9]}]}, "no area"),
        ({"objects": [{"label": "a", "box": [0, 0, float("nan"), 9]}]}, "not finite"),
        ({"objects": [{"label": "a", "box": [0, 0, 641, 9]}]}, "beyond its image"),
        ({"labels": "names"}, "did you mean `name`"),
        ({"synonyms": {"b": ["c"]}, "labels": "synonyms"}, "no object has"),
        ({"synonyms": {"a": ["c"]}}, "not used"),
        ({"synonyms": {"a": "c"}, "labels": "synonyms"}, "wrong `synonyms`"),
        ({"tokenizer": 3}, "wrong `tokenizer`"),
        ({"tokenizer": ""}, "wrong `tokenizer`"),
        ({"lables": "name"}, "unknown key `lables`"),
    ],
)
def test_a_wrong_truth_is_an_error_that_names_the_column(change, message):
    for text in (json.dumps(GOOD | change), GOOD | change):
        with pytest.raises(RewardError, match=message) as raised:
            Truth.from_json(text, "solution")
        assert "`solution`" in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"a": 1}', None, 7, [GOOD]])
def test_what_is_not_a_truth_is_an_error(text):
    with pytest.raises(RewardError, match="Column `truth`"):
        Truth.from_json(text)


def test_a_null_where_a_table_fills_in_columns_is_no_value():
    nulls = dict.fromkeys(("labels", "synonyms", "tokenizer"))
    assert Truth.from_json(GOOD | nulls) == Truth.from_json(GOOD)


def test_a_missing_key_is_named():
    for key in ("width", "height", "dialect", "objects"):
        with pytest.raises(RewardError, match=f"no key `{key}`"):
            Truth.from_json({name: value for name, value in GOOD.items() if name != key})


def test_the_truth_of_a_query_is_what_lies_inside_its_region():
    inside = RegionObject("1", "cup", (0, 0, 10, 10), inside=True)
    outside = RegionObject("2", "cup", (30, 0, 40, 10))
    query = RegionQuery("7/0", "7", "7.png", 50, 20, (0, 0, 12, 12), "1", (inside, outside))
    truth = Truth.from_query(query, "ferret", labels="phrase")
    assert truth == Truth((TruthObject("cup", inside.box),), "ferret", (50, 20), "phrase")


def test_objects_of_annotations_are_taken():
    assert Truth((ImageObject("7", "cup", (0, 0, 10, 10)),)).objects == (TruthObject("cup", (0, 0, 10, 10)),)


def test_the_nearest_reward_is_named_for_an_unknown_one():
    with pytest.raises(Exception, match=r"did you mean `recall`"):
        REWARDS.find("recal", "--reward")
