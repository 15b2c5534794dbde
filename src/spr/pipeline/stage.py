"""What a stage is: a pure function from one Arrow table (a shard) to another, with a name and what decides its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from spr.config import Config
from spr.progress import Progress
from spr.store import StageOutput


@dataclass(frozen=True, slots=True)
class Plan:
    """What a first stage works on, cut into shards.

    Attributes:
        ids: Texts, ``(rows,)``: the ids of all input rows, in the order in which they are looked at.
        rows: ``rows(start, stop)`` makes the input table of these rows.
        limit: The stage is complete once this many rows came out; None: when all rows were looked at.
        dropped: What was dropped while reading (table `spr.schemas.DROPPED`).
        counts: What was read, for the manifest and the summary.
    """

    ids: pa.Array
    rows: Callable[[int, int], pa.Table]
    limit: int | None
    dropped: pa.Table
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the pipeline.

    Attributes:
        name: Also the name of its folder in the run.
        version: Raised whenever the same input would give other rows than before.
        unit: What its rows are, in the plural.
        sections: The config's fields and sections that decide its rows, besides those of the stage before.
        process: Shard → rows and drops; importable by name, so that worker processes find it.
        plan: For the first stage, how its input comes to be; the others take the shards of the stage before.
    """

    name: str
    version: int
    unit: str
    sections: tuple[str, ...]
    process: Callable[[pa.Table, Config], StageOutput]
    plan: Callable[[Config, Progress], Plan] | None = None

    def settings(self, config: Config) -> dict[str, Any]:
        """The part of the config that decides this stage's rows."""
        return {name: value for name, value in config.model_dump(mode="json").items() if name in self.sections}
