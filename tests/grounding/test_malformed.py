"""Malformed answers: every well-formed box is kept, and every malformed piece is reported with its offset."""

from __future__ import annotations

import pytest

from spr.core.errors import GroundingError, RecordError
from spr.grounding import DIALECTS, GroundedText, Problem, parse, render, replace_boxes
from spr.records import Span

SIZE = (1000, 1000)


def read(text: str, key: str) -> tuple[str, list[tuple[str, int]], list[tuple[int, str]]]:
    """Plain text, phrases with the number of their boxes, and offsets and texts of the problems."""
    grounded = parse(text, key, SIZE)
    spans = [(span.phrase, len(span.boxes)) for span in grounded.spans]
    return grounded.plain_text, spans, [(problem.offset, problem.text) for problem in grounded.problems]


def test_an_unclosed_bracket_does_not_remove_the_rest_of_the_answer() -> None:
    text = "a dog [100, 150, 300, 200 and a cat [1, 2, 3, 4]."
    assert read(text, "ferret") == ("a dog and a cat.", [("a cat", 1)], [(6, "[100, 150, 300, 200")])


@pytest.mark.parametrize("tail", ["[", "[1", "[12, ", "[12, 30", "[12, 30, 4, 5"])
def test_a_bracket_that_is_cut_off_at_the_end_is_reported(tail: str) -> None:
    plain, spans, problems = read("a cat [1, 2, 3, 4] and a dog " + tail, "ferret")
    assert spans == [("a cat", 1)]
    if tail == "[":  # nothing indicates that it was meant as a box
        assert (plain, problems) == ("a cat and a dog [", [])
    else:
        assert (plain, problems) == ("a cat and a dog", [(29, tail.rstrip())])


def test_brackets_with_three_or_five_numbers_are_dropped_and_their_phrase_gets_no_other_box() -> None:
    text = "a dog [1, 2, 3] a cat [1, 2, 3, 4, 5] a man [1, 2, 3, 4]"
    assert read(text, "ferret") == (
        "a dog a cat a man",
        [("a man", 1)],
        [(7, "1, 2, 3"), (23, "1, 2, 3, 4, 5")],
    )


def test_a_well_formed_box_beside_a_malformed_one_in_the_same_brackets_is_kept() -> None:
    text = "dogs [[1,2,3;100,100,200,200;x]]"
    assert read(text, "cogvlm") == ("dogs", [("dogs", 1)], [(7, "1,2,3"), (29, "x")])


def test_words_and_single_numbers_in_brackets_are_text() -> None:
    text = "array [1] is [sic] as [see 2, 3] and [] say [a, b, c]"
    for key in ("ferret", "cogvlm", "llava", "shikra"):
        assert read(text, key) == (text, [], [])


@pytest.mark.parametrize(
    "piece", ["[5, 6]", "[NaN, 1, 2, 3]", "[inf, 1, 2, 3]", "[1, 2O, 3, 4]", "[1;2;3]", "[1e999, 1, 2, 3]"]
)
def test_brackets_that_were_meant_as_a_box_are_reported(piece: str) -> None:
    plain, spans, problems = read(f"a dog {piece}.", "ferret")
    assert (plain, spans) == ("a dog.", [])
    assert problems


def test_numbers_out_of_range_are_clipped_and_reported_but_never_rescaled() -> None:
    grounded = parse("a dog [100, 150, 1200, 200]", "ferret", SIZE)
    assert grounded.boxes == ((100, 150, 1000, 200),)
    assert [str(problem) for problem in grounded.problems] == [
        "offset 6: '[100, 150, 1200, 200]': out of the range 0 to 1000: clipped"
    ]
    assert parse("a dog [-0.10, 0.20, 0.30, 0.40]", "llava", SIZE).boxes == ((0, 200, 300, 400),)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("ferret", "a dog [0.12, 0.34, 0.56, 1]"),
        ("cogvlm", "a dog [[0.12,0.34,0.56,0.78]]"),
        ("qwen_vl", "<ref>a dog</ref><box>(0.12,0.34),(0.56,0.78)</box>"),
        ("qwen2_5_vl", '[{"bbox_2d": [0.12, 0.34, 0.56, 0.78], "label": "a dog"}]'),
        ("qwen3_vl", '[{"label": "a dog", "bbox_2d": [0, 0, 0.56, 1.0]}]'),
    ],
)
def test_numbers_that_fit_another_scale_are_read_as_they_are_and_reported(key: str, text: str) -> None:
    grounded = parse(text, key, SIZE)
    assert max(grounded.boxes[0]) <= 1
    assert [problem.reason.split(":")[0] for problem in grounded.problems] == ["implausible_scale"]
    assert render(grounded, key, SIZE) == text


def test_whole_numbers_and_dialects_of_0_to_1_have_no_implausible_scale() -> None:
    assert parse("a dot [0, 0, 1, 1]", "ferret", SIZE, strict=True).boxes == ((0, 0, 1, 1),)
    assert parse("a dog [0.5, 0.25, 100, 200]", "ferret", SIZE, strict=True).boxes == ((0.5, 0.25, 100, 200),)
    assert parse("a dog [0.12, 0.34, 0.56, 0.78]", "llava", SIZE, strict=True).boxes == ((120, 340, 560, 780),)


def test_a_box_entirely_out_of_range_is_dropped_and_reported() -> None:
    plain, spans, problems = read("a dog [1200, 150, 1300, 200] and a cat [1, 2, 3, 4]", "ferret")
    assert (plain, spans, problems) == ("a dog and a cat", [("a cat", 1)], [(6, "[1200, 150, 1300, 200]")])


def test_a_box_in_the_padding_is_dropped_and_one_that_reaches_into_it_is_clipped() -> None:
    # 1000 × 500 padded to 1000 × 1000: the image takes y from 0.25 to 0.75.
    text = "a dog [0.10, 0.00, 0.20, 0.20] and a cat [0.10, 0.10, 0.20, 0.50]"
    grounded = parse(text, "llava", (1000, 500))
    assert [(span.phrase, span.boxes) for span in grounded.spans] == [("a cat", ((100, 0, 200, 250),))]
    assert [problem.offset for problem in grounded.problems] == [6, 41]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("ferret", "a dog [300, 200, 100, 150]"),
        ("qwen_vl", "<ref>a dog</ref><box>(300,200),(100,150)</box>"),
        ("qwen3_vl", '{"bbox_2d": [300, 200, 100, 150], "label": "a dog"}'),
        ("florence2", "a dog<loc_300><loc_200><loc_100><loc_150>"),
        ("kosmos2", "<phrase>a dog</phrase><object><patch_index_0201><patch_index_0131></object>"),
    ],
)
def test_swapped_corners_are_sorted_and_reported(key: str, text: str) -> None:
    grounded = parse(text, key, SIZE)
    (x1, y1, x2, y2) = grounded.boxes[0]
    assert x1 < x2
    assert y1 < y2
    assert [problem.reason for problem in grounded.problems] == ["corners swapped: sorted"]


def test_a_box_without_area_is_kept_unchanged() -> None:
    grounded = parse("a dot [10, 20, 10, 20]", "ferret", SIZE, strict=True)
    assert grounded.boxes == ((10, 20, 10, 20),)


def test_a_box_without_a_phrase_is_kept_and_reported() -> None:
    assert read("[1, 2, 3, 4] is there", "ferret") == ("is there", [("", 1)], [(0, "[1, 2, 3, 4]")])
    assert read("on [1, 2, 3, 4] there", "ferret") == ("on there", [("", 1)], [(3, "[1, 2, 3, 4]")])


@pytest.mark.parametrize("key", [key for key, dialect in DIALECTS.items() if dialect.writes_boxes])
def test_an_answer_that_is_a_single_box_has_no_problem(key: str) -> None:
    text = render(GroundedText("", (Span("", 0, 0, ((100, 100, 500, 500),)),)), key, SIZE)
    grounded = parse(text, key, SIZE, strict=True)
    assert grounded.plain_text == ""
    assert len(grounded.boxes) == 1


@pytest.mark.parametrize("key", ["qwen3_vl", "gemini", "seed_vl", "minicpm_v", "glm_v", "rex_omni"])
def test_an_answer_that_is_a_single_point_has_no_problem(key: str) -> None:
    text = render(GroundedText("", (Span("", 0, 0, (), ((100, 200),)),)), key, SIZE)
    grounded = parse(text, key, SIZE, strict=True)
    assert (grounded.plain_text, len(grounded.points)) == ("", 1)


def test_the_wrong_number_of_brackets_is_reported_and_the_box_is_kept() -> None:
    assert read("a dog [[1, 2, 3, 4]].", "ferret") == ("a dog.", [("a dog", 1)], [(6, "[[1, 2, 3, 4]]")])
    assert read("a dog [001,002,003,004].", "cogvlm") == ("a dog.", [("a dog", 1)], [(6, "[001,002,003,004]")])


def test_tags_that_are_not_closed_or_not_opened_are_reported() -> None:
    text = "<ref>a dog<ref>a cat</ref><box>(1,2),(3,4)</box> and</box> <box>(1,2),(3 and more <ref>x</ref>"
    plain, spans, problems = read(text, "qwen_vl")
    assert plain == "a doga cat and and more x"
    assert spans == [("a cat", 1), ("x", 0)]
    assert problems == [(0, "<ref>a dog"), (52, "</box>"), (59, "<box>(1,2),(3 ")]


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ("[120，340，560，780]", "full-width punctuation: read anyway"),
        ("［120, 340, 560, 780］", "full-width punctuation: read anyway"),
        ("【１２０、３４０、５６０、７８０】", "full-width punctuation: read anyway"),
        ("[(120, 340), (560, 780)]", "points in parentheses: read anyway"),
        ("[120, 340, 560, 780]]", "bracket closes nothing: dropped"),
    ],
)
def test_numbers_of_the_dialect_in_other_punctuation_are_read_and_reported(box: str, reason: str) -> None:
    text = f"There is a dog {box} (1，2)."
    grounded = parse(text, "ferret", SIZE)
    assert (grounded.plain_text, grounded.boxes) == ("There is a dog (1，2).", ((120, 340, 560, 780),))
    assert grounded.spans[0].phrase == "a dog"
    assert [problem.reason for problem in grounded.problems] == [reason]
    assert render(grounded, "ferret", SIZE) == text
    moved = render(replace_boxes(grounded, [(120, 340, 560, 790)]), "ferret", SIZE)
    assert moved == text.replace("780", "790").replace("７８０", "790")


@pytest.mark.parametrize("key", DIALECTS)
@pytest.mark.parametrize(
    "piece", ["（120, 340, 560, 780）", "[12%, 30%, 45%, 66%]", "(12 %, 30 %, 45 %, 66 %)", "[12px, 30 px, 45px, 66px]"]
)
def test_coordinates_of_an_unknown_scale_are_reported_and_taken_out(key: str, piece: str) -> None:
    grounded = parse(f"There is a dog {piece}.", key, SIZE)
    if key == "glm_v" and piece[-2].isdigit():  # GLM-V writes all kinds of brackets
        assert (grounded.plain_text, len(grounded.boxes)) == ("There is a dog.", 1)
        return
    assert (grounded.plain_text, grounded.boxes) == ("There is a dog.", ())
    assert STRAY in [problem.reason for problem in grounded.problems]


def test_other_brackets_around_numbers_are_coordinates_and_around_words_are_not() -> None:
    assert read("a dog {120, 340, 560, 780} runs", "ferret") == ("a dog runs", [], [(6, "{120, 340, 560, 780}")])
    assert read("[see a dog [1, 2, 3, 4]] runs", "ferret") == ("[see a dog] runs", [("a dog", 1)], [])
    text = "<ref>狗（1，2）</ref><box>（1，2），（3，4）</box>"
    assert read(text, "qwen_vl") == ("狗（1，2）", [("狗（1，2）", 1)], [(0, text)])
    assert read("一只狗（黑，1）[1, 2, 3, 4]，两只猫。", "ferret") == ("一只狗（黑，1），两只猫。", [("一只狗", 1)], [])
    assert read("about {1, 2} or {a: 1} and 5%, 6%", "ferret") == ("about {1, 2} or {a: 1} and 5%, 6%", [], [])


def test_text_in_box_tags_that_is_not_a_box_is_reported() -> None:
    text = "<ref>a dog</ref><box>(1,2),(3,4),(5,6)</box> <ref>a cat</ref><box></box>"
    assert read(text, "qwen_vl") == (
        "a dog a cat",
        [("a dog", 0), ("a cat", 0)],
        [(21, "(1,2),(3,4),(5,6)"), (61, "<box>")],
    )
    text = "<ref>cats</ref><box>[[1, 2, 3, 4], [5, 6, 7], [7, 7, 8, 8]]</box>"
    assert read(text, "internvl") == ("cats", [("cats", 2)], [(36, "5, 6, 7")])


@pytest.mark.parametrize(
    ("key", "box", "box_in_pixels"),
    [
        ("internvl", "[[100, 150, 300, 200]]", (100, 150, 300, 200)),
        ("internvl", " [100, 150, 300, 200]", (100, 150, 300, 200)),
        ("qwen2_vl", "(100,150),(300,200)", (100, 150, 300, 200)),
        ("qwen2_vl", "(100,150),(300,200)<|box_end|>", (100, 150, 300, 200)),
        ("qwen_vl", "(0,111),(333,999)</box>", (0, 1000 / 9, 1000 / 3, 1000)),
        ("kosmos2", "<patch_index_0000><patch_index_0000>", (0, 0, 31.25, 31.25)),
    ],
)
def test_boxes_of_the_dialect_are_read_after_their_tags_were_stripped(
    key: str, box: str, box_in_pixels: tuple[float, ...]
) -> None:
    text = f"The man{box} runs"
    grounded = parse(text, key, SIZE)
    assert (grounded.plain_text, [span.phrase for span in grounded.spans]) == ("The man runs", ["The man"])
    assert grounded.boxes == (pytest.approx(box_in_pixels),)
    assert grounded.problems[0].reason == "box without its tags: read anyway"
    assert render(grounded, key, SIZE) == text
    assert render(replace_boxes(grounded, [None]), key, SIZE) == "The man runs"
    alone = parse(box, key, SIZE)
    assert (alone.plain_text, alone.boxes, len(alone.problems)) == ("", grounded.boxes, 1)


def test_several_stripped_boxes_of_a_phrase_and_an_answer_of_four_numbers_are_read() -> None:
    assert read("men[[1, 2, 3, 4], [5, 6, 7, 8]] run", "internvl")[:2] == ("men run", [("men", 2)])
    assert read("men(1,2),(3,4)(5,6),(7,8) run", "qwen2_vl")[:2] == ("men run", [("men", 2)])
    assert read("100 150 300 200", "minicpm_v") == ("", [("", 1)], [(0, "100 150 300 200")])


def test_corners_of_words_and_polygons_are_no_boxes() -> None:
    quad, polygon = ("<loc_{}>" * n for n in (8, 10))
    text = "STOP" + quad.format(10, 10, 90, 12, 90, 40, 10, 38) + "car<loc_1><loc_2><loc_3><loc_4>"
    assert read(text, "florence2")[:2] == ("STOP, car", [("car", 1)])
    assert parse(text, "florence2", SIZE).problems[0].reason == "a polygon of 4 points instead of a box: dropped"
    text = "dog" + polygon.format(10, 10, 90, 12, 90, 40, 10, 38, 5, 20)
    assert (read(text, "florence2")[:2], len(parse(text, "florence2", SIZE).problems)) == (("dog", []), 1)
    text = "dog<poly><loc_1><loc_2><loc_8><loc_9><loc_9><loc_9></poly>"
    assert read(text, "florence2")[:2] == ("dog", [])
    assert read("dogs" + quad.format(1, 2, 3, 4, 5, 6, 7, 8), "florence2") == ("dogs", [("dogs", 2)], [])


LIST_KEYS = ("qwen2_5_vl", "qwen3_vl", "paligemma", "florence2")
STRAY = "coordinates without the dialect's markup: dropped"


@pytest.mark.parametrize("key", LIST_KEYS)
@pytest.mark.parametrize(
    "piece",
    [
        "[341, 258, 397, 360]",
        "(341,258),(397,360)",
        "(341, 258, 397, 360)",
        "[[341, 258], [397, 360]]",
        "[[341, 258, 397, 360], [5, 6, 7, 8]]",
        "[x1=341, y1=258, x2=397, y2=360]",
    ],
)
def test_coordinates_without_the_markup_of_a_list_are_reported_and_removed(key: str, piece: str) -> None:
    assert read(piece, key) == ("", [], [(0, piece)])
    text = f"The dog is at {piece}."
    assert read(text, key) == ("The dog is at.", [], [(14, piece)])
    assert parse(text, key, SIZE).problems[0].reason == STRAY


@pytest.mark.parametrize("key", ["ferret", "llava", "kosmos2", "internvl"])
@pytest.mark.parametrize(
    "piece",
    ["[100 150 300 200]", "(100, 150, 300, 200)", "[x1=100, y1=150, x2=300, y2=200]", "(100,150),(300,200)"],
)
def test_coordinates_in_other_markup_are_reported_and_removed_from_prose(key: str, piece: str) -> None:
    grounded = parse(f"a dog {piece} runs", key, SIZE)
    assert (grounded.plain_text, grounded.boxes) == ("a dog runs", ())
    assert [problem.reason for problem in grounded.problems] == [STRAY]


@pytest.mark.parametrize("key", LIST_KEYS)
def test_the_tags_of_another_dialect_are_reported_and_removed(key: str) -> None:
    text = "<|box_start|>(341,258),(397,360)<|box_end|>"
    assert read(text, key) == ("", [], [(0, "<|box_start|>"), (13, "(341,258),(397,360)"), (32, "<|box_end|>")])


def test_coordinates_beside_json_entries_are_reported() -> None:
    text = 'At [1, 2, 3, 4]: [{"bbox_2d": [5, 6, 7, 8], "label": "a dog"}]'
    assert read(text, "qwen3_vl") == ("a dog", [("a dog", 1)], [(3, "[1, 2, 3, 4]")])


def test_coordinates_that_are_cut_off_at_the_end_are_reported() -> None:
    assert read("a dog (1, 2, 3, 4", "ferret") == ("a dog", [], [(6, "(1, 2, 3, 4")])


@pytest.mark.parametrize("key", DIALECTS)
def test_numbers_that_are_not_clearly_coordinates_are_words(key: str) -> None:
    text = "In (1998) and [1] or (2, 3), (1, 2, 3, 4, 5), (1 2 3 4 dogs) and (1998) [1] (2, 3)."
    assert read(text, key) == (text, [], [])


@pytest.mark.parametrize("key", DIALECTS)
def test_lone_surrogates_become_replacement_characters(key: str) -> None:
    text = "a \ud800 dog \udfff"
    assert read(text, key)[0] == "a \ufffd dog \ufffd"
    problem = parse("dog <loc_\ud800> [1, 2, \ud800] {\ud800 <box>\ud800", key, SIZE).problems[0]
    assert problem.text.encode()


def test_lone_surrogates_in_json_escapes_become_replacement_characters() -> None:
    text = '[{"bbox_2d": [1, 2, 3, 4], "label": "a \\ud800 dog \\ud83d\\udc15"}]'
    grounded = parse(text, "qwen3_vl", SIZE, strict=True)
    assert grounded.plain_text == grounded.spans[0].phrase == "a \ufffd dog 🐕"


def test_a_box_whose_phrase_is_not_marked_grounds_the_words_before_it() -> None:
    text = "There is a dog<box>(1,2),(3,4)</box>."
    assert read(text, "qwen_vl") == ("There is a dog.", [("a dog", 1)], [(14, "<box>(1,2),(3,4)</box>")])


def test_cells_that_do_not_exist_are_dropped() -> None:
    text = (
        "<phrase>cats</phrase><object><patch_index_0001><patch_index_1024></delimiter_of_multi_objects/>"
        "<patch_index_0001><patch_index_0099></object>"
    )
    assert read(text, "kosmos2") == ("cats", [("cats", 1)], [(29, "<patch_index_0001><patch_index_1024>")])


def test_fewer_than_four_location_tokens_are_reported() -> None:
    text = "car<loc_1><loc_2><loc_3>dog<loc_1><loc_2><loc_3><loc_4><loc_5>cat<loc_a>"
    assert read(text, "florence2") == (
        "car, dog, cat",
        [("dog", 1)],
        [(3, "<loc_1><loc_2><loc_3>"), (55, "<loc_5>"), (65, "<loc_a>")],
    )
    text = "<loc0001><loc0002> dog ; <loc0001><loc0002><loc0003><loc0004> cat ; <loc0001"
    assert read(text, "paligemma") == ("dog, cat", [("cat", 1)], [(0, "<loc0001><loc0002>"), (68, "<loc0001")])


def test_json_that_is_cut_at_max_new_tokens_keeps_its_complete_entries() -> None:
    text = '```json\n[\n\t{"bbox_2d": [1, 2, 3, 4], "label": "a \\"big\\" dog"},\n\t{"bbox_2d": [5, 6, 7, 8], "la'
    plain, spans, problems = read(text, "qwen3_vl")
    assert (plain, spans) == ('a "big" dog', [('a "big" dog', 1)])
    assert [offset for offset, _ in problems] == [8, 65]
    assert parse(text, "qwen3_vl", SIZE).problems[1].reason == "entry is not closed: dropped"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ('{"point_3d": [1, 2], "label": "x"}', "entry has no bbox_2d: dropped"),
        ('{"point_2d": [1, 2, 3], "label": "x"}', "3 numbers instead of 2: dropped"),
        ('{"point_2d": [1001, 2], "label": "x"}', "outside the range 0 to 1000: dropped"),
        ('{"point_2d": {"x": 1, "y": 2}, "label": "x"}', "point_2d is not a list of numbers: dropped"),
        ('{"bbox_2d": [1, 2, 3], "label": "x"}', "3 numbers instead of 4: dropped"),
        ('{"bbox_2d": ["1", 2, 3, 4], "label": "x"}', "bbox_2d is not a list of numbers: dropped"),
        ('{"bbox_2d": [true, 2, 3, 4], "label": "x"}', "bbox_2d is not a list of numbers: dropped"),
        ('{"bbox_2d": "1, 2, 3, 4", "label": "x"}', "bbox_2d is not a list of numbers: dropped"),
        ('{"bbox_2d": [NaN, 2, 3, 4], "label": "x"}', "not a finite number: dropped"),
        ('{"bbox_2d": [1e999, 2, 3, 4], "label": "x"}', "not a finite number: dropped"),
        ('{"bbox_2d": [1' + "0" * 400 + ', 2, 3, 4], "label": "x"}', "not a finite number: dropped"),
        ('{"bbox_2d": [1, 2, 3] "label": "x"}', "entry is not JSON: dropped"),
        ('{"bbox_2d": ' + "[" * 50_000 + "}", "entry is not JSON: dropped"),
        ('{"bbox_2d": [1, 2, 3, 4], "label": 7}', "label is not text: box kept without one"),
        ('{"bbox_2d": [1, 2, 3, 4]}', "box without a label: kept without one"),
    ],
)
def test_a_malformed_entry_does_not_remove_the_others(entry: str, reason: str) -> None:
    text = f'[{entry}, {{"bbox_2d": [5, 6, 7, 8], "label": "cat"}}]'
    grounded = parse(text, "qwen3_vl", SIZE)
    assert grounded.plain_text == "cat"
    assert grounded.boxes[-1] == (5, 6, 7, 8)
    assert reason in [problem.reason for problem in grounded.problems]
    assert len(grounded.boxes) == 1 + ("kept" in reason)


def test_an_answer_in_words_is_kept_where_json_was_expected() -> None:
    assert read("There is no dog.", "qwen2_5_vl") == ("There is no dog.", [], [])
    assert read("```json\n[]\n```", "qwen2_5_vl") == ("", [], [])


def test_special_tokens_are_removed_from_the_text() -> None:
    assert read("<s> A dog [1, 2, 3, 4] <region_fea> sits.</s>", "ferret")[:2] == ("A dog sits.", [("A dog", 1)])
    assert read("A dog<|im_end|>", "qwen2_vl")[0] == "A dog"
    assert read("</s><s>A dog<loc_1><loc_2><loc_3><loc_4></s>", "florence2")[:2] == ("A dog", [("A dog", 1)])


def test_strict_raises_at_the_first_problem_and_names_its_offset_and_piece() -> None:
    text = "a dog [1, 2, 3] and a cat [1, 2, 3, 4, 5]"
    with pytest.raises(GroundingError, match="`ferret` is malformed at offset 7: 3 numbers") as caught:
        parse(text, "ferret", SIZE, strict=True)
    assert caught.value.got == "'1, 2, 3'"
    assert caught.value.expected == DIALECTS["ferret"].example
    assert parse("a dog [1, 2, 3, 4]", "ferret", SIZE, strict=True).problems == ()


def test_grounded_text_refuses_spans_that_do_not_fit() -> None:
    with pytest.raises(RecordError, match="does not match"):
        GroundedText("a dog", (Span("a cat", 0, 5),))
    with pytest.raises(RecordError, match="overlap or are not sorted"):
        GroundedText("a dog", (Span("dog", 2, 5), Span("a", 0, 1)))
    with pytest.raises(RecordError, match="overlap or are not sorted"):
        GroundedText("a dog", (Span("a dog", 0, 5), Span("dog", 2, 5)))


def test_a_problem_prints_its_offset_text_and_reason() -> None:
    assert str(Problem(3, "[1", "bracket is not closed: dropped")) == "offset 3: '[1': bracket is not closed: dropped"
