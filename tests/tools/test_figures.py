import numpy as np
import pytest

from spr.core.errors import InputError
from spr.embedded.scenes import TRAINING_SEEDS, Scene
from spr.embedded.sprites import CATEGORIES, COLOURS, SHAPES
from spr.records import Span
from tools.embedded.evaluate import evaluate
from tools.embedded.evaluate_describer import hits, placed_boxes
from tools.embedded.evaluate_detector import average_precision, match_scene
from tools.embedded.figures import Figure, difference, fill_card, ratio, table

RED_CIRCLE, BLUE_STAR = CATEGORIES.index("red circle"), CATEGORIES.index("blue star")
SCENE = Scene(
    np.zeros((112, 112, 3), dtype=np.uint8),
    np.array([SHAPES.index("circle"), SHAPES.index("star")]),
    np.array([COLOURS.index("red"), COLOURS.index("blue")]),
    np.array([[0, 0, 20, 20], [50, 50, 70, 60]]),
    np.zeros(2, dtype=bool),
)


def test_the_interval_of_a_ratio_contains_it_and_shrinks_with_more_scenes() -> None:
    few, many = ratio([1, 0] * 10, [1] * 20), ratio([1, 0] * 500, [1] * 1000)
    assert few.value == many.value == 0.5
    assert few.ci95[0] < 0.5 < few.ci95[1]
    # A share of a half over n scenes: 1.96 · √(0.25 / n) on either side, 0.031 for a thousand.
    widths = [figure.ci95[1] - figure.ci95[0] for figure in (few, many)]
    assert widths[1] / 2 == pytest.approx(0.031, abs=0.004)
    assert widths[0] > 5 * widths[1]


def test_a_figure_of_few_or_equal_scenes_has_no_interval() -> None:
    few = ratio([1, 0, 1], [1, 1, 1])
    assert (few.value, few.ci95, few.to_json()["ci95"]) == (pytest.approx(2 / 3), None, None)
    assert ratio([1] * 20, [1] * 20).ci95 is None
    assert "| AP | 0.667 | – |" in fill_card("<!-- figures -->\n<!-- end of figures -->\n", {"AP": few}, "Of 3:")
    assert table("t", {"AP": few}, "3 scenes").endswith("0.667  –")


def test_a_difference_is_paired_by_scene() -> None:
    figure = difference([1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1], at_least=0.2)
    assert figure.value == 0.25
    assert figure.reached


def test_a_metric_is_checked_against_both_bounds() -> None:
    assert Figure(0.3, (0.2, 0.4), at_least=0.05, at_most=0.45).reached
    assert not Figure(0.5, (0.4, 0.6), at_least=0.05, at_most=0.45).reached
    assert "at_least" not in Figure(0.5, (0.4, 0.6)).to_json()


def test_an_object_counts_if_its_name_and_box_are_correct() -> None:
    # IoU of (0, 0, 20, 20) with (0, 0, 20, 11) is 0.55, with (0, 0, 20, 10) exactly 0.5, which is not over 0.5.
    assert hits(SCENE, [0, 1], [("red circle", (0, 0, 20, 11))], 0.5) == 1
    assert hits(SCENE, [0, 1], [("red circle", (0, 0, 20, 10))], 0.5) == 0
    assert hits(SCENE, [0, 1], [("red ring", (0, 0, 20, 20))], 0.5) == 0
    assert hits(SCENE, [0, 1], [("red circle", (0, 0, 20, 20)), ("blue star", (50, 50, 70, 60))], 0.5) == 2


def test_boxes_of_a_crop_are_mapped_back_and_articles_are_removed_from_names() -> None:
    spans = [Span("an orange star", 0, 14, ((1, 2, 3, 4),)), Span("a red circle", 16, 28, ())]
    assert placed_boxes(spans, (10, 20, 60, 70)) == [("orange star", (11, 22, 13, 24))]


def test_the_second_box_on_one_object_is_wrong() -> None:
    boxes = np.array([[0, 0, 20, 20], [0, 0, 20, 19], [50, 50, 70, 60]], dtype=float)
    rows = match_scene(SCENE, boxes, np.array([0.9, 0.8, 0.7]), np.array([RED_CIRCLE, RED_CIRCLE, RED_CIRCLE]), 0.5)
    assert rows[:, 2].tolist() == [1.0, 0.0, 0.0]
    rows = match_scene(SCENE, boxes, np.array([0.9, 0.8, 0.7]), np.array([RED_CIRCLE, RED_CIRCLE, BLUE_STAR]), 0.5)
    assert rows[:, 2].tolist() == [1.0, 0.0, 1.0]


def test_average_precision_of_a_wrong_detection_between_two_right_ones() -> None:
    # Precision 1 up to recall 1/2, then 2/3: of COCO's 101 points, 51 lie at or under 0.5.
    precision = average_precision(np.array([0.9, 0.8, 0.7]), np.array([1.0, 0.0, 1.0]), np.ones(3), 2.0)
    assert precision == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_missed_object_costs_the_rest_of_the_curve() -> None:
    precision = average_precision(np.array([0.9]), np.array([1.0]), np.ones(1), 2.0)
    assert precision == pytest.approx(51 / 101)


def test_evaluating_on_training_scenes_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="--seed"):
        evaluate("detector", tmp_path, 1, TRAINING_SEEDS)


def test_only_the_table_of_a_card_is_replaced() -> None:
    card = "# Card\n<!-- figures -->\nold\n<!-- end of figures -->\nLast.\n"
    filled = fill_card(card, {"AP": Figure(0.75, (0.7, 0.8), at_least=0.8)}, "Of 3 scenes:")
    assert "| AP | 0.750 | 0.700–0.800 | ≥ 0.8: **missed** |" in filled
    assert "old" not in filled
    assert filled.startswith("# Card\n<!-- figures -->\nOf 3 scenes:\n")
    assert filled.endswith("<!-- end of figures -->\nLast.\n")
    assert fill_card(filled, {"AP": Figure(0.75, (0.7, 0.8), at_least=0.8)}, "Of 3 scenes:") == filled
