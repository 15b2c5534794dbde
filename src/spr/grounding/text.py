"""Grounded text as the rest of SPR sees it: plain words, spans with boxes, and what was malformed on the way."""

from __future__ import annotations

from dataclasses import dataclass

from spr.core.errors import RecordError
from spr.records import Box, Span


@dataclass(frozen=True, slots=True)
class Problem:
    """A malformed piece of a model's answer.

    Attributes:
        offset: Where the piece starts in the raw answer, in characters.
        text: The piece itself, cut to its first 60 characters: ``raw[offset : offset + len(text)]``, with U+FFFD for
            each lone surrogate, as everywhere.
        reason: What is wrong with it and what became of it.

    >>> print(Problem(6, "[1, 2, 3]", "3 numbers instead of 4: dropped"))
    offset 6: '[1, 2, 3]': 3 numbers instead of 4: dropped
    """

    offset: int
    text: str
    reason: str

    def __str__(self) -> str:
        return f"offset {self.offset}: {self.text!r}: {self.reason}"


@dataclass(frozen=True, slots=True)
class GroundedText:
    """A text without its coordinates, and the phrases that its boxes ground.

    Attributes:
        plain_text: The words. METHOD §4 scores this text.
        spans: Phrases with boxes in pixels of the original image; sorted, without overlap. A phrase is empty where a
            box stood without one.
        problems: The malformed pieces of the answer that it was parsed from, by offset.

    Raises:
        RecordError: if a span does not match the text or starts before the last one ended.

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
