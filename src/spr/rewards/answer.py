"""An answer as the rewards see it: read from what a model generated, once for all rewards."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from spr.grounding import Dialect, GroundedText, Problem, final_answer, get_dialect, parse
from spr.grounding.markup import SPECIAL
from spr.grounding.parse import BoxReader
from spr.grounding.unread import has_unread_coordinates
from spr.records import Box, Point, Size

_NOT_CLOSED = " is not closed"  # in the reasons of problems


class Answer:
    """An answer with boxes or points, xyxy or xy pixels of the original image.

    Its parts are read when they are first used: the boxes of most answers don't need the phrases.

    Attributes:
        generated: What the model generated, the reasoning included.
        text: The answer in it (`spr.grounding.final_answer`); empty if the reasoning is not closed.
        is_finished: False if the reasoning is not closed: there is no answer.
        step: The trainer's step, or None.
    """

    __slots__ = ("_boxes", "_grounded", "_reader", "_size_wh", "cache", "generated", "is_finished", "step", "text")

    def __init__(self, generated: str, reader: BoxReader, size_wh: Size, *, step: int | None = None) -> None:
        self.generated, self._reader, self._size_wh, self.step = generated, reader, size_wh, step
        self.text, problem = final_answer(generated)
        self.is_finished = problem is None
        self._boxes: tuple[Box, ...] | None = None
        self._grounded: GroundedText | None = None
        if problem is not None:
            self._grounded = replace(parse("", reader.dialect, size_wh), problems=(Problem(0, "", problem),))
        self.cache: dict[object, object] = {}  # what rewards share about this answer

    @classmethod
    def of(cls, grounded: GroundedText, *, step: int | None = None) -> Answer:
        """An answer that is already parsed, or made from boxes."""
        answer = cls.__new__(cls)
        answer.generated = answer.text = grounded.source.text if grounded.source is not None else grounded.plain_text
        answer.is_finished, answer.step, answer.cache = True, step, {}
        answer._grounded, answer._boxes = grounded, None
        return answer

    @property
    def grounded(self) -> GroundedText:
        """The parsed answer: words, phrases with boxes and points, and malformed pieces."""
        if self._grounded is None:
            self._grounded = parse(self.text, self._reader.dialect, self._size_wh)
        return self._grounded

    @property
    def boxes(self) -> tuple[Box, ...]:
        """All boxes, in the order of the text."""
        if self._boxes is None:
            one = self._reader.read_one(self.text, self._size_wh) if self._grounded is None else None
            self._boxes = self.grounded.boxes if one is None else (one,)
        return self._boxes

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrase of each box; empty for a box without one."""
        return tuple(span.phrase for span in self.grounded.spans for _ in span.boxes)

    @property
    def points(self) -> tuple[Point, ...]:
        """All points, in the order of the text."""
        return self.grounded.points

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The malformed pieces of the answer."""
        return self.grounded.problems

    @property
    def is_blank(self) -> bool:
        """Whether it has no text, or only special tokens: the end of the turn, or markup without anything in it."""
        text = self.text
        if "<" in text:
            text = SPECIAL.sub("", text)
            source = self.grounded.source
            if source is not None and source.dialect.special_tokens is not None:
                text = re.sub(source.dialect.special_tokens, "", text)
        return not text.strip()

    @property
    def is_cut(self) -> bool:
        """Whether the markup that it begins is not closed: a list, an entry, a tag or a bracket."""
        return any(_NOT_CLOSED in problem.reason for problem in self.problems)

    @property
    def has_unread_coordinates(self) -> bool:
        """Whether it has coordinates that are malformed, out of the image, or of another dialect."""
        return has_unread_coordinates(self.grounded)


@lru_cache(maxsize=64)
def reader_of(spec: str) -> BoxReader:
    """The reader of a dialect's boxes; ``spec`` is what `get_dialect` reads."""
    return BoxReader(get_dialect(spec))


def read_answer(generated: str, dialect: str | Dialect, size_wh: Size, *, step: int | None = None) -> Answer:
    """The answer in what a model generated, without the reasoning before it, as rewards take it.

    `spr.grounding.final_answer` says what the answer is; only its boxes count. Reasoning that is not closed is an empty
    answer with a problem, so its rewards are 0.

    Args:
        generated: What the model generated, with its special tokens where these carry the boxes.
        dialect: How the model writes boxes: a key of `DIALECTS` with options, or a `Dialect`.
        size_wh: Width and height of the original image in pixels.
        step: The trainer's step, for thresholds that depend on it.

    Raises:
        GroundingError: for an unknown dialect or a wrong image size.

    >>> text = "<think>Left? [0, 0, 99, 99]</think><answer>a dog [100, 150, 300, 200]</answer>"
    >>> read_answer(text, "ferret", (1000, 1000)).boxes
    ((100.0, 150.0, 300.0, 200.0),)
    >>> print(*read_answer("<think>Left? [0, 0,", "ferret", (1000, 1000)).problems)
    offset 0: '': reasoning is not closed: no answer
    """
    reader = BoxReader(dialect) if isinstance(dialect, Dialect) else reader_of(dialect)
    return Answer(generated, reader, size_wh, step=step)
