"""Answers for the tests of rewards: a scene, answers made from boxes, edits of them, and rewards computed slowly."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from spr.grounding import DIALECTS, GroundedText, render
from spr.records import Box, Span
from spr.rewards import Answer, Truth, TruthObject

SIZE = (640, 480)
# A quarter of the image; a cell of a grid of 8 × 8; one and a half cells; two by three cells.
SCENE = (
    TruthObject("dog", (0, 0, 320, 240)),
    TruthObject("cat", (320, 240, 400, 300)),
    TruthObject("cup", (400, 60, 480, 150)),
    TruthObject("plate", (480, 300, 640, 480)),
)
BOX_KEYS = tuple(key for key in DIALECTS if DIALECTS[key].writes_boxes)
POINT_KEYS = tuple(key for key in DIALECTS if DIALECTS[key].writes_points)


def answer_of(placed: Sequence[tuple[str, Box]]) -> Answer:
    """An answer with a box per phrase, as if it had been read."""
    return Answer.of(grounded_of(placed))


def grounded_of(placed: Sequence[tuple[str, Box]]) -> GroundedText:
    """The words and boxes of an answer."""
    text, spans = "", []
    for phrase, box in placed:
        spans.append(Span(phrase, len(text), len(text) + len(phrase), (box,)))
        text += phrase + ", "
    return GroundedText(text, tuple(spans))


def perfect(truth: Truth | Sequence[TruthObject]) -> list[tuple[str, Box]]:
    """Each object's label with its box."""
    return [(item.label, item.box) for item in (truth.objects if isinstance(truth, Truth) else truth)]


def written(placed: Sequence[tuple[str, Box]], key: str, size_wh: tuple[int, int] = SIZE) -> str:
    """The text that models of a dialect would write for these boxes."""
    return render(grounded_of(placed), key, size_wh)


def grid(columns: int, rows: int | None = None, size_wh: tuple[int, int] = SIZE) -> list[Box]:
    """Every cell of a grid over the image, row by row."""
    rows = rows or columns
    w, h = size_wh[0] / columns, size_wh[1] / rows
    return [(x * w, y * h, (x + 1) * w, (y + 1) * h) for y in range(rows) for x in range(columns)]


def pyramid() -> list[Box]:
    """The cells of grids of 1 × 1, 2 × 2, … 16 × 16: 341 boxes."""
    return [box for side in (1, 2, 4, 8, 16) for box in grid(side)]


# ── what hypothesis draws ─────────────────────────────────────────────────────────────────────────────────────────────

LABELS = ("dog", "cat", "wine_glass", "car_(automobile)")


def boxes(least: int = 1) -> st.SearchStrategy[Box]:
    """Boxes in the image. Many share edges, so that overlaps are equal, exactly at a threshold or whole."""
    coarse = st.tuples(*(st.integers(0, 5) for _ in range(4))).map(
        lambda v: (v[0] * 80.0, v[1] * 60.0, min(v[0] + 1 + v[2], 8) * 80.0, min(v[1] + 1 + v[3], 8) * 60.0)
    )
    fine = st.tuples(*(st.floats(0, 1, allow_subnormal=False) for _ in range(4))).map(
        lambda v: (
            v[0] * (640 - least),
            v[1] * (480 - least),
            v[0] * (640 - least) + least + v[2] * (640 - least) * (1 - v[0]),
            v[1] * (480 - least) + least + v[3] * (480 - least) * (1 - v[1]),
        )
    )
    return coarse | fine.map(lambda box: (box[0], box[1], min(box[2], 640.0), min(box[3], 480.0)))


def truths(least: int = 1, most: int = 5, *, labels: Sequence[str] = ("ignore", "name")) -> st.SearchStrategy[Truth]:
    """Truths with up to five objects."""
    objects = st.lists(st.builds(TruthObject, st.sampled_from(LABELS), boxes()), min_size=least, max_size=most)
    return st.builds(
        lambda items, how: Truth(tuple(items), "ferret", SIZE, how), objects, st.sampled_from(tuple(labels))
    )


def placements(most: int = 5) -> st.SearchStrategy[list[tuple[str, Box]]]:
    """Phrases with boxes: an answer with little or much in common with a truth."""
    return st.lists(st.tuples(st.sampled_from((*LABELS, "a tree", "")), boxes()), max_size=most)


@st.composite
def edited(draw: st.DrawFn, truth: Truth) -> list[tuple[str, Box]]:
    """A perfect answer after one to four edits: moved, dropped, added, repeated, relabelled, reordered boxes."""
    placed = draw(st.permutations(perfect(truth))) if draw(st.booleans()) else perfect(truth)
    placed = list(placed)
    for _ in range(draw(st.integers(0, 4))):
        edit = draw(st.sampled_from(("move", "drop", "add", "repeat", "relabel", "replace")))
        if edit == "add":
            placed.insert(
                draw(st.integers(0, len(placed))), (draw(st.sampled_from((*LABELS, "a tree", ""))), draw(boxes()))
            )
        elif placed:
            k = draw(st.integers(0, len(placed) - 1))
            phrase, (x1, y1, x2, y2) = placed[k]
            if edit == "move":
                dx, dy = draw(st.floats(-40, 40)), draw(st.floats(-40, 40))
                box = tuple(
                    min(max(v + d, 0.0), s) for v, d, s in zip((x1, y1, x2, y2), (dx, dy) * 2, SIZE * 2, strict=True)
                )
                placed[k] = (phrase, box)
            elif edit == "drop":
                del placed[k]
            elif edit == "repeat":
                placed[k:k] = [placed[k]] * draw(st.integers(1, 3))
            elif edit == "relabel":
                placed[k] = (draw(st.sampled_from((*LABELS, "a tree", ""))), placed[k][1])
            else:
                placed[k] = (phrase, draw(boxes()))
    return placed


# ── rewards restated, slowly and without arrays ───────────────────────────────────────────────────────────────────────


def slow_iou(one: Box, other: Box) -> float:
    """IoU from the definition."""
    w = min(one[2], other[2]) - max(one[0], other[0])
    h = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(w, 0) * max(h, 0)
    whole = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - shared
    return shared / whole if whole > 0 else 0.0


def slow_ious(placed: Sequence[tuple[str, Box]], truth: Truth) -> list[list[float]]:
    """IoU of each object with each box; 0 if the label is another and labels count."""
    same = {"ignore": lambda _, __: True, "name": lambda phrase, label: phrase == label}[truth.labels]
    return [[slow_iou(item.box, box) * same(phrase, item.label) for phrase, box in placed] for item in truth.objects]


def best_sum(values: Sequence[Sequence[float]]) -> float:
    """The largest sum over all ways of giving each row no column or one that no other row has."""

    def of(row: int, used: frozenset[int]) -> float:
        if row == len(values):
            return 0.0
        free = (of(row + 1, used | {k}) + v for k, v in enumerate(values[row]) if k not in used)
        return max([of(row + 1, used), *free])

    return of(0, frozenset())
