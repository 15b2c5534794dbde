"""Sweeps: one experiment with several settings, and one table of the results (`spr sweep`).

A variant that changes only the training is a training of the sweep's run; one that changes the pipeline is a run of its
own, which takes over all stages that agree. What is finished is skipped when the same sweep runs again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from spr.config import Config, Section, apply_overrides, load_config, make_config, read_section
from spr.core import FORMAT_VERSION
from spr.core.atomic import write_atomically
from spr.core.documents import read_json
from spr.core.errors import ConfigError, SprError
from spr.core.outputs import check_output, only_begun
from spr.core.paths import is_dir
from spr.core.terminal import count_text
from spr.evaluation.task import TASKS, Task, evaluate
from spr.models.registry import release, trained_model
from spr.pipeline import runner
from spr.pipeline.runner import StageSummary
from spr.runs.trainings import lock_folder, training_place
from spr.training.loss import needs_reference
from spr.training.stopping import InterruptedTrainingError
from spr.workflows.evaluations import (
    OTHER,
    Evaluation,
    csv_cells,
    csv_text,
    describer_of,
    difference_text,
    measured_text,
    paired_differences,
    repeated_labels,
    result_file,
    result_key,
)
from spr.workflows.training import train

BEFORE = "before"
"""The row of the model before training."""
_STATE = "sweep.json"
_FORMAT = "spr sweep"
_LONGEST = 80
_OF_MODEL = ("describer.", "training.dtype", "training.load_in_4bit")  # what the reference depends on besides the pairs


class Sweep(Section):
    """A sweep: where it starts, its variants and how they are evaluated."""

    config: str | None = None
    """The config to start from: a YAML file or a preset. The sweep makes its run."""
    run: Path | None = None
    """A finished run to start from, instead of `config`. Its trainings go to `RUN/trainings`."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Config fields with their values; every combination is a variant."""
    variants: tuple[dict[str, Any], ...] = ()
    """A list of variants: config fields with their values, and optionally a `name`."""
    baseline: str = BEFORE
    """The variant that all others are compared with; `before` is the model before training."""
    evaluate: tuple[Evaluation, ...] = ()
    """How each variant is evaluated."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.config is None) == (self.run is None):
            raise ValueError("give either `config` or `run`")
        if not self.grid and not self.variants:
            raise ValueError("give a `grid` or a list of `variants`")
        if empty := [name for name, values in self.grid.items() if not values]:
            raise ValueError(f"`grid` has no values of {', '.join(empty)}")
        if repeated := repeated_labels(self.evaluate):
            raise ValueError(f"two evaluations are called {', '.join(repeated)}: give them a `name`")
        return self


@dataclass(frozen=True, slots=True)
class Variant:
    """A setting of the sweep: its name in the table, its fields, its run and its training (None: the default one)."""

    name: str
    fields: Mapping[str, Any]
    run: Path
    training: str | None

    @property
    def pipeline(self) -> dict[str, Any]:
        """The fields that the pairs depend on."""
        return {key: value for key, value in self.fields.items() if not _of_training(key)}

    @property
    def adapter(self) -> Path:
        """Where the training's adapter is."""
        return training_place(self.run, self.training) / "adapter"


@dataclass(slots=True)
class Row:
    """A row of the table.

    ``training`` has the training's ``pairs``, ``steps``, ``seconds`` and last metrics. ``results`` and ``differences``
    are by evaluation and metric: ``{"value", "ci95"}`` and ``{"difference", "ci95", "p"}`` to the baseline. ``error``
    says why the variant failed.
    """

    name: str
    fields: dict[str, Any]
    adapter: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    differences: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str | None = None


def sweep(
    source: Path | str | Sweep,
    out: Path,
    *,
    workers: int = 1,
    report: Callable[[str], None] = lambda _: None,
    report_stage: Callable[[StageSummary], None] = lambda _: None,
) -> list[Row]:
    """Train and evaluate every variant, and write ``out/table.json`` and ``out/table.csv``.

    All configs are checked before anything runs. A variant that fails is recorded with its error, and the others are
    still done. If the sweep is interrupted, the same call resumes it.

    Args:
        source: The sweep, or its YAML file.
        out: The folder of the sweep: its runs, results and table.
        workers: Number of processes for stages that load no model.
        report: Called with each line for the user.
        report_stage: Called after each stage.

    Returns:
        The rows of the table; the first is the model before training, if there are evaluations.

    Raises:
        ConfigError: if the sweep or the config of a variant is not valid.
        RunError: if ``out`` holds anything else, or the sweep or its run is in use.
        InterruptedTrainingError: after Ctrl-C in a training.
    """
    plan = source if isinstance(source, Sweep) else read_section(Sweep, source)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = "start it without a launcher, or train by hand: accelerate launch … -m spr train RUN --name NAME"
        raise ConfigError("A sweep runs in one process", got=f"{os.environ['WORLD_SIZE']} processes", fix=fix)
    check_output(out, "a sweep", _is_sweep, folder=True)
    base = plan.run if plan.run is not None else out / "run"
    start = load_config(base / "config.yaml" if plan.run is not None else str(plan.config))
    variants = list(_variants(plan, base, out / "runs"))
    names = [BEFORE, *(variant.name for variant in variants)] if plan.evaluate else [v.name for v in variants]
    if plan.evaluate and plan.baseline not in names:
        raise ConfigError("`baseline` is not a variant", got=plan.baseline, expected=", ".join(names))
    configs = {variant.name: _configs(start, variant) for variant in variants}
    trained_model(start.describer, start.training.init_adapter)
    tasks = {evaluation.label: evaluation.make_task() for evaluation in plan.evaluate}
    for evaluation in plan.evaluate:
        evaluation.check_paths()
    with lock_folder(out, "sweep", "wait for it, or choose another --out"):
        if not (out / _STATE).exists():
            _save(out, {})
        job = _Job(plan, out, base, start, configs, tasks, workers, report, report_stage)
        return job.run(variants)


def _of_training(key: str) -> bool:
    return key == "seed" or key.startswith("training.")


def _variants(plan: Sweep, base: Path, runs: Path) -> Iterator[Variant]:
    points = [dict(zip(plan.grid, values, strict=True)) for values in itertools.product(*plan.grid.values())]
    seen = {BEFORE}
    for point in [*(points if plan.grid else []), *plan.variants]:
        given = dict(point)
        name = given.pop("name", None) or _name(given) or "default"
        if not isinstance(name, str):
            raise ConfigError("The `name` of a variant is not a text", got=name, fix="put it into quotes")
        if name in seen:
            raise ConfigError("Two variants of the sweep have the same name", got=name, fix="give one another `name`")
        seen.add(name)
        training = {key: value for key, value in given.items() if _of_training(key)}
        pipeline = {key: value for key, value in given.items() if not _of_training(key)}
        run = runs / _name(pipeline) if pipeline else base
        own = name if training and not pipeline else _name(training) or None
        training_place(run, own)  # checks the name
        yield Variant(name, given, run, own)


def _name(fields: Mapping[str, Any]) -> str:
    """A name for fields with their values, such as ``learning_rate=1e-05,beta=0.3``; empty without fields."""
    text = ",".join(f"{key.rpartition('.')[2]}={OTHER.sub('-', str(value))}" for key, value in fields.items())
    if len(text) <= _LONGEST and not text.endswith("."):
        return text
    digest = hashlib.sha256(json.dumps(dict(fields), sort_keys=True).encode()).hexdigest()
    return f"{text[: _LONGEST - 9]}-{digest[:8]}"


def _configs(start: Config, variant: Variant) -> tuple[Config, Config]:
    """The configs of a variant's run and of its training; raises `ConfigError` naming fields that are not valid."""

    def changed(fields: Mapping[str, Any]) -> Config:
        overrides = [f"{key}={json.dumps(value)}" for key, value in fields.items()]
        raw = apply_overrides(start.model_dump(mode="json"), overrides)
        return make_config(raw, f"variant {variant.name}", list(fields))

    return changed(variant.pipeline), changed(variant.fields)


@dataclass(frozen=True, slots=True)
class _Job:
    plan: Sweep
    out: Path
    base: Path
    start: Config
    configs: Mapping[str, tuple[Config, Config]]
    tasks: Mapping[str, Task[Any]]
    workers: int
    report: Callable[[str], None]
    report_stage: Callable[[StageSummary], None]

    def run(self, variants: Sequence[Variant]) -> list[Row]:
        if self.plan.run is None:
            self.report(f"Run {self.base}")
            runner.run(self.start, self.base, workers=self.workers, report=self.report_stage)
        rows = []
        if self.plan.evaluate:
            rows.append(Row(BEFORE, {}))
            self._evaluate(rows[0], None, self.start)
        for number, variant in enumerate(variants, start=1):
            self.report(f"\n[{number}/{len(variants)}] {variant.name}")
            row = Row(variant.name, dict(variant.fields))
            rows.append(row)
            try:
                self._train(row, variant, [other.run for other in variants[: number - 1]])
                self._evaluate(row, variant, self.configs[variant.name][0])
            except InterruptedTrainingError:
                raise
            except SprError as error:
                row.error = str(error)
                self.report(f"  failed: {error}")
            self._write(rows)
        self._compare(rows)
        self._write(rows)
        return rows

    def _train(self, row: Row, variant: Variant, earlier: Sequence[Path]) -> None:
        options: dict[str, Any] = {}
        config, trained = self.configs[variant.name]
        if variant.run != self.base:
            others = [path for path in dict.fromkeys([self.base, *earlier]) if path != variant.run and is_dir(path)]
            runner.run(config, variant.run, workers=self.workers, reuse=others, report=self.report_stage)
            known = self.base / "training" / "reference.parquet"
            same_model = not any(key.startswith(_OF_MODEL) for key in variant.fields)
            if known.is_file() and same_model and needs_reference(trained.training):
                options["reference"] = known
        release()
        # The whole config, so that a training of this name with other settings is refused, and not taken for this one.
        summary = train(trained, variant.run, name=variant.training, report=self.report, **options)
        row.adapter = os.path.relpath(variant.adapter, self.out)
        metrics: dict[str, Any] = {
            name: summary.last[name] for name in ("loss", "margin", "accuracy") if name in summary.last
        }
        row.training = {"pairs": summary.pairs, "steps": summary.steps, "seconds": summary.seconds, **metrics}
        when = "done before" if summary.done_before else f"{summary.seconds:.1f} s"
        self.report(f"  {count_text(summary.steps, 'steps')} on {count_text(summary.pairs, 'pairs')} ({when})")

    # ── evaluation ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _evaluate(self, row: Row, variant: Variant | None, config: Config) -> None:
        for evaluation in self.plan.evaluate:
            path = result_file(self.out, row.name, evaluation.label)
            adapter = variant.adapter if variant is not None else None
            describer = describer_of(config, evaluation, adapter)
            key = result_key(evaluation, describer, adapter, evaluation.annotations or self.base)
            done = read_json(self.out / _STATE)["results"]
            if done.get(path.stem) == key and path.is_file():
                self.report(f"  {evaluation.label}: done before")
            else:
                annotations = evaluation.annotations or self.base
                task = self.tasks[evaluation.label]
                result = evaluate(
                    task, annotations, describer=describer, images=evaluation.images, seed=evaluation.seed
                )
                release()
                path.parent.mkdir(exist_ok=True)
                result.write(path)
                _save(self.out, done | {path.stem: key})
            content = read_json(path)
            row.results[evaluation.label] = content["metrics"]
            for note in content.get("notes", ()):
                self.report(f"  Note: {evaluation.label}: {note}")

    def _compare(self, rows: Sequence[Row]) -> None:
        for evaluation in self.plan.evaluate:
            baseline = next((row for row in rows if row.name == self.plan.baseline), None)
            if baseline is None or evaluation.label not in baseline.results:
                continue
            for row in rows:
                if row is not baseline and evaluation.label in row.results:
                    pair = (result_file(self.out, each.name, evaluation.label) for each in (baseline, row))
                    row.differences[evaluation.label] = paired_differences(*pair)

    # ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, rows: Sequence[Row]) -> None:
        content = {"format_version": FORMAT_VERSION, "baseline": self.plan.baseline}
        content["rows"] = [
            {name: getattr(row, name) for name in Row.__slots__ if getattr(row, name) is not None} for row in rows
        ]
        write_atomically(self.out / "table.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        write_atomically(self.out / "table.csv", _csv(rows).encode())


def _csv(rows: Sequence[Row]) -> str:
    """The table with one column per field, training metric and result."""
    lines = []
    for row in rows:
        line: dict[str, Any] = {"name": row.name, **row.fields, **row.training, "adapter": row.adapter}
        for label, metrics in row.results.items():
            for metric, measured in metrics.items():
                head = f"{label} {metric}"
                line |= csv_cells(head, measured["value"], measured["ci95"])
                if (difference := row.differences.get(label, {}).get(metric)) is not None:
                    line |= csv_cells(f"{head} difference", difference["difference"], difference["ci95"])
        lines.append(line | {"error": row.error})
    return csv_text(lines)


def table(rows: Sequence[Row], plan: Sweep) -> list[str]:
    """The table as lines of text: one block per evaluation and metric that has a better direction."""
    width = max((len(row.name) for row in rows), default=0)
    trained = [row for row in rows if row.training]
    lines = [f"{'':<{width}}  {'pairs':>8} {'steps':>7} {'loss':>9} {'margin':>9} {'accuracy':>9}"] if trained else []
    for row in trained:
        numbers = [f"{row.training.get(name, float('nan')):>9.4f}" for name in ("loss", "margin", "accuracy")]
        lines.append(
            f"{row.name:<{width}}  {row.training['pairs']:>8,} {row.training['steps']:>7,} {' '.join(numbers)}"
        )
    for evaluation in plan.evaluate:
        task = TASKS[evaluation.task]
        for metric in (*task.higher_is_better, *task.lower_is_better):
            block = [(row, row.results.get(evaluation.label, {}).get(metric)) for row in rows]
            if not any(measured for _, measured in block):
                continue
            better = "lower" if metric in task.lower_is_better else "higher"
            lines += ["", f"{evaluation.label} {metric} ({better} is better), differences to `{plan.baseline}`"]
            for row, measured in block:
                if measured is not None:
                    difference = row.differences.get(evaluation.label, {}).get(metric)
                    lines.append(
                        f"{row.name:<{width}}  {measured_text(measured)}  {difference_text(difference)}".rstrip()
                    )
    lines += [f"\n{row.name} failed: {row.error}" for row in rows if row.error]
    return lines


def _is_sweep(folder: Path) -> bool:
    if only_begun(folder):
        return True
    content = read_json(folder / _STATE)
    return isinstance(content, dict) and content.get("format") == _FORMAT


def _save(out: Path, results: Mapping[str, str]) -> None:
    content = {"format": _FORMAT, "format_version": FORMAT_VERSION, "results": results}
    write_atomically(out / _STATE, (json.dumps(content, indent=1) + "\n").encode())
