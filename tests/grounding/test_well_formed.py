"""Answers that are read at once give what the reader of their markup gives piece by piece.

`SPR_FUZZ_CASES` sets how many answers each dialect gets (500 by default).
"""

from __future__ import annotations

import os
import pickle
import random

import pytest

from spr.core.errors import GroundingError
from spr.grounding import DIALECTS, GroundedText, get_dialect, parse, render
from spr.grounding.parse import read_by_piece
from spr.grounding.text import without_surrogates
from spr.grounding.unread import has_unread_coordinates
from spr.records import Span

CASES = int(os.environ.get("SPR_FUZZ_CASES", "500"))
KEYS = sorted(DIALECTS)
SPECS = [*KEYS, "llava:padded=false", "llava_onevision:padded=true", "qwen2_5_vl:min_pixels=3136,max_pixels=1003520"]
SIZE = (640, 480)
OTHER_SIZES = ((1, 1), (333, 1000), (10_000, 7))
WORDS = (
    *("a", "the", "man", "woman", "two", "dogs", "and", "with", "of", "in", "on", "left", "right", "side", "holding"),
    *("stand", ",", ".", "next", "to", "black", "white", "cat", "(left)", "[sic]", "his", "her", "tall", "is", "at"),
    *(";", ":", "-", "\n", "é", "一只狗", "“good”", "front", "people", "bus", "wheel"),
)
LABELS = (
    "person",
    "red car",
    "a, b",
    "dog (left)",
    "x [1]",
    "",
    " ",
    "你好",
    "a]",
    "it's",
    " padded ",
    "a; b",
    "two\tx",
)
FORMS = (
    (", ", ","), (",", ", "), (",", " , "), ("}, {", "},\n\t{"), ('": ', '":'), ("[{", "```json\n[\n  {"), (" ", "  "),
    ("[", "[ "), ("]", " ]"), ("[[", "["), ("]]", "]"), ('"label"', '"class"'), ("<", " <"), (">", "> "), ("\n", " "),
    (". ", ".\n"), ("][", "] ["), ("0", "0.0"), ("1", "-1"), ("1", "+1"), ("1", "01"), ("1", "1e0"), ("1", "1E2"),
    ("3", "3."), ("2", "-0"), ("5", "0.123456789012345678901234567"), (",", "，"), ("[", "［"), (">", ">None"),
)  # fmt: skip
EDGES = (
    "Here: ", "```json\n", "\n```", "</s>", " ", "\n", "(a) ", "[1] ", "[1, 2", "the ", "- ", "1. ", "]", "}", ";",
    "<|im_end|>", " a dog", '"bbox_2d": ', "<seg001>",
)  # fmt: skip


def answer(rng: random.Random, key: str) -> str:
    """A rendered text of random words, with phrases, boxes and points, also at the edges of the image."""
    dialect = DIALECTS[key]
    while True:
        text, spans = "", []
        for _ in range(rng.choice((1, 1, 2, 3, 5, 10))):
            if dialect.keeps_prose:
                words = " ".join(rng.choices(WORDS, k=rng.randrange(1, 7))) + rng.choice((" ", ""))
                text += rng.choice(("", " ", ", ", " and ", ". ", "\n", words, words))
                phrase = rng.choice((rng.choice(LABELS), " ".join(rng.choices(WORDS, k=rng.randrange(1, 4)))))
            else:
                text, phrase = text + ", " * bool(text), rng.choice(LABELS)
            boxes = tuple(_box(rng) for _ in range(rng.choice((1, 1, 1, 2, 3))))
            points = tuple(box[:2] for box in boxes)
            is_point = dialect.writes_points and (not dialect.writes_boxes or rng.random() < 0.2)
            own = ((), points) if is_point else (boxes, ())
            spans.append(Span(phrase, len(text), len(text) + len(phrase), *own))
            text += phrase
        text += rng.choice(("", ".", " waits.", "\n", " (see [1])")) if dialect.keeps_prose else ""
        try:
            return render(GroundedText(text, tuple(spans)), key, SIZE)
        except GroundingError:
            continue  # its words are markup


def _box(rng: random.Random) -> tuple[float, float, float, float]:
    (x1, x2), (y1, y2) = (
        sorted(rng.choice((rng.uniform(0, s), rng.uniform(0, s), 0, s, 0.5)) for _ in range(2)) for s in SIZE
    )
    return x1, y1, x2, y2


def changed(rng: random.Random, text: str) -> str:
    """The text as it is, in another form, with something around it, or with a few characters replaced or removed."""
    place = rng.randrange(len(text) + 1)
    match rng.randrange(6):
        case 0:
            old, new = rng.choice(FORMS)
            return text.replace(old, new, rng.choice((1, 2, -1)))
        case 1:
            return rng.choice(EDGES) + text
        case 2:
            return text + rng.choice(EDGES)
        case 3:
            return text[:place] + rng.choice(" \n,.;:0123456789[](){}<>\"'aé「・\x00\ud800-+eE_") + text[place + 1 :]
        case 4:
            return text[:place] + text[place + rng.randrange(1, 4) :]
    return text


def everything(grounded: GroundedText) -> str:
    """All attributes, also those that comparisons ignore; as text, in which 1 is not 1.0."""
    source = grounded.source
    assert source is not None
    places = source.places, source.point_places, source.has_unread, source.is_read
    own = grounded.plain_text, grounded.spans, grounded.problems, has_unread_coordinates(grounded)
    return repr((own, source.text, source.size_wh, source.plain_text, source.boxes, source.points, places))


@pytest.mark.parametrize("spec", SPECS)
def test_an_answer_that_is_read_at_once_is_read_the_same_piece_by_piece(spec: str) -> None:
    rng, dialect = random.Random(f"well-formed {spec}"), get_dialect(spec)
    written = [answer(rng, dialect.key) for _ in range(max(CASES // 10, 50))]
    read = 0
    for case in range(CASES):
        text = rng.choice(written)
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            text = changed(rng, text)
        text, size = without_surrogates(text), SIZE if case % 2 else rng.choice(OTHER_SIZES)
        found = dialect.well_formed.read(text, size)
        if found is not None:
            assert everything(found) == everything(read_by_piece(text, dialect, size))
            read += 1
    assert read > CASES * 0.03


@pytest.mark.parametrize("key", KEYS)
def test_the_usual_answer_is_read_at_once(key: str) -> None:
    dialect = DIALECTS[key]
    grounded = dialect.well_formed.read(dialect.example, (1000, 1000))
    assert grounded is not None
    assert (grounded.plain_text, grounded.problems) == ("a dog", ())
    assert len(grounded.boxes) + len(grounded.points) == 1


def test_what_was_read_at_once_can_be_pickled_and_has_places() -> None:
    grounded = parse("a dog [100, 150, 300, 200]", "ferret", (1000, 1000))
    again = pickle.loads(pickle.dumps(grounded))  # noqa: S301 - our own bytes
    assert again == grounded
    assert again.source == grounded.source
    assert again.source.places[0].numbers == ((7, 10), (12, 15), (17, 20), (22, 25))
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = again.source.other


def test_a_size_that_equals_a_known_one_but_is_not_of_integers_is_refused() -> None:
    parse("a dog [100, 150, 300, 200]", "ferret", (1000, 1000))
    with pytest.raises(GroundingError, match="Size of the image is wrong"):
        parse("a dog [100, 150, 300, 200]", "ferret", (1000.0, 1000))  # type: ignore[arg-type]
