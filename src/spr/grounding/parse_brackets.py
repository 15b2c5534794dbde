"""Parse prose in which a box in brackets follows its unmarked phrase: Ferret, CogVLM, LLaVA, Shikra."""

from __future__ import annotations

import re

from spr.grounding.coding import Frame
from spr.grounding.markup import (
    FOUR_NUMBERS,
    NUMBER_LIKE,
    OTHER_NUMBERS,
    SPECIAL_TOKENS,
    STRAY_COORDINATES,
    Brackets,
    stray,
)
from spr.grounding.prose import Prose
from spr.grounding.text import GroundedText
from spr.records import Box

_NOT_NUMBERS = re.compile(r"[^\s0-9.,;+-]")
_DIGIT = re.compile(r"[0-9]")


def parse_brackets(text: str, markup: Brackets, frame: Frame) -> GroundedText:
    """Parse an answer; malformed pieces are reported and dropped."""
    prose, position = Prose(text), 0
    decode = prose.problems.decode
    for match in markup.pattern.finditer(text):
        start, stop = match.span()
        words = text[position:start]
        position = stop
        if match[1] is not None:
            prose.words_before_box(words)
            prose.add(decode(frame, match.group(1, 2, 3, 4), start, stop), (start, stop))
        elif match["inner"] is not None and is_coordinates(match):
            prose.words_before_box(words)
            boxes, position = _read_bracket(match, markup, frame, prose)
            prose.add(boxes, (start, position))
        elif match[0] in SPECIAL_TOKENS:
            prose.words_before_box(words)
        elif match["inner"] is None and (reason := stray(match)) is not None:
            prose.stray(words, start, stop, reason)
        else:
            prose.words(words + match[0])
    prose.words(text[position:])
    return prose.finish(marked=False)


def is_coordinates(match: re.Match[str]) -> bool:
    """Whether a match of `Brackets.pattern` is, or was meant as, a box, rather than words in brackets.

    These count as coordinates: two numbers alone in brackets, three numbers with other content, four numbers that are
    named or separated by spaces, and numbers in an unclosed bracket at the end. "[sic]", "[1]" and "[see 2, 3]" are
    words.
    """
    if match[1] is not None:
        return True
    inner = match["inner"]
    if inner is None:
        return match[0][0] == "(" and stray(match) is not None
    if match["close"]:
        return _counts(inner)
    head = _NOT_NUMBERS.split(inner, 1)[0]
    cut_off = match.end() == len(match.string) and head == inner
    return _DIGIT.search(head) is not None and (cut_off or _counts(head))


def _counts(inner: str) -> bool:
    if OTHER_NUMBERS.fullmatch(inner):
        return True
    pieces = [piece.strip() for piece in inner.replace(";", ",").split(",")]
    numbers = sum(NUMBER_LIKE.fullmatch(piece) is not None for piece in pieces)
    return numbers >= 3 or (numbers == 2 and numbers == sum(map(bool, pieces)))


def _read_bracket(match: re.Match[str], markup: Brackets, frame: Frame, prose: Prose) -> tuple[list[Box], int]:
    """The boxes of a bracket that is not one plain box, and its end."""
    start, inner, width, note = match.start(), match["inner"], markup.width, prose.problems.note
    if not match["close"]:
        stop = match.start("inner") + len(_NOT_NUMBERS.split(inner, 1)[0].rstrip())
        note(start, stop, "bracket is not closed: dropped")
        return [], stop
    if 1 + len(match["open"]) != width or len(match["close"]) != width:
        note(start, match.end(), f"not in {width} bracket{'s' * (width > 1)} on each side: read anyway")
    boxes: list[Box] = []
    offset = match.start("inner")
    for piece in inner.split(";"):
        stop = offset + len(piece)
        numbers = FOUR_NUMBERS.fullmatch(piece)
        if not piece.strip():
            note(offset - 1, stop + 1, "no box beside a separator")
        elif numbers is None:
            note(offset, stop, _wrong(piece))
        else:
            boxes += prose.problems.decode(frame, numbers.groups(), offset, stop)
        offset = stop + 1
    return boxes, match.end()


def _wrong(piece: str) -> str:
    if OTHER_NUMBERS.fullmatch(piece):
        return STRAY_COORDINATES
    parts = [part.strip() for part in piece.split(",")]
    count = sum(NUMBER_LIKE.fullmatch(part) is not None for part in parts)
    return f"{count} numbers instead of 4: dropped" if count != 4 else "not four finite numbers: dropped"
