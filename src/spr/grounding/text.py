"""Grounded text: plain words, spans with boxes, and the problems found while parsing."""

from __future__ import annotations

from dataclasses import dataclass

from spr.core.errors import RecordError
from spr.records import Box, Span


@dataclass(frozen=True, slots=True)
class Problem:
    """A malformed piece of a model's answer.

    Attributes:
        offset: Offset of the piece in the raw answer, in characters.
        text: The first 60 characters of the piece: ``raw[offset : offset + len(text)]``, with U+FFFD for lone
            surrogates.
        reason: What is wrong, and how it was handled.

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
