"""LLaMA-Factory's sharegpt layout: a column of turns with tags, and ``images``.

The layout is documented in hiyouga/LLaMA-Factory, data/README.md. Names of columns and tags can differ from the usual
ones; ``dataset_info.json`` in the same folder says how, and is read if it has an entry for the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spr.core.documents import parse_json
from spr.core.errors import InputError
from spr.core.paths import is_file
from spr.core.text_input import read_text
from spr.workflows.checking.layouts.layout import (
    OPENAI,
    SHAREGPT,
    ImageName,
    Roles,
    RowLayout,
    Slot,
    SlotKind,
    WrongRow,
    first_image,
    turn_slots,
)

INFO = "dataset_info.json"


@dataclass(frozen=True)
class Columns:
    """The names that an entry of ``dataset_info.json`` gives; ``roles`` are tried in their order."""

    roles: tuple[Roles, ...] = (SHAREGPT, OPENAI)
    images: str = "images"
    chosen: str = "chosen"
    rejected: str = "rejected"
    is_stated: bool = False


def columns_of(path: Path) -> Columns:
    """The columns of a data file by the ``dataset_info.json`` beside it, or the usual ones.

    Raises:
        InputError: if that file is not JSON.
    """
    info = path.parent / INFO
    if not is_file(info):
        return Columns()
    try:
        entries = parse_json(read_text(info, f"{INFO} of LLaMA-Factory {info}"))
    except ValueError as error:
        raise InputError(f"{info} is not valid JSON", got=error, expected="LLaMA-Factory's dataset_info.json") from None
    for entry in entries.values() if isinstance(entries, dict) else ():
        if isinstance(entry, dict) and entry.get("file_name") == path.name:
            return _columns(entry)
    return Columns()


def _columns(entry: Mapping[str, Any]) -> Columns:
    names, tags = (entry[key] if isinstance(entry.get(key), dict) else {} for key in ("columns", "tags"))
    roles = Roles(
        str(names.get("messages", "conversations")),
        str(tags.get("role_tag", "from")),
        str(tags.get("content_tag", "value")),
        (str(tags.get("assistant_tag", "gpt")),),
    )
    others = {key: str(names[key]) for key in ("images", "chosen", "rejected") if key in names}
    return Columns((roles,), is_stated=True, **others)


def layout_of(columns: Columns) -> RowLayout:
    """The layout, with the columns of a file."""

    def roles_of(row: Mapping[str, Any]) -> Roles | None:
        for roles in columns.roles:
            turns = row.get(roles.turns)
            if isinstance(turns, list) and all(isinstance(turn, dict) and roles.role in turn for turn in turns):
                return roles
        return None

    def fits(row: Mapping[str, Any]) -> bool:
        roles = roles_of(row)
        if roles is None:
            return False
        if columns.is_stated:
            return True
        if "objects" in row or "rejected_response" in row or not _are_plain(row[roles.turns], roles):
            return False
        return (columns.images in row and "image" not in row) or _is_pair(row, columns)

    def slots(row: Mapping[str, Any]) -> list[Slot]:
        roles = roles_of(row)
        if roles is None:
            expected = " or ".join(
                f"`{roles.turns}` with `{roles.role}` and `{roles.content}`" for roles in columns.roles
            )
            raise WrongRow(f"no {expected}")
        found = list(turn_slots(row[roles.turns], roles))
        kinds: tuple[tuple[str, SlotKind], ...] = ((columns.chosen, "answer"), (columns.rejected, "rejected"))
        for key, kind in kinds:
            turn = row.get(key)
            if isinstance(turn, dict):
                found += turn_slots([turn], roles, alone=kind)
        return found

    def image(row: Mapping[str, Any]) -> ImageName:
        return first_image(row, columns.images)

    needs = "rows with `conversations` ({from, value}) or `messages` ({role, content}), and `images`, a list of paths"
    return RowLayout("llamafactory", "LLaMA-Factory sharegpt", needs, fits, slots, image)


def _are_plain(turns: list[dict[str, Any]], roles: Roles) -> bool:
    return all(isinstance(turn.get(roles.content), str) for turn in turns)


def _is_pair(row: Mapping[str, Any], columns: Columns) -> bool:
    return isinstance(row.get(columns.chosen), dict) and isinstance(row.get(columns.rejected), dict)
