"""Plain text as it grows while an answer is read, and the groundings in it."""

from __future__ import annotations

import re
from typing import TypeAlias

from spr.grounding.markup import STRAY_COORDINATES
from spr.grounding.phrases import find_phrase
from spr.grounding.text import GroundedText, Problem
from spr.records import Box, Span

PROBLEM_LENGTH = 60
BY_RULE = -1
"""A start that says: the phrase is not marked, it is what `find_phrase` finds before its end."""

_Grounding: TypeAlias = tuple[int, int, list[Box], tuple[int, int]]
"""Offsets of a phrase in the plain text, its boxes, and where in the raw answer they stand."""

_CONNECTIVE = re.compile(r"[\s,;&]*+([(\[（]?)[\s,;&]*+(?:(?:and|or)\b[\s,;]*+)?+([(\[（]?)")
_CLOSING = {"(": ")", "[": "]", "（": "）"}
_LONGEST_CONNECTIVE = 12


_SURROGATE = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate: no file could hold it otherwise. Its length stays."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


class Problems:
    """Collects what is malformed in a raw answer."""

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self.found: list[Problem] = []

    def note(self, start: int, stop: int, reason: str) -> None:
        """Report ``raw[start:stop]``."""
        self.found.append(Problem(start, self.raw[start : min(stop, start + PROBLEM_LENGTH)], reason))

    def sorted(self) -> tuple[Problem, ...]:
        """The problems by offset."""
        return tuple(sorted(self.found, key=lambda problem: problem.offset))


class Prose:
    """Builds a `GroundedText` from left to right."""

    def __init__(self, raw: str) -> None:
        self.problems = Problems(raw)
        self.length = 0  # of the plain text so far
        self.floor = 0  # white space before it stays
        self._pieces: list[str] = []
        self._groundings: list[_Grounding] = []
        self._mark = 0  # length when the last grounding came
        self._opened = ""  # a bracket before a box, which goes with the box if it is closed right after it

    def words(self, piece: str) -> None:
        """Add plain text; the text does not start with white space."""
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
        """Put back the bracket before a box: there are words in it."""
        opened, self._opened = self._opened, ""
        if opened:
            self._pieces.append(opened)
            self.length += len(opened)

    def stray(self, words: str, start: int, stop: int, reason: str) -> None:
        """Report ``raw[start:stop]``, coordinates or a tag that are not the dialect's, after some plain text."""
        self.problems.note(start, stop, reason)
        if reason == STRAY_COORDINATES:
            self.words_before_box(words)
            self.add([], (start, stop))
        else:
            self.words(words)

    def words_before_box(self, piece: str) -> None:
        """Add plain text without the white space at its end, or at the end of the text before if there is no more."""
        kept = piece.rstrip()
        if kept:
            self.words(kept)
        else:
            self.words(piece)
            self.drop_space()

    def drop_space(self) -> None:
        """Take white space off the end, down to ``floor``."""
        while self.length > self.floor:
            piece = self._pieces[-1]
            kept = piece.rstrip()
            count = min(len(piece) - len(kept), self.length - self.floor)
            self.length -= count
            if kept:
                self._pieces[-1] = piece[: len(piece) - count]
                return
            self._pieces.pop()

    def tail(self, count: int) -> str:
        """The last ``count`` characters."""
        kept: list[str] = []
        for piece in reversed(self._pieces):
            if count <= 0:
                break
            kept.append(piece[-count:])
            count -= len(piece)
        return "".join(reversed(kept))

    def _cut(self, count: int) -> None:
        self.length -= count
        while count:
            piece = self._pieces.pop()
            if len(piece) > count:
                self._pieces.append(piece[:-count])
                return
            count -= len(piece)

    def add(self, boxes: list[Box], raw: tuple[int, int]) -> None:
        """Ground the phrase that ends here: the marked one, the one of the boxes just before, or one by the rule.

        Boxes belong to the phrase before if only a comma or an "and" stands between; that goes with them. No boxes,
        where all were malformed, still keep the words before out of the next phrase. A bracket before the box is taken
        off; it comes back if words follow in it.
        """
        between = self.length - self._mark
        if self._groundings and between <= _LONGEST_CONNECTIVE:
            joint = _CONNECTIVE.fullmatch(self.tail(between))
            if joint is not None and not (joint[1] and joint[2]):
                self._cut(between)
                if joint[1] or joint[2]:
                    self._opened = " " + joint[1] + joint[2]
                self._groundings[-1][2].extend(boxes)
                return
        if between and self._pieces[-1][-1] in _CLOSING:
            last = self._pieces[-1]
            count = min(len(last) - len(last[:-1].rstrip()), self.length - self.floor)
            self._opened = last[-count:]
            self._cut(count)
        self.ground(BY_RULE, self.length, boxes, raw)

    def ground(self, start: int, end: int, boxes: list[Box], raw: tuple[int, int]) -> None:
        """Add a phrase at ``start:end`` of the plain text with its boxes."""
        self._groundings.append((start, end, boxes, raw))
        self._mark = self.floor = self.length

    def finish(self, *, marked: bool) -> GroundedText:
        """The parsed text. ``marked``: the dialect marks its phrases, so a box whose phrase is not is reported."""
        self.keep_opened()
        plain = "".join(self._pieces).rstrip()
        spans, position = [], 0
        for start, end, boxes, raw in self._groundings:
            if start == BY_RULE and not boxes:
                position = min(end, len(plain))
                continue
            if start == BY_RULE:
                start, end = find_phrase(plain, position, min(end, len(plain)))
                # An answer that is nothing but boxes is what models give when asked for one object.
                if plain and (marked or start == end):
                    found = f"taken to ground {plain[start:end]!r}" if start < end else "kept without one"
                    self.problems.note(*raw, f"box without a {'marked ' * marked}phrase: {found}")
            elif start > len(plain):
                start = end = len(plain)
            spans.append(Span(plain[start:end], start, end, tuple(boxes)))
            position = end
        return GroundedText(plain, tuple(spans), self.problems.sorted() if self.problems.found else ())
