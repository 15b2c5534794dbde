"""Build the plain text of prose with boxes; parse prose in which an unmarked phrase precedes its box in brackets."""

from __future__ import annotations

import re
from collections.abc import Sequence

from spr.grounding.coding import Frame
from spr.grounding.markup import NUMBER, OTHER_NUMBERS, SPECIAL, STRAY_COORDINATES, Brackets, stray
from spr.grounding.noun_phrases import noun_phrases
from spr.grounding.phrases import BREAKERS, find_phrase
from spr.grounding.text import Problems, Range
from spr.records import Box, Point, Span

_BY_RULE = -1  # the start of an unmarked phrase, which `find_phrase` determines
_NUMBER_LIKE = re.compile(rf"(?:{NUMBER}|[-+]?(?:nan|inf(?:inity)?))", re.IGNORECASE)
_FOUR_NUMBERS = re.compile(rf"\s*+({NUMBER})\s*+" + rf",\s*+({NUMBER})\s*+" * 3)
_TWO_POINTS = re.compile(r",\s*+".join([rf"\s*+\(\s*+({NUMBER})\s*+,\s*+({NUMBER})\s*+\)\s*+"] * 2))
CONNECTIVE = re.compile(r"[\s,;&]*+([(\[（]?)[\s,;&]*+(?:(?:and|or)\b[\s,;]*+)?+([(\[（]?)")
LONGEST_CONNECTIVE = 12
_CLOSING = {"(": ")", "[": "]", "（": "）"}
_NOT_NUMBERS = re.compile(r"[^\s0-9.,;+-]")
LINE_START = re.compile(r"\s*+(?:(?:[-*+•>]|#++|[0-9]{1,4}+[.)])[ \t]++)?+[*_]*+")
"""What can stand before the first box of a line in which boxes come before their words."""
_SEPARATOR = re.compile(r"[ \t*_]*+(?:[:：=|–—]|->?|→)[ \t]*+|[ \t]*+")
_LABEL = re.compile(r"[^\[({<（［【\n]{0,160}")
_JOINS = re.compile(r"[,;]\s*$|\b(?:and|or)\s*$")
_FINISHED = ".:;!?。：；！？"
_DIGIT = re.compile(r"[0-9]")


class Prose:
    """Builds the plain text and its phrases from left to right."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.length = 0  # length of the plain text so far
        self._pieces: list[str] = []
        self._since = 0  # number of pieces when the last phrase was added; pieces before are final
        # Offsets of a phrase in the plain text, its boxes, their offsets in the raw answer, and its points.
        self._groundings: list[tuple[int, int, list[Box], tuple[int, int], Sequence[Point]]] = []
        self._opened = ""  # a bracket before a box; removed if it is closed right after the box

    def words(self, piece: str) -> None:
        """Add plain text, without white space at the start of the whole text."""
        if self._opened:
            kept = piece.lstrip()
            if not kept:
                self._opened += piece
                return
            if kept[0] == _CLOSING[self._opened.lstrip()[0]]:
                self._opened, piece = "", kept[1:]
            else:
                self.keep_opened()
        if not self.length:
            piece = piece.lstrip()
        if piece:
            self._pieces.append(piece)
            self.length += len(piece)

    def keep_opened(self) -> None:
        """Restore the bracket before a box, since it contains words."""
        opened, self._opened = self._opened, ""
        if opened:
            self._pieces.append(opened)
            self.length += len(opened)

    def words_before_box(self, piece: str) -> None:
        """Add plain text and remove white space at the end, also of earlier text."""
        kept = piece.rstrip()
        self.words(kept or piece)
        if not kept:
            self.drop_space()

    def drop_space(self) -> None:
        """Remove white space at the end, after the last phrase."""
        while len(self._pieces) > self._since:
            piece = self._pieces.pop()
            kept = piece.rstrip()
            self.length -= len(piece) - len(kept)
            if kept:
                self._pieces.append(kept)
                return

    def stray(self, words: str, start: int, stop: int, reason: str) -> None:
        """Add plain text, then report ``raw[start:stop]``: coordinates or a tag of another dialect."""
        self.problems.note(start, stop, reason, unread=reason == STRAY_COORDINATES)
        if reason == STRAY_COORDINATES:
            self.words_before_box(words)
            self.add([], (start, stop))
        else:
            self.words(words)

    def add(self, boxes: list[Box], raw: tuple[int, int], points: Sequence[Point] = ()) -> None:
        """Ground the phrase that ends here: that of the previous boxes, or one found by `find_phrase`.

        Boxes belong to the previous phrase if only a comma or an "and" is between, which is removed with them. An empty
        list, if all boxes were malformed, still separates the words before from the next phrase. A bracket before the
        box is removed, and restored if it contains words.
        """
        pieces, since = self._pieces, self._since
        if self._groundings:
            between = "".join(pieces[since:])
            joint = CONNECTIVE.fullmatch(between) if len(between) <= LONGEST_CONNECTIVE else None
            if joint is not None and not (joint[1] and joint[2]):
                del pieces[since:]
                self.length -= len(between)
                if joint[1] or joint[2]:
                    self._opened = " " + joint[1] + joint[2]
                self._groundings[-1][2].extend(boxes)
                if points:
                    start, end, before, first, others = self._groundings[-1]
                    if isinstance(others, list):
                        others.extend(points)
                    else:
                        self._groundings[-1] = start, end, before, first, list(points)
                return
        if len(pieces) > since and pieces[-1][-1] in _CLOSING:
            last = pieces.pop()
            kept = last[:-1].rstrip()
            self._opened = last[len(kept) :]
            self.length -= len(self._opened)
            pieces += [kept] if kept else []
        self.ground(_BY_RULE, self.length, boxes, raw, points)

    def ground(
        self, start: int, end: int, boxes: list[Box], raw: tuple[int, int], points: Sequence[Point] = ()
    ) -> None:
        """Add a phrase at ``start:end`` of the plain text with its boxes and points."""
        self._groundings.append((start, end, boxes, raw, points))
        self._since = len(self._pieces)

    def finish(self, *, marked: bool) -> tuple[str, list[Span]]:
        """The plain text and its phrases.

        With ``marked``, the dialect marks phrases, so boxes without marked phrase are reported.
        """
        self.keep_opened()
        plain = "".join(self._pieces).rstrip()
        spans, position = [], 0
        for start, end, boxes, raw, points in self._groundings:
            end = min(end, len(plain))
            if start == _BY_RULE:
                if not boxes and not points:
                    position = end
                    continue
                start, end = find_phrase(plain, position, end)
                # An answer of boxes alone is the usual one to a question about one object.
                if plain and (marked or start == end):
                    handling = f"taken to ground {plain[start:end]!r}" if start < end else "kept without one"
                    what = "box" if boxes else "point"
                    self.problems.note(*raw, f"{what} without a {'marked ' * marked}phrase: {handling}")
            start = min(start, len(plain))
            spans.append(Span(plain[start:end], start, end, tuple(boxes), tuple(points) if points else ()))
            position = end
        return plain, spans


def parse_brackets(problems: Problems, markup: Brackets, frame: Frame) -> tuple[str, list[Span]]:
    """Parse prose with boxes in brackets; malformed pieces are reported and dropped."""
    text, prose, position = problems.raw, Prose(problems), 0
    inside = 0  # brackets around words that are open
    line_end = 0  # of a line in which boxes come before their words
    decode = problems.decode
    for match in markup.pattern.finditer(problems.read):
        start, stop = match.span()
        words = text[position:start]
        if match[1] is not None and start >= line_end and (position == 0 or "\n" in words):
            line_end = _labels_end(text, position, start, stop, was_labels=line_end > 0)
        position = stop
        if match[1] is not None and start < line_end:
            prose.keep_opened()
            prose.words(words)
            position = _label(prose, text, decode(frame, match, markup.numbers), (start, stop))
        elif match[1] is not None:
            prose.words_before_box(words)
            prose.add(decode(frame, match, markup.numbers), (start, stop))
            if problems.read.startswith("]", stop):
                position, inside = _after_surplus(problems, stop, inside)
        elif match["inner"] is not None and is_coordinates(match):
            prose.words_before_box(words)
            boxes, position = _read_bracket(match, markup, frame, problems)
            prose.add(boxes, (start, position))
            position, inside = _after_surplus(problems, position, inside)
        elif SPECIAL.fullmatch(match[0]):
            prose.words_before_box(words)
        elif match["inner"] is None and (reason := stray(match)) is not None:
            prose.stray(words, start, stop, reason)
        else:
            inside += match["inner"] is not None and not match["close"]
            prose.words(words + text[start:stop])
    prose.words(text[position:])
    return prose.finish(marked=False)


def _labels_end(text: str, position: int, start: int, stop: int, *, was_labels: bool) -> int:
    """The end of the line, if it starts with the box at ``start`` and its words follow their boxes; else 0."""
    line = text.rfind("\n", position, start) + 1 or position
    if LINE_START.fullmatch(text, line, start) is None:
        return 0
    end = text.find("\n", stop)
    end = len(text) if end < 0 else end
    if not any(map(str.isalnum, text[max(text.rfind("]", stop, end), stop - 1) + 1 : end])):
        return 0
    separator = _SEPARATOR.match(text, stop)
    begin = separator.end() if separator is not None else stop
    if not text[stop:begin].strip(" \t*_"):
        before = text[position:line].strip()
        is_new = was_labels or (before[-1:] in _FINISHED if before else position == 0)
        word = text[begin : begin + 40].split(None, 1)[0]
        others = text[begin:end].split("[")[:-1]
        if not is_new or not word[0].isalnum() or word.lower() in BREAKERS or not all(map(_JOINS.search, others)):
            return 0
    return end


def _label(prose: Prose, text: str, boxes: list[Box], raw: Range) -> int:
    """Ground the first noun phrase after a box, before it is added to the plain text; returns where it starts."""
    separator = _SEPARATOR.match(text, raw[1])
    begin = separator.end() if separator is not None else raw[1]
    head = _LABEL.match(text, begin)
    words = head[0] if head is not None else ""
    first, last = next(iter(noun_phrases(words)), (0, 0))
    handling = f"taken to ground {words[first:last]!r}" if first < last else "kept without one"
    prose.problems.note(*raw, f"box before its words: {handling}")
    prose.ground(prose.length + first, prose.length + last, boxes, raw)
    return begin


def _after_surplus(problems: Problems, position: int, inside: int) -> tuple[int, int]:
    """Report closing brackets after a box that close nothing; returns where the words start, and what is still open."""
    stop = position
    while problems.read.startswith("]", stop):
        stop += 1
    if stop - position <= inside:
        return position, inside - (stop - position)
    problems.note(position + inside, stop, "bracket closes nothing: dropped")
    return stop, 0


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
        return stray(match) is not None
    if match["close"]:
        return _counts(inner)
    head = _NOT_NUMBERS.split(inner, 1)[0]
    cut_off = match.end() == len(match.string) and head == inner
    return _DIGIT.search(head) is not None and (cut_off or _counts(head))


def _counts(inner: str) -> bool:
    if OTHER_NUMBERS.fullmatch(inner) or _TWO_POINTS.match(inner):
        return True
    pieces = inner.replace(";", ",").split(",")
    numbers = _count_numbers(pieces)
    return numbers >= 3 or (numbers == 2 and numbers == sum(bool(piece.strip()) for piece in pieces))


def _count_numbers(pieces: list[str]) -> int:
    return sum(_NUMBER_LIKE.fullmatch(piece.strip()) is not None for piece in pieces)


def _read_bracket(match: re.Match[str], markup: Brackets, frame: Frame, problems: Problems) -> tuple[list[Box], int]:
    """The boxes of a bracket that is not one plain box, and its end."""
    start, inner, width = match.start(), match["inner"], markup.width
    if not match["close"]:
        stop = match.start("inner") + len(_NOT_NUMBERS.split(inner, 1)[0].rstrip())
        problems.note(start, stop, "bracket is not closed: dropped", unread=True)
        return [], stop
    if 1 + len(match["open"]) != width or len(match["close"]) != width:
        problems.note(start, match.end(), f"not in {width} bracket{'s' * (width > 1)} on each side: read anyway")
    boxes: list[Box] = []
    offset = match.start("inner")
    for piece in inner.split(";"):
        stop = offset + len(piece)
        if not piece.strip():
            problems.note(offset - 1, stop + 1, "no box beside a separator")
        elif (numbers := _FOUR_NUMBERS.fullmatch(match.string, offset, stop)) is not None:
            boxes += problems.decode(frame, numbers, markup.numbers, match.span())
        elif (numbers := _TWO_POINTS.fullmatch(match.string, offset, stop)) is not None:
            problems.note(offset, stop, "points in parentheses: read anyway")
            boxes += problems.decode(frame, numbers, markup.numbers, match.span())
        elif OTHER_NUMBERS.fullmatch(piece):
            problems.note(offset, stop, STRAY_COORDINATES, unread=True)
        else:
            count = _count_numbers(piece.split(","))
            wrong = f"{count} numbers instead of 4" if count != 4 else "not four finite numbers"
            problems.note(offset, stop, f"{wrong}: dropped", unread=True)
        offset = stop + 1
    return boxes, match.end()
