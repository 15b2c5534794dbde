"""Parse a model's answer in its dialect; `BoxReader` does it faster where only the boxes are needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

from spr.core.errors import GroundingError
from spr.grounding.dialects import Dialect, get_dialect
from spr.grounding.elements import parse_elements
from spr.grounding.json_list import parse_json
from spr.grounding.lists import parse_tokens
from spr.grounding.markup import Brackets, Elements, JsonList, Markup, Tags, Tokens
from spr.grounding.phrases import BREAKERS, WHERE, find_phrase
from spr.grounding.prose import LINE_START, parse_brackets
from spr.grounding.tags import TagReader
from spr.grounding.text import GroundedText, Problems, Source, with_ascii_punctuation, without_surrogates
from spr.records import Box, Size

_OPENER = re.compile(r"[\[({<]")


def parse(text: str, dialect: str | Dialect, size_wh: Size, *, strict: bool = False) -> GroundedText:
    """Parse an answer into plain text, phrases with boxes and points in pixels, and problems.

    Parsing accepts any text: every well-formed box is kept, and every malformed piece is reported. Numbers out of the
    dialect's range are clipped and reported. A box entirely out of range, or a point, is dropped and reported; the
    scale is never guessed. Swapped corners are sorted and reported. Lone surrogates, which no file can contain, become
    U+FFFD.

    Args:
        text: The answer as generated; it may contain special tokens of the tokenizer.
        dialect: A key of `DIALECTS` or a `Dialect`.
        size_wh: Width and height of the original image in pixels.
        strict: Raise an error for the first problem.

    Raises:
        GroundingError: for an unknown dialect or a wrong image size; with ``strict`` also for a malformed piece,
            naming its offset.

    Examples:
        >>> grounded = parse("A man [100, 150, 300, 800] and two dogs [0, 0, 50, 50] [9, 9, 9].", "ferret", (1000, 500))
        >>> grounded.plain_text, [(span.phrase, span.boxes[0]) for span in grounded.spans]
        ('A man and two dogs.', [('A man', (100.0, 75.0, 300.0, 400.0)), ('two dogs', (0.0, 0.0, 50.0, 25.0))])
        >>> print(*grounded.problems)
        offset 56: '9, 9, 9': 3 numbers instead of 4: dropped
    """
    dialect, text = get_dialect(dialect), without_surrogates(text)
    grounded = dialect.well_formed.read(text, size_wh)
    if grounded is None:
        grounded = read_by_piece(text, dialect, size_wh)
    if strict and grounded.problems:
        problem = grounded.problems[0]
        what = f"Text in dialect `{dialect.key}` is malformed at offset {problem.offset}: {problem.reason}"
        fix = "parse without `strict` to keep the well-formed pieces"
        raise GroundingError(what, got=repr(problem.text), expected=dialect.example, fix=fix)
    return grounded


def read_by_piece(text: str, dialect: Dialect, size_wh: Size) -> GroundedText:
    """Parse an answer without lone surrogates piece by piece, whatever it contains."""
    frame, markup, problems = dialect.frame(size_wh), markup_of(dialect, text), Problems(text)
    if isinstance(markup, Brackets):
        plain, spans = parse_brackets(problems, markup, frame)
    elif isinstance(markup, Tags):
        plain, spans = TagReader(problems, markup, frame).read()
    elif isinstance(markup, JsonList):
        plain, spans = parse_json(problems, markup, frame)
    elif isinstance(markup, Elements):
        plain, spans = parse_elements(problems, markup, frame)
    else:
        plain, spans = parse_tokens(problems, markup, frame)
    boxes = tuple([box for span in spans for box in span.boxes])
    points = tuple([point for span in spans for point in span.points]) if problems.point_places else ()
    places = tuple(problems.places), tuple(problems.point_places)
    source = Source(text, dialect, size_wh, places[0], problems.unread, plain, boxes, points, places[1])
    return GroundedText(plain, tuple(spans), problems.sorted(), source)


def markup_of(dialect: Dialect, text: str) -> Markup:
    """How a text is read: by the dialect's markup, or as JSON, if its models write that as well and the text has it."""
    markup = dialect.markup
    return markup.of(text) if isinstance(markup, Tags) else markup


class Boxes(NamedTuple):
    """An answer's boxes, xyxy pixels in the order of the text, the number of its malformed pieces, and their scale.

    ``other_scale`` is that of `GroundedText`.
    """

    boxes: tuple[Box, ...]
    problems: int
    other_scale: bool = False


class BoxReader:
    """Reads the boxes of answers in one dialect, without their phrases, for evaluation.

    Most answers there are one well-formed box, which is read without analysing the words; all others are parsed by
    `parse`. Both give the same boxes and the same number of problems.

    >>> BoxReader(get_dialect("ferret")).read("a dog [100, 150, 300, 200]", (1000, 1000))
    Boxes(boxes=((100.0, 150.0, 300.0, 200.0),), problems=0, other_scale=False)
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self._search = dialect.markup.pattern.search
        markup = dialect.markup
        self._numbers = () if isinstance(markup, Elements) else markup.numbers
        self._is_fast = bool(self._numbers)
        in_prose = isinstance(markup, Brackets)
        self._is_plain: Callable[[re.Match[str]], bool] = _follows_words if in_prose else partial(_is_labelled, markup)
        self._frame = lru_cache(maxsize=4096)(dialect.frame)

    def read(self, text: str, size_wh: Size) -> Boxes:
        """The boxes of an answer about an image of ``size_wh`` pixels.

        Raises:
            GroundingError: for a wrong size.
        """
        box = self.read_one(text, size_wh)
        if box is not None:
            return Boxes((box,), 0)
        grounded = parse(text, self.dialect, size_wh)
        return Boxes(grounded.boxes, len(grounded.problems), grounded.other_scale)

    def read_one(self, text: str, size_wh: Size) -> Box | None:
        """The box of an answer that is one well-formed box; None for other answers, which `parse` reads."""
        match = self._search(text) if self._is_fast else None
        if (
            match is not None
            and match[self._numbers[0]] is not None
            and self._is_plain(match)
            and (text.isascii() or with_ascii_punctuation(text) is text)
        ):
            end = match.end()
            if end == len(text) or text[end:] == "." or self._search(text, end) is None:
                numbers = match.group(*self._numbers)
                box, reason = self._frame(size_wh).decode(list(map(float, numbers)))
                if reason is None:
                    return box
        return None


def _is_labelled(markup: Markup, match: re.Match[str]) -> bool:
    """Whether a well-formed box has a phrase or label where the markup needs one; if not, `parse` reports it."""
    text = match.string
    if isinstance(markup, Tags):
        alone = markup.phrase is None and match.start() == 0 and match.end() == len(text)
        return alone or bool(match[1].strip())
    if isinstance(markup, Tokens):
        side = text[: match.start()].rstrip() if markup.label_first else text[match.end() :].lstrip()[:1]
        return side[-1:].isalnum()
    return "]" in text[match.end() :]


def _follows_words(match: re.Match[str]) -> bool:
    """Whether a box in prose is the whole answer, or follows words that it belongs to; if not, `parse` reports it."""
    text, (begin, end) = match.string, match.span()
    before = text[:begin].strip()
    if text.startswith("]", end):
        return False
    if not before:
        return end == len(text) or not text[end:].strip()
    last = before[before.rfind(" ") + 1 :].lower()
    if before.isascii() and before.replace(" ", "").isalpha() and last not in BREAKERS:
        return True  # the last of the words is in a phrase
    if "\n" in before or (end < len(text) and len(before) < 9 and LINE_START.fullmatch(before + " ")):
        return False  # the words come after the box
    if _OPENER.search(before) is not None:
        return False
    if last.isalpha() and before.isascii() and last not in BREAKERS and last not in WHERE:
        return True
    start, stop = find_phrase(without_surrogates(before), 0, len(before))
    return start < stop
