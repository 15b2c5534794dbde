"""Fast reading of boxes without their phrases, for evaluation, where most answers are one plain box.

An answer with exactly one well-formed box is read without analysing its words; all others are parsed by `parse`. Both
give the same boxes and the same number of problems.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from spr.grounding.dialects import Dialect
from spr.grounding.markup import JsonList, Tags, Tokens
from spr.grounding.parse import parse
from spr.grounding.phrases import BREAKERS, WHERE, find_phrase
from spr.grounding.prose import without_surrogates
from spr.records import Box, Size

_OPENER = re.compile(r"[\[({<]")


class Boxes(NamedTuple):
    """An answer's boxes, xyxy pixels in the order of the text, and the number of its malformed pieces."""

    boxes: tuple[Box, ...]
    problems: int


class BoxReader:
    """Reads the boxes of answers in one dialect.

    Args:
        dialect: The dialect of the answers.

    >>> from spr.grounding import get_dialect
    >>> BoxReader(get_dialect("ferret")).read("a dog [100, 150, 300, 200]", (1000, 1000))
    Boxes(boxes=((100.0, 150.0, 300.0, 200.0),), problems=0)
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self._search = dialect.markup.pattern.search
        self._numbers = 2 if isinstance(dialect.markup, Tags) else 1
        self._order = dialect.markup.order if isinstance(dialect.markup, Tokens) else None
        self._four = self._order is None and self._numbers == 1
        self._frame = lru_cache(maxsize=4096)(dialect.frame)

    def read(self, text: str, size_wh: Size) -> Boxes:
        """The boxes of an answer about an image of ``size_wh`` pixels, as `parse` gives them.

        Raises:
            GroundingError: if the size is not two integers of at least 1.
        """
        match = self._search(text)
        if match is not None and self._is_plain(match):
            end = match.end()
            if end == len(text) or text[end:] == "." or self._search(text, end) is None:
                if self._four:
                    x1, y1, x2, y2 = match.group(1, 2, 3, 4)
                    numbers = [float(x1), float(y1), float(x2), float(y2)]
                else:
                    numbers = self._read_numbers(match)
                box, reason = self._frame(size_wh).decode(numbers)
                if box is not None and reason is None:
                    return Boxes((box,), 0)
        grounded = parse(text, self.dialect, size_wh)
        return Boxes(grounded.boxes, len(grounded.problems))

    def _is_plain(self, match: re.Match[str]) -> bool:
        """Whether a well-formed box has a phrase or label where the dialect needs one; if not, `parse` reports it."""
        if match[self._numbers] is None:
            return False
        text, markup = match.string, self.dialect.markup
        if isinstance(markup, Tags):
            return bool(match[1].strip())
        if isinstance(markup, JsonList):
            return "]" in text[match.end() :]
        before = text[: match.start()].strip()
        if isinstance(markup, Tokens):
            side = before[-1:] if markup.label_first else text[match.end() :].lstrip()[:1]
            return side.isalnum()
        if not before:
            return match.end() == len(text) or not text[match.end() :].strip()
        if _OPENER.search(before) is not None:
            return False
        last = before[before.rfind(" ") + 1 :].lower()
        if last.isalpha() and before.isascii() and last not in BREAKERS and last not in WHERE:
            return True  # the word is a phrase or the end of one
        start, end = find_phrase(without_surrogates(before), 0, len(before))
        return start < end

    def _read_numbers(self, match: re.Match[str]) -> list[float]:
        numbers = [float(text) for text in match.groups()[self._numbers - 1 :][:4] if text is not None]
        return numbers if self._order is None else [numbers[k] for k in self._order]
