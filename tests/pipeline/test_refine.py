"""Refinement and the localization score against cases worked out by hand."""

import pytest

from spr.grounding import GroundedText
from spr.grounding.matching import localization_score
from spr.pipeline.refine import refine
from spr.records import ImageObject, Span

REGION = (0.0, 0.0, 100.0, 100.0)


def thing(name, *box):
    return ImageObject(name, "thing", tuple(map(float, box)))


def said(*phrases):
    """A text of phrases joined by commas; each phrase is (words, box, box, …)."""
    text, spans = "", []
    for words, *boxes in phrases:
        text += ", " if text else ""
        spans.append(Span(words, len(text), len(text) + len(words), tuple(boxes)))
        text += words
    return GroundedText(text + ".", tuple(spans))


def boxes_of(refined):
    return [span.boxes for span in refined.text.spans]


def edits_of(refined):
    return [edit.edit for edit in refined.box_edits]


def test_a_box_that_matches_an_object_is_replaced_by_its_box():
    # IoU of (0, 0, 10, 8) with (0, 0, 10, 10) is 0.8.
    refined = refine(said(("a cup", (0, 0, 10, 8))), REGION, [thing("1", 0, 0, 10, 10)])
    assert boxes_of(refined) == [((0, 0, 10, 10),)]
    assert [(f.box_before, f.box_after, f.edit) for f in refined.box_edits] == [
        ((0, 0, 10, 8), (0, 0, 10, 10), "replaced")
    ]


def test_an_iou_of_exactly_a_half_is_no_match():
    refined = refine(said(("a cup", (0, 0, 10, 5))), REGION, [thing("1", 0, 0, 10, 10)])
    assert boxes_of(refined) == [()]
    assert edits_of(refined) == ["box_removed"]
    assert refined.text.plain_text == "a cup."


def test_each_object_is_used_once_for_the_box_with_the_highest_iou():
    # 0.8 and 0.9 with the one object: the second box gets it, the first goes.
    refined = refine(said(("one", (0, 0, 10, 8)), ("two", (0, 0, 10, 9))), REGION, [thing("1", 0, 0, 10, 10)])
    assert boxes_of(refined) == [(), ((0, 0, 10, 10),)]
    assert edits_of(refined) == ["box_removed", "replaced"]


def test_a_box_whose_best_object_is_used_gets_the_next_match():
    # Objects 10 and 9 px high. Box A (0, 0, 10, 10): 1.0 and 0.9; box B (0, 0, 10, 9.6): 0.96 and 0.9375.
    objects = [thing("1", 0, 0, 10, 10), thing("2", 0, 0, 10, 9)]
    refined = refine(said(("B", (0, 0, 10, 9.6)), ("A", (0, 0, 10, 10))), REGION, objects)
    assert boxes_of(refined) == [((0, 0, 10, 9),), ((0, 0, 10, 10),)]


def test_equal_ious_are_assigned_in_the_order_of_boxes_and_objects():
    objects = [thing("1", 0, 0, 10, 10), thing("2", 0, 0, 10, 10)]
    refined = refine(said(("A", (0, 0, 10, 9)), ("B", (0, 0, 10, 9)), ("C", (0, 0, 10, 9))), REGION, objects)
    assert edits_of(refined) == ["replaced", "replaced", "box_removed"]


def test_outside_the_region_matching_boxes_are_kept_and_others_removed():
    objects = [thing("1", 200, 200, 210, 210)]
    text = said(("near", (200, 200, 210, 208)), ("nowhere", (300, 300, 310, 310)))
    refined = refine(text, REGION, objects)
    assert boxes_of(refined) == [((200, 200, 210, 208),), ()]
    assert edits_of(refined) == ["kept", "box_removed"]


def test_a_box_half_inside_is_inside():
    objects = [thing("1", 90, 0, 110, 10)]
    assert edits_of(refine(said(("x", (90, 0, 110, 9))), REGION, objects)) == ["replaced"]
    # Moved by one: 9.5 of 20 px of width are inside.
    assert edits_of(refine(said(("x", (90.5, 0, 110.5, 9))), REGION, objects)) == ["kept"]


@pytest.mark.parametrize(
    ("unmatched", "plain", "boxes", "box_edits"),
    [
        ("remove_box", "a cup, a ghost, a plate.", [((0, 0, 9, 9),), (), ((50, 50, 60, 60),)], "box_removed"),
        ("keep_box", "a cup, a ghost, a plate.", [((0, 0, 9, 9),), ((80, 80, 90, 90),), ((50, 50, 60, 60),)], "kept"),
        ("remove_phrase", "a cup, a plate.", [((0, 0, 9, 9),), ((50, 50, 60, 60),)], "phrase_removed"),
    ],
)
def test_each_option_for_unmatched_boxes(unmatched, plain, boxes, box_edits):
    objects = [thing("1", 0, 0, 9, 9), thing("2", 50, 50, 60, 60)]
    text = said(("a cup", (0, 0, 9, 8)), ("a ghost", (80, 80, 90, 90)), ("a plate", (50, 50, 60, 59)))
    refined = refine(text, REGION, objects, unmatched=unmatched)
    assert refined.text.plain_text == plain
    assert boxes_of(refined) == boxes
    assert edits_of(refined) == ["replaced", box_edits, "replaced"]


def test_a_phrase_stays_as_long_as_one_of_its_boxes_does():
    text = said(("two cups", (0, 0, 9, 8), (80, 80, 90, 90)))
    refined = refine(text, REGION, [thing("1", 0, 0, 9, 9)], unmatched="remove_phrase")
    assert boxes_of(refined) == [((0, 0, 9, 9),)]
    assert edits_of(refined) == ["replaced", "box_removed"]


def test_a_text_without_boxes_or_an_image_without_objects_is_left_as_it_is():
    assert refine(said(("a cup",)), REGION, [thing("1", 0, 0, 9, 9)]).text == said(("a cup",))
    assert boxes_of(refine(said(("a cup", (0, 0, 9, 9))), REGION, [])) == [()]


CUP, PLATE = thing("1", 0, 0, 10, 10), thing("2", 50, 50, 60, 60)


def test_several_predictions_for_one_object_count_as_the_best():
    located = localization_score([CUP, PLATE], [(0, 0, 10, 6), (0, 0, 10, 9)], [(0, 0, 10, 7)])
    assert located.score == pytest.approx(0.9 / 2)
    assert [(m.object_id, m.iou, m.source) for m in located.matches] == [("1", 0.9, "text"), ("2", 0.0, "none")]


def test_an_iou_of_exactly_a_half_does_not_score_but_is_recorded():
    located = localization_score([CUP], [(0, 0, 10, 5)])
    assert located.score == 0.0
    assert located.matches[0].iou == 0.5


def test_a_point_in_an_objects_box_locates_it():
    located = localization_score([CUP, PLATE], [(50, 50, 60, 58)], points=[(10, 0), (30, 30)])
    assert located.score == pytest.approx((1 + 0.8) / 2)
    assert [(m.object_id, m.iou, m.source) for m in located.matches] == [("1", 1.0, "text"), ("2", 0.8, "text")]
    assert localization_score([CUP], [], points=[(5, 5)]).score == 1
    assert localization_score([CUP], [], points=[(11, 5)]).matches[0].source == "none"
    assert localization_score([CUP, PLATE], [], [(50, 50, 60, 58)], points=[(1, 1)]).matches[1].source == "detector"


def test_a_detectors_box_counts_like_the_texts_and_loses_ties():
    assert localization_score([CUP], [], [(0, 0, 10, 8)]).matches[0].source == "detector"
    assert localization_score([CUP], [(0, 0, 10, 8)], [(0, 0, 10, 8)]).matches[0].source == "text"


def test_one_prediction_may_match_two_objects_as_in_the_formula():
    # p is a maximum for each object by itself: nothing makes a prediction count once.
    twins = [thing("1", 0, 0, 10, 10), thing("2", 0, 0, 10, 9)]
    assert localization_score(twins, [(0, 0, 10, 10)]).score == pytest.approx((1.0 + 0.9) / 2)


def test_without_predictions_or_objects_the_score_is_zero():
    assert localization_score([CUP], []).score == 0.0
    assert localization_score([], [(0, 0, 1, 1)]).score == 0.0
