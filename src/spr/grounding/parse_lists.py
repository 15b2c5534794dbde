"""Parse dialects that list objects without prose: location tokens (PaliGemma, Florence-2) and JSON (Qwen)."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from spr.grounding.coding import Frame
from spr.grounding.markup import SPECIAL, SPECIAL_TOKENS, JsonList, Tokens, stray
from spr.grounding.prose import Problems, without_surrogates
from spr.grounding.text import GroundedText
from spr.records import Box, Span

LABEL_SEPARATOR = ", "
"""Separator of the labels in the plain text of a list."""

_FENCE = re.compile(r"```(?:json)?")


class _Item(NamedTuple):
    """A label with its boxes, or words without boxes (``raw`` is None)."""

    label: str
    boxes: list[Box]
    raw: tuple[int, int] | None


def _grounded(items: list[_Item], problems: Problems) -> GroundedText:
    """The joined labels as plain text with one span per label. Boxes without label are reported if others have one."""
    pieces: list[str] = []
    spans: list[Span] = []
    length = 0
    has_labels = any(item.label for item in items)
    for label, boxes, raw in items:
        if label:
            if length:
                pieces.append(LABEL_SEPARATOR)
                length += len(LABEL_SEPARATOR)
            pieces.append(label)
        start, length = length, length + len(label)
        if raw is not None:
            spans.append(Span(label, start, length, tuple(boxes)))
            if has_labels and not label:
                problems.note(*raw, "box without a label: kept without one")
    return GroundedText("".join(pieces), tuple(spans), problems.sorted())


def _add(items: list[_Item], label: str, boxes: list[Box], raw: tuple[int, int]) -> None:
    """Add a detection; consecutive ones with the same label become one phrase with several boxes."""
    if items and items[-1].label == label and items[-1].raw is not None:
        items[-1].boxes.extend(boxes)
    else:
        items.append(_Item(label, boxes, raw))


def parse_tokens(text: str, markup: Tokens, frame: Frame) -> GroundedText:
    """Parse labels and location tokens; malformed pieces are reported and dropped."""
    problems = Problems(text)
    items: list[_Item] = []
    pending: tuple[list[Box], tuple[int, int]] | None = None  # boxes whose label comes next
    words: list[str] = []
    position = 0

    def close() -> None:
        """Turn the words since the last run into the pending label; other words become items without boxes."""
        nonlocal pending
        joined, words[:] = "".join(words), []
        labels = [label.strip() for label in (joined.split(markup.separator.strip()) if markup.separator else [joined])]
        if pending is not None and pending[0]:
            _add(items, labels.pop(0), *pending)
        pending = None
        items.extend(_Item(label, [], None) for label in labels if label)

    for match in markup.pattern.finditer(text):
        start, stop = match.span()
        if match[1] is None and not markup.token_pattern.match(match[0]):
            position = _no_token(match, position, words, problems)
            continue
        words.append(text[position:start])
        position = stop
        boxes = _run(match, markup, frame, problems)
        if markup.label_first:
            items.append(_Item("".join(words).strip(), boxes, (start, stop) if boxes else None))
            words = []
        else:
            close()
            pending = (boxes, (start, stop))
    words.append(text[position:])
    close()
    return _grounded(items, problems)


def _no_token(match: re.Match[str], position: int, words: list[str], problems: Problems) -> int:
    """Report an invalid token, unless it is a special token or words; returns where the following words start."""
    (start, stop), piece = match.span(), match[0]
    if piece in SPECIAL_TOKENS or piece.startswith("<seg"):
        reason = None
    elif piece.startswith("<loc"):
        reason = "not a location token: dropped"
    else:
        reason = stray(match)
        if reason is None:
            return position
    words.append(match.string[position:start].rstrip() if piece[0] != "<" else match.string[position:start])
    if reason is not None:
        problems.note(start, stop, reason)
    return stop


def _run(match: re.Match[str], markup: Tokens, frame: Frame, problems: Problems) -> list[Box]:
    """The boxes of a run of location tokens, four per box."""
    if match[1] is not None:
        numbers = [float(number) for number in match.groups()]
        box, reason = frame.decode([numbers[place] for place in markup.order])
        if reason is not None:
            problems.note(match.start(), match.end(), reason)
        return [] if box is None else [box]
    tokens = list(markup.token_pattern.finditer(match.string, *match.span()))
    boxes: list[Box] = []
    whole = len(tokens) - len(tokens) % 4
    for first in range(0, whole, 4):
        numbers = [float(token[1]) for token in tokens[first : first + 4]]
        box, reason = frame.decode([numbers[place] for place in markup.order])
        if reason is not None:
            problems.note(tokens[first].start(), tokens[first + 3].end(), reason)
        if box is not None:
            boxes.append(box)
    if whole < len(tokens):
        problems.note(
            tokens[whole].start(), match.end(), f"{len(tokens) - whole} location tokens instead of 4: dropped"
        )
    return boxes


def parse_json(text: str, markup: JsonList, frame: Frame) -> GroundedText:
    """Parse JSON entries, alone or among words; malformed pieces are reported and dropped.

    Words outside the entries are part of the plain text only if there are no entries.
    """
    problems = Problems(text)
    items: list[_Item] = []
    first = last = -1
    words: list[str] = []  # outside the entries
    position = 0
    for match in markup.pattern.finditer(text):
        start, stop = match.span()
        if match[0][0] != "{":
            stray_reason = stray(match)
            if stray_reason is not None:
                problems.note(start, stop, stray_reason)
                words.append(text[position:start].rstrip() if match[0][0] != "<" else text[position:start])
                position = stop
            continue
        first, last = (start if first < 0 else first), stop
        if match[1] is not None:
            label = match[5][1:-1].strip()
            box, reason = frame.decode([float(number) for number in match.group(1, 2, 3, 4)])
        else:
            label, box, reason = _entry(match, markup, frame)
        if reason is not None:
            problems.note(start, stop, reason)
        if box is not None:
            _add(items, label, [box], (start, stop))
    if first >= 0:
        opened = text.rfind("[", 0, first)
        if opened >= 0 and "]" not in text[last:] and not text[opened + 1 : first].strip():
            problems.note(opened, last, "list is not closed: its complete entries are kept")
    if not items:
        left = SPECIAL.sub("", _FENCE.sub("", "".join((*words, text[position:])) if first < 0 else "")).strip()
        items = [_Item(left, [], None)] if left not in ("", "[]") else []
    return _grounded(items, problems)


def _entry(match: re.Match[str], markup: JsonList, frame: Frame) -> tuple[str, Box | None, str | None]:
    """Label, box and problem of an entry that is not in the models' form."""
    if not match["close"]:
        return "", None, "entry is not closed: dropped"
    try:
        entry: Any = json.loads(match[0], strict=False)
    except (ValueError, RecursionError):
        return "", None, "entry is not JSON: dropped"
    numbers = entry.get(markup.box_key)
    if numbers is None:
        return "", None, f"entry has no {markup.box_key}: dropped"
    # Exact types: JSON's true equals 1 in Python, and strings are not accepted.
    if not isinstance(numbers, list) or any(type(number) not in (int, float) for number in numbers):
        return "", None, f"{markup.box_key} is not a list of numbers: dropped"
    if len(numbers) != 4:
        return "", None, f"{len(numbers)} numbers instead of 4: dropped"
    try:
        box, reason = frame.decode([float(number) for number in numbers])
    except OverflowError:
        return "", None, "not a finite number: dropped"
    label = entry.get(markup.label_key, "")
    if not isinstance(label, str):
        return "", box, reason or f"{markup.label_key} is not text: box kept without one"
    return without_surrogates(label).strip(), box, reason
