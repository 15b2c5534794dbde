"""What a training says of itself: `log.jsonl` always, a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from spr.core.atomic import write_atomically

LINE_EVERY = 10.0
"""Seconds between two plain lines."""
_SHOWN = {
    "loss": ".4f",
    "margin": ".4f",
    "accuracy": ".2f",
    "chosen_logps": ".1f",
    "rejected_logps": ".1f",
    "grad_norm": ".2f",
    "learning_rate": ".2e",
    "tokens_per_second": ",.0f",
    "memory_gib": ".2f",
}


class TrainingLog:
    """Writes a JSON object a line, and shows the last step.

    Args:
        path: The log; lines of steps behind ``step`` are taken out, for they are taken again.
        total: Steps of the training.
        step: Steps taken before.
        stream: Where to show; standard error by default. None of the processes but the first shows or writes anything.
        active: Whether this is the first process.
    """

    def __init__(self, path: Path, total: int, step: int = 0, *, stream: TextIO | None = None, active: bool = True):
        self._path, self._total, self._active = path, total, active
        self._stream = stream or sys.stderr
        self._started, self._first = time.monotonic(), step
        self._next_line = self._started
        self._live: Any = None
        if active and path.is_file():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_atomically(path, "".join(f"{line}\n" for line in kept).encode())

    def __enter__(self) -> Self:
        if self._active and self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._stream), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, event: str, **details: Any) -> None:
        """Add a line of another kind than a step's."""
        self._write({"event": event, **details})

    def step(self, number: int, values: Mapping[str, float], *, written: bool) -> None:
        """Show a step, counted from 1, and write it where the config wants it."""
        if written:
            self._write({"event": "step", "step": number, **values})
        if not self._active:
            return
        if self._live is not None:
            self._live.update(self._table(number, values))
        elif (now := time.monotonic()) >= self._next_line or number == self._total:
            self._next_line = now + LINE_EVERY
            cells = [f"{name} {values[name]:{form}}" for name, form in _SHOWN.items() if name in values]
            print(f"step {number:,} of {self._total:,}: {', '.join(cells)}, {self._left(number)}", file=self._stream)

    def _left(self, number: int) -> str:
        seconds = (time.monotonic() - self._started) / max(number - self._first, 1) * (self._total - number)
        hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
        return f"{hours} h {minutes:02d} min left" if hours else f"{minutes} min {int(seconds % 60):02d} s left"

    def _table(self, number: int, values: Mapping[str, float]) -> Any:
        from rich.table import Table

        table = Table(title=f"step {number:,} of {self._total:,}, {self._left(number)}", title_justify="left")
        shown = [(name, form) for name, form in _SHOWN.items() if name in values]
        for name, _ in shown:
            table.add_column(name.replace("_", " "), justify="right")
        table.add_row(*(f"{values[name]:{form}}" for name, form in shown))
        return table

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self._active:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line).get("step", 0))
    except (ValueError, AttributeError):
        return sys.maxsize  # a line that was cut short
