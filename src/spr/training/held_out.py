"""Evaluation while training: the held-out pairs, the caller's tasks, and which adapter is the best so far."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spr.config.training import LOWER_IS_BETTER, TrainingConfig
from spr.core.atomic import atomic_dir
from spr.core.errors import RunError
from spr.core.outputs import MARKER, file_hashes, read_marker

Evaluate = Callable[[Any, Any, str], Mapping[str, float]]
"""``evaluate(model, processor, name)``: metrics of a transformers model that has the adapter's layers in place."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation so far: its value, its step, and how many evaluations came after it; step 0 if there is none.

    A checkpoint holds these numbers among the metrics of its step.
    """

    value: float = 0.0
    step: int = 0
    worse: int = 0

    def after(self, step: int, value: float, settings: TrainingConfig) -> Best:
        """The best after another evaluation; a value that is not better, or not a number, counts as worse.

        >>> Best(0.7, 10).after(20, 0.6, TrainingConfig()), Best(0.7, 10).after(20, 0.7, TrainingConfig())
        (Best(value=0.6, step=20, worse=0), Best(value=0.7, step=10, worse=1))
        """
        lower = settings.metric_for_best_model in LOWER_IS_BETTER
        better = value < self.value if lower else value > self.value
        if value == value and (self.step == 0 or better):
            return Best(value, step)
        return replace(self, worse=self.worse + 1)

    def stops(self, settings: TrainingConfig) -> bool:
        """Whether the training stops here."""
        return settings.early_stopping_patience is not None and self.worse >= settings.early_stopping_patience

    @classmethod
    def read(cls, values: Mapping[str, float]) -> Best:
        """The numbers that `numbers` added to a checkpoint's metrics."""
        value, step, worse = (values.get(f"best_{name}", 0) for name in ("value", "step", "worse"))
        return cls(value, int(step), int(worse))

    @property
    def numbers(self) -> dict[str, float]:
        """What a checkpoint keeps; nothing before the first evaluation."""
        if not self.step and not self.worse:
            return {}
        return {"best_value": self.value, "best_step": float(self.step), "best_worse": float(self.worse)}


def best_folder(training: Path, step: int) -> Path:
    """Where the adapter of an evaluation is kept while it is the best."""
    return training / "best" / f"step-{step:06d}"


def keep_only(training: Path, step: int) -> None:
    """Remove the adapters of earlier evaluations, once a checkpoint names a better one."""
    folder = best_folder(training, step)
    for path in folder.parent.glob("step-*") if folder.is_dir() else ():
        if path != folder:
            shutil.rmtree(path)


def copy_best(training: Path, step: int, adapter: Path) -> dict[str, str]:
    """Make the adapter of the best evaluation the result; returns the SHA-256 of its files by name.

    Raises:
        RunError: if it is missing or damaged.
    """
    source = best_folder(training, step)
    marker = read_marker(source, "spr train")
    files: dict[str, str] = marker["files"] if marker is not None else {}
    if not files or file_hashes(source, files) != files:
        fix = "restore it, or add --name NAME to train again beside this training"
        raise RunError(f"The best adapter {source} is missing or damaged", fix=fix)
    with atomic_dir(adapter) as temporary:
        for name in (*files, MARKER):
            shutil.copyfile(source / name, temporary / name)
    return files


def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over all pairs, added up in the pairs' order, which does not depend on the processes.

    >>> mean([{"loss": 1.0}, {"loss": 2.0}])
    {'loss': 1.5}
    """
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
