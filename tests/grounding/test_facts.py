"""Each dialect against numbers worked out by hand, and against facts from the models' own code."""

from __future__ import annotations

from typing import Any

import pytest

from spr.core.errors import GroundingError
from spr.grounding import DIALECTS, GroundedText, get_dialect, parse, render, render_box, smart_resize
from spr.grounding.render import render_point
from spr.records import Box, Span

# An image of 640 × 480 with a box of 64.4, 72.3, 192.6, 96.1.
SIZE = (640, 480)
BOX = (64.4, 72.3, 192.6, 96.1)


def one(box: Box, phrase: str = "a dog") -> GroundedText:
    return GroundedText(phrase, (Span(phrase, 0, len(phrase), (box,)),))


WRITTEN = {
    # x · 1000 / 640 = 100.625, 300.9375; y · 1000 / 480 = 150.625, 200.208: rounded down
    "ferret": "a dog [100, 150, 300, 200]",
    # the same, rounded to the nearest
    "cogvlm": "a dog [[101,151,301,200]]",
    # padded to 640 × 640, 80 px above: x / 640 = 0.1006, 0.3009; (y + 80) / 640 = 0.2380, 0.2752
    "llava": "a dog [0.10, 0.24, 0.30, 0.28]",
    # x / 640, y / 480 = 0.1506, 0.2002
    "llava_onevision": "a dog [0.10, 0.15, 0.30, 0.20]",
    "shikra": "a dog [0.101,0.238,0.301,0.275]",
    # cells of 20 × 15 px: x 64.4 → column 3, y 72.3 → row 4: 4 · 32 + 3 = 131; 192.6 → 9, 96.1 → 6: 6 · 32 + 9 = 201
    "kosmos2": "<phrase>a dog</phrase><object><patch_index_0131><patch_index_0201></object>",
    # x · 999 / 640 = 100.52, 300.64; y · 999 / 480 = 150.47, 200.01
    "qwen_vl": "<ref>a dog</ref><box>(101,150),(301,200)</box>",
    "qwen2_vl": "<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(101,151),(301,200)<|box_end|>",
    # seen as 644 × 476: 640 / 28 = 22.86 → 23 · 28, 480 / 28 = 17.14 → 17 · 28;
    # x · 644 / 640 = 64.80, 193.80; y · 476 / 480 = 71.70, 95.30
    "qwen2_5_vl": '[{"bbox_2d": [65, 72, 194, 95], "label": "a dog"}]',
    "qwen3_vl": '[{"bbox_2d": [101, 151, 301, 200], "label": "a dog"}]',
    "internvl": "<ref>a dog</ref><box>[[100, 150, 300, 200]]</box>",
    # y1 x1 y2 x2; y · 1023 / 480 = 154.09, 204.81; x · 1023 / 640 = 102.94, 307.86
    "paligemma": "<loc0154><loc0103><loc0205><loc0308> a dog",
    "florence2": "a dog<loc_100><loc_150><loc_300><loc_200>",
    "minicpm_v": "<ref>a dog</ref><box>101 151 301 200</box>",
    "glm_v": "a dog <|begin_of_box|>[[101,151,301,200]]<|end_of_box|>",
    # x · 999 / 640 = 100.52, 300.64; y · 999 / 480 = 150.47, 200.01: rounded to the nearest
    "deepseek_vl2": "<|ref|>a dog<|/ref|><|det|>[[101, 150, 301, 200]]<|/det|>",
    "deepseek_ocr": "<|ref|>a dog<|/ref|><|det|>[[101, 150, 301, 200]]<|/det|>",
    "seed_vl": "a dog <bbox>101 151 301 200</bbox>",
    # the same as for DeepSeek, rounded down
    "rex_omni": "<|object_ref_start|>a dog<|object_ref_end|><|box_start|><100><150><300><200><|box_end|>",
    # y first
    "gemini": '[{"box_2d": [151, 101, 200, 301], "label": "a dog"}]',
    "kimi_vl": '[{"bbox_2d": [0.101, 0.151, 0.301, 0.200], "label": "a dog"}]',
}

READ: dict[str, Box] = {
    # 100 · 0.64, 150 · 0.48, 300 · 0.64, 200 · 0.48
    "ferret": (64.0, 72.0, 192.0, 96.0),
    "cogvlm": (64.64, 72.48, 192.64, 96.0),
    # 0.10 · 640, 0.24 · 640 - 80, 0.30 · 640, 0.28 · 640 - 80
    "llava": (64.0, 73.6, 192.0, 99.2),
    "llava_onevision": (64.0, 72.0, 192.0, 96.0),
    "shikra": (64.64, 72.32, 192.64, 96.0),
    # the centres of the cells: 3.5 · 20, 4.5 · 15, 9.5 · 20, 6.5 · 15
    "kosmos2": (70.0, 67.5, 190.0, 97.5),
    # 101 / 999 · 640 = 64.704, 150 / 999 · 480 = 72.072, 301 / 999 · 640 = 192.833, 200 / 999 · 480 = 96.096
    "qwen_vl": (64.704705, 72.072072, 192.832833, 96.096096),
    "qwen2_vl": (64.64, 72.48, 192.64, 96.0),
    # 65 · 640 / 644, 72 · 480 / 476, 194 · 640 / 644, 95 · 480 / 476
    "qwen2_5_vl": (64.596273, 72.605042, 192.795031, 95.798319),
    "qwen3_vl": (64.64, 72.48, 192.64, 96.0),
    "internvl": (64.0, 72.0, 192.0, 96.0),
    # 103 / 1023 · 640, 154 / 1023 · 480, 308 / 1023 · 640, 205 / 1023 · 480
    "paligemma": (64.437928, 72.258065, 192.688172, 96.187683),
    # 100.5 · 0.64, 150.5 · 0.48, 300.5 · 0.64, 200.5 · 0.48
    "florence2": (64.32, 72.24, 192.32, 96.24),
    "minicpm_v": (64.64, 72.48, 192.64, 96.0),
    # 101 · 0.64, 151 · 0.48, 301 · 0.64, 200 · 0.48
    "glm_v": (64.64, 72.48, 192.64, 96.0),
    "deepseek_vl2": (64.704705, 72.072072, 192.832833, 96.096096),
    "deepseek_ocr": (64.704705, 72.072072, 192.832833, 96.096096),
    "seed_vl": (64.64, 72.48, 192.64, 96.0),
    # 100 / 999 · 640, 150 / 999 · 480, 300 / 999 · 640, 200 / 999 · 480
    "rex_omni": (64.064064, 72.072072, 192.192192, 96.096096),
    "gemini": (64.64, 72.48, 192.64, 96.0),
    "kimi_vl": (64.64, 72.48, 192.64, 96.0),
}

# The same for the box's upper left corner as a point.
POINT = (64.4, 72.3)
POINTS_WRITTEN = {
    "minicpm_v": "<ref>a dog</ref><point>101 151</point>",
    "glm_v": "a dog <|begin_of_box|>[[101,151]]<|end_of_box|>",
    "seed_vl": "a dog <point>101 151</point>",
    "rex_omni": "<|object_ref_start|>a dog<|object_ref_end|><|box_start|><100><150><|box_end|>",
    "qwen2_5_vl": '[{"point_2d": [65, 72], "label": "a dog"}]',
    "qwen3_vl": '[{"point_2d": [101, 151], "label": "a dog"}]',
    "gemini": '[{"point": [151, 101], "label": "a dog"}]',
    "kimi_vl": '[{"point_2d": [0.101, 0.151], "label": "a dog"}]',
    # per cent: x · 100 / 640 = 10.06, y · 100 / 480 = 15.06
    "molmo": '<point x="10.1" y="15.1" alt="a dog">a dog</point>',
    # image 1, point 1; three digits
    "molmo2": '<points coords="1 1 101 151">a dog</points>',
}
POINTS_READ = {key: READ.get(key, (64.64, 72.48))[:2] for key in POINTS_WRITTEN}


def test_every_dialect_is_here() -> None:
    assert {key for key, dialect in DIALECTS.items() if dialect.writes_boxes} == set(WRITTEN) == set(READ)
    assert {key for key, dialect in DIALECTS.items() if dialect.writes_points} == set(POINTS_WRITTEN)
    assert len(DIALECTS) == 23


@pytest.mark.parametrize("key", POINTS_WRITTEN)
def test_a_point_is_written_and_read_as_worked_out_by_hand(key: str) -> None:
    grounded = GroundedText("a dog", (Span("a dog", 0, 5, (), (POINT,)),))
    assert render(grounded, key, SIZE) == POINTS_WRITTEN[key]
    (span,) = parse(POINTS_WRITTEN[key], key, SIZE, strict=True).spans
    assert (span.phrase, span.boxes) == ("a dog", ())
    assert span.points[0] == pytest.approx(POINTS_READ[key], abs=1e-6)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("minicpm_v", "<point>101 151</point>"),
        ("glm_v", "<|begin_of_box|>[[101,151]]<|end_of_box|>"),
        ("rex_omni", "<|box_start|><100><150><|box_end|>"),
        ("qwen3_vl", "[101, 151]"),
        ("gemini", "[151, 101]"),
        ("molmo", '<point x="10.1" y="15.1" alt=""></point>'),
        ("molmo2", '<points coords="1 1 101 151"></points>'),
    ],
)
def test_a_point_alone_is_written_for_prompts(key: str, text: str) -> None:
    assert render_point(POINT, key, SIZE) == text
    with pytest.raises(GroundingError, match="`paligemma` has no points"):
        render_point(POINT, "paligemma", SIZE)


@pytest.mark.parametrize("key", WRITTEN)
def test_a_box_is_written_as_worked_out_by_hand(key: str) -> None:
    assert render(one(BOX), key, SIZE) == WRITTEN[key]


@pytest.mark.parametrize("key", WRITTEN)
def test_a_box_is_read_as_worked_out_by_hand(key: str) -> None:
    (span,) = parse(WRITTEN[key], key, SIZE, strict=True).spans
    assert span.phrase == "a dog"
    assert span.boxes[0] == pytest.approx(READ[key], abs=1e-6)


@pytest.mark.parametrize("key", DIALECTS)
def test_each_example_is_written_in_its_own_dialect(key: str) -> None:
    grounded = parse(DIALECTS[key].example, key, SIZE, strict=True)
    counts = len(grounded.boxes), len(grounded.points)
    assert (grounded.plain_text, *counts) == ("a dog", *((1, 0) if DIALECTS[key].writes_boxes else (0, 1)))
    assert render(grounded, key, SIZE) == DIALECTS[key].example


@pytest.mark.parametrize(
    ("key", "numbers"),
    [
        ("ferret", "[0, 0, 1000, 1000]"),
        ("cogvlm", "[[000,000,999,999]]"),
        ("qwen_vl", "<box>(0,0),(999,999)</box>"),
        ("qwen2_vl", "<|box_start|>(0,0),(1000,1000)<|box_end|>"),
        ("qwen2_5_vl", "[0, 0, 643, 475]"),
        ("paligemma", "<loc0000><loc0000><loc1023><loc1023>"),
        ("florence2", "<loc_0><loc_0><loc_999><loc_999>"),
        ("kosmos2", "<object><patch_index_0000><patch_index_1023></object>"),
        ("internvl", "<box>[[0, 0, 1000, 1000]]</box>"),
        ("llava", "[0.00, 0.12, 1.00, 0.88]"),
        ("glm_v", "<|begin_of_box|>[[0,0,1000,1000]]<|end_of_box|>"),
        ("deepseek_vl2", "<|det|>[[0, 0, 999, 999]]<|/det|>"),
        ("seed_vl", "<bbox>0 0 999 999</bbox>"),
        ("rex_omni", "<|box_start|><0><0><999><999><|box_end|>"),
        ("gemini", "[0, 0, 1000, 1000]"),
        ("kimi_vl", "[0.000, 0.000, 1.000, 1.000]"),
    ],
)
def test_a_box_of_the_whole_image_uses_the_whole_range(key: str, numbers: str) -> None:
    assert render_box((0, 0, 640, 480), key, SIZE) == numbers
    assert render_box((-50, -1, 700, 481), key, SIZE) == numbers  # clipped


def test_kosmos_decodes_to_outer_edges_when_the_corners_share_a_row_or_a_column() -> None:
    # Cell 131 is row 4, column 3; 137 is row 4, column 9; 163 is row 5, column 3. Cells of 20 × 15 px.
    def box(first: int, second: int) -> Box:
        text = f"<object><patch_index_{first:04d}><patch_index_{second:04d}></object>"
        return parse(text, "kosmos2", SIZE).boxes[0]

    assert box(131, 131) == (60.0, 60.0, 80.0, 75.0)
    assert box(131, 137) == (60.0, 60.0, 200.0, 75.0)
    assert box(131, 163) == (60.0, 60.0, 80.0, 90.0)
    assert box(131, 164) == (70.0, 67.5, 90.0, 82.5)


def test_padding_centres_the_image_and_rounds_down() -> None:
    # 101 × 64: a square of 101, (101 - 64) // 2 = 18 px above; 0.5 · 101 - 18 = 32.5.
    assert parse("a dog [0.00, 0.50, 1.00, 0.60]", "llava", (101, 64)).boxes[0] == pytest.approx((0, 32.5, 101, 42.6))
    # 64 × 101: the same to the left.
    assert parse("a dog [0.50,0.000,0.60,1.000]", "shikra", (64, 101)).boxes[0] == pytest.approx((32.5, 0, 42.6, 101))


@pytest.mark.parametrize(
    ("size", "options", "seen"),
    [
        ((640, 428), {"max_pixels": 1003520}, (644, 420)),  # the example in Qwen's own notebook
        ((28, 28), {}, (56, 56)),  # 784 px are fewer than 3,136: both sides are doubled
        ((8, 8), {}, (56, 56)),  # 8 / 28 rounds to 0
        # √(12e6 / 1,003,520) = 3.458: 4000 / 3.458 / 28 = 41.3, 3000 / 3.458 / 28 = 30.98
        ((4000, 3000), {"max_pixels": 1003520}, (1148, 840)),
        ((70, 42), {"min_pixels": 0}, (56, 56)),  # 2.5 and 1.5 both go to the even 2
        # longer than 200 times its width, which the processor refuses: √(3136 / 10000) = 0.56
        ((10_000, 1), {}, (5600, 28)),
    ],
)
def test_smart_resize_returns_the_size_that_the_processor_uses(
    size: tuple[int, int], options: dict[str, int], seen: tuple[int, int]
) -> None:
    assert smart_resize(size, **options) == seen


def test_kosmos_agrees_with_transformers() -> None:
    theirs = pytest.importorskip("transformers.models.kosmos2.processing_kosmos2")
    text = (
        "<grounding> An image of<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object>"
        " by<phrase> a fire</phrase><object><patch_index_0005><patch_index_0911></object>."
    )
    plain, entities = theirs.clean_text_and_extract_entities_with_bboxes(text)
    ours = parse(text, "kosmos2", (1000, 1000), strict=True)
    assert ours.plain_text == plain
    assert [(span.phrase, (span.start, span.end)) for span in ours.spans] == [entity[:2] for entity in entities]
    for span, (_, _, boxes) in zip(ours.spans, entities, strict=True):
        assert span.boxes[0] == pytest.approx([1000 * v for v in boxes[0]])


def test_options_change_the_geometry_where_the_dialect_has_them() -> None:
    text = "a dog [0.00, 0.50, 1.00, 0.60]"
    padded = get_dialect("llava_onevision", padded=True)
    assert parse(text, padded, (101, 64)).boxes == parse(text, "llava", (101, 64)).boxes
    assert parse(text, get_dialect("llava", padded=False), (100, 50)).boxes[0] == pytest.approx((0, 25, 100, 30))
    seen = get_dialect("qwen2_5_vl", resized_wh=(320, 240))
    assert parse('{"bbox_2d": [10, 20, 30, 40], "label": "x"}', seen, SIZE).boxes == ((20, 40, 60, 80),)


def test_an_option_that_a_dialect_does_not_have_is_refused() -> None:
    with pytest.raises(GroundingError, match="`ferret` has no option `padded`"):
        get_dialect("ferret", padded=True)
    with pytest.raises(GroundingError, match="`qwen3_vl` has no option `max_pixels`"):
        get_dialect("qwen3_vl", max_pixels=5)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("qwen2_5_vl:max_pixels=abc", "`max_pixels` of dialect `qwen2_5_vl` is wrong"),
        ("qwen2_5_vl:max_pixels=[", "`max_pixels` of dialect `qwen2_5_vl` is wrong"),
        ("qwen2_5_vl:max_pixels=0", "`max_pixels` of dialect `qwen2_5_vl` is wrong"),
        ("qwen2_5_vl:min_pixels=-4", "`min_pixels` of dialect `qwen2_5_vl` is wrong"),
        ("qwen2_5_vl:max_pixels", "`max_pixels` of dialect `qwen2_5_vl` is wrong"),
        ("qwen2_5_vl:max_pixels=" + "9" * 5000, "`max_pixels` of dialect `qwen2_5_vl` is wrong"),
        ("qwen2_5_vl:min_pixels=4000,max_pixels=3999", "leave no size"),
        ("qwen2_5_vl:pixels=4", "Dialect `qwen2_5_vl` has no option `pixels`"),
        ("llava:padded=maybe", "`padded` of dialect `llava` is wrong"),
        ("ferret:padded=true", "`ferret` has no option `padded`"),
        ("zzz:padded=maybe", "Unknown dialect"),
    ],
)
def test_a_wrong_option_in_a_dialect_string_is_refused(key: str, named: str) -> None:
    with pytest.raises(GroundingError, match=named) as caught:
        get_dialect(key)
    assert caught.value.expected or caught.value.fix


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("qwen2_5_vl", {"max_pixels": 0}),
        ("qwen2_5_vl", {"max_pixels": True}),
        ("qwen2_5_vl", {"max_pixels": 1003520.0}),
        ("qwen2_5_vl", {"min_pixels": "784"}),
        ("qwen2_5_vl", {"min_pixels": 10**400}),
        ("qwen2_5_vl", {"max_pixels": 3135}),  # below min_pixels, which is 3,136 by default
        ("qwen2_5_vl", {"resized_wh": 5}),
        ("llava", {"padded": 1}),
        ("llava", {"padded": "true"}),
    ],
)
def test_a_wrong_value_of_an_option_is_refused(key: str, options: dict[str, Any]) -> None:
    with pytest.raises(GroundingError) as caught:
        get_dialect(key, **options)
    assert caught.value.got
    assert caught.value.expected


def test_options_in_a_dialect_string_equal_keyword_options() -> None:
    text = "qwen2_5_vl:min_pixels=784,max_pixels=1003520"
    assert get_dialect(text) == get_dialect("qwen2_5_vl", min_pixels=784, max_pixels=1003520)
    assert get_dialect(text).spec == text
    assert get_dialect("llava:padded=false") == get_dialect("llava", padded=False)


def test_an_unknown_dialect_names_the_nearest_one() -> None:
    with pytest.raises(GroundingError, match="did you mean `qwen2_5_vl`"):
        parse("x", "Qwen2.5-VL", SIZE)
    with pytest.raises(GroundingError, match="Unknown dialect"):
        get_dialect("zzz")


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5.0, 5), (5,), None])
def test_a_wrong_image_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(GroundingError, match="Size of the image"):
        parse("x", "ferret", size)


def test_max_error_is_the_bound_that_rounding_allows() -> None:
    w, h = 640, 480
    assert DIALECTS["ferret"].max_error((w, h)) == pytest.approx((w / 1000, h / 1000))  # rounded down
    assert DIALECTS["cogvlm"].max_error((w, h)) == pytest.approx((w / 1000, h / 1000))  # 999 for the last edge
    assert DIALECTS["qwen_vl"].max_error((w, h)) == pytest.approx((w / 1998, h / 1998))
    assert DIALECTS["llava"].max_error((w, h)) == pytest.approx((3.2, 3.2))  # half of 0.01 of the square's side
    assert DIALECTS["llava_onevision"].max_error((w, h)) == pytest.approx((3.2, 2.4))
    assert DIALECTS["shikra"].max_error((w, h)) == pytest.approx((0.32, 0.32))
    assert DIALECTS["kosmos2"].max_error((w, h)) == pytest.approx((20, 15))  # a cell
    assert DIALECTS["paligemma"].max_error((w, h)) == pytest.approx((w / 2046, h / 2046))
    assert DIALECTS["florence2"].max_error((w, h)) == pytest.approx((w / 2000, h / 2000))
    assert DIALECTS["glm_v"].max_error((w, h)) == pytest.approx((w / 2000, h / 2000))
    assert DIALECTS["deepseek_vl2"].max_error((w, h)) == pytest.approx((w / 1998, h / 1998))
    assert DIALECTS["seed_vl"].max_error((w, h)) == pytest.approx((w / 1000, h / 1000))  # 999 for the last edge
    assert DIALECTS["rex_omni"].max_error((w, h)) == pytest.approx((w / 999, h / 999))  # rounded down
    assert DIALECTS["gemini"].max_error((w, h)) == pytest.approx((w / 2000, h / 2000))
    assert DIALECTS["kimi_vl"].max_error((w, h)) == pytest.approx((w / 2000, h / 2000))
    assert DIALECTS["molmo"].max_error((w, h)) == pytest.approx((w / 2000, h / 2000))  # 0.05 of 100
    assert DIALECTS["molmo2"].max_error((w, h)) == pytest.approx((w / 2000, h / 2000))
    assert DIALECTS["qwen2_5_vl"].max_error((w, h)) == pytest.approx((640 / 644, 480 / 476))  # last pixel for the edge
