"""Metrics of a training: `Meter` computes them per step, `TrainingLog` writes and shows them."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from torch import Tensor

from spr.core.atomic import write_atomically
from spr.core.documents import parse_json
from spr.core.errors import ConfigError, RunError, closest
from spr.core.progress import Progress
from spr.training.loss import PairLogps, PairLosses

_COLUMNS = 100  # of a printed line
_SHOWN = {
    "loss": "loss {:.4f}",
    "margin": "margin {:.3f}",
    "accuracy": "accuracy {:.2f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "learning_rate": "lr {:.1e}",
    "grad_norm": "grad norm {:.2f}",
    "memory_gib": "{:.1f} GiB",
}
"""What is shown of a step, as far as there is room."""


class Meter:
    """Averages a step's metrics over all pairs of all processes, and measures speed and memory.

    With ``mix``, rows of `training.mix` count for ``loss`` and ``mix_loss``; all other metrics are those of the pairs,
    ``pair_loss`` among them. A metric is missing from a step that has none of its rows.
    """

    def __init__(self, accelerator: Accelerator, *, mix: bool = False) -> None:
        self._accelerator, self._mix = accelerator, mix
        self._sums: dict[str, float] = defaultdict(float)
        self._start = self._before = time.monotonic()

    def add(
        self, logps: PairLogps, losses: PairLosses, tokens: int, weight: float, mixed: Tensor | None = None
    ) -> None:
        """Add a batch; a batch of weight 0 does not count. ``mixed``, ``(B,)`` bool, are rows of `training.mix`."""
        columns = {
            "loss": losses.loss,
            "margin": losses.margins,
            "accuracy": losses.accuracies,
            "chosen_logps": logps.chosen,
            "rejected_logps": logps.rejected,
            "chosen_rewards": losses.chosen_rewards,
            "rejected_rewards": losses.rejected_rewards,
        }
        sums = {name: column.detach().double().sum().item() for name, column in columns.items()}
        counts: dict[str, float] = {"rows": len(losses.loss), "pairs": len(losses.loss), "tokens": tokens}
        if mixed is not None:
            own = {name: column.detach().double()[~mixed].sum().item() for name, column in columns.items()}
            sums = {**own, "loss": sums["loss"], "pair_loss": own["loss"], "mix_loss": sums["loss"] - own["loss"]}
            counts["pairs"] = int((~mixed).sum())
        for name, value in {**sums, **counts}.items():
            self._sums[name] += weight * value

    def read(self, norm: float | None) -> dict[str, float]:
        """Return the step's metrics, with its gradient norm, and start the next one; all processes call it together."""
        device = self._accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        sums = torch.tensor(list(self._sums.values()), dtype=dtype, device=device)
        totals = dict(zip(self._sums, self._accelerator.reduce(sums, reduction="sum").tolist(), strict=True))
        rows, pairs, tokens = totals.pop("rows"), totals.pop("pairs"), totals.pop("tokens")
        now = time.monotonic()
        counts = {"loss": rows, "mix_loss": rows - pairs}
        values = {
            name: total / count for name, total in totals.items() if (count := counts.get(name, pairs)) or not self._mix
        }
        if self._mix:
            values["mix_rows"] = rows - pairs
        values["grad_norm"] = norm or 0.0
        values["tokens_per_second"] = tokens / max(now - self._before, 1e-9)
        values["seconds"] = now - self._start
        values["memory_gib"] = _peak_memory() / 2**30
        self._before = now
        self._sums.clear()
        return values


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class TrainingLog:
    """Writes one JSON object per line, and shows the latest step: live on a terminal, else as lines of 100 columns.

    Lines of steps after ``step``, the number of steps already taken, are removed, because these steps are taken again.
    Processes that are not ``active`` write and show nothing.
    """

    def __init__(self, path: Path, total: int, step: int = 0, *, stream: TextIO | None = None, active: bool = True):
        self._path, self._active = path, active
        self.progress = Progress("training", total, "steps", done=step, stream=stream)
        if active and path.is_file():
            kept = [
                line
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
                if _step_of(line) <= step
            ]
            write_atomically(path, "".join(f"{line}\n" for line in kept).encode())

    def __enter__(self) -> Self:
        if self._active:
            self.progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._active:
            self.progress.__exit__(*error)

    def event(self, event: str, **details: Any) -> None:
        """Write a line about something other than a step."""
        if self._active:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"event": event, **details}) + "\n")
            except OSError as error:
                fix = "free some disk space or check the permissions"
                raise RunError(f"{self._path} can't be written", got=error, fix=fix) from None

    def step(self, number: int, values: Mapping[str, float], *, written: bool) -> None:
        """Show the metrics of a step, counted from 1, and write them to the file if ``written``."""
        if written:
            self.event("step", step=number, **values)
        if not self._active:
            return
        progress = self.progress
        progress.set(number)
        cells = [text.format(values[name]) for name, text in _SHOWN.items() if name in values]
        while cells:
            progress.note = ", ".join(cells)
            if len(progress.line()) <= _COLUMNS:
                break
            cells.pop()
        if number == progress.total:
            progress.print_line()


def _step_of(line: str) -> int:
    try:
        return int(parse_json(line).get("step", 0))
    except (ValueError, AttributeError, TypeError, OverflowError):
        return sys.maxsize  # a line that was cut short


def check_trackers(names: Sequence[str]) -> None:
    """Raise `ConfigError` for a tracker that is unknown or not installed; Accelerate would silently skip it."""
    known = sorted(LOGGER_TYPE_TO_CLASS)
    builtin = {str(tracker.value) for tracker in LoggerType}  # the others are classes that a program has registered
    missing = builtin - {str(tracker.value) for tracker in get_available_trackers()}
    for name in names:
        if name not in known:
            near = closest(name, known)
            fix = f"did you mean `{near}`?" if near else None
            message, expected = "Config field `training.report_to` names an unknown tracker", ", ".join(known)
            raise ConfigError(message, got=name, expected=expected, fix=fix)
        if name in missing:
            fix = f"pip install {name.replace('_', '-')}, or remove it: training/log.jsonl is always written"
            raise ConfigError(f"The tracker {name} of `training.report_to` is not installed", fix=fix)
