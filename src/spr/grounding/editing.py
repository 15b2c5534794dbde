"""Change the boxes of a parsed answer in its own text: only numbers change, and every other character stays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from string import Formatter
from typing import Any, NamedTuple

from spr.core.errors import GroundingError
from spr.grounding.coding import NumberFrame
from spr.grounding.dialects import Dialect
from spr.grounding.markup import Brackets, Elements, JsonList, Markup, Tags, Tokens
from spr.grounding.parse import markup_of, parse
from spr.grounding.prose import LINE_START
from spr.grounding.text import GroundedText, Place, Range, Source
from spr.records import Box, Size

_FIX = "parse the text in the model's own dialect"
_SEPARATOR = re.compile(r"(?:[\s,;&\[\]]|\b(?:and|or)\b|</delimiter_of_multi_objects/>)*+")
_CONNECTIVE = re.compile(r"(?:\s*,)?\s*(?:\b(?:and|or|with|next to|beside|near)\s*)?$")

_CLOSING = {"(": ")", "（": "）"}
_PAIRS = {**_CLOSING, "[": "]", "{": "}", "“": "”", "«": "»"}
# Brackets, tags, and marks of emphasis; "*" between spaces, "_" in a name and the inch sign are none.
_MARK = re.compile(r"</?\w+>|[(（\[{“«)）\]}”»]|(?<!\w)(?:\*++|_++|[`\"])(?=\S)|(?<=\S)(?:\*++|_++|[`\"])(?!\w)")
_BULLET = re.compile(r"\s*(?:(?:[-*+•]|\d+[.)])\s+)?")
_NO_WORDS = re.compile(r"[\s.,;:!?]*")
_NEXT = re.compile(r"[ \t]*[,;:]?[ \t]*(?:(?:and|or)\b[ \t]*)?")
_END = re.compile(r"[ \t]*[.!?]")
_BOX = "\0"  # stands for each character of a box where only the words matter


class _Edit(NamedTuple):
    start: int
    stop: int
    text: str


def map_to_image(
    grounded: GroundedText, corner_xy: Sequence[float], size_wh: Size, *, keep_unread: bool = False
) -> GroundedText:
    """Map an answer about a part of an image to the whole image: its numbers change, every other character stays.

    Swapped corners stay swapped, and numbers beyond the part are mapped without clipping (supplement, Sec. 1).

    Args:
        grounded: An answer from `parse`, with the size of the part.
        corner_xy: The part's upper left corner, in pixels of the whole image; the part is not resized.
        size_wh: Width and height of the whole image in pixels.
        keep_unread: Leave coordinates that could not be read as they are.

    Raises:
        GroundingError: if the answer contains coordinates that could not be read, unless ``keep_unread``.

    >>> part = parse("- **Dog**: [0.50, 0.50, 1.00, 1.00]", "llava_onevision", (100, 50))
    >>> map_to_image(part, (100, 50), (200, 100)).source.text
    '- **Dog**: [0.75, 0.75, 1.00, 1.00]'
    """
    source = _source_of(grounded)
    if source.has_unread and not keep_unread:
        what, fix = "Text can't be mapped to the whole image", "set `keep_unread` to leave malformed boxes as they are"
        raise GroundingError(what, got=repr(source.text[:120]), expected="no malformed box", fix=fix)
    dialect = source.dialect
    frame: Any = dialect.frame(source.size_wh)
    whole: Any = dialect.frame(size_wh)
    edits: list[_Edit] = []
    markup = markup_of(dialect, source.text)
    templates = [*((place, _box_template(markup)) for place in source.places)]
    templates += [(place, _point_template(markup)) for place in source.point_places]
    for place, template in templates:
        numbers = [float(source.text[start:stop]) for start, stop in place.numbers]
        if numbers and frame.can_move(numbers):
            edits += _written(source.text, place, frame.move(numbers, whole, *corner_xy[:2]), template)
    return parse(_apply(source.text, edits), dialect, size_wh)


def renumber(grounded: GroundedText, dialect: Dialect) -> str | None:
    r"""The text with the numbers of another dialect that writes boxes in the same form; None if the forms differ.

    Only the numbers change. Forms are the same if each dialect reads the boxes that the other writes, as
    ``[{"bbox_2d": …}]`` of Qwen2.5-VL and Qwen3-VL. Swapped corners stay swapped.

    Raises:
        GroundingError: if the text has no source, or contains coordinates that could not be read.

    >>> from spr.grounding import get_dialect
    >>> pixels = parse('```json\n[{"bbox_2d": [56, 56, 112, 112], "id": 7}]\n```', "qwen2_5_vl", (280, 560))
    >>> print(renumber(pixels, get_dialect("qwen3_vl")).split("\n")[1])
    [{"bbox_2d": [200, 100, 400, 200], "id": 7}]
    """
    source = _source_of(grounded)
    markup, target = markup_of(source.dialect, source.text), dialect.markup
    frame, other = source.dialect.frame(source.size_wh), dialect.frame(source.size_wh)
    if not (_form(markup) == _form(target) and isinstance(frame, NumberFrame) and isinstance(other, NumberFrame)):
        return None
    if source.has_unread:
        raise GroundingError("Text has boxes that can't be read", got=repr(source.text[:120]), fix=_FIX)
    edits: list[_Edit] = []
    places = [*((place, _box_template(target)) for place in source.places)]
    places += [(place, _point_template(target)) for place in source.point_places]
    for place, template in places:
        numbers = [float(source.text[start:stop]) for start, stop in place.numbers]
        edits += _written(source.text, place, frame.move(numbers, other, 0, 0), template)
    return _apply(source.text, edits)


def _form(markup: Markup) -> object:
    """What two markups have in common if each reads what the other writes."""
    if isinstance(markup, Brackets):
        return Brackets, markup.width, markup.separator
    if isinstance(markup, JsonList):
        return JsonList, markup.box_key, markup.point_key, markup.y_first
    return markup


def replace_boxes(grounded: GroundedText, boxes: Sequence[Box | None], *, remove_phrases: bool = False) -> GroundedText:
    """Replace the boxes of a text, in their order; None removes a box and keeps its words.

    If the text was parsed, its source is changed in the same places, so that `render` gives the model's own text but
    for the boxes that changed. In dialects that list objects, a box is removed with its entry, words included.

    Args:
        grounded: The text.
        boxes: As many boxes as ``grounded.boxes``, in pixels of the original image.
        remove_phrases: Also remove phrases that lose all of their boxes, with the brackets, emphasis or
            list bullet around them, and one comma or connective.

    Raises:
        GroundingError: if the source can't be changed without changing what else it says.

    >>> grounded = parse("The dog is at [1, 2, 3, 4] and the cat at [5, 6, 7, 8].", "ferret", (1000, 1000))
    >>> replace_boxes(grounded, [(10, 20, 30, 40), None]).source.text
    'The dog is at [10, 20, 30, 40] and the cat at.'
    """
    if len(boxes) != len(grounded.boxes):
        raise ValueError(f"{len(boxes)} boxes for a text with {len(grounded.boxes)}")
    spans, rest, removed = [], list(boxes), []
    for span in grounded.spans:
        own, rest = rest[: len(span.boxes)], rest[len(span.boxes) :]
        kept = tuple(box for box in own if box is not None)
        removed.append(remove_phrases and bool(own) and not kept and not span.points)
        spans.append(replace(span, boxes=kept))
    edited = GroundedText(grounded.plain_text, tuple(spans), grounded.problems)
    if not _is_current(grounded):
        return _without_spans(edited, removed)
    if not any(removed):
        return replace(edited, source=_edited_source(grounded, boxes, edited))
    source = _source_of(grounded)
    if not markup_of(source.dialect, source.text).keeps_prose:
        edited = _without_spans(edited, removed)
        return replace(edited, source=_edited_source(grounded, boxes, edited))
    return _without_phrases(grounded, boxes, removed)


def source_text(grounded: GroundedText, dialect: Dialect, size_wh: Size) -> str | None:
    """The text's own form, if it was parsed in this dialect for an image of this size and has not changed since."""
    source = grounded.source
    if source is None or not _is_current(grounded) or source.dialect != dialect:
        return None
    return source.text if source.size_wh == tuple(size_wh) else None


def _is_current(grounded: GroundedText) -> bool:
    source = grounded.source
    own = grounded.plain_text, grounded.boxes, grounded.points
    return source is not None and (source.plain_text, source.boxes, source.points) == own


def _source_of(grounded: GroundedText) -> Source:
    if grounded.source is None or not _is_current(grounded):
        got = "a text that was not parsed, or changed since"
        raise GroundingError("Text has no source to change", got=got, expected="the result of `parse`", fix=_FIX)
    return grounded.source


def _edited_source(grounded: GroundedText, boxes: Sequence[Box | None], edited: GroundedText) -> Source:
    source = _source_of(grounded)
    dialect = source.dialect
    frame, markup = dialect.frame(source.size_wh), markup_of(dialect, source.text)
    places = [place for place in source.places if place.is_read]
    edits: list[_Edit] = []
    for place, before, after in zip(places, grounded.boxes, boxes, strict=True):
        if after is not None and after != before:
            edits += _written(source.text, place, frame.encode(after), _box_template(markup))
    if None in boxes:
        phrases = [number for number, span in enumerate(grounded.spans) for _ in span.boxes]
        edits += _removals(source.text, places, [box is not None for box in boxes], phrases, markup)
    text = _apply(source.text, edits)
    again = parse(text, dialect, source.size_wh)
    both = zip(grounded.boxes, boxes, strict=True)
    wanted = [old if new == old else frame.decode(frame.encode(new))[0] for old, new in both if new is not None]
    if list(again.boxes) != wanted or again.points != grounded.points:
        raise _misread(text, dialect)
    return replace(_source_of(again), plain_text=edited.plain_text, boxes=edited.boxes)


def _misread(text: str, dialect: Dialect) -> GroundingError:
    what = f"Text can't be changed in dialect `{dialect.key}`: it would be read back as something else"
    return GroundingError(what, got=repr(text[:120]))


def _box_template(markup: Markup) -> str:
    return "" if isinstance(markup, Elements) else markup.box


def _point_template(markup: Markup) -> str:
    return "" if isinstance(markup, Brackets | Tokens) else markup.point or ""


def _written(text: str, place: Place, numbers: Sequence[float], template: str) -> list[_Edit]:
    """The edits that write these numbers at a place; one that is there already stays as it is written."""
    if len(place.numbers) != len(numbers):
        raise GroundingError("The numbers of a box can't be found in its text", fix=_FIX)
    fields = [field for field in Formatter().parse(template) if field[1] is not None]
    specs = {int(name or index): spec or "" for index, (_, name, spec, _) in enumerate(fields)}
    return [
        _Edit(start, stop, format(number, specs[k]))
        for k, ((start, stop), number) in enumerate(zip(place.numbers, numbers, strict=True))
        if float(text[start:stop]) != number
    ]


def _apply(text: str, edits: Iterable[_Edit]) -> str:
    pieces, position = [], 0
    for start, stop, new in sorted(edits):
        pieces += [text[position : max(start, position)], new]
        position = max(stop, position)
    return "".join((*pieces, text[position:]))


def _removals(
    text: str, places: Sequence[Place], kept: Sequence[bool], phrases: Sequence[int], markup: Markup
) -> list[_Edit]:
    """The edits that remove the places that are not kept; ``phrases`` has the number of the phrase of each place."""
    if isinstance(markup, Tokens | JsonList):
        return _thin_out(text, _entries(text, places, markup), places, kept)
    edits: list[_Edit] = []
    end_before = 0
    for _, group in groupby(range(len(places)), key=phrases.__getitem__):
        numbers = list(group)
        own = [places[k] for k in numbers]
        if any(kept[k] for k in numbers):
            edits += _thin_out(text, [place.unit for place in own], own, [kept[k] for k in numbers])
        else:
            edits += _all_boxes(text, [place.unit for place in own], end_before, markup)
        end_before = own[-1].unit[1]
    return edits


def _thin_out(text: str, units: Sequence[Range], places: Sequence[Place], kept: Sequence[bool]) -> list[_Edit]:
    """Remove units without a kept place, and in the other units the places that are not kept."""
    edits, distinct = [], list(dict.fromkeys(units))
    members = {unit: [k for k in range(len(units)) if units[k] == unit] for unit in distinct}
    edits += _drop(text, distinct, [any(kept[k] for k in members[unit]) for unit in distinct])
    for inside in members.values():
        if any(kept[k] for k in inside):
            edits += _drop(text, [places[k].piece for k in inside], [kept[k] for k in inside])
    return edits


def _drop(text: str, ranges: Sequence[Range], kept: Sequence[bool]) -> list[_Edit]:
    """Remove the ranges that are not kept, each with the separator before it, or after it if none before is kept."""
    edits = []
    for k, (start, stop) in enumerate(ranges):
        if kept[k]:
            continue
        if any(kept[:k]):
            before = ranges[k - 1][1]
            start = before if _SEPARATOR.fullmatch(text, before, start) else start
        elif k + 1 < len(ranges):
            after = ranges[k + 1][0]
            stop = after if _SEPARATOR.fullmatch(text, stop, after) else stop
        edits.append(_Edit(start, stop, ""))
    return edits


def _entries(text: str, places: Sequence[Place], markup: Tokens | JsonList) -> list[Range]:
    """The entry of each place, with its label."""
    if isinstance(markup, JsonList):
        return [place.unit for place in places]
    runs = list(dict.fromkeys(place.unit for place in places))
    entries = {}
    for k, (start, stop) in enumerate(runs):
        if markup.label_first:
            before = runs[k - 1][1] if k else 0
            entries[start] = start - len(text[before:start].lstrip()), stop
        else:
            after = runs[k + 1][0] if k + 1 < len(runs) else len(text)
            separator = text.find(markup.separator.strip(), stop, after)
            stop += len(text[stop : separator if separator >= 0 else after].rstrip())
            entries[start] = start, stop
    return [entries[place.unit[0]] for place in places]


def _all_boxes(text: str, units: Sequence[Range], end_before: int, markup: Markup) -> list[_Edit]:
    """Remove all boxes of a phrase in prose; its words stay."""
    edits: list[_Edit] = []
    regions = [units[0]]
    for unit in units[1:]:
        if _SEPARATOR.fullmatch(text, regions[-1][1], unit[0]):
            regions[-1] = regions[-1][0], unit[1]
        else:
            regions.append(unit)
    start, stop = regions[0]
    tags = _tags_before(text, start, end_before, markup)
    if tags is not None:
        opening, start = tags
        edits.append(_Edit(*opening, ""))
    regions[0] = start, stop
    return edits + [_Edit(*_with_space(text, *region)) for region in regions]


def _tags_before(text: str, stop: int, end_before: int, markup: Markup) -> tuple[Range, int] | None:
    """The opening tag and the start of the closing tag of the marked phrase right before ``stop``, if there is one."""
    if not isinstance(markup, Tags) or markup.phrase is None:
        return None
    opened, closed = markup.phrase
    before = text[:stop].rstrip()
    begin = before.rfind(opened)
    if not before.endswith(closed) or begin < end_before:
        return None
    return (begin, begin + len(opened)), len(before) - len(closed)


def _with_space(text: str, start: int, stop: int) -> tuple[int, int, str]:
    """A range to remove with the white space and the brackets around it, and what joins the words beside it."""
    while True:
        before, after = text[:start].rstrip(), text[stop:].lstrip()
        if before[-1:] not in _CLOSING or after[:1] != _CLOSING.get(before[-1:]):
            break
        start, stop = len(before) - 1, len(text) - len(after) + 1
    line = text.rfind("\n", 0, start) + 1
    if not text[line:start].strip():  # nothing before it in its line
        return start, len(text) - len(text[stop:].lstrip(" \t:,")), ""
    return (
        len(text[:start].rstrip()),
        stop,
        " " if text[start - 1].isalnum() and text[stop : stop + 1].isalnum() else "",
    )


def _without_spans(text: GroundedText, removed: Sequence[bool]) -> GroundedText:
    """A text without source, without its phrases that are ``removed``."""
    plain, spans = text.plain_text, list(text.spans)
    for k in reversed([k for k, gone in enumerate(removed) if gone]):
        low = spans[k - 1].end if k else 0
        high = spans[k + 1].start if k + 1 < len(spans) else len(plain)
        cut = _phrase_cut(plain, (spans[k].start, spans[k].end), low, high)
        plain, moved = _apply(plain, [cut]), len(cut.text) - (cut.stop - cut.start)
        later = [replace(span, start=span.start + moved, end=span.end + moved) for span in spans[k + 1 :]]
        spans[k:] = later
    return GroundedText(plain, tuple(spans), text.problems)


def _without_phrases(grounded: GroundedText, boxes: Sequence[Box | None], removed: Sequence[bool]) -> GroundedText:
    """Parsed prose with the boxes replaced, without the phrases that are ``removed``, as it is read back."""
    of_box = [number for number, span in enumerate(grounded.spans) for _ in span.boxes]
    pairs = [*zip(grounded.boxes, boxes, [removed[number] for number in of_box], strict=True)]
    first = [old if is_gone else new for old, new, is_gone in pairs]
    gone = [is_gone for _, new, is_gone in pairs if is_gone or new is not None]
    source = _source_of(replace_boxes(grounded, first))
    text, dialect = source.text, source.dialect
    again = parse(text, dialect, source.size_wh)
    units = [place.unit for place in source.places if place.is_read]
    words = _apply(text, [_Edit(*unit, _BOX * (unit[1] - unit[0])) for unit in dict.fromkeys(units)])
    kept, stop, tail = [], len(units), 0
    for span in reversed(again.spans):
        begin, end = stop - len(span.boxes), stop
        stop = begin
        if any(gone[begin:end]):
            if not all(gone[begin:end]):
                raise _misread(text, dialect)
            low = units[begin - 1][1] if begin else 0
            high = len(text) - tail
            phrase = _phrase_after(text, (units[begin][0], units[end - 1][1]), span.phrase, low, high)
            if phrase is None:
                phrase = (_phrase_start(text, units[begin][0], span.phrase, low, dialect.markup), units[end - 1][1])
            cut = _phrase_cut(words, phrase, low, high)
            text, words = _apply(text, [cut]), _apply(words, [cut])
        elif begin < end:
            kept.append(span.phrase)
            tail = len(text) - units[begin][0]
    wanted = [box for box, is_gone in zip(again.boxes, gone, strict=True) if not is_gone]
    again = parse(text, dialect, source.size_wh)
    if (
        again.points != grounded.points
        or list(again.boxes) != wanted
        or [span.phrase for span in again.spans if span.boxes] != kept[::-1]
    ):
        raise _misread(text, dialect)
    rest = iter([box for box in boxes if box is not None])
    spans = tuple([replace(span, boxes=tuple([next(rest) for _ in span.boxes])) for span in again.spans])
    edited = GroundedText(again.plain_text, spans, grounded.problems)
    return replace(edited, source=replace(_source_of(again), boxes=edited.boxes))


def _phrase_after(text: str, unit: Range, phrase: str, low: int, high: int) -> Range | None:
    """The range of a box at the start of a line with its phrase after it in the line; None if it is not there."""
    line = text.rfind("\n", 0, unit[0]) + 1
    end = text.find("\n", unit[1], high)
    if not phrase or LINE_START.fullmatch(text, max(line, low), unit[0]) is None:
        return None
    found = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)").search(text, unit[1], high if end < 0 else end)
    return None if found is None else (unit[0], found.end())


def _phrase_start(text: str, stop: int, phrase: str, low: int, markup: Markup) -> int:
    """The start of the phrase whose first box starts at ``stop``."""
    tags = _tags_before(text, stop, low, markup)
    if tags is not None:
        return tags[0][0]
    if not phrase:
        return stop
    found = [*re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text[low:stop])]
    if not found:
        raise GroundingError("Phrase can't be found in its text", got=repr(phrase), fix=_FIX)
    return low + found[-1].start()


def _phrase_cut(text: str, phrase: Range, low: int, high: int) -> _Edit:
    """The edit that removes a phrase with the brackets and emphasis around it, its bullet, and one separator.

    Nothing before ``low`` or after ``high``, which belongs to other phrases, is removed.
    """
    start, stop = _balanced(text, phrase)
    if start < low or stop > high:
        fix = "remove its box only, or all phrases that share its brackets"
        raise GroundingError("Phrase shares its brackets with another one", got=repr(text[start:stop][:120]), fix=fix)
    line = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", stop)
    line_end = len(text) if line_end < 0 else line_end
    if _BULLET.fullmatch(text, line, start):
        if _NO_WORDS.fullmatch(text, stop, line_end) and line >= low:
            return _Edit(max(line - (line_end == len(text)), low), min(line_end + 1, high), "")
        return _Edit(start, _after_separator(text, stop, high), "")
    head = low + len(_CONNECTIVE.sub("", text[low:start]))
    last = text[:head].rstrip()[-1:]
    if last in _PAIRS or (last and last in ".!?:;。！？"):
        end = _END.match(text, stop, high)
        if end is not None:
            return _Edit(max(len(text[:head].rstrip()), low), end.end(), "")
        return _Edit(start, _after_separator(text, stop, high), "")
    head = max(len(text[:head].rstrip()), low)
    joins = head > 0 and text[head - 1].isalnum() and text[stop : stop + 1].isalnum()
    return _Edit(head, stop, " " * joins)


def _after_separator(text: str, stop: int, high: int) -> int:
    """The end of the comma or connective that begins at ``stop``; ``stop`` if there is none."""
    separator = _NEXT.match(text, stop, high)
    return stop if separator is None else separator.end()


def _balanced(text: str, part: Range) -> Range:
    """The part with both ends of each pair of marks that it contains one end of, and of the pairs right around it."""
    start, stop = part
    pairs = _pairs(text)
    while True:
        before = start, stop
        for opening, closing in pairs:
            crosses = (start <= opening[0] < stop) != (start <= closing[0] < stop)
            around = opening[1] <= start and stop <= closing[0]
            if crosses or (around and not (text[opening[1] : start] + text[stop : closing[0]]).strip()):
                start, stop = min(start, opening[0]), max(stop, closing[1])
        if (start, stop) == before:
            return before


def _pairs(text: str) -> list[tuple[Range, Range]]:
    """The ranges of the opening and the closing mark of each pair in a line."""
    pairs: list[tuple[Range, Range]] = []
    opened: list[tuple[str, Range]] = []  # the mark that closes each
    line = 0
    for match in _MARK.finditer(text):
        mark = match[0]
        if "\n" in text[line : match.start()]:
            opened.clear()
        line = match.end()
        closes = [k for k, (closing, _) in enumerate(opened) if closing == mark]
        if closes and not text[match.start() - 1].isspace():
            pairs.append((opened[closes[-1]][1], match.span()))
            del opened[closes[-1] :]
        elif mark.startswith("<"):
            opened += [] if mark.startswith("</") else [(f"</{mark[1:]}", match.span())]
        elif mark in _PAIRS or mark not in _PAIRS.values():
            opened.append((_PAIRS.get(mark, mark), match.span()))
    return pairs
