"""Read answers that are well-formed throughout, as most are, with one pattern or JSON decoder and without checks.

A reader returns None for every other answer, also for some that are well-formed but unusual, which the reader of the
markup then reads piece by piece. Both give the same result (tests/grounding/test_well_formed.py), so that a reader only
needs to recognise what it is certain of. Words are certain to contain no markup if they have no opening bracket and no
``<``: every alternative of the patterns of the built-in dialects starts with one of these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from spr.grounding.coding import Frame, NumberFrame
from spr.grounding.dialect import Dialect
from spr.grounding.markup import NUMBER, Brackets, Elements, JsonList, Markup, Tags, Tokens
from spr.grounding.phrases import find_phrase
from spr.grounding.prose import CONNECTIVE, LINE_START, LONGEST_CONNECTIVE
from spr.grounding.text import GroundedText, with_ascii_punctuation
from spr.grounding.unchecked import unchecked_span, unchecked_text
from spr.records import Box, Point, Size, Span

Read: TypeAlias = tuple[str, list[Span]]
"""An answer without its markup, and its phrases."""

_has_opener = re.compile(r"[<\[({（]").search
_MOST_FRAMES = 256
_GROUP = re.compile(r"(?<!\\)\((?!\?)")


class WellFormed:
    """Reads the well-formed answers of a dialect; the other answers are for `spr.grounding.parse.read_by_piece`."""

    def __init__(self, dialect: Dialect) -> None:
        from spr.grounding.list_dialects import LIST_DIALECTS
        from spr.grounding.prose_dialects import PROSE_DIALECTS

        self._dialect, self._frames = dialect, dict[Size, Frame]()
        markup = dialect.markup
        is_built_in = any(markup == other.markup for other in (*PROSE_DIALECTS, *LIST_DIALECTS))
        self._reader = _reader_of(markup) if is_built_in else None
        self._json = _JsonReader(markup.json) if isinstance(markup, Tags) and markup.json is not None else None

    def read(self, text: str, size_wh: Size) -> GroundedText | None:
        """The answer about an image of ``size_wh`` pixels, or None if anything in it may be unusual.

        Args:
            text: The answer, without lone surrogates.
            size_wh: Width and height of the original image in pixels.

        Raises:
            GroundingError: for a wrong size.
        """
        if self._reader is None or with_ascii_punctuation(text) is not text:
            return None
        frame = self._frame(size_wh)
        reader, markup = self._reader, self._dialect.markup
        if self._json is not None and isinstance(markup, Tags) and markup.of(text) is not markup:
            reader = self._json
        found = reader.read(text, frame)
        return None if found is None else unchecked_text(found[0], found[1], text, self._dialect, size_wh)

    def _frame(self, size_wh: Size) -> Frame:
        """The frame of a size, which is kept if the size is two ints: equal floats are an error."""
        if type(size_wh) is not tuple or [*map(type, size_wh)] != [int, int]:
            return self._dialect.frame(size_wh)
        frame = self._frames.get(size_wh)
        if frame is None:
            if len(self._frames) >= _MOST_FRAMES:
                self._frames.clear()
            frame = self._frames[size_wh] = self._dialect.frame(size_wh)
        return frame


class _Reader(Protocol):
    """Reads the well-formed answers of one markup."""

    def read(self, text: str, frame: Frame) -> Read | None:
        """The words and phrases of an answer, or None if anything in it may be unusual."""


def _reader_of(markup: Markup) -> _Reader | None:
    if isinstance(markup, JsonList):
        return _JsonReader(markup)
    if isinstance(markup, Tokens):
        return _TokenReader(markup)
    if isinstance(markup, Elements):
        return _ElementReader(markup)
    if isinstance(markup, Brackets) or markup.phrase is None:
        return _UnmarkedReader(markup)
    return _MarkedReader(markup)


def _decoded(frame: Frame, numbers: Iterable[tuple[float, ...]]) -> list[Box] | None:
    """The boxes of these numbers; None if there is a problem with one."""
    if type(frame) is NumberFrame:
        return frame.decode_all(numbers)
    boxes = []
    for one in numbers:
        box, reason = frame.decode(one)
        if box is None or reason is not None:
            return None
        boxes.append(box)
    return boxes


def _decoded_points(frame: Frame, numbers: Iterable[tuple[float, ...]]) -> list[Point] | None:
    """The points of these numbers; None if there is a problem with one."""
    points = []
    for one in numbers:
        point, reason = frame.decode_point(one)
        if point is None or reason is not None:
            return None
        points.append((float(point[0]), float(point[1])))
    return points


def _listed(labels: Sequence[str], boxes: Sequence[Any], *, merge: bool = True, points: bool = False) -> Read | None:
    """A list of labels with a box or point each; None if one has no words.

    With ``merge``, consecutive ones with the same label are one phrase with several boxes or points.
    """
    spans: list[Span] = []
    kept: list[str] = []
    start, last = 0, None
    own: tuple[Any, ...] = ()
    for label, box in zip(labels, boxes, strict=True):
        if not label:
            return None
        if merge and label == last:
            spans.pop()
            start -= len(label) + 2
            own = (*own, box)
        else:
            kept.append(label)
            last, own = label, (box,)
        end = start + len(label)
        spans.append(unchecked_span(label, start, end, () if points else own, own if points else ()))
        start = end + 2
    return ", ".join(kept), spans


class _JsonReader:
    """Reads a JSON list of objects with a box or point and a label, which may be in a code block or follow words."""

    def __init__(self, markup: JsonList) -> None:
        self._point_key, self._is_yx = f'"{markup.point_key}"', markup.y_first
        self._boxes = self._decoder(markup.box_key, markup.label_key, tuple[float, float, float, float])
        self._points = self._decoder(markup.point_key, markup.label_key, tuple[float, float])

    @staticmethod
    def _decoder(key: str, label_key: str, kind: Any) -> Callable[[str], list[Any]]:
        fields = [("numbers", kind), ("label", str)]
        names = {"numbers": key, "label": label_key}
        entry = msgspec.defstruct("Entry", fields, rename=names, forbid_unknown_fields=True, gc=False)
        decode: Callable[[str], list[Any]] = msgspec.json.Decoder(list[entry]).decode  # type: ignore[valid-type]
        return decode

    def read(self, text: str, frame: Frame) -> Read | None:
        """The labels, and their boxes or points."""
        start, end = text.find("["), text.rfind("]") + 1
        if start < 0 or "\\" in text or (start and _has_opener(text, 0, start)) or _has_opener(text, end):
            return None
        listed = text if start == 0 and end == len(text) else text[start:end]
        has_points = self._point_key in listed
        try:
            entries = (self._points if has_points else self._boxes)(listed)
        except (msgspec.DecodeError, RecursionError):
            return None
        # Three strings in quotes per entry, so that no key is repeated; braces in labels would be read differently.
        count = len(entries)
        if not count or listed.count('"') != 6 * count or not listed.count("{") == count == listed.count("}"):
            return None
        labels = [entry.label.strip() for entry in entries]
        if has_points:
            pairs = [entry.numbers[::-1] if self._is_yx else entry.numbers for entry in entries]
            points = _decoded_points(frame, pairs)
            return None if points is None else _listed(labels, points, points=True)
        numbers = [entry.numbers for entry in entries]
        if self._is_yx:
            numbers = [(x1, y1, x2, y2) for y1, x1, y2, x2 in numbers]
        boxes = _decoded(frame, numbers)
        return None if boxes is None else _listed(labels, boxes)


class _TokenReader:
    """Reads labels with four location tokens each."""

    def __init__(self, markup: Tokens) -> None:
        self._split = re.compile(markup.token * 4).split
        self._numbers, self._label_first, self._separator = markup.numbers, markup.label_first, markup.separator.strip()

    def read(self, text: str, frame: Frame) -> Read | None:
        """The labels and their boxes."""
        parts = self._split(text)
        words = parts[::5]
        if len(words) < 2 or _has_opener("".join(words)):
            return None
        if words.pop(-1 if self._label_first else 0).strip():
            return None
        if self._separator:
            pairs = [own.partition(self._separator) for own in words]
            if any(rest.strip() for _, _, rest in pairs):
                return None
            words = [own for own, _, _ in pairs]
        boxes = _decoded(frame, zip(*[map(float, parts[group::5]) for group in self._numbers], strict=True))
        if boxes is None:
            return None
        return _listed([own.strip() for own in words], boxes, merge=not self._label_first)


class _Boxes:
    """A pattern of boxes that has their numbers in groups: those of the first, and the text of the others in one."""

    def __init__(self, before: str, markup: Brackets | Tags) -> None:
        if isinstance(markup, Brackets):
            opened, closed, shape = r"\[" * markup.width, r"\]" * markup.width, r",\s?".join([f"({NUMBER})"] * 4)
        else:
            (opened, closed), (left, right) = map(re.escape, markup.grounding), map(re.escape, markup.wrap)
            # Brackets that may be missing around a single box are needed between several.
            shape = markup.shape.replace(r"\[?+", r"\[").replace(r"\]?+", r"\]")
            if markup.holds_words:  # numbers with exponents are words
                shape = shape.replace(NUMBER, r"[0-9]++(?:\.[0-9]*+)?+")
            opened, closed = opened + left, right + closed
        other = _GROUP.sub("(?:", shape)
        if markup.separator is None and isinstance(markup, Tags):
            boxes = f"{opened}{shape}{closed}((?:{opened}{other}{closed})*+)"
        elif markup.separator is None:
            boxes = f"{opened}{shape}(){closed}"
        else:
            boxes = f"{opened}{shape}((?:{re.escape(markup.separator)}{other})*+){closed}"
        self._split, self._shape = re.compile(before + boxes).split, re.compile(shape).findall
        numbers = len(markup.numbers)
        self._first = re.compile(before).groups + 1
        self._last = self._first + numbers
        self._step = self._last + 1

    def split(self, text: str, frame: Frame) -> tuple[list[str], list[str], list[tuple[Box, ...]]] | None:
        """The words around the boxes, one more than boxes; the words in the group before them, if any; and the boxes.

        None if there are no boxes, or there is a problem with one, or the words may contain markup.
        """
        parts, step = self._split(text), self._step
        words = parts[::step]
        if len(words) < 2 or _has_opener("".join(words)) is not None:
            return None
        columns = [map(float, parts[group::step]) for group in range(self._first, self._last)]
        boxes = _decoded(frame, zip(*columns, strict=True))
        if boxes is None:
            return None
        groups: list[tuple[Box, ...]] = list(zip(boxes, strict=True))
        for place, more in enumerate(parts[self._last :: step]):
            if more:
                others = _decoded(frame, [tuple(map(float, own)) for own in self._shape(more)])
                if others is None:
                    return None
                groups[place] = (*groups[place], *others)
        return words, parts[1::step], groups


def _with_phrases(words: list[str], phrases: list[str], boxes: Sequence[Any], *, points: bool = False) -> Read | None:
    """Words around phrases that are marked; None if a phrase has no words."""
    spans: list[Span] = []
    pieces: list[str] = []
    length = 0
    for piece, phrase, own in zip(words, phrases, boxes, strict=False):
        kept = phrase.strip()
        if not kept:
            return None
        if not length:
            piece = piece.lstrip()
            phrase = phrase if piece else phrase.lstrip()
        pieces += piece, phrase
        length += len(piece) + len(phrase)
        start = length - len(phrase) + phrase.index(kept)
        spans.append(unchecked_span(kept, start, start + len(kept), () if points else own, own if points else ()))
    pieces.append(words[-1])
    return "".join(pieces).rstrip(), spans


class _MarkedReader:
    """Reads prose with phrases in tags that are followed by tags with their boxes."""

    def __init__(self, markup: Tags) -> None:
        opened, closed = map(re.escape, markup.phrase or ("", ""))
        self._boxes = _Boxes(f"{opened}([^<]*+){closed}", markup)

    def read(self, text: str, frame: Frame) -> Read | None:
        """The words, and the phrases with their boxes."""
        found = self._boxes.split(text, frame)
        return None if found is None else _with_phrases(*found)


class _ElementReader:
    """Reads prose with phrases in elements that have points as attributes."""

    def __init__(self, markup: Elements) -> None:
        self._split = re.compile(rf"<points?{markup.attributes}>([^<]*+)</points?>").split
        self._pairs = markup.pair_pattern.findall

    def read(self, text: str, frame: Frame) -> Read | None:
        """The words, and the phrases with their points."""
        parts = self._split(text)
        words = parts[::3]
        if len(words) < 2 or _has_opener("".join(words)) is not None:
            return None
        groups = []
        for attributes in parts[1::3]:
            points = _decoded_points(frame, [(float(x), float(y)) for x, y in self._pairs(attributes)])
            if not points:
                return None
            groups.append(tuple(points))
        return _with_phrases(words, parts[2::3], groups, points=True)


class _UnmarkedReader:
    """Reads prose with boxes, in brackets or tags, after phrases that are not marked."""

    def __init__(self, markup: Brackets | Tags) -> None:
        self._boxes, self._is_bracket = _Boxes("", markup), isinstance(markup, Brackets)

    def read(self, text: str, frame: Frame) -> Read | None:
        """The words, and the phrases that `find_phrase` finds before the boxes."""
        found = self._boxes.split(text, frame)
        if found is None or (self._is_bracket and not _is_after_words(found[0])):
            return None
        words, _, boxes = found
        pieces: list[str] = []
        ends: list[int] = []
        groups: list[tuple[Box, ...]] = []
        length = 0
        for piece, own in zip(words, boxes, strict=False):
            between = piece.rstrip()
            if ends and len(between) <= LONGEST_CONNECTIVE and CONNECTIVE.fullmatch(between) is not None:
                groups[-1] += own
                continue
            if not length:
                between = between.lstrip()
            pieces.append(between)
            length += len(between)
            ends.append(length)
            groups.append(own)
        pieces.append(words[-1])
        plain = "".join(pieces).rstrip()
        spans: list[Span] = []
        position = 0
        for end, own in zip(ends, groups, strict=True):
            start, position = find_phrase(plain, position, end)
            if start == position:
                return None
            spans.append(unchecked_span(plain[start:position], start, position, own))
        return plain, spans


def _is_after_words(words: list[str]) -> bool:
    """Whether no box in brackets starts its line, which may then continue with its words, or precedes a bracket."""
    if LINE_START.fullmatch(words[0], words[0].rfind("\n") + 1) is not None:
        return False
    for piece in words[1:]:
        if piece[:1] == "]" or ("\n" in piece and LINE_START.fullmatch(piece, piece.rfind("\n") + 1) is not None):
            return False
    return True
