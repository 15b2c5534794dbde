"""Stages: pure functions from the Arrow tables of a shard to another table, with everything to know about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import pyarrow as pa

from spr.config import Config
from spr.core.errors import ConfigError, SprError
from spr.core.progress import Progress
from spr.core.registry import Registry
from spr.runs.store import ShardEntry, StageOutput, StageStore, dropped_table

OnDrop: TypeAlias = Callable[[str, str, str], None]
"""Called as ``on_drop(kind, id, reason)`` for everything that is dropped; reasons: `spr.core.reasons`."""


class Drops:
    """Collects what a stage drops; its method `add` is an `OnDrop`."""

    def __init__(self) -> None:
        self._by_kind: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self._file_names: dict[str, list[str | None]] = defaultdict(list)

    def add(self, kind: str, id: str, reason: str, file_name: str | None = None) -> None:  # noqa: A002 - the column's name
        """Collect one dropped item."""
        self._by_kind[kind].append((id, reason))
        self._file_names[kind].append(file_name)

    def table(self, stage: str, *kinds: str) -> pa.Table:
        """The drops as `spr.records.schemas.DROPPED`, kind by kind in the given order."""
        by_kind = [dropped_table(stage, kind, self._by_kind[kind], self._file_names[kind]) for kind in kinds]
        return pa.concat_tables(by_kind)


@dataclass(frozen=True, slots=True)
class Plan:
    """The input of a first stage, before it is cut into shards.

    Attributes:
        ids: Strings, ``(rows,)``: the ids of all input rows, in the order in which they are processed.
        file_names: Strings, ``(rows,)``: the image files of these rows, for the list of what is not sampled.
        rows: ``rows(start, stop)`` returns the input table of these rows.
        limit: The stage is complete after this many output rows; None processes all input rows.
        dropped: What was dropped while reading (schema `spr.records.schemas.DROPPED`).
        counts: What was read, for the manifest and the summary.
        totals: How many items of each kind there were before any was dropped, such as ``{"object": 288}``.
    """

    ids: pa.Array
    file_names: pa.Array
    rows: Callable[[int, int], pa.Table]
    limit: int | None
    dropped: pa.Table
    counts: dict[str, int] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything about a stage; ``process`` and the other functions must be importable by name, for worker processes.

    Attributes:
        name: Name of the stage, of its entry in `STAGES` and of its folder in the run.
        version: To be raised whenever the same input gives other rows than before.
        unit: What its rows are, in the plural, such as ``regions``.
        kind: What one row is computed from: the kind of the dropped ids that would have become rows otherwise.
        schema: Schema of its output table; `spr.records.schemas` has those of the built-in stages.
        process: ``process(tables, config)`` computes a shard from the shards of the inputs, by stage name. The input of
            a first stage is called ``source``.
        reasons: Every reason for which it drops something, with an explanation.
        inputs: The stages whose shards of the same number it reads; the last one determines the number of shards.
        sections: Config fields and sections that its rows depend on, besides those that its inputs depend on. A field
            of a section has a dotted name, such as ``pairing.negatives``.
        models: The config sections of the models that it loads, or a function of the config that names them. Its rows
            depend on them, and it runs in one process, whatever the number of workers.
        plan: For a first stage: reads the input.
        keeps_unfinished: Whether ``process`` takes a third argument ``unfinished``: a file for partial results of a
            shard, which an interrupted run leaves for the next one. It is deleted when the shard is finished.
        hint: ``hint(store, shards)`` returns what the user should check after the stage, or None.
        work: ``work(config)`` returns what its progress counts, if that is not its input rows: the number per input
            row, and what is counted, such as ``(6, "answers")``. `spr.core.progress.advance` counts within a shard.
        wanted: ``wanted(config)`` returns whether the config asks for its rows; None for a stage of every run.
    """

    name: str
    version: int
    unit: str
    kind: str
    schema: pa.Schema
    process: Callable[..., StageOutput]
    reasons: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    models: tuple[str, ...] | Callable[[Config], tuple[str, ...]] = ()
    plan: Callable[[Config, Progress], Plan] | None = None
    keeps_unfinished: bool = False
    hint: Callable[[StageStore, Sequence[ShardEntry]], str | None] | None = None
    work: Callable[[Config], tuple[int, str]] | None = None
    wanted: Callable[[Config], bool] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrow schemas lose field names and nullability inside fixed-size lists when they are pickled.
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "schema"}
        return _restore, (self.schema.serialize().to_pybytes(), values)

    def models_for(self, config: Config) -> tuple[str, ...]:
        """The config sections of the models that it loads."""
        return self.models(config) if callable(self.models) else self.models

    def depends_on(self, config: Config) -> tuple[str, ...]:
        """The config fields and sections that the rows depend on."""
        return (*self.sections, *self.models_for(config))

    def settings(self, config: Config) -> dict[str, Any]:
        """The values of `depends_on`, without runtime fields, and without later fields (`Section`) that are null."""
        names = self.depends_on(config)
        values = config.model_dump(mode="json", include={name.partition(".")[0] for name in names})
        for name, section in values.items():
            if isinstance(section, dict):
                own = [key for key in section if name in names or f"{name}.{key}" in names]
                later = getattr(getattr(config, name), "later_fields", ())
                own = [key for key in own if section[key] is not None or key not in later]
                values[name] = {key: section[key] for key in own if not config.is_runtime_field(f"{name}.{key}")}
        return values

    def check(self, output: StageOutput) -> None:
        """Check that ``process`` kept what the stage declares.

        Raises:
            SprError: if the table has another schema, or something was dropped for an undeclared reason.
        """
        what, fix = f"Stage `{self.name}`, version {self.version}", "fix the package that declares the stage"
        if not output.table.schema.equals(self.schema):
            got, expected = output.table.schema, self.schema
            raise SprError(f"{what}, returned a table with another schema", got=got, expected=expected, fix=fix)
        unknown = set(output.dropped["reason"].unique().to_pylist()) - set(self.reasons)
        if unknown:
            got, expected = ", ".join(sorted(unknown)), ", ".join(self.reasons)
            raise SprError(f"{what}, dropped rows for an undeclared reason", got=got, expected=expected, fix=fix)


def _restore(schema: bytes, values: dict[str, Any]) -> Stage:
    return Stage(schema=pa.ipc.read_schema(pa.py_buffer(schema)), **values)


_BUILTIN: dict[str, Stage | str] = {
    "objects": "spr.pipeline.objects:STAGE",
    "regions": "spr.pipeline.regions:STAGE",
    "candidates": "spr.pipeline.describe:STAGE",
    "scores": "spr.pipeline.score:STAGE",
    "pairs": "spr.pipeline.pair:STAGE",
    "negatives": "spr.pipeline.negatives:STAGE",
}
STAGES: Registry[Stage] = Registry("stage", "spr.stages", _BUILTIN)
"""All stages by name. Other packages add a `Stage` through the entry-point group ``spr.stages``."""


def ordered_stages() -> list[Stage]:
    """All stages in the order in which they run: the built-in ones, each added one after the last of its inputs.

    Raises:
        ConfigError: if a stage reads one that does not exist, or stages read each other.
    """
    ordered = [STAGES[name] for name in _BUILTIN]
    waiting = [STAGES[name] for name in STAGES if name not in _BUILTIN]
    while waiting:
        names = [stage.name for stage in ordered]
        stage = next((stage for stage in waiting if set(stage.inputs) <= set(names)), None)
        if stage is None:
            got = "; ".join(f"{stage.name} reads {', '.join(stage.inputs)}" for stage in waiting)
            fix = "correct `inputs` in the packages that declare these stages"
            raise ConfigError("Stages have missing or circular inputs", got=got, expected=", ".join(names), fix=fix)
        waiting.remove(stage)
        place = max((names.index(name) + 1 for name in stage.inputs), default=len(names))
        while place < len(names) and names[place] not in _BUILTIN:
            place += 1
        ordered.insert(place, stage)
    return ordered


def due_stages(config: Config, until: str | None = None) -> list[Stage]:
    """The stages that a run executes, in order.

    Args:
        config: Without a describer, stages that need one, directly or through their inputs, are left out. So are those
            that the config does not ask for.
        until: The last stage to run, whatever the config lacks; None runs all.

    Raises:
        ConfigError: if there is no stage ``until``, or the config does not ask for it.
    """
    stages = [stage for stage in ordered_stages() if stage.wanted is None or stage.wanted(config)]
    if until is not None:
        STAGES.check(until, "until")
        if until not in [stage.name for stage in stages]:
            fix = "set what it makes, such as pairing.negatives=1 for `negatives`"
            raise ConfigError("The config does not ask for this stage", got=until, fix=fix)
        return stages[: [stage.name for stage in stages].index(until) + 1]
    due: list[Stage] = []
    for stage in stages:
        lacks_describer = config.describer is None and "describer" in stage.models_for(config)
        if not lacks_describer and set(stage.inputs) <= {before.name for before in due}:
            due.append(stage)
    return due
