"""The plain text and the grounded phrases of an answer, built while it is parsed."""

from __future__ import annotations

import re
from collections.abc import Iterable

from spr.grounding.coding import Frame
from spr.grounding.markup import STRAY_COORDINATES
from spr.grounding.phrases import find_phrase
from spr.grounding.text import GroundedText, Problem
from spr.records import Box, Span

PROBLEM_LENGTH = 60
BY_RULE = -1
"""Used as start of an unmarked phrase, which `find_phrase` determines."""

_CONNECTIVE = re.compile(r"[\s,;&]*+([(\[（]?)[\s,;&]*+(?:(?:and|or)\b[\s,;]*+)?+([(\[（]?)")
_LONGEST_CONNECTIVE = 12
_CLOSING = {"(": ")", "[": "]", "（": "）"}
_SURROGATE = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which no file can contain; the length is unchanged."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


class Problems:
    """Collects the malformed pieces of a raw answer."""

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self.found: list[Problem] = []

    def note(self, start: int, stop: int, reason: str) -> None:
        """Report ``raw[start:stop]``."""
        self.found.append(Problem(start, self.raw[start : min(stop, start + PROBLEM_LENGTH)], reason))

    def decode(self, frame: Frame, numbers: Iterable[str], start: int, stop: int) -> list[Box]:
        """The box of the numbers in ``raw[start:stop]``, or no box if it is dropped; a problem is reported."""
        box, reason = frame.decode([float(number) for number in numbers])
        if reason is not None:
            self.note(start, stop, reason)
        return [] if box is None else [box]

    def sorted(self) -> tuple[Problem, ...]:
        """The problems by offset."""
        return tuple(sorted(self.found, key=lambda problem: problem.offset))


class Prose:
    """Builds a `GroundedText` from left to right."""

    def __init__(self, raw: str) -> None:
        self.problems = Problems(raw)
        self.length = 0  # length of the plain text so far
        self._pieces: list[str] = []
        self._since = 0  # number of pieces when the last phrase was added; pieces before are final
        # Offsets of a phrase in the plain text, its boxes, and their offsets in the raw answer.
        self._groundings: list[tuple[int, int, list[Box], tuple[int, int]]] = []
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

    def stray(self, words: str, start: int, stop: int, reason: str) -> None:
        """Add plain text, then report ``raw[start:stop]``: coordinates or a tag of another dialect."""
        self.problems.note(start, stop, reason)
        if reason == STRAY_COORDINATES:
            self.words_before_box(words)
            self.add([], (start, stop))
        else:
            self.words(words)

    def words_before_box(self, piece: str) -> None:
        """Add plain text and remove white space at the end, also of earlier text."""
        kept = piece.rstrip()
        if kept:
            self.words(kept)
        else:
            self.words(piece)
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

    def add(self, boxes: list[Box], raw: tuple[int, int]) -> None:
        """Ground the phrase that ends here: that of the previous boxes, or one found by `find_phrase`.

        Boxes belong to the previous phrase if only a comma or an "and" is between, which is removed with them. An empty
        list, if all boxes were malformed, still separates the words before from the next phrase. A bracket before the
        box is removed, and restored if it contains words.
        """
        pieces, since = self._pieces, self._since
        if self._groundings:
            between = "".join(pieces[since:])
            joint = _CONNECTIVE.fullmatch(between) if len(between) <= _LONGEST_CONNECTIVE else None
            if joint is not None and not (joint[1] and joint[2]):
                del pieces[since:]
                self.length -= len(between)
                if joint[1] or joint[2]:
                    self._opened = " " + joint[1] + joint[2]
                self._groundings[-1][2].extend(boxes)
                return
        if len(pieces) > since and pieces[-1][-1] in _CLOSING:
            last = pieces.pop()
            kept = last[:-1].rstrip()
            self._opened = last[len(kept) :]
            self.length -= len(self._opened)
            pieces += [kept] if kept else []
        self.ground(BY_RULE, self.length, boxes, raw)

    def ground(self, start: int, end: int, boxes: list[Box], raw: tuple[int, int]) -> None:
        """Add a phrase at ``start:end`` of the plain text with its boxes."""
        self._groundings.append((start, end, boxes, raw))
        self._since = len(self._pieces)

    def finish(self, *, marked: bool) -> GroundedText:
        """The parsed text. With ``marked``, the dialect marks phrases, so boxes without marked phrase are reported."""
        self.keep_opened()
        plain = "".join(self._pieces).rstrip()
        spans, position = [], 0
        for start, end, boxes, raw in self._groundings:
            if start == BY_RULE and not boxes:
                position = min(end, len(plain))
                continue
            if start == BY_RULE:
                start, end = find_phrase(plain, position, min(end, len(plain)))
                # An answer of boxes alone is the usual one to a question about one object.
                if plain and (marked or start == end):
                    found = f"taken to ground {plain[start:end]!r}" if start < end else "kept without one"
                    self.problems.note(*raw, f"box without a {'marked ' * marked}phrase: {found}")
            elif start > len(plain):
                start = end = len(plain)
            spans.append(Span(plain[start:end], start, end, tuple(boxes)))
            position = end
        return GroundedText(plain, tuple(spans), self.problems.sorted() if self.problems.found else ())
