"""A layout: how one trainer's rows hold their texts, images and boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from spr.core.boxes import Size
from spr.workflows.checking.rows import Numbers, Stated

LONGEST_SIDE = 2**31
"""Stated widths and heights from this on are not taken for sizes."""
SlotKind: TypeAlias = Literal["prompt", "answer", "rejected"]
"""What a text is for: what the user says, what the model says, and the worse answer of a preference pair."""


class Slot(NamedTuple):
    """A place of a row that holds a text: ``holder[key]``, which `spr check --fix` can replace."""

    holder: Any
    key: Any
    kind: SlotKind

    @property
    def text(self) -> str:
        """The text."""
        return str(self.holder[self.key])


class WrongRow(Exception):  # noqa: N818 - a row that does not fit is reported, and does not stop the check
    """A row that does not fit its layout; the message says what is wrong with it."""


class FieldBoxes(NamedTuple):
    """The boxes that a row holds in a field, apart from its texts.

    Attributes:
        numbers: Four numbers each, as written.
        labels: One per box; empty if there is none.
        stated: The scale and order that the field states.
        problems: What is wrong with it: pairs of a key of `spr.workflows.checking.findings.MESSAGES` and a detail.
    """

    numbers: list[Numbers]
    labels: list[str]
    stated: Stated
    problems: list[tuple[str, str]]


class ImageName(NamedTuple):
    """The image of a row: its name, or its encoded content, or both."""

    name: str | None
    data: bytes | None = None


@dataclass(frozen=True)
class Roles:
    """How the turns of a conversation are written.

    Attributes:
        turns: The key of the list of turns.
        role: The key of the speaker.
        content: The key of the text.
        assistant: The names of the speaker who answers.
    """

    turns: str
    role: str
    content: str
    assistant: tuple[str, ...]


SHAREGPT = Roles("conversations", "from", "value", ("gpt", "assistant"))
OPENAI = Roles("messages", "role", "content", ("assistant",))


@dataclass(frozen=True)
class RowLayout:
    """A layout of files with one sample per row.

    Attributes:
        name: The name for ``--format``.
        title: The name for people.
        needs: What its rows have, for people.
        fits: Whether a row has this layout.
        slots: The texts of a row; raises `WrongRow`.
        image: The first image of a row.
        boxes: The boxes that the row holds in a field; None if it has none there. Raises `WrongRow`.
    """

    name: str
    title: str
    needs: str
    fits: Callable[[Mapping[str, Any]], bool]
    slots: Callable[[Mapping[str, Any]], list[Slot]]
    image: Callable[[Mapping[str, Any]], ImageName]
    boxes: Callable[[Mapping[str, Any]], FieldBoxes | None] = lambda _: None


@dataclass(frozen=True)
class ObjectLayout:
    """A layout of files that are one JSON object with the lists ``images`` and ``annotations``.

    Attributes:
        name, title, needs: As those of `RowLayout`.
        has_captions: Whether each entry of ``images`` is an expression, its ``caption``.
    """

    name: str
    title: str
    needs: str
    has_captions: bool = False


def turn_slots(turns: Any, roles: Roles, *, alone: SlotKind | None = None) -> Iterator[Slot]:
    """The texts of the turns of a conversation; with ``alone``, all of them are of that kind.

    Raises:
        WrongRow: if they are not a list of turns with a speaker and a text.
    """
    if not isinstance(turns, list):
        raise WrongRow(f"`{roles.turns}` is not a list")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise WrongRow(f"turn {number} of `{roles.turns}` is not an object")
        speaker = turn.get(roles.role)
        if speaker in roles.assistant:
            kind: SlotKind = alone or "answer"
        elif isinstance(speaker, str):
            kind = "prompt"
        else:
            raise WrongRow(f"turn {number} of `{roles.turns}` has no `{roles.role}`")
        content = turn.get(roles.content)
        if isinstance(content, str):
            yield Slot(turn, roles.content, kind)
        elif isinstance(content, list):
            yield from _part_slots(content, kind)
        elif content is not None:
            raise WrongRow(f"`{roles.content}` of turn {number} is not a text")


def _part_slots(parts: list[Any], kind: SlotKind) -> Iterator[Slot]:
    for place, part in enumerate(parts):
        if isinstance(part, str):
            yield Slot(parts, place, kind)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            yield Slot(part, "text", kind)


def first_image(row: Mapping[str, Any], *keys: str) -> ImageName:
    """The first image that one of the keys names: a path, an object with ``path`` or ``bytes``, or a list of them."""
    for key in keys:
        value = row.get(key)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, str) and value:
            return ImageName(value)
        if isinstance(value, dict):
            path, data = value.get("path"), value.get("bytes")
            name = path if isinstance(path, str) and path else None
            if name is not None or isinstance(data, bytes):
                return ImageName(name, data if isinstance(data, bytes) else None)
    return ImageName(None)


def stated_size(row: Mapping[str, Any]) -> Size | None:
    """The size that a row states as ``width`` and ``height`` (InternVL's rows do), or None."""
    w, h = row.get("width"), row.get("height")
    if type(w) is int and type(h) is int:
        return (w, h) if 0 < w < LONGEST_SIDE and 0 < h < LONGEST_SIDE else None
    if isinstance(w, list) and isinstance(h, list) and len(w) == len(h) == 1:
        return stated_size({"width": w[0], "height": h[0]})
    return None
