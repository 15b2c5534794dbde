"""Parse prose in which the points of a phrase are attributes of the element around it (Molmo)."""

from __future__ import annotations

import re
from typing import NamedTuple

from spr.grounding.coding import Frame
from spr.grounding.markup import SPECIAL, Elements, stray
from spr.grounding.prose import Prose
from spr.grounding.text import Problems, Range
from spr.records import Point, Span

_FRAME = re.compile(r"[^\t:;,]++")
_LABEL = re.compile(r"""\b(?:alt|label)\s*+=\s*+["']([^"']*+)""")
_DIGIT = re.compile(r"[0-9]")
_COORDINATE = re.compile(r"""(?<![\w-])[xy]\d*+\s*+=\s*+(?:"[^"]*+"?|'[^']*+'?|\S*+)""")


class _Opened(NamedTuple):
    """An element that is open: where its tag starts and ends, and its points."""

    start: int
    stop: int
    points: list[Point]


def parse_elements(problems: Problems, markup: Elements, frame: Frame) -> tuple[str, list[Span]]:
    """Parse prose with elements; malformed pieces are reported, and complete points are kept."""
    text, prose = problems.raw, Prose(problems)
    opened: _Opened | None = None
    position = 0

    def close(stop: int) -> None:
        """Add the words before ``stop``; those of an element that is not closed are its phrase."""
        words = text[position:stop]
        if opened is None:
            prose.words(words)
            return
        problems.note(opened.start, opened.stop, "element is not closed: its points are kept")
        _ground(prose, words, opened.points, (opened.start, stop))

    for match in markup.pattern.finditer(problems.read):
        start, stop = match.span()
        piece = match[0]
        if match[1] is not None or match[2] is not None:
            close(start)
            group, opened = (1 if match[1] is not None else 2), None
            points = _points(problems, markup, frame, match, group)
            if group == 2 or match[1].endswith("/"):
                label = _LABEL.search(text, *match.span(group)) if group == 1 else None
                if group == 2:
                    problems.note(start, stop, "tag is not closed: its complete points are kept", unread=True)
                _ground(prose, label[1] if label is not None else "", points, (start, stop))
            else:
                opened = _Opened(start, stop, points)
        elif piece.startswith("</point"):
            if opened is None:
                prose.words(text[position:start])
                problems.note(start, stop, "closing tag without its opening tag: dropped")
            else:
                phrase = SPECIAL.sub("", text[position:start])
                if not phrase.strip():
                    problems.note(opened.start, stop, "phrase is empty")
                _ground(prose, phrase, opened.points, (opened.start, stop))
                opened = None
        elif opened is not None:
            continue  # words of the phrase
        elif SPECIAL.fullmatch(piece):
            prose.words(text[position:start])
            prose.drop_space()
        else:
            reason = stray(match)
            if reason is None:
                continue  # words, added with the next ones
            prose.stray(text[position:start], start, stop, reason)
        position = stop
    close(len(text))
    return prose.finish(marked=True)


def _ground(prose: Prose, phrase: str, points: list[Point], raw: Range) -> None:
    """Add a phrase with its points; white space around it belongs to the text."""
    prose.keep_opened()
    prose.words(phrase)
    kept = phrase.strip()
    begin = prose.length - len(phrase.lstrip())
    prose.ground(begin, begin + len(kept), [], raw, points)


def _points(problems: Problems, markup: Elements, frame: Frame, match: re.Match[str], group: int) -> list[Point]:
    """The points in the attributes of an opening tag, which are in a group of the match: 2 if it is not closed."""
    text, unit, inside = problems.read, match.span(), match.span(group)
    ranges = [inside]
    if markup.coordinates_pattern is not None:
        ranges = [found.span(1) for found in markup.coordinates_pattern.finditer(text, *inside)]
    points: list[Point] = []
    noted = len(problems.found)
    for begin, end in ranges:
        if markup.image_pattern is None:
            points += _pairs(problems, markup, frame, (begin, end), unit)
            continue
        # Numbers of images are separated: "1 1 10 20;2 2 30 40" are points of two images.
        for found in _FRAME.finditer(text, begin, end):
            start, stop = found.span()
            image = markup.image_pattern.match(text, start, stop)
            if image is None or float(image[1]) != 1:
                of = "" if image is None else f" of image {image[1]}"
                problems.note(start, stop, f"points{of} instead of image 1: dropped", unread=True)
            else:
                points += _pairs(problems, markup, frame, (image.end(), stop), unit)
    if not points and len(problems.found) == noted:
        has_digits = _DIGIT.search(text, *inside) is not None
        problems.note(*unit, "element has no point: dropped", unread=has_digits)
    return points


def _pairs(problems: Problems, markup: Elements, frame: Frame, part: Range, unit: Range) -> list[Point]:
    """The points in a part of the attributes; numbers that are not part of a point are reported."""
    text, (position, stop) = problems.read, part
    points: list[Point] = []
    is_strict = markup.image_pattern is not None
    for pair in markup.pair_pattern.finditer(text, position, stop):
        if is_strict and not text[position : pair.start()].isspace():
            problems.note(position, pair.start(), "not a point: dropped", unread=True)
        position = pair.end()
        if position == unit[1]:
            return points  # the text ends here, perhaps within the number
        points += problems.decode_point(frame, pair, (1, 2), unit)
    if is_strict and text[position:stop].strip():
        problems.note(position, stop, "not a point: dropped", unread=True)
    if not is_strict and points and stop < unit[1]:
        _note_single_coordinates(problems, markup, part)
    return points


def _note_single_coordinates(problems: Problems, markup: Elements, part: Range) -> None:
    """Report coordinates in the attributes of a complete tag that are not part of a point."""
    text, known = problems.read, [found.span() for found in markup.pair_pattern.finditer(problems.read, *part)]
    label = _LABEL.search(text, *part)
    known += [label.span()] if label is not None else []
    for found in _COORDINATE.finditer(text, *part):
        if not any(start <= found.start() < end for start, end in known):
            problems.note(*found.span(), "not a point: dropped", unread=True)
