"""`render` writes boxes after their phrases, keeps the words, and refuses words that would be read as boxes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from example_counts import examples
from spr.core.errors import GroundingError
from spr.grounding import DIALECTS, GroundedText, convert, parse, render, render_box
from spr.records import Box, Span

SIZE = (1000, 1000)
A: Box = (100.0, 200.0, 300.0, 400.0)
B: Box = (500.0, 500.0, 900.0, 900.0)
PROSE = [key for key, dialect in DIALECTS.items() if dialect.keeps_prose]
LISTS = [key for key, dialect in DIALECTS.items() if not dialect.keeps_prose]


def text_of(*pieces: str | tuple[str, tuple[Box, ...]]) -> GroundedText:
    text, spans = "", []
    for piece in pieces:
        phrase, boxes = (piece, None) if isinstance(piece, str) else piece
        if boxes is not None:
            spans.append(Span(phrase, len(text), len(text) + len(phrase), boxes))
        text += phrase
    return GroundedText(text, tuple(spans))


TWO_DOGS = text_of(("Two dogs", (A, B)), " watch ", ("a cat", (A,)), ".")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("ferret", "Two dogs [100, 200, 300, 400] [500, 500, 900, 900] watch a cat [100, 200, 300, 400]."),
        ("cogvlm", "Two dogs [[100,200,300,400;500,500,900,900]] watch a cat [[100,200,300,400]]."),
        ("llava", "Two dogs [0.10, 0.20, 0.30, 0.40] [0.50, 0.50, 0.90, 0.90] watch a cat [0.10, 0.20, 0.30, 0.40]."),
        ("shikra", "Two dogs [0.100,0.200,0.300,0.400;0.500,0.500,0.900,0.900] watch a cat [0.100,0.200,0.300,0.400]."),
        (
            # cells of 31.25 px: 100 / 31.25 = 3.2, 200 → 6.4, 300 → 9.6, 400 → 12.8: 6 · 32 + 3, 12 · 32 + 9;
            # 500 is the edge of cell 16; 900 → 28.8: 16 · 32 + 16, 28 · 32 + 28
            "kosmos2",
            "<phrase>Two dogs</phrase><object><patch_index_0195><patch_index_0393></delimiter_of_multi_objects/>"
            "<patch_index_0528><patch_index_0924></object> watch<phrase> a cat</phrase><object><patch_index_0195>"
            "<patch_index_0393></object>.",
        ),
        (
            "qwen_vl",
            "<ref>Two dogs</ref><box>(100,200),(300,400)</box><box>(500,500),(899,899)</box> watch<ref> a cat</ref>"
            "<box>(100,200),(300,400)</box>.",
        ),
        (
            "internvl",
            "<ref>Two dogs</ref><box>[[100, 200, 300, 400], [500, 500, 900, 900]]</box> watch <ref>a cat</ref>"
            "<box>[[100, 200, 300, 400]]</box>.",
        ),
        (
            "minicpm_v",
            "<ref>Two dogs</ref><box>100 200 300 400</box><box>500 500 900 900</box> watch <ref>a cat</ref>"
            "<box>100 200 300 400</box>.",
        ),
        (
            "qwen3_vl",
            '[{"bbox_2d": [100, 200, 300, 400], "label": "Two dogs"}, {"bbox_2d": [500, 500, 900, 900], "label": '
            '"Two dogs"}, {"bbox_2d": [100, 200, 300, 400], "label": "a cat"}]',
        ),
        (
            # 0.1 · 1023 = 102.3, 0.2 → 204.6, 0.3 → 306.9, 0.4 → 409.2, 0.5 → 511.5 (to the even), 0.9 → 920.7
            "paligemma",
            "<loc0205><loc0102><loc0409><loc0307> Two dogs ; <loc0512><loc0512><loc0921><loc0921> Two dogs ; "
            "<loc0205><loc0102><loc0409><loc0307> a cat",
        ),
        (
            "florence2",
            "Two dogs<loc_100><loc_200><loc_300><loc_400><loc_500><loc_500><loc_900><loc_900>"
            "a cat<loc_100><loc_200><loc_300><loc_400>",
        ),
    ],
)
def test_several_boxes_and_phrases_are_written_and_read_back(key: str, text: str) -> None:
    assert render(TWO_DOGS, key, SIZE) == text
    again = parse(text, key, SIZE, strict=True)
    assert [(span.phrase, len(span.boxes)) for span in again.spans] == [("Two dogs", 2), ("a cat", 1)]
    assert again.plain_text == ("Two dogs watch a cat." if DIALECTS[key].keeps_prose else "Two dogs, a cat")


nouns = st.sampled_from(["dog", "old man", "red-haired girl", "cup of tea", "狗", "piece of 3D art", "Zoë", "T-shirts"])
phrases = st.tuples(st.sampled_from(["a", "The", "two", "her", "all the"]), nouns).map(" ".join)
links = st.sampled_from(
    [" and ", " next to ", ", behind ", " is holding ", ". Further back, ", " (left of ", " — ", "; "]
)


@given(st.lists(st.tuples(phrases, st.integers(0, 3)), min_size=1, max_size=6), st.data())
@settings(max_examples=examples(150), deadline=None)
def test_prose_and_phrases_survive_writing_and_reading(items: list[tuple[str, int]], data: st.DataObject) -> None:
    pieces: list[str | tuple[str, tuple[Box, ...]]] = []
    for phrase, count in items:
        pieces += [data.draw(links)] if pieces else []
        pieces.append((phrase, (A, B, A)[:count]) if count else phrase)
    grounded = text_of(*pieces, data.draw(st.sampled_from([".", "", "!", " [sic]."])))
    for key in PROSE:
        if not DIALECTS[key].writes_boxes:
            continue
        again = parse(render(grounded, key, SIZE), key, SIZE, strict=True)
        assert again.plain_text == grounded.plain_text
        phrases_read = [(span.phrase, span.start, len(span.boxes)) for span in again.spans]
        assert phrases_read == [(span.phrase, span.start, len(span.boxes)) for span in grounded.spans]


def test_boxes_follow_their_phrase_even_where_the_rules_would_find_another_phrase() -> None:
    grounded = text_of("a black ", ("and white", (A,)), " cat")
    assert render(grounded, "ferret", SIZE) == "a black and white [100, 200, 300, 400] cat"
    assert parse(render(grounded, "ferret", SIZE), "ferret", SIZE).plain_text == "a black and white cat"


def test_a_box_without_a_phrase_is_written_at_its_place() -> None:
    grounded = text_of("see here ", ("", (A,)), "!")
    assert render(grounded, "ferret", SIZE) == "see here [100, 200, 300, 400] !"
    assert parse(render(grounded, "ferret", SIZE), "ferret", SIZE).plain_text == "see here !"
    assert render(grounded, "qwen3_vl", SIZE) == '[{"bbox_2d": [100, 200, 300, 400]}]'


@pytest.mark.parametrize("key", PROSE)
def test_a_span_without_boxes_is_written_as_words(key: str) -> None:
    assert render(text_of(("A dog", ()), " barks."), key, SIZE) == "A dog barks."


@pytest.mark.parametrize("key", LISTS)
def test_lists_keep_the_phrases_with_boxes_and_texts_without_any_box(key: str) -> None:
    assert parse(render(TWO_DOGS, key, SIZE), key, SIZE).plain_text == "Two dogs, a cat"
    assert render(text_of("Nothing here."), key, SIZE) == "Nothing here."


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("ferret", "it says [1, 2, 3, 4]"),
        ("ferret", "a point [1, 2]"),
        ("cogvlm", "it says [[001,002,003,004]]"),
        ("llava", "cut [0.1, 0.2"),
        ("qwen_vl", "<box>"),
        ("qwen_vl", "(1,2),(3,4)"),
        ("internvl", "a </ref>"),
        ("kosmos2", "<patch_index_0001>"),
        ("minicpm_v", "<ref>"),
        ("florence2", "a<loc_1>"),
        ("paligemma", "a ; b"),
        ("paligemma", "<loc0001>"),
        ("paligemma", "[sic]<seg001>"),
        ("ferret", "the end</s>"),
        ("qwen2_vl", "<|im_end|>"),
    ],
)
def test_words_that_the_dialect_would_read_as_markup_are_refused(key: str, words: str) -> None:
    with pytest.raises(GroundingError, match=f"can't be written in dialect `{key}`"):
        render(text_of((words, (A,)), " there"), key, SIZE)


@pytest.mark.parametrize(
    "label", ['a "big" dog', "{a}", "back\\slash", "two\nlines", "狗", "<box>", "[1, 2, 3, 4]", "</s>"]
)
def test_json_labels_can_contain_any_text(label: str) -> None:
    written = render(text_of((label, (A,)), " there"), "qwen3_vl", SIZE)
    (span,) = parse(written, "qwen3_vl", SIZE, strict=True).spans
    assert (span.phrase, span.boxes) == (label, (A,))


def test_special_tokens_in_json_labels_are_escaped() -> None:
    written = render(text_of(("</s> {x}", (A,))), "qwen3_vl", SIZE)
    assert written == '[{"bbox_2d": [100, 200, 300, 400], "label": "\\u003c/s> \\u007bx\\u007d"}]'


def test_a_box_that_would_be_read_as_another_phrases_is_refused() -> None:
    # Florence-2 reads location tokens without a label as more boxes of the previous label.
    with pytest.raises(GroundingError, match="read back as something else"):
        render(text_of(("a dog", (A,)), " there ", ("", (B,))), "florence2", SIZE)


def test_a_box_with_swapped_corners_is_refused() -> None:
    for key in DIALECTS:
        with pytest.raises(GroundingError, match="Box can't be written"):
            render_box((5, 5, 1, 9), key, SIZE)


def test_a_prompt_in_a_dialect_without_boxes_gets_corners_of_a_region_and_the_centre_of_an_object() -> None:
    assert render_box(A, "molmo2", SIZE, region=True) == '<points coords="1 1 100 200 2 300 400"></points>'
    assert render_box(A, "molmo", SIZE) == '<point x="20.0" y="30.0" alt=""></point>'


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("ferret", "[100, 200, 300, 400]"),
        ("qwen2_vl", "<|box_start|>(100,200),(300,400)<|box_end|>"),
        ("qwen3_vl", "[100, 200, 300, 400]"),
        ("internvl", "<box>[[100, 200, 300, 400]]</box>"),
        ("florence2", "<loc_100><loc_200><loc_300><loc_400>"),
    ],
)
def test_a_single_box_is_written_for_prompts(key: str, text: str) -> None:
    assert render_box(A, key, SIZE) == text
    assert render_box(A, key, SIZE, region=True) == text + (" <region_fea>" if key == "ferret" else "")


def test_strict_conversion_raises_an_error_instead_of_dropping_a_piece() -> None:
    assert convert("a dog [1, 2, 3]", "ferret", "cogvlm", SIZE) == "a dog"
    with pytest.raises(GroundingError, match="offset 7"):
        convert("a dog [1, 2, 3]", "ferret", "cogvlm", SIZE, strict=True)


def test_importing_spr_grounding_imports_no_heavy_package() -> None:
    code = (
        "import sys, spr.grounding; "
        "print([m for m in ('torch', 'transformers', 'pyarrow', 'pydantic', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
