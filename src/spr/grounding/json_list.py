"""Parse JSON lists of objects with boxes and points (Qwen, Gemini), also where they are nested, or not quite JSON.

Entries in the models' own form are read by `JsonList.pattern`. Every other object is read token by token, once, so that
the time is linear in the length of the text, whatever it contains.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from spr.grounding.coding import Frame
from spr.grounding.lists import Item, add_item, drop_piece, grounded_list
from spr.grounding.markup import NUMBER, SPECIAL, JsonList, stray
from spr.grounding.text import Problems, Range, without_surrogates
from spr.records import Box, Point, Span

_Numbers: TypeAlias = tuple[list[float], tuple[Range, ...], Range]  # with the ranges of each and of their list

_FENCE = re.compile(r"```(?:json)?")
_NUMBER = re.compile(rf"{NUMBER}|NaN|-?Infinity")
_NUMBERS = re.compile(rf"\s*+(?:(?:{_NUMBER.pattern})\s*+(?:,\s*+|(?=[\])])))*+")
_LIST = re.compile(r"\s*+(?:,\s*+)?+([\[(][^\[\](){}\"']*+[\])])")
_DEEPEST = 100
_NESTED = re.compile(r"\s*+[\[(](?=\s*+[\[(])")
_NULL = re.compile(r"\s*+(?:null|None)\b")
_QUOTE = re.compile(r"\s*+[\"']")
_AFTER_LABEL = re.compile(r"""\s*+(?:\}|//|,\s*+(?:\}|//|(?:"[^"]*+"|'[^']*+'|\w++)\s*+:))""")
_ESCAPE = re.compile(r"\\(.)|\"", re.DOTALL)


@dataclass(slots=True)
class _Object:
    """A JSON object; ``stop`` is None if it is not closed, ``first`` is the start of the first object inside."""

    start: int
    parent: _Object | None
    entry: re.Match[str] | None = None  # if it is in the models' own form
    stop: int | None = None
    first: int | None = None
    boxes: list[_Numbers] = field(default_factory=list)
    points: list[_Numbers] = field(default_factory=list)
    wrong: list[tuple[str, Range]] = field(default_factory=list)  # boxes and points that can't be read
    labels: dict[str, str] = field(default_factory=dict)  # by key
    problem: str | None = None  # of the label
    holds_entries: bool = False  # inside
    is_dropped: bool = False  # and so is what it contains

    @property
    def is_entry(self) -> bool:
        return self.entry is not None or bool(self.boxes or self.points or self.wrong)


def parse_json(problems: Problems, markup: JsonList, frame: Frame) -> tuple[str, list[Span]]:
    """Parse JSON entries, alone, in other objects, or among words; malformed pieces are reported and dropped.

    Words outside the entries are part of the plain text only if there are no entries.
    """
    text, raw_text = problems.read, problems.raw
    items: list[Item] = []
    first = last = -1
    words: list[str] = []  # outside the entries
    position = seen = 0
    while (match := markup.pattern.search(text, seen)) is not None:
        raw = match.span()
        seen = raw[1]
        if match[0][0] != "{":
            is_around = markup.around is not None and re.fullmatch(markup.around, match[0]) is not None
            position = drop_piece(match, "" if is_around else stray(match), position, words, problems)
            continue
        first = raw[0] if first < 0 else first
        if match[1] is not None:
            last = seen
            if boxes := problems.decode(frame, match, markup.numbers):
                add_item(items, raw_text[match.start(5) + 1 : match.end(5) - 1].strip(), boxes, raw)
            continue
        if match[6] is not None:
            last = seen
            if points := problems.decode_point(frame, match, markup.point_numbers):
                add_item(items, raw_text[match.start(8) + 1 : match.end(8) - 1].strip(), [], raw, points)
            continue
        objects, seen = _read_objects(problems, raw[0], markup)
        last = max(item.stop or item.first or seen for item in objects)
        for label, boxes, points, span in _read_entries(objects, problems, markup, frame):
            add_item(items, label, boxes, span, points)
    if first >= 0:
        opened = text.rfind("[", 0, first)
        if opened >= 0 and "]" not in text[last:] and not text[opened + 1 : first].strip():
            problems.note(opened, last, "list is not closed: its complete entries are kept")
    else:
        left = SPECIAL.sub("", _FENCE.sub("", "".join((*words, raw_text[position:])))).strip()
        left = left if markup.around is None else re.sub(markup.around, "", left).strip()
        items = [Item(left, [], None, [])] if left != "[]" else []
    return grounded_list(items, problems)


def _read_objects(problems: Problems, start: int, markup: JsonList) -> tuple[list[_Object], int]:
    """The objects from the brace at ``start`` to the one that closes it, by their start; and where they end.

    What is nested too deeply is left to the next call, so that few objects exist at a time.
    """
    found: list[_Object] = []
    opened: list[_Object] = []
    text, position, is_value = problems.read, start, False
    while (token := markup.token.match(text, position)) is not None:
        position = token.end()
        here = opened[-1] if opened else None
        if token["mark"] == "{":
            if len(opened) == _DEEPEST:
                return found, position - 1
            entry = markup.pattern.match(text, position - 1)
            is_entry = entry is not None and (entry[1] is not None or entry[6] is not None)
            new = _Object(position - 1, here, entry if is_entry else None)
            new.problem = f"entry has no {markup.label_key}" if is_value else None  # a key before it may be its label
            found.append(new)
            if here is not None and here.first is None:
                here.first = new.start
            if new.entry is not None:
                position = new.stop = new.entry.end()
            else:
                opened.append(new)
        elif token["mark"] == "}":
            opened.pop().stop = position
            if not opened:
                break
        elif here is not None and token["key"] is not None:
            position = _read_member(here, problems, token, markup)
        is_value = token["key"] is not None
    return found, position


def _read_member(here: _Object, problems: Problems, token: re.Match[str], markup: JsonList) -> int:
    """Read the value of a key if it is a box, point or label; returns where it ends, or where another one starts."""
    text, key, position = problems.read, token["key"], token.end()
    name = _decoded(key) if key[0] in "\"'" else key
    if name in (markup.box_key, markup.point_key):
        order, found = (markup.order, here.boxes) if name == markup.box_key else (markup.order[:2], here.points)
        nested = _NESTED.match(text, position)
        position = position if nested is None else nested.end()
        match = _LIST.match(text, position)
        quoted = markup.string.match(text, position) if match is None and markup.quoted_box is not None else None
        if quoted is not None and name == markup.box_key:
            for box in re.compile(markup.quoted_box or "").finditer(text, *quoted.span(1)):
                ranges = tuple([box.span(group) for group in markup.numbers])
                found.append(([float(text[slice(*number)]) for number in ranges], ranges, box.span()))
            if found:
                return quoted.end()
        if match is None and _NULL.match(text, position) is None:
            here.wrong.append((f"{name} is not a list of numbers", (token.start("key"), position)))
        while match is not None:
            begin, position = match.span(1)
            numbers = _NUMBERS.match(text, begin + 1)
            if numbers is None or numbers.end() != position - 1:
                here.wrong.append((f"{name} is not a list of numbers", (begin, position)))
            else:
                ranges = tuple([number.span() for number in _NUMBER.finditer(text, begin, position)])
                if len(ranges) == len(order):
                    ranges = tuple([ranges[place] for place in order])
                    found.append(([float(text[slice(*number)]) for number in ranges], ranges, (begin, position)))
                else:
                    here.wrong.append((f"{len(ranges)} numbers instead of {len(order)}", (begin, position)))
            match = _LIST.match(text, position) if nested is not None else None
    elif name in markup.label_keys and _NULL.match(text, position) is None:
        value = markup.string.match(text, position)
        label = _decoded(problems.raw[slice(*value.span(1))]) if value is not None else None
        position = value.end() if value is not None else position
        if label is None or _AFTER_LABEL.match(text, position) is None:
            here.problem = f"{name} is not text" if value is None else f"{name} can't be read"
        else:
            here.labels[name] = label
    elif here.problem is None and _QUOTE.match(text, position) is not None:
        here.problem = f"entry has no {markup.label_key}"
    return position


def _decoded(quoted: str) -> str | None:
    """The text of a string in single or double quotes; None if it is not closed, or has a wrong escape."""
    if len(quoted) < 2 or quoted[-1] != quoted[0]:
        return None
    inside = quoted[1:-1]
    if "\\" not in inside:
        return inside
    inside = _ESCAPE.sub(lambda match: {None: '\\"', "'": "'"}.get(match[1], match[0]), inside)
    try:
        decoded: str = json.loads(f'"{inside}"', strict=False)
    except ValueError:
        return None
    return decoded


def _is_json(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _read_entries(
    objects: Sequence[_Object], problems: Problems, markup: JsonList, frame: Frame
) -> Iterator[tuple[str, list[Box], list[Point], Range]]:
    """Label, boxes, points and range of each entry in an object and those inside; others are reported and dropped."""
    outer, end = objects[0], len(problems.read)
    for item in reversed(objects[1:]):
        if item.parent is not None and ((item.is_entry and item.stop is not None) or item.holds_entries):
            item.parent.holds_entries = True
    is_json = outer.stop is None or _is_json(problems.read[outer.start : outer.stop])
    if not is_json and any(item.entry or item.boxes or item.points for item in objects):
        problems.note(outer.start, outer.stop or end, "entry is not JSON: read anyway")
    for item in objects:
        parent = item.parent
        if item.entry is not None:
            entry, boxes, points = item.entry, list[Box](), list[Point]()
            if entry[1] is not None:
                boxes = problems.decode(frame, entry, markup.numbers)
            else:
                points = problems.decode_point(frame, entry, markup.point_numbers)
            if boxes or points:
                start, stop = entry.span(5 if boxes else 8)
                yield problems.raw[start + 1 : stop - 1].strip(), boxes, points, entry.span()
            continue
        is_part = parent is not None and (parent.is_dropped or (parent.is_entry and parent.stop is not None))
        if item.stop is None:
            stop = end if item.first is None else item.first
            if item.holds_entries and not item.is_entry:
                problems.note(item.start, stop, "object is not closed: its complete entries are kept")
            elif not is_part:
                problems.note(item.start, stop, "entry is not closed: dropped", unread=True)
            item.is_dropped = not item.holds_entries
        elif item.is_entry:
            label, boxes, points = _read_entry(item, item.stop, problems, frame, markup, is_json=is_json)
            if boxes or points:
                yield label, boxes, points, (item.start, item.stop)
        elif not item.holds_entries:
            item.is_dropped = True
            if not is_part:
                reason = f"entry has no {markup.box_key}" if is_json else "entry is not JSON"
                problems.note(item.start, item.stop, f"{reason}: dropped", unread=not is_json)


def _read_entry(
    item: _Object, stop: int, problems: Problems, frame: Frame, markup: JsonList, *, is_json: bool
) -> tuple[str, list[Box], list[Point]]:
    unit, is_one = (item.start, stop), len(item.boxes) + len(item.points) == 1
    boxes, points = list[Box](), list[Point]()
    for numbers, ranges, piece in item.boxes:
        boxes += problems.add(frame, numbers, ranges, unit if is_one else piece, unit)
    for numbers, ranges, piece in item.points:
        points += problems.add_point(frame, numbers, ranges, unit if is_one else piece, unit)
    for reason, piece in item.wrong:
        if item.boxes or item.points:
            problems.note(*piece, f"{reason}: dropped", unread=True)
        else:
            problems.note(*unit, f"{reason if is_json else 'entry is not JSON'}: dropped", unread=True)
            break
    label = next((item.labels[key] for key in markup.label_keys if key in item.labels), "")
    if (boxes or points) and not label and item.problem is not None:
        problems.note(*unit, f"{item.problem}: {'box' if boxes else 'point'} kept without one")
    return without_surrogates(label).strip(), boxes, points
