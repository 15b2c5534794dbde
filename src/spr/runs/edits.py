"""Corrections of a chosen answer by a person: its words with numbered phrases, and its boxes.

A person edits ``[a cup](1) beside [two plates](2 3)`` and a list of boxes, whatever the dialect. The page of
`spr review` and the exports to annotation tools show answers in this form.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np

from spr.core import boxes as bx
from spr.core.errors import GroundingError, RecordError
from spr.core.terminal import count_text
from spr.grounding import Dialect, GroundedText, parse, render, replace_boxes
from spr.records import Box, PreferencePair, Size, Span
from spr.records.records import check_box

_SLACK = 0.01  # px: largest float32 rounding error of a box in an image of 100,000 px
SNAP = 0.051
"""Pixels: an edited box that is this near to the original one is that box; pages round to 0.1."""
_PHRASE = re.compile(r"\[((?:[^\[\]\\]|\\.)*+)\]\(([\d\s,]*)\)|\\(.)", re.DOTALL)
_SPECIAL = re.compile(r"[\\\[\]]")


def to_numbered(grounded: GroundedText) -> str:
    r"""A text with the numbers of its boxes, from 1 in the order of the text; brackets in words get a backslash.

    >>> box = (1.0, 2.0, 3.0, 4.0)
    >>> to_numbered(GroundedText("[blue] cup, mugs", (Span("cup", 7, 10, (box,)), Span("mugs", 12, 16, (box, box)))))
    '\\[blue\\] [cup](1), [mugs](2 3)'
    """
    pieces, position, number = [], 0, 1
    for span in grounded.spans:
        if not span.boxes:
            continue
        numbers = " ".join(str(number + k) for k in range(len(span.boxes)))
        pieces += [_escaped(grounded.plain_text[position : span.start]), f"[{_escaped(span.phrase)}]({numbers})"]
        position, number = span.end, number + len(span.boxes)
    return "".join((*pieces, _escaped(grounded.plain_text[position:])))


def from_numbered(text: str, boxes: Sequence[Sequence[float] | None]) -> GroundedText:
    """The text and boxes that a person has edited; boxes that were deleted are None. Phrases without box are words.

    Raises:
        GroundingError: naming a number that is no box, or a box without phrase.

    >>> from_numbered("[a cup](1) and a plate", [(1, 2, 3, 4), None]).boxes
    ((1.0, 2.0, 3.0, 4.0),)
    """
    plain, spans, position, used = "", [], 0, set[int]()
    for match in _PHRASE.finditer(text):
        plain += text[position : match.start()]
        position = match.end()
        if match[3] is not None:
            plain += match[3]
            continue
        phrase, start = re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL), len(plain)
        plain += phrase
        numbers = [int(number[:9]) for number in re.findall(r"\d+", match[2])]
        for number in numbers:
            if not 1 <= number <= len(boxes) or boxes[number - 1] is None:
                got, fix = f"[{phrase}]({match[2]})", "use the number of a box, or write the words without brackets"
                raise GroundingError(f"There is no box {number}", got=got, fix=fix)
        used.update(numbers)
        if numbers:
            spans.append(Span(phrase, start, len(plain), tuple([boxes[number - 1] for number in numbers])))  # type: ignore[misc]
    plain += text[position:]
    unused = [k for k, box in enumerate(boxes, start=1) if box is not None and k not in used]
    if unused:
        fix = f"write [words]({unused[0]}) in the text, or delete the box"
        raise GroundingError(f"Box {unused[0]} belongs to no phrase", fix=fix)
    return GroundedText(plain, tuple(spans))


def without_boxes(text: str, deleted: Collection[int], *, prose: bool) -> str:
    """The text without the numbers of deleted boxes.

    A phrase that loses all of its boxes becomes words; it is removed in a dialect without ``prose``.

    >>> without_boxes("[a cup](1) and [two plates](2 3)", {1, 3}, prose=True)
    'a cup and [two plates](2)'
    """

    def rest(match: re.Match[str]) -> str:
        numbers = [number for number in re.findall(r"\d+", match[2] or "") if int(number[:9]) not in deleted]
        if match[3] is not None or len(numbers) == len(re.findall(r"\d+", match[2])):
            return match[0]
        return f"[{match[1]}]({' '.join(numbers)})" if numbers else match[1] if prose else ""

    return _PHRASE.sub(rest, text)


def _escaped(words: str) -> str:
    return _SPECIAL.sub(r"\\\g<0>", words)


def edited_pair(
    pair: PreferencePair, text: str, boxes: Sequence[Sequence[float] | None], dialect: Dialect
) -> PreferencePair:
    """The pair with the chosen answer that a person has edited, written in its dialect.

    If the words are the same, only the numbers of boxes that changed are written anew, and the rest of the answer stays
    as the model wrote it, character by character. Otherwise the answer is written as `render` does.

    Args:
        pair: The pair as it is in the run.
        text: The answer's words as `to_numbered` gives them for `numbered_answer`, edited.
        boxes: Its boxes, xyxy in pixels of the image: first those of `numbered_answer`, None for those deleted, then
            new ones.
        dialect: The dialect of the pair's answers.

    Raises:
        GroundingError: if a box or number is not valid, no box is left, the dialect can't write the words, the
            answers become equal, or the words of an answer with points change, since the text has no numbers of points.
    """
    size_wh = pair.width, pair.height
    before = numbered_answer(pair, dialect)
    exact = [_exact(box, k, before.boxes, size_wh) for k, box in enumerate(boxes)]
    edited = from_numbered(text, exact)
    if not edited.boxes:
        fix = "leave a box, or reject the pair"
        raise GroundingError("The chosen answer has no box", expected="at least one", fix=fix)
    if before.points and edited.plain_text != before.plain_text:
        what, fix = "The chosen answer has points, which other words would lose", "change only its boxes, or reject it"
        raise GroundingError(what, got=count_text(len(before.points), "points"), expected="the same words", fix=fix)
    outside = "" if before.points else "".join(words for words, span in _pieces(edited) if span is None)
    if not dialect.keeps_prose and any(map(str.isalnum, outside)):
        what = f"Dialect `{dialect.key}` lists objects, so it can't write words that belong to no box"
        raise GroundingError(what, got=outside.strip()[:80], fix="remove these words, or give them a box")
    written = _in_place(pair, before, edited, exact, dialect)
    if written is None and before.points:
        what, fix = "The chosen answer has points, which would be lost", "only move its boxes, or reject the pair"
        raise GroundingError(what, got=count_text(len(before.points), "points"), expected="the same boxes", fix=fix)
    written = written or render(edited, dialect, size_wh)
    again = with_pixels(written, edited.spans, dialect, size_wh)
    if len(again.boxes) != len(edited.boxes):
        what = f"Dialect `{dialect.key}` can't write this answer: it would be read back as something else"
        raise GroundingError(what, got=repr(written[:120]), fix="change the words around the boxes")
    if written == pair.rejected:
        raise GroundingError("The edited answer equals the rejected one", fix="reject the pair instead")
    return replace(pair, chosen=written, chosen_spans=again.spans)


def numbered_answer(pair: PreferencePair, dialect: Dialect) -> GroundedText:
    """The chosen answer of a pair with its exact boxes, for editing."""
    return with_pixels(pair.chosen, pair.chosen_spans, dialect, (pair.width, pair.height))


def _exact(box: Sequence[float] | None, k: int, before: Sequence[Box], size_wh: Size) -> Box | None:
    if box is None:
        return None
    if k < len(before) and len(box) == 4 and all(abs(a - b) <= SNAP for a, b in zip(box, before[k], strict=True)):
        return before[k]
    try:
        return check_box(box, size_wh, where=f"box {k + 1}")
    except RecordError as error:
        raise GroundingError(error.what, got=error.got, expected=error.expected) from None


def _pieces(text: GroundedText) -> Iterable[tuple[str, Span | None]]:
    position = 0
    for span in text.spans:
        yield text.plain_text[position : span.start], None
        yield span.phrase, span
        position = span.end
    yield text.plain_text[position:], None


def _in_place(
    pair: PreferencePair, before: GroundedText, edited: GroundedText, exact: Sequence[Box | None], dialect: Dialect
) -> str | None:
    """The model's own text with other numbers; None if more than boxes changed, or it can't be written so."""
    parsed = parse(pair.chosen, dialect, (pair.width, pair.height))
    if len(exact) != len(before.boxes):
        return None
    rest, wanted = iter(exact), []
    for span in before.spans:
        kept = tuple([box for box in [next(rest) for _ in span.boxes] if box is not None])
        wanted += [replace(span, boxes=kept, points=())] if kept else []
    if dialect.keeps_prose:
        same = (edited.plain_text, list(edited.spans)) == (before.plain_text, wanted)
    else:
        same = [(span.phrase, span.boxes) for span in edited.spans] == [(span.phrase, span.boxes) for span in wanted]
    if not same:
        return None
    # A box that did not change stays as the model wrote it; `parsed` has its rounded numbers.
    triples = zip(parsed.boxes, before.boxes, exact, strict=True)
    boxes = [own if box == old else box for own, old, box in triples]
    try:
        return render(replace_boxes(parsed, boxes), dialect, (pair.width, pair.height))
    except GroundingError:
        return None


def with_pixels(text: str, spans: Iterable[Span], dialect: Dialect, size_wh: Size) -> GroundedText:
    """Parse a text, and replace its boxes, which its dialect rounds, one by one by the exact boxes of the spans.

    If they don't correspond (another number of boxes, or a difference that rounding can't explain), the text's own
    boxes are kept.

    >>> from spr.grounding import get_dialect
    >>> exact = Span("a cup", 0, 5, ((33.3333, 0.0, 66.6667, 100.0),))
    >>> with_pixels("a cup [0.33, 0.00, 0.67, 1.00]", [exact], get_dialect("llava_onevision"), (100, 100)).boxes
    ((33.3333, 0.0, 66.6667, 100.0),)
    """
    parsed = parse(text, dialect, size_wh)
    exact = [box for span in spans for box in span.boxes]
    if len(exact) != len(parsed.boxes) or not exact:
        return parsed
    kept = bx.clip(np.asarray(exact, dtype=np.float64), size_wh)
    far = np.abs(kept - np.asarray(parsed.boxes)) - np.asarray(dialect.max_error(size_wh) * 2)
    if far.max() > _SLACK:
        return parsed
    boxes = iter(exact)
    replaced = [replace(span, boxes=tuple(next(boxes) for _ in span.boxes)) for span in parsed.spans]
    return GroundedText(parsed.plain_text, tuple(replaced))
