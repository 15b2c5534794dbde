"""Progress of work that takes over two seconds: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Self, TextIO

from spr.core.terminal import echo, one_line

SHOWN_AFTER = 2.0
"""Seconds before progress is first shown."""
MEGABYTE = 1_000_000
LINE_EVERY = 10.0
"""Seconds between two plain lines."""


class Progress:
    """Counts finished items and shows the rate and the time left on standard error.

    ``label`` names the work, such as ``regions``; ``unit`` is what is counted, in the plural; ``done`` items of an
    earlier run do not count towards the rate.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "rows",
        *,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self._before = done
        self._stream, self._clock = stream or sys.stderr, clock
        self._start = clock()
        self._next_line = self._start + SHOWN_AFTER
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more items as finished."""
        self.done += count
        now = self._clock()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=f"{self._rate():,.0f}")
        elif now >= self._next_line:
            if self._stream.isatty():
                self._open_bar()
            else:
                self._next_line = now + LINE_EVERY
                echo(self.line(), stream=self._stream)

    def line(self) -> str:
        """The progress as one line: ``regions: 512 of 2,048 images, 256 images/s, 6 s left``."""
        rate = self._rate()
        text = f"{self.label}: {self.done:,}{f' of {self.total:,}' if self.total else ''} {self.unit}"
        if rate >= 1:
            text += f", {rate:,.0f} {self.unit}/s"
        elif rate > 0:
            text += f", {1 / rate:,.1f} s per {self.unit.removesuffix('s')}"
        if self.total and rate > 0:
            text += f", {max(self.total - self.done, 0) / rate:,.0f} s left"
        return text

    def _rate(self) -> float:
        return (self.done - self._before) / max(self._clock() - self._start, 1e-9)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        rate = TextColumn(f"{{task.fields[rate]}} {self.unit}/s")
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            rate,
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(*columns, console=Console(file=self._stream), transient=True)
        self._task = self._bar.add_task(one_line(self.label), total=self.total, completed=self.done, rate="")
        self._bar.start()
