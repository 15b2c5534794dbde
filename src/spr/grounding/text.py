"""Grounded text: plain words, spans with boxes and points, and the problems found while parsing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from spr.core.errors import RecordError
from spr.grounding.coding import IMPLAUSIBLE_SCALE, Frame
from spr.grounding.dialects import Dialect
from spr.records import Box, Point, Size, Span

PROBLEM_LENGTH = 60
_SURROGATE = re.compile("[\ud800-\udfff]")
_WIDE = "［］（）【】，、；．－％０１２３４５６７８９"
_ASCII = str.maketrans(_WIDE, "[]()[],,;.-%0123456789")
_WIDE_NUMBERS = re.compile(rf"[［（【]\s*+[-\d]|\d\s*+[{_WIDE}]")


@dataclass(frozen=True, slots=True)
class Problem:
    """A malformed piece of a model's answer.

    Attributes:
        offset: Offset of the piece in the raw answer, in characters.
        text: The piece, up to 60 characters: ``raw[offset : offset + len(text)]``, with U+FFFD for lone surrogates.
        reason: What is wrong, and how it was handled.

    >>> print(Problem(6, "[1, 2, 3]", "3 numbers instead of 4: dropped"))
    offset 6: '[1, 2, 3]': 3 numbers instead of 4: dropped
    """

    offset: int
    text: str
    reason: str

    def __str__(self) -> str:
        return f"offset {self.offset}: {self.text!r}: {self.reason}"


Range: TypeAlias = tuple[int, int]
"""Start and end of a piece of the raw answer, in characters."""


class Place(NamedTuple):
    """Where an answer writes a box or a point.

    Attributes:
        numbers: The ranges of the numbers, in the order x1, y1, x2, y2 (or first and second cell), or x, y of a point;
            empty if unknown.
        piece: The range of the box without what it shares with other boxes.
        unit: The range of the brackets, tags, entry or run of tokens that contain it, and perhaps other boxes.
        is_read: False for numbers outside of the image: out of the dialect's range, or in the padding.
    """

    numbers: tuple[Range, ...]
    piece: Range
    unit: Range
    is_read: bool = True


class Problems:
    """Collects the malformed pieces of a raw answer, and the places of its boxes and points.

    Patterns are applied to ``read``, which is the raw answer with ASCII punctuation and digits in the same places.
    """

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self.read = with_ascii_punctuation(raw)
        self.found: list[Problem] = []
        self.places: list[Place] = []
        self.point_places: list[Place] = []
        self.unread = False

    def note(self, start: int, stop: int, reason: str, *, unread: bool = False) -> None:
        """Report ``raw[start:stop]``; ``unread`` coordinates can't be mapped from a crop to its image."""
        self.found.append(Problem(start, self.raw[start : min(stop, start + PROBLEM_LENGTH)], reason))
        self.unread |= unread

    def decode(self, frame: Frame, match: re.Match[str], groups: Iterable[int], unit: Range | None = None) -> list[Box]:
        """The box of the numbers in groups of a match, or no box if it is dropped; a problem is reported."""
        numbers = [float(match[group]) for group in groups]
        ranges = tuple([match.span(group) for group in groups])
        return self.add(frame, numbers, ranges, match.span(), unit)

    def add(
        self, frame: Frame, numbers: Sequence[float], ranges: tuple[Range, ...], piece: Range, unit: Range | None = None
    ) -> list[Box]:
        """The box of the numbers at these ranges, or no box if it is dropped; a problem is reported."""
        box, reason = frame.decode(numbers)
        can_move = bool(ranges) and frame.can_move(numbers)
        if box is not None or can_move:
            unit = unit or piece
            # A match with its phrase starts before the unit.
            inside = max(piece[0], unit[0]), min(piece[1], unit[1])
            self.places.append(Place(ranges, inside, unit, box is not None))
        self.unread |= not can_move
        if reason is not None:
            self.note(*piece, reason)
        if self.read is not self.raw and ranges:
            self._note_wide(ranges, piece)
        return [] if box is None else [box]

    def _note_wide(self, ranges: Sequence[Range], piece: Range) -> None:
        start, stop = min(ranges)[0] - 1, max(ranges)[1] + 1
        if self.read[start:stop] != self.raw[start:stop]:
            self.note(*piece, "full-width punctuation: read anyway")

    def decode_point(
        self, frame: Frame, match: re.Match[str], groups: Iterable[int], unit: Range | None = None
    ) -> list[Point]:
        """The point of the numbers in groups of a match, or no point if it is dropped; a problem is reported."""
        ranges = tuple([match.span(group) for group in groups])
        return self.add_point(frame, [float(match[group]) for group in groups], ranges, match.span(), unit)

    def add_point(
        self, frame: Frame, numbers: Sequence[float], ranges: tuple[Range, ...], piece: Range, unit: Range | None = None
    ) -> list[Point]:
        """The point of the numbers at these ranges, or no point if it is dropped; a problem is reported."""
        point, reason = frame.decode_point(numbers)
        can_move = frame.can_move(numbers)
        if point is not None or can_move:
            self.point_places.append(Place(ranges, piece, unit or piece, point is not None))
        self.unread |= not can_move
        if reason is not None:
            self.note(*piece, reason)
        if self.read is not self.raw:
            self._note_wide(ranges, piece)
        return [] if point is None else [point]

    def sorted(self) -> tuple[Problem, ...]:
        """The problems by offset."""
        return tuple(sorted(self.found, key=lambda problem: problem.offset))


@dataclass(frozen=True, slots=True)
class Source:
    """The answer from which a grounded text was parsed, or its edited form, with the places of its boxes and points.

    The places in a well-formed answer are looked up when they are first used.

    Attributes:
        text: The answer as the model wrote it.
        dialect: Its dialect.
        size_wh: Width and height in pixels of the image that its numbers refer to.
        places: The places of the boxes, in the order of the text.
        has_unread: Whether it contains coordinates that could not be read.
        plain_text, boxes, points: Those of the grounded text that it belongs to.
        point_places: The places of the points, in the order of the text.
    """

    text: str
    dialect: Dialect
    size_wh: Size
    places: tuple[Place, ...]
    has_unread: bool
    plain_text: str
    boxes: tuple[Box, ...]
    points: tuple[Point, ...] = ()
    point_places: tuple[Place, ...] = ()

    def __getattr__(self, name: str) -> tuple[Place, ...]:
        if name not in ("places", "point_places"):
            raise AttributeError(f"a Source has no attribute {name!r}")
        from spr.grounding.parse import read_by_piece

        found = read_by_piece(self.text, self.dialect, self.size_wh).source
        places, point_places = (found.places, found.point_places) if found is not None else ((), ())
        object.__setattr__(self, "places", places)
        object.__setattr__(self, "point_places", point_places)
        return places if name == "places" else point_places

    @property
    def is_read(self) -> bool:
        """Whether every box and point of which the numbers are known was read, none of them outside of the image."""
        try:
            places = (*object.__getattribute__(self, "places"), *object.__getattribute__(self, "point_places"))
        except AttributeError:
            return True  # a well-formed answer
        return all(place.is_read for place in places)


@dataclass(frozen=True, slots=True)
class GroundedText:
    """A text without its coordinates, and its phrases with boxes and points.

    Attributes:
        plain_text: The words, which are scored (paper, Sec. 3.2).
        spans: Phrases with boxes and points in pixels of the original image; sorted, without overlap. A box without
            phrase has an empty one.
        problems: The malformed pieces of the parsed answer, by offset.
        source: The parsed answer, which `render` returns as it is for the same dialect and size. Text that was changed
            by other means than `spr.grounding.replace_boxes` has none, or one that is ignored.

    Raises:
        RecordError: if a span does not match the text, or spans overlap or are not sorted.

    >>> GroundedText("a dog", (Span("a dog", 0, 5, ((1, 2, 3, 4),)),)).boxes
    ((1.0, 2.0, 3.0, 4.0),)
    """

    plain_text: str
    spans: tuple[Span, ...] = ()
    problems: tuple[Problem, ...] = ()
    source: Source | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spans", tuple(self.spans))
        object.__setattr__(self, "problems", tuple(self.problems))
        text, position = self.plain_text, 0
        for span in self.spans:
            if text[span.start : span.end] != span.phrase:
                got = repr(text[span.start : span.end])
                raise RecordError("a span does not match its text", got=got, expected=repr(span.phrase))
            if span.start < position:
                got = f"a span that starts at {span.start} after one that ends at {position}"
                raise RecordError("spans overlap or are not sorted", got=got, expected="spans by their start")
            position = span.end

    @property
    def boxes(self) -> tuple[Box, ...]:
        """All boxes, in the order of the text."""
        return tuple(box for span in self.spans for box in span.boxes)

    @property
    def points(self) -> tuple[Point, ...]:
        """All points, in the order of the text."""
        return tuple(point for span in self.spans for point in span.points)

    @property
    def other_scale(self) -> bool:
        """Whether a box was read whose numbers fit another scale than the dialect's."""
        return any(problem.reason.startswith(IMPLAUSIBLE_SCALE) for problem in self.problems)


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which no file can contain; the length is unchanged."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def with_ascii_punctuation(text: str) -> str:
    """The text with ASCII brackets, commas and digits instead of full-width ones, if it has some beside numbers.

    Each character is replaced by one, so that offsets are the same.

    >>> with_ascii_punctuation("一只狗［120，340，560，780］")
    '一只狗[120,340,560,780]'
    """
    return text.translate(_ASCII) if not text.isascii() and _WIDE_NUMBERS.search(text) is not None else text
