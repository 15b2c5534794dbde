"""Points lie in boxes whose edges belong to them, and texts list their points."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spr.grounding import GroundedText
from spr.grounding.points import centre, point_in_box, points_in_boxes, points_of
from spr.records import Span

BOX = (10.0, 20.0, 30.0, 40.0)


@pytest.mark.parametrize(
    ("point", "inside"),
    [
        ((20, 30), True),
        ((10, 20), True),  # each edge belongs to the box
        ((30, 40), True),
        ((10, 40), True),
        ((9.999, 30), False),
        ((20, 40.001), False),
        ((30.001, 40), False),
        ((float("nan"), 30), False),
        ((20, float("inf")), False),
    ],
)
def test_all_edges_belong_to_a_box(point: tuple[float, float], inside: bool) -> None:
    assert point_in_box(point, BOX) is inside
    assert points_in_boxes([point], [BOX]).tolist() == [[inside]]


edges = st.sampled_from([0.0, 1.0, 2.0, 3.0, 2.5])


@given(points=st.lists(st.tuples(edges, edges), max_size=4), boxes=st.lists(st.tuples(*[edges] * 4), max_size=4))
def test_many_points_and_boxes_are_compared_like_one(points: list, boxes: list) -> None:
    found = points_in_boxes(points, boxes)
    assert found.shape == (len(points), len(boxes))
    assert found.tolist() == [[point_in_box(point, box) for box in boxes] for point in points]


def test_the_points_of_a_text_are_in_its_order_and_centres_stand_in_only_if_asked() -> None:
    spans = (Span("a dog", 0, 5, (BOX,), ((1, 2), (3, 4))), Span("cats", 6, 10, (), ((5, 6),)))
    text = GroundedText("a dog cats", spans)
    assert text.points == points_of(text) == points_of(text, centres=True) == ((1, 2), (3, 4), (5, 6))
    boxes_only = GroundedText("a dog", (Span("a dog", 0, 5, (BOX,)),))
    assert points_of(boxes_only) == ()
    assert points_of(boxes_only, centres=True) == (centre(BOX),) == ((20, 30),)
