"""Parse prose in which tags mark phrases and boxes: Kosmos-2, Qwen-VL, Qwen2-VL, InternVL, MiniCPM-V."""

from __future__ import annotations

import re
from collections.abc import Iterator

from spr.grounding.coding import Frame
from spr.grounding.markup import SPECIAL, SPECIAL_TOKENS, Tags, stray
from spr.grounding.prose import Prose
from spr.grounding.text import GroundedText
from spr.records import Box

_COORDINATES = re.compile(r"[\s0-9.,;()\[\]+-]++|<patch_index_[0-9]*+>?|</delimiter_of_multi_objects/>")


def parse_tags(text: str, markup: Tags, frame: Frame) -> GroundedText:
    """Parse an answer; malformed pieces are reported and dropped."""
    return _Reader(text, markup, frame).read()


class _Reader:
    def __init__(self, text: str, markup: Tags, frame: Frame) -> None:
        self.text, self.markup, self.frame = text, markup, frame
        self.prose = Prose(text)
        self.note = self.prose.problems.note
        # Start and end of an open tag in the text; at most one of the two is open.
        self.phrase_at: tuple[int, int] | None = None
        self.box_at: tuple[int, int] | None = None

    def read(self) -> GroundedText:
        text, prose, markup = self.text, self.prose, self.markup
        tags = {*markup.phrase, *markup.grounding}
        numbers = slice(1, 1 + markup.shape_pattern.groups)
        decode = self.frame.decode
        position = 0
        for match in markup.pattern.finditer(text):
            start, stop = match.span()
            groups = match.groups()
            if groups[0] is not None:
                self._words(position, start)
                self._unclosed_box(start)
                self._unclosed_phrase(start)
                box, reason = decode([float(number) for number in groups[numbers]])
                if reason is not None:
                    self.note(start, stop, reason)
                self._phrase(groups[0], [] if box is None else [box], start, stop)
            elif match[0] in tags:
                self._tag(match[0], position, start, stop)
            elif self.box_at is not None or self.phrase_at is not None:
                continue  # parsed with the rest of the tags' content
            elif match[0] in SPECIAL_TOKENS:
                self._words(position, start)
                prose.drop_space()
            else:
                reason = stray(match)
                if reason is None:
                    continue  # words, added with the next ones
                prose.stray(text[position:start], start, stop, reason)
            position = stop
        self._words(position, len(text))
        self._unclosed_box(len(text))
        self._unclosed_phrase(len(text))
        return prose.finish(marked=True)

    def _words(self, start: int, stop: int) -> None:
        """Add plain text, unless a tag is open: its content is parsed when it closes."""
        if start < stop and self.box_at is None and self.phrase_at is None:
            self.prose.words(self.text[start:stop])

    def _phrase(self, phrase: str, boxes: list[Box], start: int, stop: int) -> None:
        """Add a marked phrase with its boxes; white space around it belongs to the text."""
        prose = self.prose
        prose.keep_opened()
        prose.words(phrase)
        kept = phrase.strip()
        if not kept:
            self.note(start, stop, "phrase is empty")
        begin = prose.length - len(phrase.lstrip())
        prose.ground(begin, begin + len(kept), boxes, (start, stop))

    def _tag(self, tag: str, position: int, start: int, stop: int) -> None:
        markup, prose = self.markup, self.prose
        if self.box_at is not None and tag == markup.grounding[1]:
            begin, inside = self.box_at
            self.box_at = None
            boxes = self._boxes(inside, start)
            prose.drop_space()
            prose.add(boxes, (begin, stop))
            return
        if self.phrase_at is not None and tag == markup.phrase[1]:
            begin, inside = self.phrase_at
            self.phrase_at = None
            self._phrase(SPECIAL.sub("", self.text[inside:start]), [], begin, stop)
            return
        self._words(position, start)
        self._unclosed_box(start)
        self._unclosed_phrase(start)
        if tag == markup.phrase[0]:
            self.phrase_at = (start, stop)
        elif tag == markup.grounding[0]:
            self.box_at = (start, stop)
        else:
            self.note(start, stop, "closing tag without its opening tag: dropped")

    def _unclosed_phrase(self, stop: int) -> None:
        if self.phrase_at is not None:
            begin, inside = self.phrase_at
            self.phrase_at = None
            self.note(begin, stop, "phrase is not closed: its words are kept")
            self.prose.words(SPECIAL.sub("", self.text[inside:stop]))

    def _boxes(self, start: int, stop: int) -> list[Box]:
        """The boxes between two box tags."""
        boxes: list[Box] = []
        found = False
        for begin, end in self._pieces(start, stop):
            if not self.text[begin:end].strip(" \t\r\n,;"):
                continue
            found = True
            numbers = self.markup.shape_pattern.fullmatch(self.text, begin, end)
            if numbers is None:
                self.note(begin, end, f"not a box like {self.markup.box}: dropped")
                continue
            box, reason = self.frame.decode([float(number) for number in numbers.groups()])
            if reason is not None:
                self.note(begin, end, reason)
            if box is not None:
                boxes.append(box)
        if not found:
            self.note(start - len(self.markup.grounding[0]), stop, "no box between its tags")
        return boxes

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Start and end of each box between two box tags."""
        if self.markup.between is not None:
            for match in re.compile(self.markup.between).finditer(self.text, start, stop):
                yield start, match.start()
                start = match.end()
        yield start, stop

    def _unclosed_box(self, stop: int) -> None:
        """Report an unclosed box tag; words after its numbers are kept."""
        if self.box_at is None:
            return
        begin, end = self.box_at
        self.box_at = None
        while (match := _COORDINATES.match(self.text, end, stop)) is not None:
            end = match.end()
        self.note(begin, end, "box is not closed: dropped")
        if end < stop:
            end -= self.text[end - 1].isspace()
        self.prose.drop_space()
        self.prose.words(SPECIAL.sub("", self.text[end:stop]))
