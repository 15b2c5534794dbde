"""Evaluations of several adapters of one model: what they are, what their results depend on, and how they are shown.

`spr sweep` and `spr rounds` use them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from spr.config import Config, DescriberConfig, Section, make_config
from spr.core.atomic import sha256
from spr.core.errors import ConfigError
from spr.core.paths import exists, is_dir
from spr.evaluation.compare import compare
from spr.evaluation.task import TASKS, Task
from spr.evaluation.tasks.description import Description

OTHER = re.compile(r"[^A-Za-z0-9._+=,-]+")
"""What the name of a file can't contain on every system."""


class Evaluation(Section):
    """An evaluation of every variant or round: a task of `spr evaluate` with its options."""

    task: str
    """The task, such as `rec`."""
    name: str | None = None
    """Its name in the table; by default that of the task."""
    annotations: Path | None = None
    """The benchmark's file; for `description`, a run. By default the sweep's own run, or the first round."""
    images: Path | None = None
    """The image folder, for tasks whose annotations don't name one."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The task's own options, such as `split: holdout`."""
    describer: dict[str, Any] = Field(default_factory=dict)
    """Fields of the model's section `describer`, such as `batch_size: 64`. The temperature is 0 unless given here."""
    seed: int = 0
    """Seed of sampled answers."""

    @property
    def label(self) -> str:
        """The name in the table."""
        return self.name or self.task

    def make_task(self) -> Task[Any]:
        """The task with its options; raises `ConfigError` for an option that it doesn't have."""
        cls = TASKS.find(self.task, "task")
        known = [option.name for option in cls.options()]
        for name in self.options:
            if name not in known:
                what = f"`options` of the evaluation `{self.label}` has an unknown option"
                raise ConfigError(what, got=name, expected=", ".join(known))
        return cls(**self.options)

    def check_paths(self) -> None:
        """Check that the annotations and images can be there, before anything runs.

        Raises:
            ConfigError: if a file or folder is missing, or if the task needs annotations and none are named.
        """
        if self.annotations is None and not issubclass(TASKS.find(self.task, "task"), Description):
            fix = "set `annotations` to the benchmark's file"
            raise ConfigError(f"The evaluation `{self.label}` has no annotations", got=f"task: {self.task}", fix=fix)
        for name, path in (("annotations", self.annotations), ("images", self.images)):
            if path is not None and not exists(path):
                what = f"The evaluation `{self.label}` names no file or folder that exists"
                raise ConfigError(what, got=f"{name}: {path}", fix=f"check `{name}` of the evaluation")


def repeated_labels(evaluations: Iterable[Evaluation]) -> list[str]:
    """The names that several evaluations have."""
    labels = [evaluation.label for evaluation in evaluations]
    return sorted({label for label in labels if labels.count(label) > 1})


def describer_of(config: Config, evaluation: Evaluation, adapter: Path | None) -> DescriberConfig:
    """The section of the trained model as it is evaluated: that of the config if it is run here, at temperature 0."""
    section = config.describer.model_dump(mode="json") if config.describer is not None else {}
    if section.get("backend") != "hf":
        section = {name: section[name] for name in ("model", "revision", "dialect") if name in section}
    section |= {"temperature": 0.0, **evaluation.describer}
    section["peft_adapter"] = str(adapter) if adapter is not None else None
    raw = {"annotations": {"path": "-", "images": "-"}, "describer": section}
    return cast(DescriberConfig, make_config(raw, f"the evaluation `{evaluation.label}`").describer)


def result_file(folder: Path, name: str, label: str) -> Path:
    """The file of a result."""
    return folder / "results" / f"{name}.{OTHER.sub('-', label)}.json"


def result_key(
    evaluation: Evaluation,
    describer: DescriberConfig,
    adapter: Path | None,
    annotations: Path,
    stages: Collection[str] | None = None,
) -> str:
    """A hash of what a result depends on: the settings, the model, the adapter's weights and the annotations.

    Of annotations that are a run, these are the manifests of ``stages``, by default of all.
    """
    if is_dir(annotations):
        manifests = sorted(annotations.glob("**/manifest.json"))
        source: list[Any] = [sha256(path) for path in manifests if stages is None or path.parent.name in stages]
    else:
        source = [annotations.stat().st_size, annotations.stat().st_mtime_ns] if annotations.exists() else []
    runtime = {*DescriberConfig.runtime_fields, "peft_adapter"}
    runtime |= {name for name in DescriberConfig.later_fields if getattr(describer, name) is None}
    content = {
        "evaluation": evaluation.model_dump(mode="json", exclude={"describer", "name"}),
        "describer": describer.model_dump(mode="json", exclude=runtime),
        "adapter": sha256(adapter / "adapter_model.safetensors") if adapter is not None else None,
        "annotations": source,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def paired_differences(base: Path, other: Path) -> dict[str, dict[str, Any]]:
    """By metric, how a result differs from another one on the same items: ``difference``, ``ci95`` and ``p``."""
    (comparison,) = compare([base, other])
    kept = ("difference", "ci95", "no_ci95", "p")
    metrics = comparison.to_json()["metrics"].items()
    return {metric: {name: values[name] for name in kept if name in values} for metric, values in metrics}


def csv_text(lines: Iterable[Mapping[str, Any]]) -> str:
    """Lines as CSV, with the columns that any of them has."""
    lines = list(lines)
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return sink.getvalue()


def csv_cells(head: str, value: float | None, interval: Iterable[float] | None) -> dict[str, float | None]:
    """The columns of a value and its interval."""
    low, high = interval or (None, None)
    return {head: value, f"{head} low": low, f"{head} high": high}


def measured_text(measured: Mapping[str, Any]) -> str:
    """A value with its interval, in a column of 27 characters."""
    value, interval = measured["value"], measured["ci95"]
    shown = f"{'–' if value is None else f'{value:.4f}':>8}"
    return f"{shown} {f'[{interval[0]:.4f}, {interval[1]:.4f}]' if interval else '':<18}"


def difference_text(difference: Mapping[str, Any] | None) -> str:
    """A difference with its interval, and whether that contains 0; empty if there is none."""
    if difference is None or difference["difference"] is None:
        return ""
    interval, value = difference["ci95"], f"{difference['difference']:+.4f}"
    if interval is None:
        return f"{value} (no interval: {difference['no_ci95']})"
    unclear = "  no significant difference" if interval[0] <= 0 <= interval[1] else ""
    return f"{value} [{interval[0]:+.4f}, {interval[1]:+.4f}]{unclear}"
