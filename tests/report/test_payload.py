"""A pair for the gallery: the right words under the right numbers, whatever the texts hold."""

import numpy as np
import pytest

from spr.records import Span
from spr.report.payload import is_long, match_boxes, pair_payload, shorten, split_into_phrases
from spr.runs.reader import Run


def payloads(maker, **options):
    return [pair_payload(item, {}, **options) for shard in Run(maker.write()).shards() for item in shard.pairs]


def test_boxes_have_the_object_that_they_overlap_most(make_run):
    (payload,) = payloads(make_run(pairs=1))
    # Chosen: both cups exactly. Rejected: the first cup at 0.8, and a box that touches nothing (see RunMaker).
    assert [[(number, iou) for _, number, iou in boxes] for boxes in payload["sides"]["chosen"]["spans"]] == [
        [(0, 1.0)],
        [(1, 1.0)],
    ]
    assert [[(number, iou) for _, number, iou in boxes] for boxes in payload["sides"]["rejected"]["spans"]] == [
        [(0, 0.8)],
        [(-1, 0.0)],
    ]


def test_an_overlap_of_exactly_a_half_is_no_hit():
    # 10×5 of 10×10: IoU 0.5, but the paper wants over 0.5.
    assert match_boxes([[[0, 0, 10, 5]]], np.array([[0.0, 0, 10, 10]])) == [[[[0.0, 0.0, 10.0, 5.0], -1, 0.5]]]


def test_an_image_without_objects_hits_nothing():
    assert match_boxes([[[0, 0, 10, 5]]], np.empty((0, 4))) == [[[[0.0, 0.0, 10.0, 5.0], -1, 0.0]]]


def test_pieces_of_a_text_join_to_the_whole(make_run):
    (payload,) = payloads(make_run(pairs=1))
    assert payload["sides"]["chosen"]["text"] == [["a cup", 0], [" and ", -1], ["a second cup", 1]]


def test_points_are_listed_with_their_phrase(make_run):
    maker = make_run(pairs=1)
    spans = [{"phrase": "a cup", "start": 0, "end": 5, "boxes": [], "points": [(10, 20), (30.06, 40)]}]
    maker.change("pairs", 0, rejected_spans=spans)
    (payload,) = payloads(maker)
    assert payload["sides"]["rejected"]["points"] == [[0, 10, 20], [0, 30.1, 40]]
    assert "points" not in payload["sides"]["chosen"]


def test_phrases_are_right_after_characters_that_javascript_counts_twice():
    text = "two 🐕🐕 and a cup"
    assert split_into_phrases(text, [Span("a cup", 11, 16)]) == (
        [["two 🐕🐕 and ", -1], ["a cup", 0]],
        [],
    )


@pytest.mark.parametrize(
    "spans",
    [
        [Span("a cup", 0, 5), Span("cup", 2, 5)],
        [Span("a cup", 0, 5), Span("beyond", 90, 96)],
    ],
)
def test_spans_that_overlap_or_do_not_fit_are_kept_beside_the_text(spans):
    assert split_into_phrases("a cup", spans) == ([["a cup", 0]], [1])


def test_an_answer_whose_phrases_refinement_removed_is_parsed_again(make_run):
    maker = make_run(pairs=1)
    maker.change(
        "pairs", 0, chosen="A cup [200, 250, 400, 500].", chosen_spans=(Span("A cup", 0, 5, ((20, 20, 40, 40),)),)
    )
    (payload,) = payloads(maker, unmatched="remove_phrase")
    assert payload["sides"]["chosen"]["text"] == [["A cup", 0], [".", -1]]


def test_short_payloads_are_not_cut(make_run):
    (payload,) = payloads(make_run(pairs=1))
    assert not is_long(payload)
    assert is_long({**payload, "prompt": "x" * 2001})
    assert is_long({**payload, "box_edits": payload["box_edits"] * 101})


def test_cutting_keeps_the_boxes_of_what_is_shown_and_counts_the_others(make_run):
    maker = make_run(pairs=1)
    box = (0.0, 0.0, 9.0, 9.0)
    text = "a cup " * 100
    spans = tuple(Span("a cup", 6 * k, 6 * k + 5, (box,)) for k in range(100))
    maker.change("candidates", 1, plain_text=text, spans=spans)
    maker.change("pairs", 0, rejected_spans=spans)
    (payload,) = payloads(maker)
    assert is_long(payload, limit=500)
    shorten(payload, limit=60)
    side = payload["sides"]["rejected"]
    # A phrase and a space are 6 characters, but no more than 60 / 5 = 12 pieces are shown: 6 phrases with their spaces.
    assert len(side["text"]) == 12
    assert [len(boxes) for boxes in side["spans"]] == [1] * 6
    assert (side["boxesCut"], side["cut"]) == (94, 600)
