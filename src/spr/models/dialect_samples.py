"""Sample texts of a dialect, and the tokens of its markup in texts. Needs neither PyTorch nor transformers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from spr.core.errors import GroundingError
from spr.grounding import Dialect, GroundedText, render
from spr.records import Span

SAMPLE_SIZE = (640, 480)
"""Size in pixels of the image that the samples are about."""
_BOXES = ((0.0, 0.0, 96.0, 408.0), (48.0, 36.0, 640.0, 480.0), (312.0, 12.0, 564.0, 228.0), (7.0, 241.0, 411.0, 470.0))
_POINTS = ((0.0, 0.0), (640.0, 480.0), (312.0, 12.0), (411.0, 470.0))


def sample_texts(dialect: Dialect) -> list[str]:
    """Texts of a dialect: its example, and a phrase with capital letters and several boxes, if it can be rendered.

    >>> from spr.grounding import get_dialect
    >>> sample_texts(get_dialect("ferret"))[1]
    'A Dog [0, 0, 150, 850] [75, 75, 1000, 1000] [487, 25, 881, 475] [10, 502, 642, 979]'
    """
    try:
        places = (_BOXES, ()) if dialect.writes_boxes else ((), _POINTS)
        drawn = render(GroundedText("A Dog", (Span("A Dog", 0, 5, *places),)), dialect, SAMPLE_SIZE)
    except GroundingError:  # of other packages' dialects, which may write one box per phrase
        return [dialect.example]
    return [dialect.example, drawn]


def markup_tokens(dialect: Dialect, texts: Iterable[str]) -> list[str]:
    """The different special tokens of a dialect's markup in texts, in their order; none for dialects without such.

    >>> from spr.grounding import get_dialect
    >>> markup_tokens(get_dialect("internvl"), ["<ref>a dog</ref><box>[[1, 2, 3, 4]]</box>"])
    ['<ref>', '</ref>', '<box>', '</box>']
    """
    if dialect.special_tokens is None:
        return []
    pattern = re.compile(dialect.special_tokens)
    return list(dict.fromkeys(match[0] for text in texts for match in pattern.finditer(text)))
