"""Rows of any table of a run as readable text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from spr.core.errors import InputError, nearest
from spr.core.paths import as_path, exists, is_dir, is_file
from spr.core.terminal import count_text, one_line
from spr.runs.reader import Run
from spr.runs.store import MANIFEST, STAGE_ORDER, StageStore, read_table


def show(path: Path, *, n: int = 3, skip: int = 0) -> Iterator[str]:
    """Lines of text about a run folder, or rows ``skip`` to ``skip + n`` of a stage's folder or a Parquet file.

    Raises:
        InputError: if the path is something else.
        RunError: if the stage is not finished or a file is damaged.
    """
    path = as_path(path)
    if is_file(path / "config.yaml"):
        yield from _show_run(Run(path))
        return
    if is_dir(path) and is_file(path.parent / "config.yaml"):
        manifest = StageStore(path).finished()
        dropped = sum(manifest.dropped.values())
        yield f"{path}: {count_text(manifest.rows, 'rows')}, shards: {len(manifest.shards):,}, dropped: {dropped:,}"
    else:
        yield f"{path}: {count_text(sum(len(table) for table in _tables(path)), 'rows')}"
    for number, row in enumerate(read_rows(path, n=n, skip=skip), start=skip):
        yield ""
        yield f"── row {number} " + "─" * 40
        yield from _show_row(row)


def read_rows(path: Path, *, n: int, skip: int = 0) -> Iterator[dict[str, Any]]:
    """Rows ``skip`` to ``skip + n`` of a stage's folder or a Parquet file, as dicts."""
    for table in _tables(path):
        rows = table.slice(skip, n)
        yield from rows.to_pylist()
        n, skip = n - len(rows), max(skip - len(table), 0)
        if not n:
            return


def _tables(path: Path) -> Iterator[pa.Table]:
    if is_file(path) and path.suffix == ".parquet":
        yield read_table(path)
    elif is_file(path / MANIFEST) or (path.name in STAGE_ORDER and is_file(path.parent / "config.yaml")):
        yield from StageStore(path).tables()
    elif not exists(path) and is_file(path.parent / "config.yaml"):
        run = Run(path.parent)
        known = [name for name in run.stages if run.store(name).manifest() is not None]
        fix = nearest(path.name, known) if known else f"`spr run CONFIG --out {run.path}` runs the stages"
        got = f"stages with rows: {', '.join(known)}" if known else "a run without rows"
        raise InputError(f"{run.path} has no stage or file `{path.name}`", got=got, fix=fix)
    else:
        what = "a folder without a manifest" if is_dir(path) else "a file" if exists(path) else "nothing there"
        raise InputError(f"{path} can't be shown", got=what, expected="RUN, RUN/STAGE or a .parquet file")


def _show_run(run: Run) -> Iterator[str]:
    yield f"{run.path}:"
    for name in run.stages:
        manifest = run.store(name).manifest()
        if manifest is not None:
            state = "" if manifest.complete else ", not finished"
            yield f"  {name}: {count_text(manifest.rows, 'rows')}, shards: {len(manifest.shards):,}{state}"
            yield from (f"    dropped {reason}: {count:,}" for reason, count in manifest.dropped.items())


def _show_row(row: dict[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        if not (isinstance(value, list) and value and isinstance(value[0], dict)):
            yield f"{name}: {_text(value)}"
            continue
        yield f"{name} ({len(value)}):"
        columns = [column for column in value[0] if any(item[column] is not None for item in value)]
        lines = [columns, *([_text(item[column]) for column in columns] for item in value)]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        for line in lines:
            yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))).rstrip()


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        is_box = len(value) == 4 and all(isinstance(v, float) for v in value)
        return "[" + ", ".join(f"{v:.1f}" if is_box else _text(v) for v in value) + "]"
    if isinstance(value, bool):
        return "yes" if value else "–"
    return one_line(value)
