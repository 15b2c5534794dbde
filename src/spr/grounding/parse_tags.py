"""Parse prose in which tags mark phrases and boxes: Kosmos-2, Qwen-VL, Qwen2-VL, InternVL, MiniCPM-V."""

from __future__ import annotations

import re

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
        self.problems = self.prose.problems
        self.opened: tuple[str, int, int] | None = None  # an open tag, and its start and end in the text

    def read(self) -> GroundedText:
        text, prose, markup = self.text, self.prose, self.markup
        tags = {*markup.phrase, *markup.grounding}
        numbers = slice(1, 1 + markup.shape_pattern.groups)
        position = 0
        for match in markup.pattern.finditer(text):
            start, stop = match.span()
            groups = match.groups()
            if groups[0] is not None:
                self._close(position, start)
                boxes = self.problems.decode(self.frame, groups[numbers], start, stop)
                self._phrase(groups[0], boxes, start, stop)
            elif match[0] in tags:
                self._tag(match[0], position, start, stop)
            elif self.opened is not None:
                continue  # parsed with the rest of the tags' content
            elif match[0] in SPECIAL_TOKENS:
                prose.words(text[position:start])
                prose.drop_space()
            else:
                reason = stray(match)
                if reason is None:
                    continue  # words, added with the next ones
                prose.stray(text[position:start], start, stop, reason)
            position = stop
        self._close(position, len(text))
        return prose.finish(marked=True)

    def _close(self, position: int, stop: int) -> None:
        """Add the words before ``stop``. An open tag is reported; words after it, or after its numbers, are kept."""
        if self.opened is None:
            self.prose.words(self.text[position:stop])
            return
        (tag, begin, end), self.opened = self.opened, None
        if tag == self.markup.phrase[0]:
            self.problems.note(begin, stop, "phrase is not closed: its words are kept")
        else:
            while (match := _COORDINATES.match(self.text, end, stop)) is not None:
                end = match.end()
            self.problems.note(begin, end, "box is not closed: dropped")
            end -= end < stop and self.text[end - 1].isspace()
            self.prose.drop_space()
        self.prose.words(SPECIAL.sub("", self.text[end:stop]))

    def _phrase(self, phrase: str, boxes: list[Box], start: int, stop: int) -> None:
        """Add a marked phrase with its boxes; white space around it belongs to the text."""
        prose = self.prose
        prose.keep_opened()
        prose.words(phrase)
        kept = phrase.strip()
        if not kept:
            self.problems.note(start, stop, "phrase is empty")
        begin = prose.length - len(phrase.lstrip())
        prose.ground(begin, begin + len(kept), boxes, (start, stop))

    def _tag(self, tag: str, position: int, start: int, stop: int) -> None:
        closing = dict((self.markup.phrase, self.markup.grounding))
        if self.opened is not None and tag == closing[self.opened[0]]:
            (opening, begin, inside), self.opened = self.opened, None
            if opening == self.markup.phrase[0]:
                self._phrase(SPECIAL.sub("", self.text[inside:start]), [], begin, stop)
            else:
                boxes = self._boxes(inside, start)
                self.prose.drop_space()
                self.prose.add(boxes, (begin, stop))
            return
        self._close(position, start)
        if tag in closing:
            self.opened = tag, start, stop
        else:
            self.problems.note(start, stop, "closing tag without its opening tag: dropped")

    def _boxes(self, start: int, stop: int) -> list[Box]:
        """The boxes between two box tags."""
        markup, boxes, found = self.markup, [], False
        separators = re.compile(markup.between).finditer(self.text, start, stop) if markup.between else ()
        edges = [start, *(edge for separator in separators for edge in separator.span()), stop]
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            if not self.text[begin:end].strip(" \t\r\n,;"):
                continue
            found = True
            numbers = markup.shape_pattern.fullmatch(self.text, begin, end)
            if numbers is None:
                self.problems.note(begin, end, f"not a box like {markup.box}: dropped")
            else:
                boxes += self.problems.decode(self.frame, numbers.groups(), begin, end)
        if not found:
            self.problems.note(start - len(markup.grounding[0]), stop, "no box between its tags")
        return boxes
