"""Parse dialects that list objects without prose: location tokens (PaliGemma, Florence-2) and JSON (Qwen)."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from spr.grounding.coding import Frame
from spr.grounding.markup import FOREIGN_TAG, NUMBER, SPECIAL, JsonList, Tokens, stray
from spr.grounding.text import Problems, Range, without_surrogates
from spr.records import Box, Span

_NUMBER = re.compile(NUMBER)
_FENCE = re.compile(r"```(?:json)?")


class _Item(NamedTuple):
    """A label with its boxes, or words without boxes (``raw`` is None)."""

    label: str
    boxes: list[Box]
    raw: tuple[int, int] | None


def _grounded(items: list[_Item], problems: Problems) -> tuple[str, list[Span]]:
    """The joined labels, one span each, as plain text. Boxes without label are reported if others have one."""
    plain = ""
    spans: list[Span] = []
    has_labels = any(item.label for item in items)
    for label, boxes, raw in items:
        plain += (", " if plain and label else "") + label
        if raw is not None:
            spans.append(Span(label, len(plain) - len(label), len(plain), tuple(boxes)))
            if has_labels and not label:
                problems.note(*raw, "box without a label: kept without one")
    return plain, spans


def _add(items: list[_Item], label: str, boxes: list[Box], raw: tuple[int, int]) -> None:
    """Add a detection; consecutive ones with the same label become one phrase with several boxes."""
    if items and items[-1].label == label and items[-1].raw is not None:
        items[-1].boxes.extend(boxes)
    else:
        items.append(_Item(label, boxes, raw))


def parse_tokens(problems: Problems, markup: Tokens, frame: Frame) -> tuple[str, list[Span]]:
    """Parse labels and location tokens; malformed pieces are reported and dropped."""
    text = problems.raw
    items: list[_Item] = []
    pending: tuple[list[Box], tuple[int, int]] = [], (0, 0)  # boxes whose label comes next
    words: list[str] = []
    position = 0

    def close() -> None:
        """Turn the words since the last run into the pending label; other words become items without boxes."""
        joined = "".join(words)
        words.clear()
        labels = [label.strip() for label in (joined.split(markup.separator.strip()) if markup.separator else [joined])]
        if pending[0]:
            _add(items, labels.pop(0), *pending)
        items.extend(_Item(label, [], None) for label in labels if label)

    for match in markup.pattern.finditer(text):
        raw, piece = match.span(), match[0]
        if match[1] is not None:
            boxes = problems.decode(frame, match, markup.numbers)
        elif markup.token_pattern.match(piece):
            boxes = _run(match, markup, frame, problems)
        else:
            if SPECIAL.fullmatch(piece) or piece.startswith("<seg"):
                reason: str | None = ""
            else:
                reason = "not a location token: dropped" if piece.startswith("<loc") else stray(match)
            position = _drop(match, reason, position, words, problems)
            continue
        words.append(text[position : raw[0]])
        position = raw[1]
        if markup.label_first:
            items.append(_Item("".join(words).strip(), boxes, raw if boxes else None))
            words.clear()
        else:
            close()
            pending = boxes, raw
    words.append(text[position:])
    close()
    return _grounded(items, problems)


def _drop(match: re.Match[str], reason: str | None, position: int, words: list[str], problems: Problems) -> int:
    """Drop a match and report the reason ("": silently; None: keep it as words); returns where the next words start."""
    if reason is None:
        return position
    before = match.string[position : match.start()]
    words.append(before if match[0][0] == "<" else before.rstrip())
    if reason:
        problems.note(*match.span(), reason, unread=reason != FOREIGN_TAG)
    return match.end()


def _run(match: re.Match[str], markup: Tokens, frame: Frame, problems: Problems) -> list[Box]:
    """The boxes of a run of location tokens, four per box."""
    tokens = list(markup.token_pattern.finditer(match.string, *match.span()))
    boxes: list[Box] = []
    for first in range(0, len(tokens), 4):
        four = tokens[first : first + 4]
        start, stop = four[0].start(), four[-1].end()
        if len(four) == 4:
            ordered = [four[place] for place in markup.order]
            numbers, ranges = [float(token[1]) for token in ordered], tuple(token.span(1) for token in ordered)
            boxes += problems.add(frame, numbers, ranges, (start, stop), match.span())
        else:
            problems.note(start, stop, f"{len(four)} location tokens instead of 4: dropped", unread=True)
    return boxes


def parse_json(problems: Problems, markup: JsonList, frame: Frame) -> tuple[str, list[Span]]:
    """Parse JSON entries, alone or among words; malformed pieces are reported and dropped.

    Words outside the entries are part of the plain text only if there are no entries.
    """
    text = problems.raw
    items: list[_Item] = []
    first = last = -1
    words: list[str] = []  # outside the entries
    position = 0
    for match in markup.pattern.finditer(text):
        raw = match.span()
        if match[0][0] != "{":
            position = _drop(match, stray(match), position, words, problems)
            continue
        first, last = (raw[0] if first < 0 else first), raw[1]
        if match[1] is not None:
            label, boxes = match[5][1:-1].strip(), problems.decode(frame, match, markup.numbers)
        else:
            label, boxes = _entry(match, markup, frame, problems)
        if boxes:
            _add(items, label, boxes, raw)
    if first >= 0:
        opened = text.rfind("[", 0, first)
        if opened >= 0 and "]" not in text[last:] and not text[opened + 1 : first].strip():
            problems.note(opened, last, "list is not closed: its complete entries are kept")
    else:
        left = SPECIAL.sub("", _FENCE.sub("", "".join((*words, text[position:])))).strip()
        items = [_Item(left, [], None)] if left != "[]" else []
    return _grounded(items, problems)


def _entry(match: re.Match[str], markup: JsonList, frame: Frame, problems: Problems) -> tuple[str, list[Box]]:
    """Label and box of an entry that is not in the models' form."""

    def dropped(reason: str, *, unread: bool = True) -> tuple[str, list[Box]]:
        problems.note(*match.span(), f"{reason}: dropped", unread=unread)
        return "", []

    if not match["close"]:
        return dropped("entry is not closed")
    try:
        entry: Any = json.loads(match[0], strict=False)
    except (ValueError, RecursionError):
        return dropped("entry is not JSON")
    numbers = entry.get(markup.box_key)
    if numbers is None:
        return dropped(f"entry has no {markup.box_key}", unread=False)
    # Exact types: JSON's true equals 1 in Python, and strings are not accepted.
    if not isinstance(numbers, list) or any(type(number) not in (int, float) for number in numbers):
        return dropped(f"{markup.box_key} is not a list of numbers")
    if len(numbers) != 4:
        return dropped(f"{len(numbers)} numbers instead of 4")
    try:
        numbers = [float(number) for number in numbers]
    except OverflowError:
        return dropped("not a finite number")
    before = len(problems.found)
    boxes = problems.add(frame, numbers, _ranges(match, markup, numbers), match.span())
    label = entry.get(markup.label_key, "")
    if not isinstance(label, str):
        if len(problems.found) == before:
            problems.note(*match.span(), f"{markup.label_key} is not text: box kept without one")
        return "", boxes
    return without_surrogates(label).strip(), boxes


def _ranges(match: re.Match[str], markup: JsonList, numbers: list[float]) -> tuple[Range, ...]:
    """Where the entry writes these numbers; empty if that is not certain, such as after an escaped key."""
    found = [
        tuple(item.span() for item in _NUMBER.finditer(match.string, *box.span(1)))
        for box in markup.box_pattern.finditer(match.string, *match.span())
    ]
    equal = [spans for spans in found if [float(match.string[start:stop]) for start, stop in spans] == numbers]
    return equal[-1] if equal else ()
