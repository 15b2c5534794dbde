"""How Ferret's published evaluators read an answer, for figures that equal theirs.

Facts from ml-ferret's ``eval_refexp.py`` and ``eval_flickr_entities.py``: a box is four whole numbers of 1000 between
brackets, made whole pixels by rounding towards 0; the phrase is what stands before the bracket, from the first of
``.,;!?`` after the bracket before on; a bracket that is not whole numbers makes the whole answer count as empty.
"""

from __future__ import annotations

import re

from spr.records import Box, Size

_BRACKET = re.compile(r"[\[\]]")
_PART_END = re.compile(r"[.,;!?]")
_SPACED = re.compile(r"""\s*(['",.;!?|:])\s*""")
_PUNCTUATION = re.compile(r"[^\w\s]")
_UNITS = 1000


def entities(text: str, size_wh: Size) -> list[tuple[str, Box]] | None:
    """Phrases with their boxes in whole pixels; None where a bracket holds anything but whole numbers.

    Fewer than four numbers, at which the published code stops with an error, count as malformed, too. Of more than four
    the first four are read.

    >>> entities("a dog [100, 150, 300, 200], a cat [0, 0, 999, 999].", (640, 480))
    [('a dog', (64.0, 72.0, 192.0, 96.0)), ('a cat', (0.0, 0.0, 639.0, 479.0))]
    >>> entities("a dog [100, 150, 300, 200] [x]", (640, 480)) is None
    True
    """
    width, height = size_wh
    found: list[tuple[str, Box]] = []
    phrase, start = "", 0
    for mark in _BRACKET.finditer(text):
        piece = text[start : mark.start()].strip()
        if mark.group() == "[":
            phrase, start = piece, mark.end()
            continue
        try:
            x1, y1, x2, y2 = [int(number) for number in piece.split(",")][:4]
            # Divided before it is multiplied, as there: 0.29 × 100 is 28.999…, which rounds to 28.
            across, down = width * 1.0 / _UNITS, height * 1.0 / _UNITS
            pixels = int(x1 * across), int(y1 * down), int(x2 * across), int(y2 * down)
        except (ValueError, OverflowError):
            return None
        found.append((phrase, (float(pixels[0]), float(pixels[1]), float(pixels[2]), float(pixels[3]))))
        end = _PART_END.search(text, mark.end())
        start = end.end() if end is not None else len(text) + 1
    return found


def same_phrase(a: str, b: str) -> bool:
    """Whether two phrases are the same but for case, punctuation and the amount of space.

    >>> same_phrase("A  dog's tail,", "a dogs tail"), same_phrase("a dog 's tail", "a dog's tail")
    (False, True)
    """
    return normal_phrase(a) == normal_phrase(b)


def normal_phrase(phrase: str) -> str:
    """What is compared of a phrase.

    >>> normal_phrase("A dog's  tail.")
    'a dog s tail'
    """
    spaced = _SPACED.sub(r"\1 ", phrase.lower()).strip()
    return " ".join(_PUNCTUATION.sub("", spaced).split())
