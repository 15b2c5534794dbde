"""JSON answers as models write them: nested, with other keys, and not quite JSON."""

from __future__ import annotations

import pytest

from spr.core.errors import GroundingError
from spr.grounding import parse, render, replace_boxes

SIZE = (1000, 1000)
NOT_JSON = "entry is not JSON: read anyway"
CAT = '{"bbox_2d": [5, 6, 7, 8], "label": "cat"}'


def read(text: str) -> tuple[list[tuple[str, int]], list[str]]:
    """Labels with the number of their boxes, and the reasons of the problems."""
    grounded = parse(text, "qwen3_vl", SIZE)
    assert render(grounded, "qwen3_vl", SIZE) == text
    return [(span.phrase, len(span.boxes)) for span in grounded.spans], [item.reason for item in grounded.problems]


@pytest.mark.parametrize(
    "text",
    [
        '[{"bbox_2d": [1, 2, 30, 40], "label": "cup", "attributes": {"color": "red", "parts": [{"n": 1}]}}]',
        '[{"attributes": {"color": "red"}, "bbox_2d": [1, 2, 30, 40], "label": "cup"}]',
        '{"objects": [{"bbox_2d": [1, 2, 30, 40], "label": "cup"}]}',
        '{"scene": "a table", "items": {"left": [{"label": "cup", "score": 0.9, "bbox_2d": [1, 2, 30, 40]}]}}',
        '[{"bbox_2d": [1, 2, 30, 40], "class": "cup"}]',
        '[{"bbox_2d": [1, 2, 30, 40], "category": "cup"}]',
        '[{"bbox_2d": [1, 2, 30, 40], "text_content": "cup"}]',
        '[{"name": "cup", "bbox_2d": [1, 2, 30, 40], "color": "red"}]',
        '[{"class": "crockery", "label": "cup", "bbox_2d": [1, 2, 30, 40]}]',
        '[{"bbox_2d": [[1, 2, 30, 40]], "label": "cup"}]',
        '[{"bbox_2d": [1, 2, 30, 40], "label": "\\u0063up"}]',
        '[{"bbox\\u005f2d": [1, 2, 30, 40], "label": "cup"}]',
    ],
)
def test_well_formed_json_is_read_without_a_problem(text: str) -> None:
    assert read(text) == ([("cup", 1)], [])
    grounded = parse(text, "qwen3_vl", SIZE)
    assert grounded.boxes == ((1, 2, 30, 40),)
    edited = replace_boxes(grounded, [(10, 2, 30, 44)])  # the numbers are found in the text, whatever is around them
    assert render(edited, "qwen3_vl", SIZE) == text.replace("1, 2, 30, 40", "10, 2, 30, 44")


@pytest.mark.parametrize(
    ("entry", "label"),
    [
        ('{"bbox_2d": [1, 2, 30, 40], "label": "a dog",}', "a dog"),
        ('{"bbox_2d": [1, 2, 30, 40,], "label": "a dog"}', "a dog"),
        ('{"bbox_2d": [1, 2, 30, 40] "label": "a dog"}', "a dog"),
        ('{"bbox_2d": [1, 2, 30, 40], "label": "a "big" dog"}', 'a "big" dog'),
        ('{"bbox_2d": [1, 2, 30, 40], "label": "a 6" pipe"}', 'a 6" pipe'),
        ("{'bbox_2d': [1, 2, 30, 40], 'label': 'cup', 'hidden': False, 'text': None}", "cup"),
        ("{'bbox_2d': (1, 2, 30, 40), 'label': 'the man's \\\\hat'}", "the man's \\hat"),
        ("{'bbox_2d': [1, 2, 30, 40], 'label': \"the man's hat\"}", "the man's hat"),
        ("{bbox_2d: [1, 2, 30, 40], label: 'cup'}", "cup"),
        ('{"bbox_2d": [1, 2, 30, 40], "label": "cup" // on the table\n}', "cup"),
        ('{"bbox_2d": [1, 2, 30, 40]], "label": "cup"}', "cup"),
    ],
)
def test_an_entry_that_is_not_quite_json_is_read_and_reported(entry: str, label: str) -> None:
    assert read(f"[{entry}, {CAT}]") == ([(label, 1), ("cat", 1)], [NOT_JSON])
    assert parse(entry, "qwen3_vl", SIZE).boxes == ((1, 2, 30, 40),)
    with pytest.raises(GroundingError, match="not JSON"):
        parse(entry, "qwen3_vl", SIZE, strict=True)


@pytest.mark.parametrize("text", ["a {red} cup", "a cup}", "{", 'say [1, 2, 3, 4] or {\\"a\\": 1}', "a, b: c]"])
def test_braces_and_brackets_in_a_label_are_words(text: str) -> None:
    labels, problems = read(f'[{{"bbox_2d": [1, 2, 30, 40], "label": "{text}"}}, {CAT}]')
    assert labels == [(text.replace("\\", ""), 1), ("cat", 1)]
    assert problems == []


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ('"label": "a "big", red dog"', "label can't be read: box kept without one"),
        ('"label": "a \\x dog"', "label can't be read: box kept without one"),
        ('"label": "a dog', "label can't be read: box kept without one"),
        ('"label": {"en": "dog"}', "label is not text: box kept without one"),
        ('"label": ["dog"]', "label is not text: box kept without one"),
        ('"what": "dog"', "entry has no label: box kept without one"),
    ],
)
def test_the_box_is_kept_where_only_the_label_is_broken(label: str, reason: str) -> None:
    spans, problems = read(f'[{{{label}, "bbox_2d": [1, 2, 30, 40]}}, {CAT}]')
    assert spans == [("", 1), ("cat", 1)]
    assert reason in problems


@pytest.mark.parametrize("box", ["[1，2，30，40]", "［1, 2, 30, 40］", "[1、2、30、40]"])
def test_full_width_punctuation_is_read_in_a_box_and_kept_in_a_label(box: str) -> None:
    spans, problems = read(f'[{{"bbox_2d": {box}, "label": "狗（1，2，3，4）"}}]')
    assert (spans, problems) == ([("狗（1，2，3，4）", 1)], ["full-width punctuation: read anyway"])


def test_several_boxes_of_one_entry_and_entries_inside_entries_are_all_kept() -> None:
    text = '[{"bbox_2d": [[1, 2, 3, 4], [5, 6, 7], [7, 8, 9, 9]], "label": "dogs", "has": {"bbox_2d": [1, 1, 2, 2], '
    text += '"label": "tag"}}]'
    assert read(text) == ([("dogs", 2), ("tag", 1)], ["3 numbers instead of 4: dropped"])
    assert read('{"dog": {"bbox_2d": [1, 2, 3, 4]}}') == ([("", 1)], ["entry has no label: box kept without one"])


def test_what_is_cut_or_not_closed_does_not_take_the_rest_with_it() -> None:
    assert read('{"objects": [' + CAT + ', {"bbox_2d": [5, 6') == (
        [("cat", 1)],
        ["object is not closed: its complete entries are kept", "entry is not closed: dropped"],
    )
    not_closed = '[{"bbox_2d": [1, 2, 30, 40], "label": "a dog, ' + CAT + "]"
    assert read(not_closed) == ([("cat", 1)], ["entry is not closed: dropped"])
    assert read('[{"bbox_2d": [1, 2, 30, ' + CAT + "]") == ([("cat", 1)], ["entry is not closed: dropped"])
    assert read("A set {a, b} and " + CAT) == ([("cat", 1)], ["entry is not JSON: dropped"])
    assert read('[{"point_3d": [1, 2]}, ' + CAT + "]") == ([("cat", 1)], ["entry has no bbox_2d: dropped"])
