"""Whether an answer has coordinates that can't be read. If so, it does not say that there is no object."""

from __future__ import annotations

import re

from spr.grounding.text import GroundedText

_TWO_NUMBERS = r"[\"'\s\[(<]*+-?\d+(?:\.\d+)?[\s,)\]>(\[<]++-?\d"
_OTHER_DIALECT = re.compile(
    r"(?:<(?:b?box|point)>|<\|(?:det|box_start|begin_of_box)\|>|[\"'](?:bbox(?:_2d)?|box_2d|point(?:_2d)?)[\"']\s*+:)"
    + _TWO_NUMBERS
)
"""Numbers in the tags, or after the keys, of boxes and points in some dialect."""
_EMPTY = re.compile(r"[\"']\w+[\"']\s*+:\s*+(?:\[\s*+\]|null|None)")  # a key without a box, whose name may have a digit


def has_unread_coordinates(grounded: GroundedText) -> bool:
    """Whether a parsed answer has coordinates that are not read: malformed, out of the image, or of another dialect.

    >>> from spr.grounding import parse
    >>> texts = "none", "[1, 2", "[0, 0, 9, 9]", "[2000, 2000, 2100, 2100]", "<box>1 2 3 4</box>"
    >>> tuple(has_unread_coordinates(parse(text, "ferret", (640, 480))) for text in texts)
    (False, True, False, True, True)
    """
    source = grounded.source
    if source is None:
        return False
    if not source.is_read:
        return True
    if not grounded.boxes and not grounded.points and _OTHER_DIALECT.search(source.text) is not None:
        return True
    texts = (_EMPTY.sub("", problem.text) for problem in grounded.problems)
    return source.has_unread and any(character.isdigit() for text in texts for character in text)
