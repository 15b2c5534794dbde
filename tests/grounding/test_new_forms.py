"""Forms of the dialects with tags, bins, elements and JSON in strings: misplaced, malformed and cut answers."""

from __future__ import annotations

import pytest

from spr.grounding import map_to_image, parse, render, replace_boxes

SIZE = (1000, 1000)
KEPT = "is not closed: what is complete is kept"


def read(text: str, key: str) -> tuple[str, list[tuple[str, int, int]], list[str]]:
    """The plain text; phrases with the numbers of their boxes and points; the reasons of the problems."""
    grounded = parse(text, key, SIZE)
    spans = [(span.phrase, len(span.boxes), len(span.points)) for span in grounded.spans]
    return grounded.plain_text, spans, [problem.reason for problem in grounded.problems]


@pytest.mark.parametrize(
    ("text", "plain", "spans"),
    [
        ("A dog is at <|begin_of_box|>[[1, 2, 3, 4], [5,6,7,8]]<|end_of_box|>.", "A dog is at.", [("A dog", 2, 0)]),
        ("<|begin_of_box|>[1, 2, 3, 4]<|end_of_box|>", "", [("", 1, 0)]),
        ("a dog <|begin_of_box|>(1,2,3,4)<|end_of_box|>", "a dog", [("a dog", 1, 0)]),
        ("a dog <|begin_of_box|><1,2,3,4><|end_of_box|>", "a dog", [("a dog", 1, 0)]),
        ("<|begin_of_box|>[[412, 388], [5, 6]]<|end_of_box|>", "", [("", 0, 2)]),
        # Boxes without tags, as the publisher's own tool shows them.
        ("1. Person 1: box [1, 2, 3, 4]\n2. Person 2: box [5, 6, 7, 8]. The box format is [x1, y1, x2, y2].",
         "1. Person 1: box\n2. Person 2: box. The box format is [x1, y1, x2, y2].", [("box", 1, 0), ("box", 1, 0)]),
        # The tags also mark answers that are no box.
        ("<|begin_of_box|>red<|end_of_box|>", "red", []),
        ("There are <|begin_of_box|>12, 15<|end_of_box|> of them.", "There are 12, 15 of them.", []),
        ("It is <|begin_of_box|>a dog at [[1,2,3,4]] there<|end_of_box|>.", "It is a dog at there.", [("a dog", 1, 0)]),
        ('<|begin_of_box|>[{"label": "dog", "bbox_2d": [1, 2, 3, 4]}]<|end_of_box|>', "dog", [("dog", 1, 0)]),
    ],
)  # fmt: skip
def test_glm_v_writes_boxes_points_words_and_json(text: str, plain: str, spans: list[tuple[str, int, int]]) -> None:
    assert read(text, "glm_v") == (plain, spans, [])
    assert render(parse(text, "glm_v", SIZE), "glm_v", SIZE) == text


@pytest.mark.parametrize(
    ("key", "text", "spans", "reasons"),
    [
        ("glm_v", "a dog <|begin_of_box|>[[1, 2, 3, 4], [5, 6", [("a dog", 1, 0)], [f"box {KEPT}"]),
        ("deepseek_vl2", "<|ref|>a dog<|/ref|><|det|>[[1, 2, 3, 4], [5, 6, 7, 8], [9", [("a dog", 2, 0)],
         [f"box {KEPT}"]),
        ("internvl", "<ref>a dog</ref><box>[[1, 2, 3, 4], [5, 6, 7", [("a dog", 1, 0)], [f"box {KEPT}"]),
        ("rex_omni", "<|object_ref_start|>a dog<|object_ref_end|><|box_start|><1><2><3><4>,<5><6>", [("a dog", 1, 0)],
         [f"box {KEPT}"]),  # the last two may be half of a box
        ("seed_vl", "a dog <bbox>1 2 30", [], ["box is not closed: dropped"]),
        ("seed_vl", "a dog <point>1 2", [], ["<point> is not closed: dropped"]),
        ("seed_vl", "a dog <bbox>1 2 3</bbox>", [], ["not a box like {} {} {} {}: dropped"]),
        ("seed_vl", "a dog <point>1 2 3 4</point>", [], ["not a point like {} {}: dropped"]),
        ("minicpm_v", "<ref>a dog</ref><point>1 2</point>", [("a dog", 0, 1)], []),
        ("minicpm_v", "<ref>a dog</ref><box>1 2</box>", [("a dog", 0, 0)], ["not a box like {} {} {} {}: dropped"]),
        ("molmo", '<point x="10" y="20" alt="a dog">a dog', [("a dog", 0, 1)],
         ["element is not closed: its points are kept"]),
        ("molmo", '<points x1="10" y1="20" x2="30" y2="40', [("", 0, 1)],
         ["tag is not closed: its complete points are kept"]),
        ("molmo", '<point x="101" y="20" alt="a dog">a dog</point>', [("a dog", 0, 0)],
         ["outside the range 0 to 100: dropped"]),
        ("molmo", '<point alt="a dog">a dog</point>', [("a dog", 0, 0)], ["element has no point: dropped"]),
        ("molmo", "a dog</point>", [], ["closing tag without its opening tag: dropped"]),
        ("molmo", '<point x="0.123" y="0.456" alt="a dog">a dog</point>', [("a dog", 0, 1)],
         ["implausible_scale: numbers from 0 to 1 instead of 0 to 100: read as they are"]),
        ("molmo2", '<points coords="1 1 100 200;2 2 300 400">a dog</points>', [("a dog", 0, 1)],
         ["points of image 2 instead of image 1: dropped"]),
        ("molmo", '<points x1="10" y1="20" x2="nan" y2="4" alt="a x3=5 dog">a dog</points>', [("a dog", 0, 1)],
         ["not a point: dropped", "not a point: dropped"]),
        ("molmo", "<points x1='10' y1='20' x2='7' alt='a'>a dog</points>", [("a dog", 0, 1)], ["not a point: dropped"]),
        ("molmo2", '<points coords="1 1 100 200 2 300">a dog</points>', [("a dog", 0, 1)], ["not a point: dropped"]),
        ("molmo2", '<points label="a dog" coords="1 1 100 200"/>', [("a dog", 0, 1)], []),
        ("gemini", '[{"box_2d": [1, 2, 3], "label": "a dog"}]', [], ["3 numbers instead of 4: dropped"]),
        ("gemini", '[{"point": [1, 2, 3], "label": "a dog"}]', [], ["3 numbers instead of 2: dropped"]),
    ],
)  # fmt: skip
def test_what_is_complete_is_kept_and_the_rest_is_reported(
    key: str, text: str, spans: list[tuple[str, int, int]], reasons: list[str]
) -> None:
    plain, found, problems = read(text, key)
    assert ([span for span in found if span[0] or any(span[1:])], problems[: len(reasons)]) == (spans, reasons)
    assert len(problems) <= len(reasons) + 1
    assert plain in ("a dog", "")


def test_seed_vl_writes_json_with_boxes_in_strings() -> None:
    text = (
        '[{"category": "dog", "bbox": "<bbox>1 2 30 40</bbox>"}, '
        '{"category": "cat", "bbox": "<bbox>1 2 3 4</bbox><bbox>5 6 7 8</bbox>"}]'
    )
    assert read(text, "seed_vl") == ("dog, cat", [("dog", 1, 0), ("cat", 2, 0)], [])
    grounded = parse(text, "seed_vl", SIZE)
    moved = replace_boxes(grounded, [(10, 20, 300, 400), None, *grounded.boxes[2:]])
    assert moved.source is not None
    assert moved.source.text == text.replace("1 2 30 40", "10 20 300 400").replace("<bbox>1 2 3 4</bbox>", "")
    assert read('[{"category": "dog", "bbox": "left"}]', "seed_vl")[2] == ["bbox is not a list of numbers: dropped"]


@pytest.mark.parametrize(
    ("key", "text", "mapped"),
    [
        # The part is the lower right quarter of an image of 200 × 100 pixels.
        ("qwen3_vl", '[{"point_2d": [0, 500], "label": "a"}]', '[{"point_2d": [500, 750], "label": "a"}]'),
        ("gemini", '[{"point": [500, 0], "label": "a"}]', '[{"point": [750, 500], "label": "a"}]'),
        ("molmo", '<point x="0.0" y="50.0" alt="a">a</point>', '<point x="50.0" y="75.0" alt="a">a</point>'),
        ("molmo2", '<points coords="1 1 000 500">a</points>', '<points coords="1 1 500 750">a</points>'),
        ("seed_vl", "a <point>0 500</point>, <bbox>0 0 500 500</bbox>",
         "a <point>500 750</point>, <bbox>500 500 750 750</bbox>"),
        ("glm_v", "a <|begin_of_box|>[[0, 500]]<|end_of_box|>", "a <|begin_of_box|>[[500, 750]]<|end_of_box|>"),
        ("rex_omni", "<|box_start|><0><999><|box_end|>", "<|box_start|><499><999><|box_end|>"),
    ],
)  # fmt: skip
def test_points_of_a_part_are_mapped_to_the_whole_image(key: str, text: str, mapped: str) -> None:
    grounded = map_to_image(parse(text, key, (100, 50)), (100, 50), (200, 100))
    assert grounded.source is not None
    assert grounded.source.text == mapped


def test_boxes_are_replaced_and_points_stay() -> None:
    dog, cat = (
        '"bbox_2d": [10, 20, 30, 40], "point_2d": [15, 25], "label": "dog"',
        '"bbox_2d": [1, 2, 3, 4], "label": "cat"',
    )
    text = f"[{{{dog}}}, {{{cat}}}]"
    grounded = parse(text, "qwen3_vl", SIZE, strict=True)
    changed = replace_boxes(grounded, [(100, 200, 300, 400), None], remove_phrases=True)
    assert changed.source is not None
    assert changed.source.text == '[{"bbox_2d": [100, 200, 300, 400], "point_2d": [15, 25], "label": "dog"}]'
    assert changed.points == grounded.points == ((15, 25),)
    # Its entry would go with the box.
    with pytest.raises(ValueError, match="read back as something else"):
        replace_boxes(grounded, [None, (1, 2, 3, 4)])
