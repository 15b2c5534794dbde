"""Parse lists of objects: what all of them share, and those of location tokens (PaliGemma, Florence-2)."""

from __future__ import annotations

import re
from typing import NamedTuple

from spr.grounding.coding import Frame
from spr.grounding.markup import FOREIGN_TAG, SPECIAL, Tokens, stray
from spr.grounding.text import Problems
from spr.records import Box, Point, Span


class Item(NamedTuple):
    """A label with its boxes and points, or words without any (``raw`` is None)."""

    label: str
    boxes: list[Box]
    raw: tuple[int, int] | None
    points: list[Point]


def grounded_list(items: list[Item], problems: Problems) -> tuple[str, list[Span]]:
    """The joined labels, one span each, as plain text. Boxes without label are reported if others have one."""
    plain = ""
    spans: list[Span] = []
    has_labels = any(item.label for item in items)
    for label, boxes, raw, points in items:
        plain += (", " if plain and label else "") + label
        if raw is not None:
            spans.append(Span(label, len(plain) - len(label), len(plain), tuple(boxes), tuple(points)))
            if has_labels and not label:
                problems.note(*raw, f"{'box' if boxes else 'point'} without a label: kept without one")
    return plain, spans


def add_item(
    items: list[Item], label: str, boxes: list[Box], raw: tuple[int, int], points: list[Point] | None = None
) -> None:
    """Add a detection; consecutive ones with the same label become one phrase with several boxes."""
    if items and items[-1].label == label and items[-1].raw is not None:
        items[-1].boxes.extend(boxes)
        items[-1].points.extend(points or ())
    else:
        items.append(Item(label, boxes, raw, points or []))


def parse_tokens(problems: Problems, markup: Tokens, frame: Frame) -> tuple[str, list[Span]]:
    """Parse labels and location tokens; malformed pieces are reported and dropped."""
    text, raw_text = problems.read, problems.raw
    items: list[Item] = []
    pending: tuple[list[Box], tuple[int, int]] = [], (0, 0)  # boxes whose label comes next
    words: list[str] = []
    position = 0

    def close() -> None:
        """Turn the words since the last run into the pending label; other words become items without boxes."""
        joined = "".join(words)
        words.clear()
        labels = [label.strip() for label in (joined.split(markup.separator.strip()) if markup.separator else [joined])]
        if pending[0]:
            add_item(items, labels.pop(0), *pending)
        items.extend(Item(label, [], None, []) for label in labels if label)

    for match in markup.pattern.finditer(text):
        raw, piece = match.span(), match[0]
        if match[1] is not None:
            boxes = problems.decode(frame, match, markup.numbers)
        elif markup.token_pattern.match(piece):
            boxes = _run(match, markup, frame, problems)
        else:
            if SPECIAL.fullmatch(piece) or piece.startswith(("<seg", "<poly", "</poly", "<sep")):
                reason: str | None = ""
            else:
                reason = "not a location token: dropped" if piece.startswith("<loc") else stray(match)
            position = drop_piece(match, reason, position, words, problems)
            continue
        words.append(raw_text[position : raw[0]])
        position = raw[1]
        if markup.label_first:
            items.append(Item("".join(words).strip(), boxes, raw if boxes else None, []))
            words.clear()
        else:
            close()
            pending = boxes, raw
    words.append(raw_text[position:])
    close()
    return grounded_list(items, problems)


def drop_piece(match: re.Match[str], reason: str | None, position: int, words: list[str], problems: Problems) -> int:
    """Drop a match and report the reason ("": silently; None: keep it as words); returns where the next words start."""
    if reason is None:
        return position
    before = problems.raw[position : match.start()]
    words.append(before if match[0][0] == "<" else before.rstrip())
    if reason:
        problems.note(*match.span(), reason, unread=reason != FOREIGN_TAG)
    return match.end()


def _run(match: re.Match[str], markup: Tokens, frame: Frame, problems: Problems) -> list[Box]:
    """The boxes of a run of location tokens, four per box."""
    tokens = list(markup.token_pattern.finditer(match.string, *match.span()))
    boxes: list[Box] = []
    groups = [tokens[first : first + 4] for first in range(0, len(tokens), 4)]
    # Of every second side around a polygon, such as the four corners of a word, some lead left or up.
    is_marked = match.string.endswith("<poly>", 0, match.start())
    is_closed = len(groups) > 1 and len(tokens) % 2 == 0 and any(map(_is_swapped, groups))
    if markup.polygons and (is_marked or is_closed):
        reason = f"a polygon of {len(tokens) // 2} points instead of a box: dropped"
        problems.note(*match.span(), reason, unread=True)
        return []
    for four in groups:
        start, stop = four[0].start(), four[-1].end()
        if len(four) == 4:
            ordered = [four[place] for place in markup.order]
            numbers, ranges = [float(token[1]) for token in ordered], tuple(token.span(1) for token in ordered)
            boxes += problems.add(frame, numbers, ranges, (start, stop), match.span())
        else:
            problems.note(start, stop, f"{len(four)} location tokens instead of 4: dropped", unread=True)
    return boxes


def _is_swapped(tokens: list[re.Match[str]]) -> bool:
    first, second = tokens[:2], tokens[2:]
    return any(int(two[1]) < int(one[1]) for one, two in zip(first, second, strict=False))
