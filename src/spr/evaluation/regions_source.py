"""Held-out regions: of a run's stage, a Parquet file or JSON, with the images and the question that belong to them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spr.config import load_config
from spr.core.errors import InputError, RecordError
from spr.records import RegionQuery
from spr.records.schemas import from_table
from spr.runs.store import StageStore, read_table


@dataclass(frozen=True, slots=True)
class Regions:
    """Region queries; ``images`` and ``prompt`` are those of the run's config.

    None where there is no run; the prompt also where the run asks no model.
    """

    queries: list[RegionQuery]
    images: Path | None = None
    prompt: str | None = None


def read_regions(path: Path) -> Regions:
    """Regions of ``RUN``, ``RUN/regions``, a ``.parquet`` file of that table, or JSON: a list or lines of its rows.

    Raises:
        InputError: if it is something else, or there are none.
        RunError: for a run whose regions have not been made, with the command that makes them.
    """
    if path.is_dir():
        folder = path / "regions" if (path / "config.yaml").is_file() else path
        queries = [query for table in StageStore(folder).tables() for query in from_table(table, RegionQuery)]
        saved = folder.parent / "config.yaml"
        found = Regions(queries)
        if saved.is_file():
            config = load_config(saved)
            prompt = config.prompts.full if config.describer is not None else None
            found = Regions(queries, config.annotations.images, prompt)
    elif path.suffix == ".parquet":
        found = Regions(from_table(read_table(path), RegionQuery))
    else:
        found = Regions(_from_json(path))
    if not found.queries:
        raise InputError(f"{path} holds no regions", got="no row", expected="at least one")
    return found


def _from_json(path: Path) -> list[RegionQuery]:
    expected = "RUN/regions, a .parquet file of regions, or JSON rows of that table"
    try:
        text = path.read_text(encoding="utf-8")
        rows: Any = json.loads(text) if text.lstrip()[:1] == "[" else [json.loads(r) for r in text.split("\n") if r]
        return [RegionQuery.from_row(row) for row in rows]
    except FileNotFoundError:
        raise InputError(f"Annotations {path} can't be read", got="no such file", expected=expected) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, RecordError):
            raise
        raise InputError(
            f"{path} holds no regions", got=f"{type(error).__name__}: {error}", expected=expected
        ) from None
