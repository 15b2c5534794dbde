"""Answers in another dialect than stated have coordinates that can't be read, so they don't reject an expression."""

import pytest

from spr.grounding import DIALECTS, GroundedText, get_dialect, parse, render
from spr.grounding.unread import has_unread_coordinates
from spr.records import Span

SIZE = (1000, 800)
BOX = GroundedText("a dog", (Span("a dog", 0, 5, ((100, 152, 300, 200),)),))
POINT = GroundedText("a dog", (Span("a dog", 0, 5, (), ((100, 152),)),))


@pytest.mark.parametrize("name", list(DIALECTS))
def test_an_answer_in_one_dialect_is_no_answer_without_coordinates_in_another(name):
    own = get_dialect(name)
    texts = [render(text, own, SIZE) for text, has in ((BOX, own.writes_boxes), (POINT, own.writes_points)) if has]
    assert texts
    for text in texts:
        for other in DIALECTS:
            found = parse(text, other, SIZE)
            assert found.boxes or found.points or has_unread_coordinates(found), other


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("none", "ferret"),
        ('{"bbox_2d": null, "label": "dog 1"}', "gemini"),
        ('[{"bbox_2d": [], "label": "dog"}]', "qwen3_vl"),
        ("There are 2, 3 or 4 cats, but no dog.", "qwen3_vl"),
        ("<|begin_of_box|>3<|end_of_box|>", "glm_v"),
        ("<|begin_of_box|>none<|end_of_box|>", "internvl"),
    ],
)
def test_words_and_empty_markup_are_not_coordinates(text, dialect):
    assert not has_unread_coordinates(parse(text, dialect, SIZE))
