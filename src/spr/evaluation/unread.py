"""Whether an answer has coordinates that can't be read. If so, it does not say that there is no object."""

from __future__ import annotations

from spr.grounding import GroundedText


def has_unread_coordinates(grounded: GroundedText) -> bool:
    """Whether a parsed answer has coordinates that are not read: malformed, or out of the image.

    >>> from spr.grounding import parse
    >>> texts = "none", "[1, 2", "[0, 0, 9, 9]", "[2000, 2000, 2100, 2100]"
    >>> [has_unread_coordinates(parse(text, "ferret", (640, 480))) for text in texts]
    [False, True, False, True]
    """
    source = grounded.source
    if source is None:
        return False
    if not all(place.is_read for place in (*source.places, *source.point_places)):
        return True
    return source.has_unread and any(character.isdigit() for problem in grounded.problems for character in problem.text)
