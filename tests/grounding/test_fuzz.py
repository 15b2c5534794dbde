"""Parsing accepts any text without raising an error, and what it reports is correct.

Realistic answers in every dialect are cut, spliced, duplicated and corrupted. `SPR_FUZZ_CASES` sets how many inputs
each dialect gets (2,000 by default). The full run takes some minutes:

    SPR_FUZZ_CASES=100000 pytest tests/grounding/test_fuzz.py
"""

from __future__ import annotations

import math
import os
import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from example_counts import examples
from spr.core.errors import GroundingError
from spr.grounding import DIALECTS, GroundedText, convert_lines, parse, render
from spr.records import Span

CASES = int(os.environ.get("SPR_FUZZ_CASES", "2000"))
KEYS = sorted(DIALECTS)
BOX_KEYS = [key for key in KEYS if DIALECTS[key].writes_boxes]
KINDS = [(key, "boxes") for key in BOX_KEYS] + [(key, "points") for key in KEYS if DIALECTS[key].writes_points]
SIZES = ((640, 480), (1, 1), (333, 1000), (10_000, 7), (1, 10_000))

DESCRIPTIONS = (
    [("A man", 1), (" in a ", 0), ("dark coat", 1), (" holds ", 0), ("two dogs", 2), (".", 0)],
    [("On the left, ", 0), ("a group of people", 3), (" wait [sic] next to ", 0), ("the bus", 1), (" (see [1]).", 0)],
    [("一只狗", 1), ("和", 0), ("两只猫", 2), ("在", 0), ("桌子", 1), ("上。", 0)],
    [("🐕‍🦺 a “good” dog", 1), ("\nand\t", 0), ("Zoë's café", 1), (" … — it's 3,5 m × 2 m wide", 0)],
    [("dog", 1)],
    [("", 2)],
    [("There is nothing to see, 1 2 3 4.", 0)],
)
FRAGMENTS = (
    *"[](){}<>;,.:|\"'\\/-+ \n\t0123456789",
    "[[",
    "]]",
    "[1, 2, 3, 4]",
    "[1, 2, 3]",
    "[0.1, 0.2, 0.3, 0.4, 0.5]",
    "[NaN, 1, 2, 3]",
    "[[1,2,3,4;5,6]]",
    "(1,2),(3,4)",
    "(1, 2, 3, 4)",
    "([1, 2, 3, 4])",
    " (",
    "x1=1, ",
    "1e999",
    "-1",
    "99999999999999999999",
    " and ",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
    "<phrase>",
    "</phrase>",
    "<object>",
    "</object>",
    "<patch_index_0001>",
    "<patch_index_9999>",
    "</delimiter_of_multi_objects/>",
    "<|object_ref_start|>",
    "<|box_end|>",
    "<|im_end|>",
    "</s>",
    "<region_fea>",
    "<loc_5>",
    "<loc0005>",
    "<loc_",
    "<seg001>",
    "<|begin_of_box|>",
    "<|end_of_box|>",
    "<|ref|>",
    "<|/det|>",
    "<bbox>",
    "</bbox>",
    "<point>",
    "</point>",
    "<point>1 2</point>",
    '<point x="1.0" y="2.0" alt="x">',
    '<points x1="5" y1=',
    "</points>",
    '<points coords="1 1 100 200 2',
    '"1 1 100 200;2 2 300 400"',
    "<12>",
    "<12><34>",
    "None",
    "[1, 2]",
    '"point_2d": [1, 2]',
    '{"point": [1, 2], "label": "x"}',
    " ; ",
    "```json\n",
    "```",
    '{"bbox_2d": [1, 2, 3, 4], "label": "x"}',
    '{"bbox_2d": ["1", null, 3, true]}',
    '{"bbox_2d": {"a": [[[[',
    '"label": "\\u00e9\\ud800"',
    "\x00",
    "\u200b",
    "\u202e",
    "\ud800",
    "٣",
    "²",
    "é",
    "İ",
    "ﬀ",
    "\u2028",
    "\x85",
    "🐕",
)


def answers(key: str) -> list[str]:
    """The descriptions with boxes, with points, and with both in turn, as far as the dialect can write them."""
    dialect = DIALECTS[key]
    kinds = [kind for kind in ("boxes", "points") if getattr(dialect, f"writes_{kind}")]
    return [text for kind in (*kinds, *(["both"] if len(kinds) == 2 else [])) for text in answers_with(key, kind)]


def answers_with(key: str, kind: str) -> list[str]:
    rng = random.Random(key)
    texts = []
    for description in DESCRIPTIONS:
        text, spans = "", []
        for piece, count in description:
            boxes = tuple(sorted_box(rng) for _ in range(count))
            points = tuple(box[:2] for box in boxes)
            if kind == "both":
                boxes, points = (boxes, points[:1]) if len(spans) % 2 else ((), points)
            boxes, points = boxes if kind != "points" else (), points if kind != "boxes" else ()
            spans += [Span(piece, len(text), len(text) + len(piece), boxes, points)] if count else []
            text += piece
        texts.append(render(GroundedText(text, tuple(spans)), key, SIZES[0]))
    return texts


def sorted_box(rng: random.Random) -> tuple[float, float, float, float]:
    (x1, x2), (y1, y2) = (sorted(rng.uniform(0, side) for _ in range(2)) for side in SIZES[0])
    return x1, y1, x2, y2


def corrupt(rng: random.Random, text: str, others: list[str]) -> str:
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        i, j = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        match rng.randrange(8):
            case 0:
                text = text[:j]  # as if cut at max_new_tokens
            case 1:
                text = text[i:]
            case 2:
                text = text[:i] + text[j:]
            case 3:
                text = text[:j] + text[i:]
            case 4:
                other = rng.choice(others)
                k, m = sorted((rng.randint(0, len(other)), rng.randint(0, len(other))))
                text = text[:i] + other[k:m] + text[j:]
            case 5:
                text = text[:i] + rng.choice(FRAGMENTS) * rng.choice((1, 1, 1, 2, 5)) + text[i:]
            case 6:
                text = text[:i] + chr(rng.choice((rng.randrange(128), rng.randrange(0x110000)))) + text[i + 1 :]
            case 7:
                text = "".join(str(rng.randrange(10)) if c.isdigit() and rng.random() < 0.3 else c for c in text)
    return text


def check(text: str, key: str, size: tuple[int, int]) -> GroundedText:
    grounded = parse(text, key, size)  # GroundedText itself checks that spans fit, are sorted and don't overlap
    width, height = size
    for box in grounded.boxes:
        assert all(map(math.isfinite, box))
        assert 0 <= box[0] <= box[2] <= width
        assert 0 <= box[1] <= box[3] <= height
    for x, y in grounded.points:
        assert 0 <= x <= width
        assert 0 <= y <= height
    for words in (grounded.plain_text, *(problem.text for problem in grounded.problems)):
        words.encode()  # without lone surrogates
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    for problem in grounded.problems:
        assert text[problem.offset : problem.offset + len(problem.text)] == problem.text
        assert problem.text
    assert list(grounded.problems) == sorted(grounded.problems, key=lambda problem: problem.offset)
    return grounded


@pytest.mark.parametrize("key", KEYS)
def test_parse_never_raises_on_corrupted_answers(key: str) -> None:
    rng = random.Random(f"fuzz {key}")
    own, foreign = answers(key), [text for other in KEYS for text in answers(other)]
    unwritable = 0
    for case in range(CASES):
        text = corrupt(rng, rng.choice(own), own if rng.random() < 0.7 else foreign)
        size = SIZES[case % len(SIZES)]
        grounded = check(text, key, size)
        if case % 10:
            continue
        if grounded.problems:
            with pytest.raises(GroundingError, match=f"malformed at offset {grounded.problems[0].offset}:"):
                parse(text, key, size, strict=True)
        else:
            assert parse(text, key, size, strict=True) == grounded
        # A parsed answer can be written again, unless its words contain markup.
        try:
            render(grounded, key, size)
        except GroundingError:
            unwritable += 1
    assert unwritable < CASES / 10 * 0.15


@pytest.mark.parametrize("key", KEYS)
@given(text=st.text() | st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=30).map("".join))
@settings(max_examples=examples(150), deadline=None)
def test_parse_never_raises_on_arbitrary_text(key: str, text: str) -> None:
    check(text, key, SIZES[0])


@pytest.mark.parametrize("key", KEYS)
@given(
    pieces=st.lists(
        st.tuples(st.sampled_from(FRAGMENTS) | st.text(max_size=6), st.sampled_from((0, 0, 1, 2))), max_size=8
    )
)
@settings(max_examples=examples(150), deadline=None)
def test_words_that_look_like_markup_are_never_written_as_boxes(key: str, pieces: list[tuple[str, int]]) -> None:
    text, spans = "", []
    grounding = {"boxes": ((1, 2, 300, 400),)} if DIALECTS[key].writes_boxes else {"points": ((300, 400),)}
    for piece, count in pieces:
        found = {name: values * count for name, values in grounding.items()}
        spans += [Span(piece, len(text), len(text) + len(piece), **found)] if count else []
        text += piece
    grounded = GroundedText(text, tuple(spans))
    try:
        written = render(grounded, key, SIZES[0])
    except GroundingError:
        return
    again = parse(written, key, SIZES[0])
    assert (len(again.boxes), len(again.points)) == (len(grounded.boxes), len(grounded.points))
    if DIALECTS[key].keeps_prose or not (grounded.boxes or grounded.points):
        assert again.plain_text == text.strip()


@pytest.mark.parametrize(("key", "kind"), KINDS)
def test_an_answer_that_is_cut_anywhere_keeps_what_is_before_the_cut(key: str, kind: str) -> None:
    text = answers_with(key, kind)[0]
    whole = parse(text, key, SIZES[0], strict=True)
    counts = []
    for cut in range(len(text) + 1):
        grounded = parse(text[:cut], key, SIZES[0])
        found = getattr(grounded, kind)
        assert found == getattr(whole, kind)[: len(found)]
        assert len(found) == len(grounded.boxes) + len(grounded.points)
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts[-1] == len(getattr(whole, kind)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "piece",
    ["[", "]", "1", "[1", "[1,", "[1, 2, 3, 4", "[[1,2,3,4;", "[1, 2, 3, 4] and ", " ", "[ ", "a ", " and ", "。",
     "(", "(1,", "( 1 ", "( ", "((1,2),", "(1, 2, 3, 4", "(1,2),(3,4)", "([1, 2, 3, 4]", "[x1=1, ", "(a=", "[ 1 2",
     "a stand ", "a x and y z ", "on the left ",
     "<", "<ref>", "<ref> a", "<box>", "<box>(", "<object>", "<phrase>", "<patch_index_0001>",
     "<|box_start|>1", "<|begin_of_box|>", "<|begin_of_box|>[1,", "<|begin_of_box|>[[1,2],", "<|det|>[[1, 2, 3, 4],",
     "<|box_start|><1><2>", "<1>", "<1><2>,", "<bbox>", "<bbox>1 2 ", "<point>1", "<point>1 2</point> ", "<point ",
     '<points x1="1" y1="2"', '<points x1="1" y1="2">a', "<points ", ' x1="1" y1="2"', '<points coords="1 1 ',
     '<points coords="1 1 100 200 ', "<points coords='1 1 1 1'>", '1 1 100 200;', "</points>",
     '"alt="', '{"point_2d": [1,',
     '{"point": [1, 2], "label": "\\"', "<loc_1>", "<loc0001>", "<loc", "; ", "</s>", "\\",
     '{"a":{"bbox_2d":[1,2,3,4],"c":', "{'a':'", "［1，", "(a) ", "[1, 2, 3, 4]: a\n", "[1, 2, 3, 4] a, ",
     "{", '{"', '{"a', '{"\\"', '{"bbox_2d": [1, 2, 3, 4], "label": "\\"', '{"bbox_2d": [1,'],
)  # fmt: skip
def test_parsing_takes_linear_time(key: str, piece: str) -> None:
    # Four times the text takes about 4 times as long; with a quadratic step it would take 16 times as long.
    def seconds(characters: int) -> float:
        text = piece * (characters // len(piece))
        started = time.process_time()
        parse(text, key, SIZES[0])
        return time.process_time() - started

    # Another process can slow down a single measurement, but not several in the same way.
    assert any(seconds(36_000) < 10 * seconds(9_000) for _ in range(5))


def test_a_line_that_cannot_be_written_is_reported_and_later_lines_are_converted() -> None:
    bad, good = ("<ref>a [1, 2, 3, 4] dog</ref><box>(1,2),(3,4)</box>", "<ref>a dog</ref><box>(0,0),(999,999)</box>")
    converted = list(convert_lines([bad + "\n", good], "qwen_vl", "ferret", (1000, 1000)))
    assert [line.text for line in converted] == ["", "a dog [0, 0, 1000, 1000]"]
    (problem,) = converted[0].problems
    assert (problem.offset, problem.text) == (0, bad)
    assert problem.reason.startswith("line not written: Text can't be written in dialect `ferret`")
    assert "[1, 2, 3, 4]" in problem.reason
    with pytest.raises(GroundingError, match="its own words would be read as markup"):
        list(convert_lines([bad], "qwen_vl", "ferret", (1000, 1000), strict=True))


def test_each_input_line_gives_one_output_line() -> None:
    lines = ['[{"bbox_2d": [1, 2, 3, 4], "label": "two\\nlines"}]\r\n', "\n", 'cut {"bbox_2d": [1, 2\n']
    converted = list(convert_lines(lines, "qwen3_vl", "ferret", (1000, 1000)))
    assert [line.text for line in converted] == ["two lines [1, 2, 3, 4]", "", ""]
    assert [[str(problem) for problem in line.problems] for line in converted] == [
        [],
        [],
        ["offset 4: '{\"bbox_2d\": [1, 2': entry is not closed: dropped"],
    ]
