"""Parse prose in which tags mark boxes and points, and perhaps phrases."""

from __future__ import annotations

import re
from collections.abc import Sequence

from spr.grounding.coding import Frame
from spr.grounding.markup import SPECIAL, STRAY_COORDINATES, Tags, stray
from spr.grounding.prose import Prose
from spr.grounding.text import Problems, Range
from spr.records import Box, Point, Span

_COORDINATES = re.compile(
    r"[\s0-9.,;()\[\]+-]++|<patch_index_[0-9]*+>?|</delimiter_of_multi_objects/>|<[0-9]{1,4}+>|<[0-9]{0,4}+\Z"
)
_BLANK = " \t\r\n,;"
_NUMBERS = re.compile(r"[\s,;]*+[0-9.+-]++(?:[\s,;]++[0-9.+-]++)++[\s,;]*+")


class TagReader:
    """Parses prose with tags around boxes, points and phrases; malformed pieces are reported and dropped."""

    def __init__(self, problems: Problems, markup: Tags, frame: Frame) -> None:
        self.text, self.read_text, self.markup, self.frame = problems.raw, problems.read, markup, frame
        self.prose, self.problems = Prose(problems), problems
        self.opened: tuple[str, int, int] | None = None  # an open tag, and its start and end in the text

    def read(self) -> tuple[str, list[Span]]:
        """Parse the text, once."""
        text, read_text, prose, markup = self.text, self.read_text, self.prose, self.markup
        tags, decode, closing = markup.tags, self.problems.decode, len(markup.phrase[1]) if markup.phrase else -1
        position = 0
        if (whole := markup.shape_pattern.fullmatch(read_text)) is not None:
            position = self._bare(0, [whole], *whole.span())
        for match in markup.pattern.finditer(read_text, position):
            start, stop = match.span()
            if start < position:
                continue  # the closing tag of coordinates without an opening tag
            if match[1] is not None:
                self._close(position, start)
                if closing >= 0:
                    boxes = decode(self.frame, match, markup.numbers, (match.end(1) + closing, stop))
                    self._phrase(text[slice(*match.span(1))], boxes, start, stop)
                else:
                    prose.drop_space()
                    prose.add(decode(self.frame, match, markup.numbers), (start, stop))
            elif match[0] in tags:
                self._tag(match[0], position, start, stop)
            elif self.opened is not None:
                continue  # parsed with the rest of the tags' content
            elif SPECIAL.fullmatch(match[0]):
                prose.words(text[position:start])
                prose.drop_space()
            else:
                reason = stray(match)
                if reason is None:
                    continue  # words, added with the next ones
                if reason == STRAY_COORDINATES and (shapes := self._shapes(start, stop)):
                    stop = self._bare(position, shapes, start, stop)
                else:
                    prose.stray(text[position:start], start, stop, reason)
            position = stop
        self._close(position, len(text))
        return prose.finish(marked=closing >= 0)

    def _close(self, position: int, stop: int) -> None:
        """Add the words before ``stop``. An open tag is reported; words after it, or after its numbers, are kept."""
        if self.opened is None:
            self.prose.words(self.text[position:stop])
            return
        (tag, begin, end), self.opened = self.opened, None
        if self._is_phrase(tag):
            self.problems.note(begin, stop, "phrase is not closed: its words are kept")
        else:
            inside = end
            while (match := _COORDINATES.match(self.read_text, end, stop)) is not None:
                end = match.end()
            if inside < end or not self.markup.holds_words:
                self._unclosed(tag, begin, inside, end)
            else:
                self.problems.note(begin, end, "tag is not closed: its words are kept")
            end -= end < stop and self.text[end - 1].isspace()
        self.prose.words(SPECIAL.sub("", self.text[end:stop]))

    def _is_phrase(self, tag: str) -> bool:
        return self.markup.phrase is not None and tag == self.markup.phrase[0]

    def _unclosed(self, tag: str, begin: int, inside: int, end: int) -> None:
        """Add the boxes and points of tags that are not closed that a separator follows, so that none is cut."""
        pieces = self._pieces(inside, end)
        whole = [piece for piece in pieces if piece[1] < end]
        noted = len(self.problems.found)
        boxes, points = self._contents(tag, whole, (begin, end))
        what, is_lost = tag if tag in (self.markup.point_tags or ()) else "box", len(whole) < len(pieces)
        if boxes or points:
            reason = f"{what} is not closed: what is complete is kept"
            self.problems.note(begin, end, reason, unread=is_lost)
        else:
            del self.problems.found[noted:]
            self.problems.note(begin, end, f"{what} is not closed: dropped", unread=True)
        self.prose.drop_space()
        if boxes or points:
            self.prose.add(boxes, (begin, end), points)

    def _phrase(self, phrase: str, boxes: list[Box], start: int, stop: int) -> None:
        """Add a marked phrase with its boxes; white space around it belongs to the text."""
        self.prose.keep_opened()
        self.prose.words(phrase)
        kept = phrase.strip()
        if not kept:
            self.problems.note(start, stop, "phrase is empty")
        begin = self.prose.length - len(phrase.lstrip())
        self.prose.ground(begin, begin + len(kept), boxes, (start, stop))

    def _tag(self, tag: str, position: int, start: int, stop: int) -> None:
        closing = self.markup.pairs
        if self.opened is not None and tag == closing[self.opened[0]]:
            (opening, begin, inside), self.opened = self.opened, None
            if self._is_phrase(opening):
                self._phrase(SPECIAL.sub("", self.text[inside:start]), [], begin, stop)
            else:
                self._grounding(opening, inside, start, (begin, stop))
            return
        self._close(position, start)
        if tag in closing:
            self.opened = tag, start, stop
        else:
            self.problems.note(start, stop, "closing tag without its opening tag: dropped")

    def _shapes(self, start: int, stop: int) -> list[re.Match[str]]:
        """The boxes in coordinates that have lost their tags; empty if they are not all in this dialect's own form."""
        shapes = list(self.markup.shape_pattern.finditer(self.read_text, start, stop))
        edges = [start, *(edge for shape in shapes for edge in shape.span()), stop]
        gaps = "".join(self.read_text[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True))
        rest = re.sub(self.markup.between, "", gaps) if self.markup.between else gaps
        return [] if rest.strip(_BLANK) else shapes

    def _bare(self, position: int, shapes: list[re.Match[str]], start: int, stop: int) -> int:
        """Add the words from ``position`` and boxes that have lost their tags; returns where they end."""
        closing = self.markup.closing.match(self.text, stop)
        unit = start, stop if closing is None else closing.end()
        if not self.markup.tags_optional:
            self.problems.note(*unit, "box without its tags: read anyway")
        self.prose.words_before_box(self.text[position:start])
        groups = range(1, 1 + self.markup.shape_pattern.groups)
        self.prose.add([box for shape in shapes for box in self.problems.decode(self.frame, shape, groups, unit)], unit)
        return unit[1]

    def _grounding(self, opening: str, start: int, stop: int, unit: Range) -> None:
        """Add the boxes, points or words between two tags."""
        content = self.read_text[start:stop].strip()
        if self.markup.absent is not None and content == self.markup.absent:
            return
        pieces = self._pieces(start, stop)
        if self.markup.holds_words and not any(self._is_coordinates(piece, start) for piece in pieces):
            self.prose.words(SPECIAL.sub("", self.text[start:stop]))
            return
        if not pieces:
            self.problems.note(start - len(opening), stop, "no box between its tags")
        if self.markup.holds_words:
            while pieces and not self._is_coordinates(pieces[0], start):
                self.prose.words(self.text[slice(*pieces.pop(0))])
        words = [piece for piece in pieces if self.markup.holds_words and not self._is_coordinates(piece, start)]
        boxes, points = self._contents(opening, [piece for piece in pieces if piece not in words], unit)
        self.prose.drop_space()
        self.prose.add(boxes, unit, points)
        for piece in words:
            self.prose.words(self.text[slice(*piece)])

    def _is_coordinates(self, piece: Range, start: int) -> bool:
        """Whether a piece of tags that may hold words was meant as a box or a point: numbers after a bracket."""
        return piece[0] > start and _NUMBERS.fullmatch(self.read_text, *piece) is not None

    def _pieces(self, start: int, stop: int) -> list[Range]:
        """The ranges between separators, without blank ones."""
        found = self.markup.separators.finditer(self.read_text, start, stop) if self.markup.separators else ()
        edges = [start, *(edge for separator in found for edge in separator.span()), stop]
        ranges = zip(edges[::2], edges[1::2], strict=True)
        return [(begin, end) for begin, end in ranges if self.read_text[begin:end].strip(_BLANK)]

    def _contents(self, opening: str, pieces: Sequence[Range], unit: Range) -> tuple[list[Box], list[Point]]:
        """The boxes and points in the pieces between two tags; the others are reported."""
        markup, boxes, points = self.markup, list[Box](), list[Point]()
        holds_boxes = opening == markup.grounding[0]
        point_shape = markup.point_pattern if not holds_boxes or markup.point_tags is None else None
        for begin, end in pieces:
            numbers = markup.shape_pattern.fullmatch(self.read_text, begin, end) if holds_boxes else None
            if numbers is not None:
                boxes += self.problems.decode(self.frame, numbers, range(1, 1 + numbers.re.groups), unit)
            elif point_shape and (numbers := point_shape.fullmatch(self.read_text, begin, end)) is not None:
                points += self.problems.decode_point(self.frame, numbers, (1, 2), unit)
            else:
                like = f"box like {markup.box}" if holds_boxes else f"point like {markup.point}"
                self.problems.note(begin, end, f"not a {like}: dropped", unread=True)
        return boxes, points
