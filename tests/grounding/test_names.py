"""Readable names of categories."""

import random
import time

import pytest

from spr.grounding import DIALECTS, GroundedText, render
from spr.grounding.matching import count_named, names_category
from spr.grounding.names import category_name, is_readable, readable_names
from spr.records import Span


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        ("person", ("person", "", ("person",))),
        ("wine_glass", ("wine glass", "", ("wine glass",))),
        ("car_(automobile)", ("car", "automobile", ("car",))),
        ("bow_(decorative_ribbons)", ("bow", "decorative ribbons", ("bow",))),
        ("monitor_(computer_equipment) computer_monitor",
         ("monitor", "computer equipment", ("monitor", "computer monitor"))),
        ("truck (big) (red)", ("truck", "big, red", ("truck",))),
        ("person(s)", ("person", "s", ("person",))),
        ("汽车（轿车）", ("汽车", "轿车", ("汽车",))),
        ("Wild Bird", ("Wild Bird", "", ("Wild Bird",))),
        ("Cabinet/shelf", ("Cabinet/shelf", "", ("Cabinet", "shelf"))),
        ("Trash bin Can ", ("Trash bin Can", "", ("Trash bin Can",))),
        ("person\n", ("person", "", ("person",))),
        ("salt;pepper", ("salt,pepper", "", ("salt,pepper",))),
        ("T(est)-shirt", ("T(est)-shirt", "", ("T(est)-shirt",))),
        ("(other)", ("other", "", ("other",))),
        ("a_(b", ("a (b", "", ("a (b",))),
        ("()", ("", "", ())),
        ("", ("", "", ())),
    ],
)  # fmt: skip
def test_a_name_has_words_a_qualifier_and_alternatives(category, expected):
    assert tuple(category_name(category)) == expected


@pytest.mark.parametrize(
    ("phrase", "category", "named"),
    [
        ("a car", "car_(automobile)", True),
        ("two red Cars", "car_(automobile)", True),
        ("a car (automobile)", "car_(automobile)", True),
        ("an automobile", "car_(automobile)", False),
        ("a bow", "bow_(weapon)", True),
        ("a computer monitor", "monitor_(computer_equipment) computer_monitor", True),
        ("a monitor", "monitor_(computer_equipment) computer_monitor", True),
        ("a computer", "monitor_(computer_equipment) computer_monitor", False),
        ("a wild bird", "Wild Bird", True),
        ("the shelf", "Cabinet/shelf", True),
        ("anything", "()", False),
        ("two horses", "horse", True),
        ("a horse", "horses", True),
        ("three vases", "vase", True),
        ("buses", "bus", True),
        ("boxes and dishes", "dish", True),
        ("garden hoses", "hose", True),
    ],
)
def test_a_phrase_names_a_category_without_its_qualifier(phrase, category, named):
    assert names_category(phrase, category) is named
    assert count_named([category], [phrase]) == named


def test_a_prompt_shows_the_qualifier_only_where_names_would_be_the_same():
    assert readable_names(["car_(automobile)", "dog", "car_(automobile)"]) == ["car", "dog", "car"]
    assert readable_names(["Bow_(weapon)", "bow_(decorative_ribbons)"]) == ["Bow (weapon)", "bow (decorative ribbons)"]
    assert readable_names(["bow_(weapon)", "bow", "wine_glass", "wine glass"]) == [
        "bow (weapon)",
        "bow",
        "wine glass",
        "wine glass",
    ]
    assert readable_names([]) == []


UNREADABLE = [
    "", " ", "\n", "_", "()", "-", "…",
    "<image>", "cup <image>", "<|image_pad|>", "<|im_end|>", "</s>", "<box>", "<loc_5>", "<b>", "[SEP]", "x [/INST]",
    "sofa [1, 2, 3, 4]", "(1, 2, 3, 4)", "(1,2),(3,4)", "[[1,2,3,4]]", "[0.1, 0.2, 0.3, 0.4]", "［1，2，3，4］",
    "a [1, 2", "{second}", "cup {",
    "a\x00b", "a\nb", "a\tb", "a\x1b[31m", "a\u2028b", "a\ud800", "a" * 201,
]  # fmt: skip
READABLE = [
    "dog", "犬", "سيارة", "T-shirt", "7 up", "24/7", "Golf (1998-2004)", "no. 5", "o'brien", "salt;pepper", "a < b",
    "class_000123", "a" * 200, "[old] chair", "C++", "50%", "1998", "می‌خواهم", "person\n",
]  # fmt: skip


def test_names_that_are_not_words_are_recognised():
    assert [name for name in UNREADABLE if is_readable(name)] == []
    assert [name for name in READABLE if not is_readable(name)] == []


def test_every_dialect_can_write_a_readable_name():
    draw = random.Random(0)
    pieces = [*'a1 ,.;:[](){}<>|/=%-_x"\\&#*\n［］（）', "12", "0.5", "cup", "<box>", "```"]
    names = {"".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(600)} | {*READABLE}
    readable = [name for name in names if is_readable(name)]
    assert len(readable) > 80
    for name in readable:
        words, qualifier, _ = category_name(name)
        for text in (words, f"a {words}", f"{words} ({qualifier})" if qualifier else words):
            for key, dialect in DIALECTS.items():
                boxes, points = ((100, 100, 500, 500),) * dialect.writes_boxes, ((1, 2),) * dialect.writes_points
                render(GroundedText(text, (Span(text, 0, len(text), boxes, points),)), key, (1000, 1000))


def test_long_names_take_linear_time():
    started = time.perf_counter()
    for piece in ("(", ")", "a (b) ", "(a", "/", "_", " (", "[1", "<", "1 "):
        name = piece * (100_000 // len(piece))
        category_name(name)
        is_readable(name)
        names_category("a cup", name)
    assert time.perf_counter() - started < 5
