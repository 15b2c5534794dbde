"""`BoxReader` reads the same boxes as `parse`."""

import random

import pytest

from spr.grounding import DIALECTS, GroundedText, parse
from spr.grounding.parse import BoxReader

PIECES = [
    "a dog ",
    " and ",
    "[1]",
    "(1998)",
    "<s>",
    "</s>",
    "[sic] ",
    ". ",
    "\n",
    "{",
    "}",
    "[",
    "]",
    "<ref>",
    "</ref>",
]
PIECES += ["，", "［", "）", "(left) ", "]]", "\n- ", "'label': 'x'", "12%", '"class": "x"', "<poly>", "{1, 2, 3, 4}"]
PIECES += [" and", "it is ", "; ", ",", "_"]
PIECES += ["<box>", "</box>", '"label": "x{"', "\ud800", "```json\n", "<loc_1>", "x1=5", "[[", "]]", "<", "<ref></ref>"]
SIZES = [(640, 480), (333, 500), (20, 20)]


PIECES += ["<|begin_of_box|>", "<|end_of_box|>", "<bbox>", "</point>", "<point>1 2</point>", '<points x1="1" y1="2">']
PIECES += [
    "<|det|>",
    '{"point_2d": [1, 2], "label": "x"}',
    '"point": [1, 2]',
    "<5><6>",
    "None",
    '"bbox_2d": [1, 2, 3, 4]',
]


def _found(grounded: GroundedText) -> tuple:
    return grounded.boxes, len(grounded.problems), grounded.other_scale


def corrupt(example: str, draw: random.Random) -> str:
    text = example if draw.random() < 0.8 else ""
    if draw.random() < 0.4:
        text = "".join(draw.choice([c, c, c, str(draw.randint(0, 9))]) if c.isdigit() else c for c in text)
    if draw.random() < 0.2:
        text = text.replace("a dog", draw.choice(["", " ", "A", "dog's"]))
    for _ in range(draw.randint(0, 3)):
        place = draw.choice([0, len(text), draw.randint(0, len(text))])
        text = text[:place] + draw.choice(PIECES) + text[place:]
    if draw.random() < 0.1:
        text = text[: draw.randint(0, len(text))]
    if draw.random() < 0.2:
        text += draw.choice([" ", ". ", " and "]) + example
    return text


@pytest.mark.parametrize("key", DIALECTS)
def test_the_boxes_and_the_number_of_problems_are_the_same_as_from_parse(key):
    draw, dialect = random.Random(f"plain {key}"), DIALECTS[key]
    reader = BoxReader(dialect)
    for k in range(1500):
        text, size = corrupt(dialect.example, draw), SIZES[k % 3]
        grounded = parse(text, dialect, size)
        assert reader.read(text, size) == _found(grounded), repr(text)


def test_a_wrong_image_size_is_refused():
    with pytest.raises(ValueError, match="Size of the image is wrong"):
        BoxReader(DIALECTS["ferret"]).read("a dog [1, 2, 3, 4]", (0, 5))
