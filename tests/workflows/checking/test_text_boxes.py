"""Boxes in texts are found in every dialect's form, in linear time, and belong to their text."""

import time

import pytest

from spr.grounding import DIALECTS, parse
from spr.workflows.checking.text_boxes import find_boxes

WITH_BOXES = [key for key in DIALECTS if DIALECTS[key].writes_boxes]


@pytest.mark.parametrize("key", WITH_BOXES)
def test_the_box_of_every_dialects_example_is_found(key):
    dialect = DIALECTS[key]
    found = find_boxes(["no box", dialect.example, ""])
    assert found.counts == [0, 1, 0]
    size = (1000, 1000)
    assert len(parse(dialect.example, dialect, size).boxes) == 1
    if len(dialect.frame(size).encode((1, 2, 3, 4))) == 4:
        box = dialect.frame(size).decode(_in_order(dialect, found.numbers[0]))[0]
        assert box == pytest.approx(parse(dialect.example, dialect, size).boxes[0])


def _in_order(dialect, numbers):
    order = getattr(dialect.markup, "order", (0, 1, 2, 3))
    return [numbers[place] for place in order]


@pytest.mark.parametrize(
    ("text", "boxes", "forms"),
    [
        ("a [1, 2, 3, 4] b [0.5,0.6,0.7,0.8]", [(1, 2, 3, 4), (0.5, 0.6, 0.7, 0.8)], ["brackets"] * 2),
        ("[[1,2,3,4;5,6,7,8]]", [(1, 2, 3, 4), (5, 6, 7, 8)], ["brackets"] * 2),
        ("[[1,2,3,4],[5,6,7,8]]", [(1, 2, 3, 4), (5, 6, 7, 8)], ["brackets"] * 2),
        ('{"bbox_2d": [1, 2, 3, 4]}', [(1, 2, 3, 4)], ["bbox_2d"]),
        ('{"bbox_2d":[[1, 2, 3, 4]]}', [(1, 2, 3, 4)], ["bbox_2d"]),
        ('{"box_2d": [1, 2, 3, 4]}', [(1, 2, 3, 4)], ["box_2d"]),
        ("<box>(1,2),(3,4)</box>", [(1, 2, 3, 4)], ["pairs"]),
        ("(1, 2, 3, 4)", [(1, 2, 3, 4)], ["parentheses"]),
        ("<box>1 2 3 4</box>", [(1, 2, 3, 4)], ["spaces"]),
        ("<loc0001><loc0002><loc0003><loc0004> dog", [(1, 2, 3, 4)], ["loc"]),
        ("dog<loc_1><loc_2><loc_3><loc_4>", [(1, 2, 3, 4)], ["loc_"]),
        ("<|box_start|><1><2><3><4><|box_end|>", [(1, 2, 3, 4)], ["bins"]),
        ("<patch_index_0033><patch_index_0065>", [(1, 1, 1, 2)], ["patch"]),
        ("一只狗［120，340，560，780］", [(120, 340, 560, 780)], ["brackets"]),
        ("[-1, 2.5, 3e1, .4]", [(-1, 2.5, 30, 0.4)], ["brackets"]),
        ("[1, 2, 3] [1, 2, 3, 4, 5] [a, b, c, d] (1, 2), (3)", [], []),
    ],
)
def test_boxes_are_read_as_they_are_written(text, boxes, forms):
    found = find_boxes([text])
    assert found.numbers == boxes
    assert found.forms == forms


def test_numbers_that_are_not_finite_are_reported_with_their_text():
    texts = ["banana [1, 2, 3, 4]", "[1e999, 2, 3, 4]", "[NaN, 1, 2, 3]", "[0, 0, Infinity, 1]", "information"]
    found = find_boxes(texts)
    assert found.counts == [1, 0, 0, 0, 0]
    assert found.not_finite == [1, 2, 3]


@pytest.mark.parametrize(
    "piece", ["[1, ", "[1,2,", "(", "((1,2),", "<loc0001>", "<1>", "[nan ", " [ ", "<patch_index_1>", "<box>1 ", "1"]
)
def test_hostile_texts_take_linear_time(piece):
    text = piece * (100_000 // len(piece))
    start = time.perf_counter()
    find_boxes([text] * 3)
    assert time.perf_counter() - start < 2
