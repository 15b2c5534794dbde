"""Rows of TRL: ``messages``, ``prompt`` and ``completion``, or ``prompt``, ``chosen`` and ``rejected``.

The layouts are documented in huggingface/trl, docs/source/dataset_formats.md: each column is a text (standard) or a
list of turns (conversational), whose content is a text or a list of parts. Images are in ``images`` or ``image``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spr.workflows.checking.layouts.layout import (
    OPENAI,
    ImageName,
    RowLayout,
    Slot,
    SlotKind,
    WrongRow,
    first_image,
    turn_slots,
)

_COLUMNS: tuple[tuple[str, SlotKind], ...] = (
    ("prompt", "prompt"),
    ("completion", "answer"),
    ("chosen", "answer"),
    ("rejected", "rejected"),
)


def _fits(row: Mapping[str, Any]) -> bool:
    turns = row.get("messages")
    if isinstance(turns, list):
        return bool(turns) and all(isinstance(turn, dict) and "role" in turn for turn in turns)
    answers = [row.get(key) for key in ("completion", "chosen", "rejected") if key in row]
    return bool(answers) and all(isinstance(answer, str | list) for answer in answers)


def _slots(row: Mapping[str, Any]) -> list[Slot]:
    if isinstance(row.get("messages"), list):
        return list(turn_slots(row["messages"], OPENAI))
    if not any(key in row for key in ("completion", "chosen", "rejected")):
        raise WrongRow("no `messages`, `completion` or `chosen`")
    slots: list[Slot] = []
    for key, kind in _COLUMNS:
        value = row.get(key)
        if isinstance(value, str):
            slots.append(Slot(row, key, kind))
        elif isinstance(value, list):
            # In the implicit format, `chosen` and `rejected` begin with the prompt's turns.
            turns = turn_slots(value, OPENAI)
            slots += [slot if slot.kind == "prompt" else slot._replace(kind=kind) for slot in turns]
        elif value is not None:
            raise WrongRow(f"`{key}` is neither a text nor a list of turns")
    return slots


def _image(row: Mapping[str, Any]) -> ImageName:
    return first_image(row, "images", "image")


LAYOUT = RowLayout(
    "trl",
    "TRL rows",
    "rows with `messages`, or `prompt` and `completion`, or `prompt`, `chosen` and `rejected`, as texts or turns of "
    "{role, content}",
    _fits,
    _slots,
    _image,
)
