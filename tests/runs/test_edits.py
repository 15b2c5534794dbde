"""Corrections of chosen answers by a person."""

import pytest

from spr.core.errors import GroundingError
from spr.grounding import get_dialect, parse
from spr.records import PreferencePair, Span
from spr.runs.edits import edited_pair, from_numbered, numbered_answer, to_numbered

LLAVA, QWEN, FERRET = get_dialect("llava_onevision"), get_dialect("qwen3_vl"), get_dialect("ferret")
CUP, PLATE = (20.0, 20.0, 40.0, 60.0), (100.0, 20.0, 180.0, 90.0)
NUMBERED = "- **[Cup](1)**:\n- **[Plate](2)**:"


def pair(
    dialect=LLAVA, chosen="- **Cup**: [0.10, 0.20, 0.20, 0.60]\n- **Plate**: [0.50, 0.20, 0.90, 0.90]", exact=None
):
    """A pair about an image of 200 × 100 px; the annotations' exact boxes may differ from the written ones."""
    grounded = parse(chosen, dialect, (200, 100))
    boxes = iter(exact or grounded.boxes)
    spans = tuple(Span(s.phrase, s.start, s.end, tuple(next(boxes) for _ in s.boxes)) for s in grounded.spans)
    return PreferencePair(
        query_id="1/0",
        image_id="1",
        file_name="1.png",
        width=200,
        height=100,
        region=(0, 0, 200, 100),
        prompt="Describe it.",
        chosen=chosen,
        rejected="a dog [0.00, 0.00, 0.10, 0.10]",
        chosen_spans=spans,
        rejected_spans=(),
        chosen_candidate="1/0/a",
        rejected_candidate="1/0/b",
        chosen_score=0.5,
        rejected_score=0.3,
        margin=0.2,
        box_edits=(),
    )


def test_points_stay_where_they_are_when_boxes_are_corrected():
    chosen = '[{"bbox_2d": [100, 200, 200, 600], "label": "Cup"}, {"point_2d": [500, 500], "label": "Plate"}]'
    made = pair(QWEN, chosen)
    before = numbered_answer(made, QWEN)
    assert (to_numbered(before), before.points) == ("[Cup](1), Plate", ((100, 50),))
    edited = edited_pair(made, "[Cup](1), Plate", [(20, 20, 50, 60)], QWEN)
    assert edited.chosen == chosen.replace("[100, 200, 200, 600]", "[100, 200, 250, 600]")
    assert [span.points for span in edited.chosen_spans] == [(), ((100, 50),)]
    with pytest.raises(GroundingError, match="has points, which other words would lose"):
        edited_pair(made, "[Cup](1), Bowl", [(20, 20, 50, 60)], QWEN)
    with pytest.raises(GroundingError, match="has points, which would be lost"):
        edited_pair(made, "[Cup](1 2), Plate", [(20, 20, 50, 60), (1, 2, 3, 4)], QWEN)


@pytest.mark.parametrize(
    "text",
    [
        "[a cup](1) beside [two plates](2 3)",
        r"a \[blue\] thing, [a cup \[of tea\]](1) C:\\x",
        "[](1) [a](2)[b](3)",
        "[naïve 🐕](1)",
    ],
)
def test_numbered_text_is_written_as_it_was_read(text):
    boxes = [(float(k), 0.0, k + 9.0, 9.0) for k in range(text.count("](") + text.count("2 3"))]
    assert to_numbered(from_numbered(text, boxes)) == text


def test_numbers_may_be_in_any_order_and_deleted_boxes_leave_words():
    text = from_numbered("[a plate](3) [a cup]() [mugs](2, 1)", [CUP, PLATE, (1, 2, 3, 4)])
    assert text.plain_text == "a plate a cup mugs"
    assert text.spans == (Span("a plate", 0, 7, ((1, 2, 3, 4),)), Span("mugs", 14, 18, (PLATE, CUP)))


@pytest.mark.parametrize(
    ("text", "boxes", "message"),
    [
        ("[a cup](2)", [CUP], "no box 2"),
        ("[a cup](1)", [None], "no box 1"),
        ("[a cup](0)", [CUP], "no box 0"),
        ("[a cup](99999999999999999999)", [CUP], "no box 999999999"),
        ("[a cup](1)", [CUP, PLATE], "Box 2 belongs to no phrase"),
    ],
)
def test_numbers_and_boxes_must_match(text, boxes, message):
    with pytest.raises(GroundingError, match=message):
        from_numbered(text, boxes)


def test_a_moved_box_changes_its_own_numbers_alone():
    before = pair()
    assert to_numbered(numbered_answer(before, LLAVA)) == NUMBERED
    # 30/200 = 0.15, 70/100 = 0.70; the plate's box is as near as a page that rounds to 0.1 px gives it.
    after = edited_pair(before, NUMBERED, [(30, 20, 40, 70), (100.04, 20, 180, 89.96)], LLAVA)
    assert after.chosen == "- **Cup**: [0.15, 0.20, 0.20, 0.70]\n- **Plate**: [0.50, 0.20, 0.90, 0.90]"
    assert [span.boxes for span in after.chosen_spans] == [((30, 20, 40, 70),), (PLATE,)]
    assert (after.rejected, after.chosen_candidate) == (before.rejected, before.chosen_candidate)


def test_a_box_that_was_not_touched_keeps_its_exact_value_and_its_text():
    exact = [(20.3, 20.2, 40.1, 59.8), PLATE]
    after = edited_pair(pair(exact=exact), NUMBERED, [(20.3, 20.2, 40.1, 59.8), (90, 20, 180, 90)], LLAVA)
    assert after.chosen == "- **Cup**: [0.10, 0.20, 0.20, 0.60]\n- **Plate**: [0.45, 0.20, 0.90, 0.90]"
    assert after.chosen_spans[0].boxes == (exact[0],)


def test_deleting_a_box_leaves_its_words():
    after = edited_pair(pair(), "- **[Cup](1)**:\n- **Plate**:", [CUP, None], LLAVA)
    assert after.chosen == "- **Cup**: [0.10, 0.20, 0.20, 0.60]\n- **Plate**:"
    assert [span.phrase for span in after.chosen_spans] == ["Cup"]


def test_edited_words_and_new_boxes_are_written_in_the_dialect():
    after = edited_pair(pair(), "[A mug](1) and [a plate](2), [a spoon](3).", [CUP, PLATE, (0, 0, 20, 10)], LLAVA)
    assert after.chosen == (
        "A mug [0.10, 0.20, 0.20, 0.60] and a plate [0.50, 0.20, 0.90, 0.90], a spoon [0.00, 0.00, 0.10, 0.10]."
    )
    assert [span.phrase for span in after.chosen_spans] == ["A mug", "a plate", "a spoon"]


def test_a_dialect_that_lists_objects_gets_entries():
    text = '[{"bbox_2d": [100, 200, 200, 600], "label": "Cup"},  {"bbox_2d": [500, 200, 900, 900], "label": "Plate"}]'
    before = pair(QWEN, text)
    assert to_numbered(numbered_answer(before, QWEN)) == "[Cup](1), [Plate](2)"
    moved = edited_pair(before, "[Cup](1), [Plate](2)", [CUP, (100, 20, 180, 80)], QWEN)
    assert moved.chosen == text.replace("900, 900", "900, 800")
    removed = edited_pair(before, "[Cup](1)", [CUP, None], QWEN)
    assert removed.chosen == '[{"bbox_2d": [100, 200, 200, 600], "label": "Cup"}]'
    with pytest.raises(GroundingError, match="lists objects"):
        edited_pair(before, "[Cup](1), Plate", [CUP, None], QWEN)


@pytest.mark.parametrize(
    ("text", "boxes", "message"),
    [
        ("Nothing here.", [None, None], "has no box"),
        ("[Cup](1)", [(20, 20, 20, 60), None], "box 1 has no area"),
        ("[Cup](1)", [(20, 20, 240, 60), None], "box 1 extends beyond its image"),
        ("[Cup](1)", [(20, 20, 60), None], "box 1 is not a box"),
        ("[a dog](1)", [(0, 0, 20, 10), None], "equals the rejected one"),
        ("[Cup](1) [1, 2, 3, 4]", [CUP, None], "read"),
    ],
)
def test_what_can_not_be_trained_on_is_refused(text, boxes, message):
    with pytest.raises(GroundingError, match=message):
        edited_pair(pair(), text, boxes, LLAVA)


def test_a_moved_box_that_is_written_as_it_was_is_no_error():
    # 0.2 px of 200 are less than LLaVA's two decimals show: the text stays, the exact box changes.
    after = edited_pair(pair(), NUMBERED, [(20.2, 20, 40, 60), PLATE], LLAVA)
    assert after.chosen == pair().chosen
    assert after.chosen_spans[0].boxes == ((20.2, 20, 40, 60),)
