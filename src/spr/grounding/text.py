"""Grounded text: plain words, spans with boxes, and the problems found while parsing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from spr.core.errors import RecordError
from spr.grounding.coding import Frame
from spr.records import Box, Span

PROBLEM_LENGTH = 60
_SURROGATE = re.compile("[\ud800-\udfff]")


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


class Problems:
    """Collects the malformed pieces of a raw answer."""

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self.found: list[Problem] = []

    def note(self, start: int, stop: int, reason: str) -> None:
        """Report ``raw[start:stop]``."""
        self.found.append(Problem(start, self.raw[start : min(stop, start + PROBLEM_LENGTH)], reason))

    def decode(self, frame: Frame, numbers: Iterable[str], start: int, stop: int) -> list[Box]:
        """The box of the numbers in ``raw[start:stop]``, or no box if it is dropped; a problem is reported."""
        box, reason = frame.decode([float(number) for number in numbers])
        if reason is not None:
            self.note(start, stop, reason)
        return [] if box is None else [box]

    def sorted(self) -> tuple[Problem, ...]:
        """The problems by offset."""
        return tuple(sorted(self.found, key=lambda problem: problem.offset))


@dataclass(frozen=True, slots=True)
class GroundedText:
    """A text without its coordinates, and its phrases with boxes.

    Attributes:
        plain_text: The words, which are scored (paper, Sec. 3.2).
        spans: Phrases with boxes in pixels of the original image; sorted, without overlap. A box without phrase has an
            empty one.
        problems: The malformed pieces of the parsed answer, by offset.

    Raises:
        RecordError: if a span does not match the text, or spans overlap or are not sorted.

    >>> GroundedText("a dog", (Span("a dog", 0, 5, ((1, 2, 3, 4),)),)).boxes
    ((1.0, 2.0, 3.0, 4.0),)
    """

    plain_text: str
    spans: tuple[Span, ...] = ()
    problems: tuple[Problem, ...] = ()

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


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which no file can contain; the length is unchanged."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
