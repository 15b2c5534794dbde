"""Rounds (`spr rounds`): describe, score, pair and train several times, each with the adapter of the round before.

The pairs of a round are answers of the model as it is then, and its reference is that model too, as in iterative DPO.
Each round is a run of its own, ``OUT/round-00``, ``OUT/round-01`` and so on. What is finished is skipped when the same
command runs again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow.compute as pc
from pydantic import model_validator

from spr.config import Config, Section, apply_overrides, changed_fields, make_config
from spr.core import FORMAT_VERSION
from spr.core.atomic import write_atomically
from spr.core.documents import read_json
from spr.core.errors import ConfigError, InputError, RunError, nearest
from spr.core.outputs import check_output, only_begun
from spr.core.paths import is_remote
from spr.core.randomness import stable_hash
from spr.core.terminal import count_text
from spr.evaluation.run_results import put, read_metrics
from spr.evaluation.task import TASKS, Task, evaluate
from spr.models.registry import release, trained_model
from spr.pipeline import runner
from spr.pipeline.runner import StageSummary
from spr.runs.folder import lock_run
from spr.runs.store import StageStore
from spr.runs.trainings import lock_folder
from spr.workflows.evaluations import (
    Evaluation,
    describer_of,
    paired_differences,
    repeated_labels,
    result_file,
    result_key,
)
from spr.workflows.rounds_table import (
    BASE,
    DATA,
    STOPS,
    Data,
    Outcome,
    Round,
    Stop,
    falls,
    short_difference,
    table,
    table_csv,
    table_json,
    value_text,
)
from spr.workflows.training import train

__all__ = ["Outcome", "Round", "RoundsEvaluation", "rounds", "table"]

_STATE = "rounds.json"
_FORMAT = "spr rounds"
_STAGES = ("objects", "regions")  # what no adapter changes


class RoundsEvaluation(Section):
    """The file of `spr rounds --evaluate`: how each round is evaluated."""

    evaluate: tuple[Evaluation, ...]
    """The evaluations, as in the file of `spr sweep`."""

    @model_validator(mode="after")
    def _has_entries(self) -> Self:
        if not self.evaluate:
            raise ValueError("`evaluate` has no entries")
        return self


def rounds(
    config: Config,
    out: Path,
    *,
    n: int,
    data: Data = "same",
    evaluations: Sequence[Evaluation] = (),
    stop: Stop = "interval",
    metric: str | None = None,
    reuse: Sequence[Path] = (),
    workers: int = 1,
    report: Callable[[str], None] = lambda _: None,
    report_stage: Callable[[StageSummary], None] = lambda _: None,
) -> Outcome:
    """Run several rounds, each with the adapter of the round before, and write ``out/table.json`` and ``table.csv``.

    If the rounds are interrupted, the same call resumes them; a greater ``n`` adds rounds.

    Args:
        config: The config of the first round. Later ones differ in `describer.peft_adapter`, `training.init_adapter`
            and `describer.seed` or, with fresh data, `annotations.skip_images`.
        out: The folder of the rounds, their results and the table.
        n: Number of rounds.
        data: Whether rounds describe the ``same`` regions again, with other seeds, or ``fresh`` images.
        evaluations: How each round is evaluated; none means descriptions of the held-out regions of the first round.
        stop: When to stop before ``n`` rounds: if the metric gets worse than in the round before, by the ``interval``
            of the paired difference or by its ``value``, or ``never``.
        metric: The metric of the rule, such as ``s_loc`` or ``rec:acc@0.9``; by default the first of the first task.
        reuse: Other runs. A round takes every finished stage over whose inputs and settings agree, such as the first
            round those of a run that was made before.
        workers: Number of processes for stages that load no model.
        report: Called with each line for the user.
        report_stage: Called after each stage.

    Raises:
        ConfigError: if an argument is not valid, the describer can't load an adapter, or nothing is held out.
        RunError: if ``out`` holds anything else, was made with another config, or is in use.
        InputError: if a stage has no rows, such as for fresh data when all images were used.
        InterruptedTrainingError: after Ctrl-C in a training.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = "start it without a launcher"
        raise ConfigError("Rounds run in one process", got=f"{os.environ['WORLD_SIZE']} processes", fix=fix)
    if is_remote(out):
        fix = "give a folder on a local disk, from which the adapter of the round before is loaded"
        raise ConfigError("--out of rounds is in object storage", got=out, fix=fix)
    _check(config, n, data, stop)
    planned = tuple(evaluations) or (_default(config),)
    if repeated := repeated_labels(planned):
        raise ConfigError("Two evaluations have the same name", got=", ".join(repeated), fix="give them a `name`")
    planned = tuple(_on_held_out(evaluation) for evaluation in planned)
    tasks = {evaluation.label: evaluation.make_task() for evaluation in planned}
    for evaluation in planned:
        evaluation.check_paths()
        describer_of(config, evaluation, None)
    chosen = _metric(planned, metric)
    check_output(out, "a folder of `spr rounds`", _is_rounds, folder=True)
    job = _Job(config, out, data, planned, tasks, tuple(reuse), workers, report, report_stage)
    with lock_folder(out, "`spr rounds`", "wait for it, or choose another --out"):
        job.adopt()
        kinds = {evaluation.label: evaluation.task for evaluation in planned}
        return job.run(n, Outcome(chosen, stop, data, kinds))


def _check(config: Config, n: int, data: Data, stop: Stop) -> None:
    """Raise `ConfigError` if the arguments and the config don't allow rounds."""
    if n < 1:
        raise ConfigError("--n is out of range", got=n, expected="at least 1")
    for flag, value, known in (("--data", data, DATA), ("--stop", stop, STOPS)):
        if value not in known:
            raise ConfigError(f"{flag} is unknown", got=value, expected=", ".join(known))
    trained_model(config.describer, config.training.init_adapter)
    describer = config.describer
    if describer is not None and describer.backend in ("fake", "openai"):
        fix = "set describer.backend to hf or vllm"
        what = "The describer can't load the adapter of the round before"
        raise ConfigError(what, got=f"backend {describer.backend}", expected="hf or vllm", fix=fix)
    if describer is not None and config.training.init_adapter is not None and describer.peft_adapter is None:
        fix = f"set describer.peft_adapter={config.training.init_adapter} too"
        what = "The first round would train on answers of another model than the one it starts from"
        raise ConfigError(what, got="training.init_adapter without describer.peft_adapter", fix=fix)
    if data == "fresh" and config.annotations.max_images is None:
        fix = "set annotations.max_images"
        raise ConfigError(
            "--data fresh needs the number of images of a round", got="annotations.max_images: null", fix=fix
        )


def _default(config: Config) -> Evaluation:
    """Descriptions of the first round's held-out regions."""
    if config.annotations.holdout == 0:
        fix = "set annotations.holdout, or give a file with --evaluate"
        raise ConfigError("There is nothing to evaluate the rounds on", got="annotations.holdout: 0", fix=fix)
    return Evaluation(task="description")


def _on_held_out(evaluation: Evaluation) -> Evaluation:
    """The evaluation; on the regions of a run that trains, those that are held out unless its options say otherwise."""
    if evaluation.task != "description" or evaluation.annotations is not None or "split" in evaluation.options:
        return evaluation
    return evaluation.model_copy(update={"options": {**evaluation.options, "split": "holdout"}})


def _metric(evaluations: Sequence[Evaluation], given: str | None) -> tuple[str, str]:
    """The evaluation and the metric of the stop rule."""
    known = [
        (evaluation.label, name)
        for evaluation in evaluations
        for task in [TASKS.find(evaluation.task, "task")]
        for name in (*task.higher_is_better, *task.lower_is_better)
    ]
    if given is None:
        if not known:
            raise ConfigError("No metric of the evaluations has a better direction", fix="add another evaluation")
        return known[0]
    label, _, name = given.rpartition(":")
    for pair in known:
        if pair[1] == name and label in ("", pair[0]):
            return pair
    names = [f"{label}:{name}" for label, name in known]
    raise ConfigError(
        "--metric is not a metric of the evaluations", got=given, fix=nearest(given, names, "give one of")
    )


@dataclass(frozen=True, slots=True)
class _Job:
    start: Config
    out: Path
    data: Data
    evaluations: Sequence[Evaluation]
    tasks: Mapping[str, Task[Any]]
    reuse: Sequence[Path]
    workers: int
    report: Callable[[str], None]
    report_stage: Callable[[StageSummary], None]

    def folder(self, number: int) -> Path:
        return self.out / f"round-{number:02d}"

    def adopt(self) -> None:
        """Record the config, or check that the rounds in the folder were made with it."""
        state = {"config": self.start.model_dump(mode="json"), "data": self.data}
        if not (self.out / _STATE).exists():
            _save(self.out, {**state, "results": {}})
            return
        before = read_json(self.out / _STATE)
        if changed := _changed(before["config"], self.start):
            lines = "; ".join("{}: {} → {}".format(name, *values) for name, values in changed.items())
            fix = "use the old values, or choose another --out"
            raise RunError(f"{self.out} was made with another config", got=lines, expected="no change", fix=fix)
        if before["data"] != self.data:
            got, fix = f"--data: {before['data']} → {self.data}", "use the old value, or choose another --out"
            raise RunError(f"{self.out} was made with other data", got=got, expected="no change", fix=fix)

    def run(self, n: int, outcome: Outcome) -> Outcome:
        for number in range(n):
            name = self.folder(number).name
            self.report(f"{'' if number == 0 else chr(10)}[{number + 1}/{n}] {self.folder(number)}")
            config = self._config(number)
            try:
                self._regions(number, config)
            except InputError as error:
                if self.data == "fresh" and number:
                    error.add_note(
                        f"  {name} was to take {config.annotations.max_images} images that no round before used: "
                        f"use --n {number}, or start again in another --out with more images or a smaller "
                        "annotations.max_images."
                    )
                raise
            if number == 0:
                self._check_held_out()
                outcome.rows.append(Round(BASE, adapter=self._relative(_adapter_of(config))))
                self._evaluate(outcome, None)
                self._write(outcome)
            row = Round(name, run=name, adapter=f"{name}/adapter")
            row.described_by = self._relative(_adapter_of(config))
            self._train(row, number, config)
            outcome.rows.append(row)
            self._evaluate(outcome, number)
            self._judge(outcome)
            self._write(outcome)
            if outcome.fell is not None:
                break
        self._say_end(outcome, n)
        return outcome

    # ── a round ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _config(self, number: int) -> Config:
        """The config of a round; the images that fresh data leaves out are known once the rounds before have theirs."""
        fields: dict[str, Any] = {}
        if number:
            adapter = str((self.folder(number - 1) / "adapter").absolute())
            fields |= {"describer.peft_adapter": adapter, "training.init_adapter": adapter}
            own = self.start.describer.seed if self.start.describer is not None else None
            seed = self.start.seed if own is None else own
            fields["describer.seed"] = stable_hash(seed, "round", str(number)) >> 1
        if number and self.data == "fresh":
            before = [StageStore(self.folder(k) / "objects").manifest() for k in range(number)]
            used = sum(shard.inputs for manifest in before if manifest is not None for shard in manifest.shards)
            fields["annotations.skip_images"] = (self.start.annotations.skip_images or 0) + used
        overrides = [f"{name}={json.dumps(value)}" for name, value in fields.items()]
        raw = apply_overrides(self.start.model_dump(mode="json"), overrides)
        return make_config(raw, self.folder(number).name, list(fields))

    def _regions(self, number: int, config: Config) -> None:
        """The stages that no adapter changes; later rounds on the same data take them over from the first one."""
        reuse = [*self.reuse, *([self.folder(0)] if number and self.data == "same" else [])]
        options: dict[str, Any] = {"workers": self.workers, "reuse": reuse, "report": self.report_stage}
        runner.run(config, self.folder(number), until=_STAGES[-1], **options, say=self.report)

    def _check_held_out(self) -> None:
        """Raise `InputError` if the rounds are evaluated on held-out regions of the first one, which has none."""
        labels = [
            evaluation.label
            for evaluation in self.evaluations
            if evaluation.annotations is None and evaluation.options["split"] == "holdout"
        ]
        splits = [table["split"] for table in StageStore(self.folder(0) / "regions").tables()] if labels else []
        if labels and not any(pc.any(pc.equal(column, "holdout")).as_py() for column in splits):
            rows = sum(map(len, splits))
            fix = (
                "set a larger annotations.holdout or more images, with another --out; or evaluate on other data "
                "with --evaluate FILE.YAML"
            )
            what = f"There are no held-out regions to evaluate the rounds on (`{labels[0]}`)"
            raise InputError(what, got=f"{count_text(rows, 'regions')}, 0 of them of held-out images", fix=fix)

    def _train(self, row: Round, number: int, config: Config) -> None:
        run = self.folder(number)

        def told(summary: StageSummary) -> None:
            if summary.name not in _STAGES:
                self.report_stage(summary)

        options: dict[str, Any] = {"workers": self.workers, "reuse": self.reuse, "report": told, "say": self.report}
        stages = {summary.name: summary for summary in runner.run(config, run, **options)}
        release()
        summary = train(config, run, report=self.report)
        row.pipeline = {name: stages[name].rows for name in ("regions", "candidates", "pairs")}
        row.pipeline["mean_score"] = _mean(run / "scores", "score")
        row.pipeline["mean_margin"] = _mean(run / "pairs", "margin")
        metrics: dict[str, Any] = {
            name: summary.last[name] for name in ("loss", "margin", "accuracy") if name in summary.last
        }
        row.training = {"pairs": summary.pairs, "steps": summary.steps, "seconds": summary.seconds, **metrics}
        when = "done before" if summary.done_before else f"{summary.seconds:.1f} s"
        self.report(f"  {count_text(summary.steps, 'steps')} on {count_text(summary.pairs, 'pairs')} ({when})")

    def _relative(self, adapter: Path | None) -> str | None:
        """The path of an adapter in the table: relative to it if it is one of the rounds'."""
        out = self.out.absolute()
        if adapter is None or not adapter.is_relative_to(out):
            return None if adapter is None else str(adapter)
        return adapter.relative_to(out).as_posix()

    # ── evaluation ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _evaluate(self, outcome: Outcome, number: int | None) -> None:
        """Evaluate the last row, and compare it with the row before and with the first one."""
        row = outcome.rows[-1]
        adapter = _adapter_of(self.start) if number is None else self.folder(number) / "adapter"
        for evaluation in self.evaluations:
            label, path = evaluation.label, result_file(self.out, row.name, evaluation.label)
            describer = describer_of(self.start, evaluation, adapter)
            annotations = evaluation.annotations or self.folder(0)
            key = result_key(evaluation, describer, adapter, annotations, _STAGES)
            state = read_json(self.out / _STATE)
            if state["results"].get(path.stem) == key and path.is_file():
                self.report(f"  {label}: done before")
            else:
                options: dict[str, Any] = {"images": evaluation.images, "seed": evaluation.seed}
                result = evaluate(self.tasks[label], annotations, describer=describer, **options)
                release()
                path.parent.mkdir(exist_ok=True)
                result.write(path)
                _save(self.out, state | {"results": state["results"] | {path.stem: key}})
            content = read_json(path)
            row.results[label] = content["metrics"]
            for note in content.get("notes", ()):
                self.report(f"  Note: {label}: {note}")
            if number is None:
                continue
            before, base = (result_file(self.out, other.name, label) for other in (outcome.rows[-2], outcome.rows[0]))
            row.to_before[label] = paired_differences(before, path)
            row.to_base[label] = paired_differences(base, path)
            self._add_to_run(self.folder(number), evaluation, {"before": before, "after": path})

    def _add_to_run(self, run: Path, evaluation: Evaluation, files: Mapping[str, Path]) -> None:
        """Put the results into the run's ``metrics.json``, so that its report shows them."""
        suffix = (
            "" if evaluation.name in (None, evaluation.task) else f"-{result_file(run, 'x', evaluation.label).stem[2:]}"
        )
        with lock_run(run):
            known = read_metrics(run)
            for when, path in files.items():
                entry = read_json(path)
                folder = Path(os.path.relpath(path.parent, run))
                entry |= {name: (folder / entry[name]).as_posix() for name in ("items", "answers") if name in entry}
                if known.get(f"{when}{suffix}", {}).get(evaluation.task) != entry:
                    put(run, f"{when}{suffix}", evaluation.task, entry)

    def _judge(self, outcome: Outcome) -> None:
        """Say how the metric of the stop rule has changed, and end the rounds if it fell."""
        (label, metric), row, before = outcome.metric, outcome.rows[-1], outcome.rows[-2]
        difference = row.to_before[label].get(metric)
        higher = metric in TASKS.find(outcome.tasks[label], "task").higher_is_better
        value, change = value_text(row, outcome.metric), short_difference(difference) or "no difference is known"
        self.report(f"  {label} {metric} {value}; to {before.name}: {change}")
        if falls(difference or {}, 1 if higher else -1, outcome.stop):
            outcome.fell = row.name
            verb, old = "fell" if higher else "rose", value_text(before, outcome.metric)
            outcome.why = f"{label} {metric} {verb} from {old} in {before.name} to {value}: {change}"

    def _say_end(self, outcome: Outcome, n: int) -> None:
        if outcome.fell is not None:
            self.report(
                f"\nStopped after {outcome.fell}: {outcome.why} (--stop {outcome.stop}: {STOPS[outcome.stop]})."
            )
            if int(outcome.fell.rpartition("-")[2]) + 1 < n:
                self.report("To continue anyway, repeat the command with --stop never.")
        made = sorted(path.name for path in self.out.glob("round-*") if path.is_dir())
        if outcome.fell is None and (more := [name for name in made if int(name.rpartition("-")[2]) >= n]):
            self.report(f"\nNot in the table, because --n is {n}: {', '.join(more)}.")

    # ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, outcome: Outcome) -> None:
        label, metric = outcome.metric
        higher = metric in TASKS.find(outcome.tasks[label], "task").higher_is_better
        values = {row.name: row.results.get(label, {}).get(metric, {}).get("value") for row in outcome.rows}
        known = {name: value for name, value in values.items() if value is not None}
        outcome.best = (max if higher else min)(known, key=lambda name: known[name]) if known else None
        content = json.dumps(table_json(outcome), indent=2, ensure_ascii=False)
        write_atomically(self.out / "table.json", f"{content}\n".encode())
        write_atomically(self.out / "table.csv", table_csv(outcome.rows).encode())


def _adapter_of(config: Config) -> Path | None:
    """The adapter of the describer."""
    adapter = config.describer.peft_adapter if config.describer is not None else None
    return None if adapter is None else Path(adapter)


def _changed(before: Mapping[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, of those that a result depends on."""
    without = {f"training.{name}" for name in config.training.fields_without_effect}
    changed = changed_fields(before, config.model_dump(mode="json"))
    return {
        name: values for name, values in changed.items() if not config.is_runtime_field(name) and name not in without
    }


def _mean(stage: Path, column: str) -> float | None:
    """The mean of a column of a stage, to six decimals."""
    tables = [table[column] for table in StageStore(stage).tables()]
    total, count = (
        sum(values) for values in zip(*((pc.sum(c, min_count=0).as_py(), len(c)) for c in tables), strict=True)
    )
    return round(total / count, 6) if count else None


def _is_rounds(folder: Path) -> bool:
    if only_begun(folder):
        return True
    content = read_json(folder / _STATE)
    known = isinstance(content, dict) and {"config", "data", "results"} <= set(content)
    return known and (content.get("format"), content.get("format_version")) == (_FORMAT, FORMAT_VERSION)


def _save(out: Path, state: Mapping[str, Any]) -> None:
    content = {"format": _FORMAT, "format_version": FORMAT_VERSION, **state}
    write_atomically(out / _STATE, (json.dumps(content, indent=1) + "\n").encode())
