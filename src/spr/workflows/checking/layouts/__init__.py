"""The layouts that `spr check` reads, and which of them a file has."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from spr.core.errors import ConfigError, InputError, nearest
from spr.core.terminal import one_line
from spr.workflows.checking.layouts import coco, llamafactory, llava, mdetr, ms_swift, qwen_vl, trl
from spr.workflows.checking.layouts.layout import ObjectLayout, RowLayout
from spr.workflows.checking.source import Kind, RawRow, raw_rows

Layout: TypeAlias = RowLayout | ObjectLayout

NAMES = ("coco", "mdetr", "llava", "qwen_vl", "ms_swift", "llamafactory", "trl")
"""The values of ``--format``."""
SAMPLE = 200
"""Rows that are looked at to recognise a layout."""

__all__ = ["NAMES", "Layout", "ObjectLayout", "RowLayout", "choose_layout", "row_layouts"]


def row_layouts(path: Path, kind: Kind) -> list[RowLayout]:
    """The layouts of files with one sample per row, the first of which wins where several fit."""
    columns = llamafactory.columns_of(path)
    factory = llamafactory.layout_of(columns)
    rest = {"lines": [ms_swift.LAYOUT, factory], "parquet": [trl.LAYOUT, ms_swift.LAYOUT, factory]}
    order = [qwen_vl.LAYOUT, llava.LAYOUT, *rest.get(kind, [factory, ms_swift.LAYOUT]), trl.LAYOUT]
    if columns.is_stated:
        order.insert(0, factory)
    return list(dict.fromkeys(order))


def choose_layout(path: Path, kind: Kind, name: str | None = None) -> Layout:
    """The layout of a file by its content, or the one of a name.

    Raises:
        ConfigError: for an unknown name, or one whose files are not of this kind.
        InputError: if no layout fits: it lists what each needs, and what was found.
    """
    if name is not None and name not in NAMES:
        raise ConfigError("--format is not a layout", got=name, expected=", ".join(NAMES), fix=nearest(name, NAMES))
    objects: tuple[ObjectLayout, ...] = (mdetr.LAYOUT, coco.LAYOUT)
    rows = row_layouts(path, kind) if kind != "object" else []
    if name is not None:
        known: list[Layout] = [*objects, *row_layouts(path, kind)]
        chosen = next(layout for layout in known if layout.name == name)
        if isinstance(chosen, ObjectLayout) != (kind == "object"):
            what = f"{path} does not have the layout `{name}`"
            raise ConfigError(what, got=_KINDS[kind], expected=_needs([chosen]))
        return chosen
    if kind == "object":
        return _object_layout(path)
    sample = list(itertools.islice(itertools.chain.from_iterable(raw_rows(path, kind)), SAMPLE))
    counts = [sum(_fits(layout, row) for row in sample) for layout in rows]
    best = max(counts, default=0)
    if not best:
        raise _unknown(path, kind, sample)
    return rows[counts.index(best)]


_KINDS: dict[Kind, str] = {
    "object": "one JSON object",
    "list": "a JSON list of rows",
    "lines": "JSON lines",
    "parquet": "Parquet",
}


def _fits(layout: RowLayout, row: RawRow) -> bool:
    return isinstance(row.value, dict) and layout.fits(row.value)


def _object_layout(path: Path) -> ObjectLayout:
    images = coco.first_images(path)
    if not images:
        coco.Objects(path)  # raises an error that says what is missing
        return coco.LAYOUT
    captions = sum(isinstance(image, dict) and isinstance(image.get("caption"), str) for image in images)
    return mdetr.LAYOUT if captions > len(images) / 2 else coco.LAYOUT


def _needs(layouts: Iterable[Layout]) -> str:
    return "\n".join(f"{layout.name}: {layout.needs}" for layout in layouts)


def _unknown(path: Path, kind: Kind, sample: list[RawRow]) -> InputError:
    layouts: list[Layout] = [coco.LAYOUT, mdetr.LAYOUT, *row_layouts(path, kind)]
    fix = "convert the file to one of these, or name the layout with --format"
    got = f"{_KINDS[kind]}, {_found(sample)}"
    return InputError(f"The layout of {path} is not known", got=got, expected=_needs(layouts), fix=fix)


def _found(sample: list[RawRow]) -> str:
    row = next((row for row in sample if isinstance(row.value, dict)), None)
    if row is not None:
        keys = ", ".join(f"{one_line(str(key)[:40])} ({_kind_name(value)})" for key, value in [*row.value.items()][:12])
        return f"whose row {row.number} has {keys or 'no keys'}"
    if not sample:
        return "without rows"
    first = sample[0]
    return f"whose row {first.number} is {first.problem or _kind_name(first.value)}"


def _kind_name(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
