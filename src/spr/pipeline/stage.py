"""What a stage is: a pure function from one Arrow table (a shard) to another, with a name and what decides its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from spr.config import Config
from spr.core.progress import Progress
from spr.runs.store import StageOutput


@dataclass(frozen=True, slots=True)
class Plan:
    """What a first stage works on, cut into shards.

    Attributes:
        ids: Texts, ``(rows,)``: the ids of all input rows, in the order in which they are looked at.
        rows: ``rows(start, stop)`` makes the input table of these rows.
        limit: The stage is complete once this many rows came out; None: when all rows were looked at.
        dropped: What was dropped while reading (table `spr.records.schemas.DROPPED`).
        counts: What was read, for the manifest and the summary.
    """

    ids: pa.Array
    rows: Callable[[int, int], pa.Table]
    limit: int | None
    dropped: pa.Table
    counts: dict[str, int] = field(default_factory=dict)


def no_models(_: Config) -> tuple[str, ...]:
    """Of a stage that loads no model."""
    return ()


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the pipeline.

    Attributes:
        name: Also the name of its folder in the run.
        version: Raised whenever the same input would give other rows than before.
        unit: What its rows are, in the plural.
        sections: The config's fields and sections that decide its rows, besides those of the stage before.
        model_sections: Of these, sections of models that it loads under this config: then it runs in one process,
            whatever the number of workers.
        process: Shards of the inputs, by their names → rows and drops; importable by name, so that worker processes
            find it. A first stage's input is called ``source``.
        keeps_unfinished: Whether ``process`` also takes ``unfinished``: a file in which it may keep what it has of a
            shard, for the next run, should this one be stopped. It goes once the shard is finished.
        inputs: The stages whose shards of the same number it reads, the one before it last.
        plan: For the first stage, how its input comes to be.
    """

    name: str
    version: int
    unit: str
    sections: tuple[str, ...]
    process: Callable[..., StageOutput]
    inputs: tuple[str, ...] = ()
    plan: Callable[[Config, Progress], Plan] | None = None
    model_sections: Callable[[Config], tuple[str, ...]] = no_models
    keeps_unfinished: bool = False

    def deciding(self, config: Config) -> tuple[str, ...]:
        """The fields and sections of this config that decide the rows."""
        return (*self.sections, *self.model_sections(config))

    def settings(self, config: Config) -> dict[str, Any]:
        """The part of the config that decides this stage's rows."""
        deciding = self.deciding(config)
        parts = {name: value for name, value in config.model_dump(mode="json").items() if name in deciding}
        return {name: _without_runtime_fields(config, name, value) for name, value in parts.items()}


def _without_runtime_fields(config: Config, name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {field: item for field, item in value.items() if not config.is_runtime_field(f"{name}.{field}")}
