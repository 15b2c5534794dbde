"""Rows of any table of a run as readable text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from spr.core.errors import InputError
from spr.runs.reader import Run
from spr.runs.store import MANIFEST, StageStore, read_table


def show(path: Path, *, n: int = 3, skip: int = 0) -> Iterator[str]:
    """Lines of text about a run, or rows ``skip`` to ``skip + n`` of a stage or a Parquet file.

    Args:
        path: A run folder, a stage's folder, or a Parquet file.
        n: Number of rows.
        skip: Number of rows to skip first.

    Raises:
        InputError: if the path is something else.
        RunError: if the stage is not finished or a file is damaged.
    """
    if (path / "config.yaml").is_file():
        yield from _show_run(Run(path))
        return
    yield f"{path}: {describe_total(path)}"
    for number, row in enumerate(read_rows(path, n=n, skip=skip), start=skip):
        yield ""
        yield f"── row {number} " + "─" * 40
        yield from _show_row(row)


def read_rows(path: Path, *, n: int, skip: int = 0) -> Iterator[dict[str, Any]]:
    """Rows ``skip`` to ``skip + n`` of a stage's folder or a Parquet file, as dicts."""
    for table in _tables(path):
        if skip >= len(table):
            skip -= len(table)
            continue
        taken = table.slice(skip, n)
        yield from taken.to_pylist()
        n, skip = n - len(taken), 0
        if n <= 0:
            return


def describe_total(path: Path) -> str:
    """Number of rows of a stage's folder or a Parquet file, as text."""
    if not path.is_dir() or not (path.parent / "config.yaml").is_file():
        return f"{sum(len(t) for t in _tables(path)):,} rows"
    manifest = StageStore(path).finished()
    dropped = sum(manifest.dropped.values())
    return f"{manifest.rows:,} rows, shards: {len(manifest.shards):,}, dropped: {dropped:,}"


def _tables(path: Path) -> Iterator[pa.Table]:
    if path.is_file() and path.suffix == ".parquet":
        yield read_table(path)
    elif (path / MANIFEST).is_file() or (not path.exists() and (path.parent / "config.yaml").is_file()):
        yield from StageStore(path).tables()
    else:
        what = "a folder without a manifest" if path.is_dir() else "a file" if path.exists() else "nothing there"
        raise InputError(f"{path} can't be shown", got=what, expected="RUN, RUN/STAGE or a .parquet file")


def _show_run(run: Run) -> Iterator[str]:
    yield f"{run.path}:"
    for name in run.stages:
        manifest = run.store(name).manifest()
        if manifest is not None:
            state = "" if manifest.complete else ", not finished"
            yield f"  {name}: {manifest.rows:,} rows, shards: {len(manifest.shards):,}{state}"
            yield from (f"    dropped {reason}: {count:,}" for reason, count in manifest.dropped.items())


def _show_row(row: dict[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{name} ({len(value)}):"
            yield from _show_structs(value)
        else:
            yield f"{name}: {_text(value)}"


def _show_structs(items: list[dict[str, Any]]) -> Iterator[str]:
    names = [name for name in items[0] if any(item[name] is not None for item in items)]
    cells = [[_text(item[name]) for name in names] for item in items]
    widths = [max(len(name), *(len(line[k]) for line in cells)) for k, name in enumerate(names)]
    for line in [names, *cells]:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))).rstrip()


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and len(value) == 4 and all(isinstance(v, float) for v in value):
        return "[" + ", ".join(f"{v:.1f}" for v in value) + "]"
    if isinstance(value, list):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    if isinstance(value, bool):
        return "yes" if value else "–"
    # Control characters from a dataset or a model must not reach the terminal.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))
