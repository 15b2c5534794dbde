"""Reading answers exactly as Ferret's published evaluators do, so that metrics equal theirs.

The rules of ml-ferret's ``eval_refexp.py`` and ``eval_flickr_entities.py``: a box is four whole numbers in brackets, in
thousandths of the image's side, converted to whole pixels by rounding towards 0. Its phrase is the text before the
bracket, starting after the first of ``.,;!?`` behind the previous bracket. A bracket with anything but whole numbers
makes the whole answer empty.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from spr.core.errors import ConfigError
from spr.grounding import Dialect
from spr.grounding.parse import Boxes
from spr.records import Box, Size

_BRACKET = re.compile(r"[\[\]]")
_PART_END = re.compile(r"[.,;!?]")
_SPACED = re.compile(r"""\s*(['",.;!?|:])\s*""")
_PUNCTUATION = re.compile(r"[^\w\s]")
_UNITS = 1000

AnswerProtocol: TypeAlias = Literal["spr", "ferret"]
"""How answers are read: with SPR's parser for the model's dialect, or by the rules of this file."""
_READS: dict[str, str] = {"ferret": "ferret"}  # the dialect that a protocol's own rules read
PROTOCOL_HELP = "Read answers with SPR's parser, or exactly as Ferret's evaluator does."


def check_protocol(protocol: AnswerProtocol, dialect: Dialect) -> None:
    """Raise `ConfigError` unless the protocol can read answers in this dialect."""
    if (read := _READS.get(protocol, dialect.key)) != dialect.key:
        what = f"--protocol {protocol} reads answers in one dialect only"
        raise ConfigError(what, got=dialect.key, expected=f"a model or predictions with the dialect {read}")


def entities(text: str, size_wh: Size) -> list[tuple[str, Box]] | None:
    """The phrases of an answer with their boxes in whole pixels; None if a bracket is malformed.

    A bracket is malformed if it contains anything but whole numbers, or fewer than four of them (where the published
    code stops with an error). Of more than four numbers, the first four are read.

    >>> entities("a dog [100, 150, 300, 200], a cat [0, 0, 999, 999].", (640, 480))
    [('a dog', (64.0, 72.0, 192.0, 96.0)), ('a cat', (0.0, 0.0, 639.0, 479.0))]
    >>> entities("a dog [100, 150, 300, 200] [x]", (640, 480)) is None
    True
    """
    # The published code also divides before it multiplies: 0.29 × 100 is 28.999…, which becomes 28.
    scales = [side / _UNITS for side in size_wh] * 2
    pairs: list[tuple[str, Box]] = []
    phrase, start = "", 0
    for mark in _BRACKET.finditer(text):
        piece = text[start : mark.start()].strip()
        if mark.group() == "[":
            phrase, start = piece, mark.end()
            continue
        try:
            numbers = [int(number) for number in piece.split(",")][:4]
            x1, y1, x2, y2 = (float(int(number * scale)) for number, scale in zip(numbers, scales, strict=True))
        except (ValueError, OverflowError):
            return None
        pairs.append((phrase, (x1, y1, x2, y2)))
        end = _PART_END.search(text, mark.end())
        start = end.end() if end is not None else len(text) + 1
    return pairs


def boxes_only(text: str, size_wh: Size) -> Boxes:
    """The boxes of an answer without their phrases; a malformed bracket counts as one problem."""
    pairs = entities(text, size_wh)
    return Boxes(tuple(box for _, box in pairs or ()), int(pairs is None))


def normal_phrase(phrase: str) -> str:
    """A phrase in the form in which two phrases are compared: lower case, no punctuation, single spaces.

    >>> normal_phrase("A dog's  tail."), normal_phrase("a dogs tail")
    ('a dog s tail', 'a dogs tail')
    >>> normal_phrase("a dog 's tail") == normal_phrase("a dog's tail")
    True
    """
    spaced = _SPACED.sub(r"\1 ", phrase.lower()).strip()
    return " ".join(_PUNCTUATION.sub("", spaced).split())
