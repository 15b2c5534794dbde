"""A parsed text is its model's own: only numbers change, and only those of boxes that change."""

import dataclasses
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spr.core.errors import GroundingError
from spr.grounding import DIALECTS, GroundedText, get_dialect, map_to_image, parse, render, replace_boxes
from spr.grounding.render import render_point
from spr.grounding.text import without_surrogates
from spr.records import Span

SIZE = 640, 480

# How models write boxes, with {} for a box in the dialect's own brackets.
STYLES = (
    "A dog {}.",
    "The dog is located at {}.",
    "The dog is located at: {}, and the cat sits at {}.",
    "- **Dog**: {}\n- **Cat**: {}\n",
    "{}: a man",
    "1. dog {}\n2. cat {}",
    "two dogs {} and {}, a cat ({})",
    "  A dog  {}  \n\n",
    "Dog → {}; cat → {}!",
    "\ta dog{}a cat{}",
    "a dog {} <b>bold</b> {}",
)
PROSE = [key for key, dialect in DIALECTS.items() if dialect.keeps_prose and dialect.writes_boxes]
LISTS = {
    "qwen2_5_vl": (
        '```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "dog"},\n'
        '\t{"bbox_2d": [1, 2, 3, 4], "label": "cat"}\n]\n```',
        '[{"label": "dog", "bbox_2d": [10.5, 20, 30, 4e1], "score": 1}]',
        'Here: {"bbox_2d":[10,20,30,40],"label":"a \\u00e9t\\u00e9"} and that is all.',
    ),
    "qwen3_vl": ('[{"bbox_2d": [10, 20, 30, 40], "label": "dog", "attributes": {"a": 1}}]', "[]", "no dog"),
    "paligemma": (
        "<loc0010><loc0020><loc0030><loc0040> dog ; <loc0010><loc0020><loc0030><loc0050> cat\n",
        "<loc0010><loc0020><loc0030><loc0040><loc0010><loc0020><loc0030><loc0050>dog;",
    ),
    "florence2": ("dog<loc_1><loc_2><loc_3><loc_4>a cat <loc_5><loc_6><loc_7><loc_8><loc_1><loc_1><loc_9><loc_9>",),
}


def box_text(key, numbers):
    """A box alone in the dialect's markup; numbers are thousandths."""
    dialect = get_dialect(key)
    box = tuple(number / 1000 * side for number, side in zip(numbers, SIZE * 2, strict=True))
    return render(GroundedText("", (Span("", 0, 0, (box,)),)), dialect, SIZE)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("key", PROSE)
def test_every_way_of_writing_comes_back_as_it_was(key, style):
    boxes = [box_text(key, (100 + k, 150, 300, 205)) for k in range(style.count("{}"))]
    text = style.format(*boxes)
    grounded = parse(text, key, SIZE)
    assert len(grounded.boxes) == len(boxes)
    assert render(grounded, key, SIZE) == text


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in LISTS.items() for text in texts])
def test_every_list_comes_back_as_it_was(key, text):
    assert render(parse(text, key, SIZE), key, SIZE) == text


def fragments(key):
    """Text made of the dialect's own pieces, in any order, and of anything else."""
    dialect = get_dialect(key)
    point = (render_point((100, 200), dialect, SIZE),) if dialect.writes_points else ()
    pieces = [piece for text in (dialect.example, *point) for piece in re.split(r"(\W)", text) if piece]
    numbers = st.one_of(
        st.integers(-5, 1200).map(str), st.floats(-2, 2).map(str), st.sampled_from(["1e999", "1e308", "-1e20"])
    )
    words = st.sampled_from(
        [*pieces, *point, dialect.example, "a dog ", "[", "]", "(", ")", ", ", "; ", " ", "\n", "</s>", "**"]
    )
    return st.lists(st.one_of(words, words, numbers, st.text(max_size=3)), max_size=25).map("".join)


@pytest.mark.parametrize("key", DIALECTS)
@given(data=st.data())
@settings(deadline=None)
def test_any_text_comes_back_as_it_was(key, data):
    text = without_surrogates(data.draw(fragments(key)))
    grounded = parse(text, key, SIZE)
    assert render(grounded, key, SIZE) == text
    unchanged = replace_boxes(grounded, grounded.boxes)
    assert unchanged == grounded
    assert render(unchanged, key, SIZE) == text
    places = grounded.source.places
    assert sum(place.is_read for place in places) == len(grounded.boxes)
    for place in places:
        assert place.unit[0] <= place.piece[0] < place.piece[1] <= place.unit[1] or not place.numbers


@pytest.mark.parametrize("key", DIALECTS)
@given(data=st.data())
@settings(deadline=None)
def test_mapping_changes_only_numbers(key, data):
    text = without_surrogates(data.draw(fragments(key)))
    grounded = parse(text, key, SIZE)
    if grounded.source.has_unread:
        with pytest.raises(GroundingError, match="can't be mapped"):
            map_to_image(grounded, (100, 50), (1000, 800))
        return
    mapped = map_to_image(grounded, (100, 50), (1000, 800))
    new, kept, position = mapped.source.text, [], 0
    places = [*grounded.source.places, *grounded.source.point_places]
    for start, stop in sorted(number for place in places for number in place.numbers):
        kept.append(re.escape(text[position:start]))
        position = stop
    kept.append(re.escape(text[position:]))
    assert re.fullmatch(r"-?[0-9.]+(?:e[-+][0-9]+)?".join(kept), new)
    assert mapped.plain_text == grounded.plain_text


@pytest.mark.parametrize(
    ("key", "text", "mapped"),
    [
        # The part is the lower right quarter of an image of 200 × 100 pixels.
        (
            "llava_onevision",
            "The dog is located at [0.5, 0.50, .5, 1.00].",
            "The dog is located at [0.75, 0.75, 0.75, 1.00].",
        ),
        ("llava_onevision", "- **Dog**: [0.00, 0.00, 1.00, 1.00]\n", "- **Dog**: [0.50, 0.50, 1.00, 1.00]\n"),
        # Swapped corners stay swapped, and what is beyond the part is mapped like everything else.
        ("llava_onevision", "a dog [0.3, 0.2, 0.1, 0.4]", "a dog [0.65, 0.60, 0.55, 0.70]"),
        ("llava_onevision", "a dog [-0.2, 0.2, 1.2, 0.4]", "a dog [0.40, 0.60, 1.10, 0.70]"),
        ("llava_onevision", "a dog [3.0, 3.0, 4.0, 4.0]", "a dog [2.00, 2.00, 2.50, 2.50]"),
        ("ferret", "a dog [0, 0, 1000, 1000], a cat [9, 9, 9]", None),
        ("ferret", "a dog [0, 0, 1000, 1e308]", None),
        ("ferret", "a dog [0, 10, 1000, 1500]", "a dog [500, 505, 1000, 1250]"),
        ("ferret", "dogs [0, 10, 100, 1000] [4, 4, 6, 6]", "dogs [500, 505, 550, 1000] [502, 502, 503, 503]"),
        ("cogvlm", "dogs [[000,010,100,999;004,004,006,006]]", "dogs [[500,505,550,999;502,502,503,503]]"),
        ("qwen_vl", "<ref> dog</ref><box>(0,0),(1000, 500)</box>", "<ref> dog</ref><box>(500,500),(1000, 750)</box>"),
        (
            "internvl",
            "<ref>d</ref><box>[[0, 0, 10, 10], [2,2,4,4]]</box>",
            "<ref>d</ref><box>[[500, 500, 505, 505], [501,501,502,502]]</box>",
        ),
        ("qwen3_vl", '{"bbox_2d":[0,0,10,1000],"label":"d"}', '{"bbox_2d":[500,500,505,1000],"label":"d"}'),
        ("qwen3_vl", '[{"bbox_2d": [0, 0, "10", 1000], "label": "d"}]', None),
        ("paligemma", "<loc0000><loc0000><loc1023><loc1023> a dog", "<loc0512><loc0512><loc1023><loc1023> a dog"),
        ("paligemma", "<loc0000><loc0000><loc1023> a dog", None),
        ("florence2", "a dog<loc_0><loc_0><loc_999><loc_999>", "a dog<loc_500><loc_500><loc_999><loc_999>"),
        ("minicpm_v", "<box>0 0 1000 1000</box>", "<box>500 500 1000 1000</box>"),
        # Cells of 32 × 32; the whole part is the lower right quarter of the grid: cells 16,16 and 31,31.
        (
            "kosmos2",
            "<phrase>d</phrase><object><patch_index_0000><patch_index_1023></object>",
            "<phrase>d</phrase><object><patch_index_0528><patch_index_1023></object>",
        ),
        (
            "kosmos2",
            "<phrase>d</phrase><object><patch_index_1023><patch_index_0000></object>",
            "<phrase>d</phrase><object><patch_index_1023><patch_index_0528></object>",
        ),
        ("kosmos2", "<phrase>d</phrase><object><patch_index_0000><patch_index_1024></object>", None),
        # "at 100, 200" without brackets is not recognised as a box, and stays.
        ("ferret", "a dog at (100, 200, 300, 400)", None),
    ],
)
def test_an_answer_about_a_part_is_mapped_by_its_numbers_alone(key, text, mapped):
    grounded = parse(text, key, (100, 50))
    if mapped is None:
        with pytest.raises(GroundingError, match="can't be mapped"):
            map_to_image(grounded, (100, 50), (200, 100))
    else:
        assert map_to_image(grounded, (100, 50), (200, 100)).source.text == mapped


REPLACED = (
    (
        "ferret",
        "The dog is at [1, 2, 3, 4]; cats: [0.5, 6, 7, 8]!",
        [(10, 20, 30, 40), 0],
        "The dog is at [10, 20, 30, 40]; cats: [0.5, 6, 7, 8]!",
    ),
    ("ferret", "A dog is at [1, 2, 3, 4] and a cat [5, 6, 7, 8].", [None, 0], "A dog is at and a cat [5, 6, 7, 8]."),
    ("ferret", "a dog ([1, 2, 3, 4]), a cat [5, 6, 7, 8]", [None, 0], "a dog, a cat [5, 6, 7, 8]"),
    ("ferret", "[1, 2, 3, 4]: a dog\n[5, 6, 7, 8]: a cat", [None, 0], "a dog\n[5, 6, 7, 8]: a cat"),
    ("ferret", "- **Dog**: [1, 2, 3, 4]\n- **Cat**: [5, 6, 7, 8]", [None, 0], "- **Dog**:\n- **Cat**: [5, 6, 7, 8]"),
    ("ferret", "two dogs [1, 2, 3, 4] and [5, 6, 7, 8] run", [None, 0], "two dogs [5, 6, 7, 8] run"),
    ("ferret", "two dogs [1, 2, 3, 4] and [5, 6, 7, 8] run", [0, None], "two dogs [1, 2, 3, 4] run"),
    (
        "ferret",
        "two dogs [1, 2, 3, 4] and [5, 6, 7, 8] run, a cat [1, 1, 9, 9]",
        [None, None, 0],
        "two dogs run, a cat [1, 1, 9, 9]",
    ),
    (
        "ferret",
        "a dog [4, 3, 2, 1] and a cat [5, 6, 7, 8]",
        [0, (1, 1, 2, 2)],
        "a dog [4, 3, 2, 1] and a cat [1, 1, 2, 2]",
    ),
    ("cogvlm", "dogs [[001,002,003,004;005,006,007,008]] run", [0, None], "dogs [[001,002,003,004]] run"),
    ("cogvlm", "dogs [[001,002,003,004;005,006,007,008]] run", [None, (9, 9, 99, 99)], "dogs [[009,009,099,099]] run"),
    (
        "qwen_vl",
        "<ref>a dog</ref><box>(1,2),(3,4)</box> and <ref>a cat</ref><box>(5,6),(7,8)</box>",
        [None, 0],
        "a dog and <ref>a cat</ref><box>(5,6),(7,8)</box>",
    ),
    (
        "qwen_vl",
        "<ref>dogs</ref><box>(1,2),(3,4)</box><box>(5,6),(7,8)</box>",
        [None, 0],
        "<ref>dogs</ref><box>(5,6),(7,8)</box>",
    ),
    (
        "internvl",
        "<ref>d</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>",
        [0, None],
        "<ref>d</ref><box>[[1, 2, 3, 4]]</box>",
    ),
    (
        "kosmos2",
        "<phrase>d</phrase><object><patch_index_0000><patch_index_0001></delimiter_of_multi_objects/><patch_index_0002><patch_index_0004></object>",
        [None, 0],
        "<phrase>d</phrase><object><patch_index_0002><patch_index_0004></object>",
    ),
    (
        "qwen3_vl",
        '[\n  {"bbox_2d": [1, 2, 3, 4], "label": "d"},\n  {"bbox_2d": [5, 6, 7, 8], "label": "c"}\n]',
        [None, 0],
        '[\n  {"bbox_2d": [5, 6, 7, 8], "label": "c"}\n]',
    ),
    (
        "qwen3_vl",
        '[\n  {"bbox_2d": [1, 2, 3, 4], "label": "d"},\n  {"bbox_2d": [5, 6, 7, 8], "label": "c"}\n]',
        [0, None],
        '[\n  {"bbox_2d": [1, 2, 3, 4], "label": "d"}\n]',
    ),
    (
        "paligemma",
        "<loc0001><loc0002><loc0003><loc0004> dog ; <loc0001><loc0002><loc0003><loc0005> cat",
        [None, 0],
        "<loc0001><loc0002><loc0003><loc0005> cat",
    ),
    (
        "paligemma",
        "<loc0001><loc0002><loc0003><loc0004> dog ; <loc0001><loc0002><loc0003><loc0005> cat",
        [0, None],
        "<loc0001><loc0002><loc0003><loc0004> dog",
    ),
    (
        "florence2",
        "a dog<loc_1><loc_2><loc_3><loc_4>a cat<loc_5><loc_6><loc_7><loc_8>",
        [None, 0],
        "a cat<loc_5><loc_6><loc_7><loc_8>",
    ),
    (
        "florence2",
        "a dog<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>",
        [0, None],
        "a dog<loc_1><loc_2><loc_3><loc_4>",
    ),
    (
        "florence2",
        "cats<loc_500><loc_500><loc_700><loc_800><loc_15><loc_16><loc_70><loc_80>",
        [None, 0],
        "cats<loc_15><loc_16><loc_70><loc_80>",
    ),
    (
        "paligemma",
        "<loc0500><loc0500><loc0700><loc0800><loc0015><loc0016><loc0070><loc0080> cats",
        [None, 0],
        "<loc0015><loc0016><loc0070><loc0080> cats",
    ),
)


@pytest.mark.parametrize(("key", "text", "boxes", "edited"), REPLACED)
def test_only_the_boxes_that_change_are_edited(key, text, boxes, edited):
    side = 1024 if key == "paligemma" else 1000
    grounded = parse(text, key, (side, side))
    boxes = [grounded.boxes[k] if box == 0 else box for k, box in enumerate(boxes)]
    changed = replace_boxes(grounded, boxes)
    assert changed.boxes == tuple(box for box in boxes if box is not None)
    assert changed.source.text == edited
    assert render(changed, key, (side, side)) == edited
    if get_dialect(key).keeps_prose:
        assert changed.plain_text == grounded.plain_text


@pytest.mark.parametrize(
    ("key", "text", "boxes", "edited"),
    [
        (
            "ferret",
            "A dog is at [1, 2, 3, 4], and a cat [5, 6, 7, 8] sits.",
            [0, None],
            "A dog is at [1, 2, 3, 4] sits.",
        ),
        (
            "ferret",
            "a dog [1, 2, 3, 4], the cat sat (a cat [5, 6, 7, 8])",
            [0, None],
            "a dog [1, 2, 3, 4], the cat sat",
        ),
        (
            "qwen_vl",
            "<ref>a dog</ref><box>(1,2),(3,4)</box> and <ref>a cat</ref><box>(5,6),(7,8)</box>.",
            [0, None],
            "<ref>a dog</ref><box>(1,2),(3,4)</box>.",
        ),
        (
            "ferret",
            "A dog ([1, 2, 3, 4]), a cat ([5, 6, 7, 8]) and a bird ([1, 1, 9, 9]).",
            [None, 0, None],
            "a cat ([5, 6, 7, 8]).",
        ),
        (
            "ferret",
            "A dog ([1, 2, 3, 4]), a cat ([5, 6, 7, 8]) and a bird ([1, 1, 9, 9]).",
            [0, None, 0],
            "A dog ([1, 2, 3, 4]) and a bird ([1, 1, 9, 9]).",
        ),
        ("ferret", "- **Dog**: [1, 2, 3, 4]\n- **Cat**: [5, 6, 7, 8]", [None, 0], "- **Cat**: [5, 6, 7, 8]"),
        ("ferret", "- **Dog**: [1, 2, 3, 4]\n- **Cat**: [5, 6, 7, 8]", [0, None], "- **Dog**: [1, 2, 3, 4]"),
        ("ferret", "- **Dog**: [1, 2, 3, 4]\n- **Cat**: [5, 6, 7, 8]", [None, None], ""),
        ("ferret", "1. *a dog* [1, 2, 3, 4].\n2. a cat [5, 6, 7, 8].", [None, 0], "2. a cat [5, 6, 7, 8]."),
        ("ferret", "* a dog [1, 2, 3, 4] sleeps\n* a cat [5, 6, 7, 8]", [None, 0], "* sleeps\n* a cat [5, 6, 7, 8]"),
        ("ferret", "**A dog [1, 2, 3, 4] and a cat [5, 6, 7, 8]** sit.", [0, None], "**A dog [1, 2, 3, 4]** sit."),
        ("ferret", "(a dog [1, 2, 3, 4] and a cat [5, 6, 7, 8])", [None, 0], "(a cat [5, 6, 7, 8])"),
        ("ferret", "See (a dog [1, 2, 3, 4] and a cat [5, 6, 7, 8]) here.", [None, None], "See here."),
        ("ferret", "Here it is. A dog [1, 2, 3, 4]. A cat [5, 6, 7, 8].", [None, 0], "Here it is. A cat [5, 6, 7, 8]."),
        ("ferret", "(The dog) [1, 2, 3, 4] and the cat [5, 6, 7, 8].", [None, 0], "the cat [5, 6, 7, 8]."),
        ("ferret", "two dogs ([1, 2, 3, 4]) ([5, 6, 7, 8]), a cat [1, 1, 9, 9]", [None, None, 0], "a cat [1, 1, 9, 9]"),
        ("cogvlm", "a dog ([[001,002,003,004]]), a cat [[005,006,007,008]]", [None, 0], "a cat [[005,006,007,008]]"),
        (
            "qwen_vl",
            "- **<ref>Dog</ref>**: <box>(1,2),(3,4)</box>\n- **<ref>Cat</ref><box>(5,6),(7,8)</box>**",
            [0, None],
            "- **<ref>Dog</ref>**: <box>(1,2),(3,4)</box>",
        ),
        (
            "qwen_vl",
            "- **<ref>Dog</ref><box>(1,2),(3,4)</box>**\n- **<ref>Cat</ref><box>(5,6),(7,8)</box>**",
            [None, 0],
            "- **<ref>Cat</ref><box>(5,6),(7,8)</box>**",
        ),
    ],
)
def test_a_phrase_can_go_with_its_boxes(key, text, boxes, edited):
    grounded = parse(text, key, (1000, 1000))
    boxes = [grounded.boxes[k] if box == 0 else box for k, box in enumerate(boxes)]
    assert replace_boxes(grounded, boxes, remove_phrases=True).source.text == edited


def test_a_phrase_that_shares_its_brackets_with_another_one_can_not_be_removed():
    grounded = parse("A dog (at [1, 2, 3, 4] with a cat [5, 6, 7, 8]) sits.", "ferret", (1000, 1000))
    with pytest.raises(GroundingError, match="shares its brackets"):
        replace_boxes(grounded, [None, grounded.boxes[1]], remove_phrases=True)


def test_brackets_go_with_a_phrase_of_a_text_without_source():
    dog, cat = Span("a dog", 1, 6, ((1, 2, 3, 4),)), Span("a cat", 12, 17, ((5, 6, 7, 8),))
    grounded = GroundedText("(a dog) and a cat", (dog, cat))
    assert replace_boxes(grounded, [None, (5, 6, 7, 8)], remove_phrases=True).plain_text == "a cat"
    assert replace_boxes(grounded, [(1, 2, 3, 4), None], remove_phrases=True).plain_text == "(a dog)"


def balance(text):
    return [text.count(opening) - text.count(closing) for opening, closing in ("()", "[]")] + [text.count("**") % 2]


@pytest.mark.parametrize("key", PROSE)
@pytest.mark.parametrize(
    "style", [style for style in STYLES if "{}" in style] + ["**A dog** ({}), *a cat*: {} (a cup {})"]
)
def test_what_remains_without_phrases_is_balanced(key, style):
    count = style.count("{}")
    text = style.format(*[box_text(key, (100 + k, 150, 300, 205)) for k in range(count)])
    grounded = parse(text, key, SIZE)
    for kept in itertools.product([False, True], repeat=count):
        boxes = [box if keep else None for box, keep in zip(grounded.boxes, kept, strict=True)]
        changed = replace_boxes(grounded, boxes, remove_phrases=True)
        assert changed.boxes == tuple(box for box in boxes if box is not None)
        assert balance(changed.source.text) == balance(text)
        again = parse(changed.source.text, key, SIZE)
        assert (again.plain_text, again.spans) == (changed.plain_text, changed.spans)


@pytest.mark.parametrize("key", DIALECTS)
@given(data=st.data())
@settings(deadline=None)
def test_phrases_of_any_text_are_removed_or_an_error_is_raised(key, data):
    text = without_surrogates(data.draw(fragments(key)))
    grounded = parse(text, key, SIZE)
    boxes = [box if data.draw(st.booleans()) else None for box in grounded.boxes]
    try:
        changed = replace_boxes(grounded, boxes, remove_phrases=True)
    except GroundingError:
        return
    assert changed.boxes == tuple(box for box in boxes if box is not None)
    assert changed.points == grounded.points
    again = parse(changed.source.text, key, SIZE)
    assert (again.boxes, again.points) == (changed.boxes, changed.points)


def test_stray_coordinates_in_a_phrase_are_a_grounding_error_at_most():
    text = (
        "; , [2000, 3000, 4000, 5000][0.3, 0.2, 0.1, 0.4]a dog [9999, 12345678901, 1.0, 007]</box>\u0301"
        "a dog [1000, 007, -1, 999]"
    )
    grounded = parse(text, "ferret", SIZE)
    for k, box in enumerate(grounded.boxes):
        boxes = [*grounded.boxes[:k], None, *grounded.boxes[k + 1 :]]
        try:
            assert box not in replace_boxes(grounded, boxes, remove_phrases=True).boxes
        except GroundingError:
            continue


def entry(key, count):
    """An entry of this many boxes in a dialect of location tokens, and the text of each box."""
    numbers = [(100 + k, 200, 300 + k, 400) for k in range(count)]
    token = "<loc_{}>" if key == "florence2" else "<loc{:04}>"
    texts = ["".join(token.format(number) for number in four) for four in numbers]
    return texts, (lambda kept: "cats" + "".join(kept) if key == "florence2" else "".join(kept) + " cats")


@pytest.mark.parametrize("key", ["florence2", "paligemma"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_any_boxes_of_an_entry_can_be_removed(key, count):
    texts, whole = entry(key, count)
    grounded = parse(whole(texts), key, (1000, 1000))
    for kept in itertools.product([False, True], repeat=count):
        boxes = [box if keep else None for box, keep in zip(grounded.boxes, kept, strict=True)]
        changed = replace_boxes(grounded, boxes)
        assert changed.boxes == tuple(box for box in boxes if box is not None)
        left = [text for text, keep in zip(texts, kept, strict=True) if keep]
        assert changed.source.text == (whole(left) if left else "")


@pytest.mark.parametrize("key", DIALECTS)
@given(data=st.data())
@settings(deadline=None)
def test_any_boxes_can_be_replaced_or_removed(key, data):
    text = without_surrogates(data.draw(fragments(key)))
    grounded = parse(text, key, SIZE)
    choices = st.sampled_from([None, (10.0, 20.0, 200.0, 300.0), "same"])
    boxes = [data.draw(choices) for _ in grounded.boxes]
    boxes = [before if box == "same" else box for box, before in zip(boxes, grounded.boxes, strict=True)]
    try:
        changed = replace_boxes(grounded, boxes)
    except GroundingError:
        return  # the text that remains would be read as something else
    assert changed.boxes == tuple(box for box in boxes if box is not None)
    again = parse(render(changed, key, SIZE), key, SIZE)
    assert len(again.boxes) == len(changed.boxes)
    assert again.points == changed.points == grounded.points


def test_what_could_not_be_read_can_be_left_as_it_is():
    text = "a dog [0, 0, 1000, 1e308], a cat [9, 9, 9], a cup [0, 0, 1000, 1000]"
    mapped = map_to_image(parse(text, "ferret", (100, 50)), (100, 50), (200, 100), keep_unread=True)
    assert mapped.source.text == "a dog [0, 0, 1000, 1e308], a cat [9, 9, 9], a cup [500, 500, 1000, 1000]"


def test_a_text_without_source_is_written_anew():
    grounded = GroundedText("a dog", (Span("a dog", 0, 5, ((1, 2, 3, 4), (5, 6, 7, 8))),))
    changed = replace_boxes(grounded, [None, (50, 60, 70, 80)])
    assert changed.source is None
    assert render(changed, "ferret", (1000, 1000)) == "a dog [50, 60, 70, 80]"
    with pytest.raises(GroundingError, match="no source"):
        map_to_image(grounded, (0, 0), (100, 100))
    with pytest.raises(ValueError, match="1 boxes for a text with 2"):
        replace_boxes(grounded, [None])


def test_a_source_is_not_used_for_another_text_size_or_dialect():

    text = "The dog is at [100, 100, 200, 200]."
    grounded = parse(text, "ferret", (1000, 1000))
    other = dataclasses.replace(grounded, spans=(Span("The dog", 0, 7, ((1, 2, 3, 4),)),))
    assert render(other, "ferret", (1000, 1000)) == "The dog [1, 2, 3, 4] is at."
    assert render(grounded, "ferret", (2000, 2000)) == "The dog [50, 50, 100, 100] is at."
    assert render(grounded, "cogvlm", (1000, 1000)) == "The dog [[100,100,200,200]] is at."
    padded = get_dialect("llava", padded=False)
    square = parse("The dog is at [0.4, 0.4, 0.5, 0.5].", "llava", (1000, 500))
    assert render(square, padded, (1000, 500)).startswith("The dog [")
