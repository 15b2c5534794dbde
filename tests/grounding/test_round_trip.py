"""`parse` inverts `render` within the quantisation error that each dialect states."""

from __future__ import annotations

import itertools
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from example_counts import examples
from spr.core.errors import GroundingError
from spr.grounding import DIALECTS, Dialect, GroundedText, convert, get_dialect, parse, render
from spr.records import Box, Point, Size, Span

KEYS = sorted(DIALECTS)
VARIANTS = [
    *KEYS,
    "llava unpadded",
    "llava_onevision padded",
    "qwen2_5_vl of 1,003,520 pixels",
    "qwen2_5_vl seen as 56 × 84",
]
ROUNDING = 1e-9  # pixels by which float64 arithmetic can exceed a bound

sizes = st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)) | st.sampled_from(
    [(1, 1), (1, 10_000), (10_000, 1), (10_000, 10_000), (640, 480), (27, 28), (333, 1000)]
)
fractions = (
    st.floats(0, 1) | st.integers(0, 1024).map(lambda n: n / 1024) | st.integers(0, 1000).map(lambda n: n / 1000)
)


def variant(name: str) -> Dialect:
    match name:
        case "llava unpadded":
            return get_dialect("llava", padded=False)
        case "llava_onevision padded":
            return get_dialect("llava_onevision", padded=True)
        case "qwen2_5_vl of 1,003,520 pixels":
            return get_dialect("qwen2_5_vl", max_pixels=28 * 28 * 1280)
        case "qwen2_5_vl seen as 56 × 84":
            return get_dialect("qwen2_5_vl", resized_wh=(56, 84))
    return get_dialect(name)


@st.composite
def boxes_in(draw: st.DrawFn, size_wh: Size) -> Box:
    w, h = size_wh
    xs, ys = sorted(draw(st.tuples(fractions, fractions))), sorted(draw(st.tuples(fractions, fractions)))
    return xs[0] * w, ys[0] * h, xs[1] * w, ys[1] * h


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Size, GroundedText]:
    """An image's size, and a text whose phrases have boxes; their corners are its points where a test asks for them."""
    size = draw(sizes)
    phrases = draw(st.lists(st.lists(boxes_in(size), min_size=1, max_size=3), min_size=1, max_size=3))
    words = ["a dog", "two cats", "the man"]
    return size, grounded_text([(words[n], tuple(boxes)) for n, boxes in enumerate(phrases)])


def of_kind(grounded: GroundedText, *dialects: Dialect) -> GroundedText:
    """The text with its boxes if all dialects can write them, or with points: the upper left and lower right corners.

    With both if all can write both, and with neither if they have nothing in common.
    """
    boxes, points = (all(getattr(dialect, f"writes_{kind}") for dialect in dialects) for kind in ("boxes", "points"))
    spans = [
        Span(s.phrase, s.start, s.end, s.boxes * boxes, tuple(p for b in s.boxes for p in (b[:2], b[2:])) * points)
        for s in grounded.spans
    ]
    return GroundedText(grounded.plain_text, tuple(spans))


def point_errors(before: tuple[Point, ...], after: tuple[Point, ...]) -> tuple[float, float]:
    """The largest horizontal and the largest vertical distance of two points."""
    assert len(before) == len(after)
    pairs = list(zip(before, after, strict=True))
    return tuple(max((abs(a[i] - b[i]) for a, b in pairs), default=0.0) for i in (0, 1))


def grounded_text(phrases: list[tuple[str, tuple[Box, ...]]]) -> GroundedText:
    text, spans = "", []
    for phrase, boxes in phrases:
        text += " near " if text else ""
        spans.append(Span(phrase, len(text), len(text) + len(phrase), boxes))
        text += phrase
    return GroundedText(text + ".", tuple(spans))


def errors(before: tuple[Box, ...], after: tuple[Box, ...]) -> tuple[float, float]:
    """The largest distance between two vertical edges, and between two horizontal edges."""
    assert len(before) == len(after)
    pairs = list(zip(before, after, strict=True))
    return (
        max((abs(a[i] - b[i]) for a, b in pairs for i in (0, 2)), default=0.0),
        max((abs(a[i] - b[i]) for a, b in pairs for i in (1, 3)), default=0.0),
    )


@pytest.mark.parametrize("name", VARIANTS)
@given(scene=scenes())
@settings(max_examples=examples(60), deadline=None)
def test_every_box_is_read_back_within_the_stated_error(name: str, scene: tuple[Size, GroundedText]) -> None:
    dialect, (size, grounded) = variant(name), scene
    grounded = of_kind(grounded, dialect)
    again = parse(render(grounded, dialect, size), dialect, size, strict=True)
    bound_x, bound_y = dialect.max_error(size)
    for ex, ey in (errors(grounded.boxes, again.boxes), point_errors(grounded.points, again.points)):
        assert ex <= bound_x + ROUNDING
        assert ey <= bound_y + ROUNDING
    assert [span.phrase for span in again.spans] == [span.phrase for span in grounded.spans]
    for x1, y1, x2, y2 in again.boxes:
        assert 0 <= x1 <= x2 <= size[0]
        assert 0 <= y1 <= y2 <= size[1]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_stated_error_is_not_larger_than_needed(name: str) -> None:
    # Boxes of all widths in much finer steps than any dialect's, and a narrow one, which Kosmos-2 moves the most.
    dialect, size = variant(name), (640, 416)
    steps = [n / 6007 for n in range(6008)]
    boxes = [(640 * f, 416 * f, 640 * min(1, f + 0.4), 416 * min(1, f + 0.4)) for f in steps]
    boxes += [(640 * f, 416 * f, 640 * f, 416 * f) for f in steps]
    frame = dialect.frame(size)
    decoded = [frame.decode(frame.encode(box))[0] for box in boxes]
    ex, ey = errors(tuple(boxes), tuple(box for box in decoded if box is not None))
    bound_x, bound_y = dialect.max_error(size)
    assert 0.95 * bound_x <= ex <= bound_x + ROUNDING
    assert 0.95 * bound_y <= ey <= bound_y + ROUNDING


@pytest.mark.parametrize("name", VARIANTS)
@given(scene=scenes())
@settings(max_examples=examples(30), deadline=None)
def test_a_parsed_answer_is_written_the_same_again(name: str, scene: tuple[Size, GroundedText]) -> None:
    # Also if the boxes have been stored as float32, as in a table.
    dialect, (size, grounded) = variant(name), scene
    text = render(of_kind(grounded, dialect), dialect, size)
    again = parse(text, dialect, size)
    assert render(again, dialect, size) == text
    assert render(_float32(again), dialect, size) == text


def _float32(grounded: GroundedText) -> GroundedText:
    def stored(values: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(array("f", one)) for one in values)

    spans = [Span(s.phrase, s.start, s.end, stored(s.boxes), stored(s.points)) for s in grounded.spans]
    return GroundedText(grounded.plain_text, tuple(spans))


def there_and_back(source: Dialect, target: Dialect, size: Size, grounded: GroundedText) -> None:
    grounded = of_kind(grounded, source, target)
    text = render(grounded, source, size)
    if not (grounded.boxes or grounded.points):
        return
    back = convert(convert(text, source, target, size, strict=True), target, source, size, strict=True)
    before, after = parse(text, source, size), parse(back, source, size)
    assert [span.phrase for span in after.spans] == [span.phrase for span in before.spans]
    if source.keeps_prose and target.keeps_prose:
        assert after.plain_text == before.plain_text
    for errors_xy in (errors(before.boxes, after.boxes), point_errors(before.points, after.points)):
        for error, one, other in zip(errors_xy, source.max_error(size), target.max_error(size), strict=True):
            assert error <= one + other + ROUNDING


@given(scene=scenes(), source=st.sampled_from(VARIANTS), target=st.sampled_from(VARIANTS))
@settings(max_examples=examples(400), deadline=None)
def test_converting_there_and_back_moves_an_edge_by_at_most_both_errors(
    scene: tuple[Size, GroundedText], source: str, target: str
) -> None:
    there_and_back(variant(source), variant(target), *scene)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(KEYS, KEYS)))
def test_every_pair_of_dialects_converts_there_and_back(source: str, target: str) -> None:
    boxes = ((12.5, 30.25, 200.0, 479.0), (600.0, 0.0, 640.0, 480.0), (5.0, 5.0, 6.0, 300.0))
    grounded = grounded_text([("a dog", boxes[:1]), ("two cats", boxes[1:])])
    there_and_back(get_dialect(source), get_dialect(target), (640, 480), grounded)


@pytest.mark.parametrize("key", [key for key in KEYS if not DIALECTS[key].writes_points])
def test_points_are_never_lost_in_a_dialect_without_them(key: str) -> None:
    text = '[{"point_2d": [100, 200], "label": "a dog"}]'
    with pytest.raises(GroundingError, match=f"Dialect `{key}` has no points") as caught:
        convert(text, "qwen3_vl", key, (640, 480))
    assert "molmo2" in caught.value.expected
    assert "without_points" in caught.value.fix


@pytest.mark.parametrize("key", [key for key in KEYS if not DIALECTS[key].writes_boxes])
def test_boxes_are_never_lost_in_a_dialect_without_them(key: str) -> None:
    with pytest.raises(GroundingError, match=f"Dialect `{key}` has no boxes") as caught:
        convert("a dog [1, 2, 3, 4]", "ferret", key, (640, 480))
    assert "qwen3_vl" in caught.value.expected
    assert "without_boxes" in caught.value.fix
