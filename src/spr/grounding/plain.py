"""The boxes of many answers, without their words: evaluation reads hundreds of thousands, most of them one plain box.

An answer that holds one well-formed box and nothing else that could be one needs no reading of its words; any other
goes through `parse`. Both give the same boxes and the same number of problems.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from spr.grounding.coding import Frame
from spr.grounding.dialects import Dialect
from spr.grounding.markup import Brackets, JsonList, Tokens
from spr.grounding.parse import parse
from spr.records import Box, Size


class Boxes(NamedTuple):
    """An answer's boxes, xyxy pixels in the order of the text, and how many of its pieces were malformed."""

    boxes: tuple[Box, ...]
    problems: int


class BoxReader:
    """Reads the boxes of answers in one dialect.

    Args:
        dialect: How the model writes boxes.

    >>> from spr.grounding import get_dialect
    >>> BoxReader(get_dialect("ferret")).read("a dog [100, 150, 300, 200]", (1000, 1000))
    Boxes(boxes=((100.0, 150.0, 300.0, 200.0),), problems=0)
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self._search = dialect.markup.pattern.search
        self._numbers = 1 if isinstance(dialect.markup, Brackets | JsonList | Tokens) else 2
        self._order = dialect.markup.order if isinstance(dialect.markup, Tokens) else None
        self._frame = lru_cache(maxsize=4096)(dialect.frame)

    def read(self, text: str, size_wh: Size) -> Boxes:
        """The boxes of an answer about an image of ``size_wh`` pixels, as `parse` reads them.

        Raises:
            GroundingError: if the size is not two whole numbers of at least 1.
        """
        match = self._search(text)
        if match is not None and self._is_plain(match) and self._search(text, match.end()) is None:
            made = self._plain(match.groups(), self._frame(size_wh))
            if made is not None:
                return made
        grounded = parse(text, self.dialect, size_wh)
        return Boxes(grounded.boxes, len(grounded.problems))

    def _is_plain(self, match: re.Match[str]) -> bool:
        # A phrase of nothing is a problem, which `parse` reports.
        return match[self._numbers] is not None and (self._numbers == 1 or bool(match[1].strip()))

    def _plain(self, groups: tuple[str | None, ...], frame: Frame) -> Boxes | None:
        numbers = [float(text) for text in groups[self._numbers - 1 :][:4] if text is not None]
        if self._order is not None:
            numbers = [numbers[k] for k in self._order]
        box, reason = frame.decode(numbers)
        return None if box is None or reason is not None else Boxes((box,), 0)
