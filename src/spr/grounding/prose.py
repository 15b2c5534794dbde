"""Plain text as it grows while an answer is read, and the groundings in it."""

from __future__ import annotations

import re
from typing import TypeAlias

from spr.grounding.phrases import find_phrase
from spr.grounding.text import GroundedText, Problem
from spr.records import Box, Span

PROBLEM_LENGTH = 60
BY_RULE = -1
"""A start that says: the phrase is not marked, it is what `find_phrase` finds before its end."""

_Grounding: TypeAlias = tuple[int, int, list[Box], tuple[int, int]]
"""Offsets of a phrase in the plain text, its boxes, and where in the raw answer they stand."""

_CONNECTIVE = re.compile(r"[\s,;&]*+(?:(?:and|or)\b[\s,;]*+)?+")
_LONGEST_CONNECTIVE = 12


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

    def words(self, piece: str) -> None:
        """Add plain text; the text does not start with white space."""
        if not self.length:
            piece = piece.lstrip()
        if piece:
            self._pieces.append(piece)
            self.length += len(piece)

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
        where all were malformed, still keep the words before out of the next phrase.
        """
        between = self.length - self._mark
        if self._groundings and between <= _LONGEST_CONNECTIVE and _CONNECTIVE.fullmatch(self.tail(between)):
            self._cut(between)
            self._groundings[-1][2].extend(boxes)
        else:
            self.ground(BY_RULE, self.length, boxes, raw)

    def ground(self, start: int, end: int, boxes: list[Box], raw: tuple[int, int]) -> None:
        """Add a phrase at ``start:end`` of the plain text with its boxes."""
        self._groundings.append((start, end, boxes, raw))
        self._mark = self.floor = self.length

    def finish(self, *, marked: bool) -> GroundedText:
        """The parsed text. ``marked``: the dialect marks its phrases, so a box whose phrase is not is reported."""
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
