"""Progress of work: a live line on a terminal, plain lines elsewhere; it is never silent, even if nothing finishes.

One thread shows the innermost `Progress` that is open, and ends with the last one. Code far below counts what it has
finished with `advance`, without knowing who shows it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from typing import Any, Protocol, Self, TextIO

from spr.core.terminal import echo, one_line

MEGABYTE = 1_000_000
FIRST_LINE = 2.0
"""Seconds before the first plain line; work that is over before prints nothing."""
SECOND_LINE = 8.0
"""Seconds between the first plain line and the second."""
LINE_EVERY = 30.0
"""Seconds between any two further plain lines."""
_REDRAW_EVERY = 0.25  # seconds: the clock on a terminal shows each second
_BAR = 24  # cells


class Counter(Protocol):
    """Something that counts finished items."""

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more items as finished."""


_current: ContextVar[Counter | None] = ContextVar("progress", default=None)


def advance(count: int = 1) -> None:
    """Count ``count`` more items as finished, in the innermost `counted` block or `Progress`; without one, nothing."""
    counter = _current.get()
    if counter is not None:
        counter.advance(count)


@contextlib.contextmanager
def counted(total: int) -> Iterator[None]:
    """Count the work inside as ``total`` items: `advance` counts no more of them, and the rest is counted at the end.

    So a loop over groups of items can call code that counts items as they finish, or does not count at all.
    """
    block = _Block(_current.get(), total)
    token = _current.set(block)
    try:
        yield
    finally:
        _current.reset(token)
    block.advance(total)


def count_in(counter: Counter) -> None:
    """Let `advance` call a counter from now on, such as one that other processes can read."""
    _current.set(counter)


def follow(others: Callable[[], int]) -> None:
    """Add what ``others`` returns, the items that other processes have finished, to the current `Progress`."""
    counter = _current.get()
    if isinstance(counter, Progress):
        counter.follow(others)


class _Block:
    def __init__(self, outer: Counter | None, total: int) -> None:
        self._outer, self._left = outer, total

    def advance(self, count: int = 1) -> None:
        count = min(count, self._left)
        self._left -= count
        if count and self._outer is not None:
            self._outer.advance(count)


class Progress:
    """Counts finished items, and shows the rate and the time left on standard error while it is open.

    ``label`` names the work, such as ``regions``; ``unit`` is what is counted, in the plural. Without a unit, only the
    time is shown. ``done`` items of an earlier run do not count towards the rate. ``note`` is shown in place of the
    rate. Where there is no terminal, the first line comes after ``first`` seconds. Of the processes of a
    distributed training, only the first shows anything. A `Progress` inside another one is shown in its place, and its
    time does not count towards the outer rate.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "",
        *,
        done: int = 0,
        first: float = FIRST_LINE,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self.total, self.unit, self.note = label, total, unit, ""
        self._count = self._before = self._last = done
        self._others: Callable[[], int] = int
        stream = stream or sys.stderr
        self.stream: Any = stream.raw if isinstance(stream, _Above) else stream
        self.live = self.stream is not None and self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._clock, self._lock = clock, threading.Lock()
        self._start, self._paused = clock(), 0.0
        self._due, self._printed = self._start + first, -float("inf")
        self._token: Token[Counter | None] | None = None
        self._quiet = self.stream is None or os.environ.get("RANK", "0") != "0"

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        if not self._quiet:
            _SCREEN.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _current.reset(self._token)
        if not self._quiet:
            _SCREEN.remove(self)

    @property
    def done(self) -> int:
        """The number of finished items."""
        return self._count + self._others()

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more items as finished; a negative number takes some back. Threads may call it."""
        with self._lock:
            self._count += count

    def set(self, done: int) -> None:
        """Set the number of finished items."""
        with self._lock:
            self._count = done

    def follow(self, others: Callable[[], int]) -> None:
        """Add the items that ``others`` returns, which other processes have finished."""
        self._others = others

    def resume_after(self, inner: Progress) -> None:
        """Account for the time and the lines of a `Progress` that was shown in place of this one."""
        self._paused += inner._clock() - inner._start
        self._due = max(self._due, inner._printed + LINE_EVERY)

    def print_if_due(self) -> None:
        """Print a plain line if it is time for one."""
        if self._clock() >= self._due:
            self.print_line()

    def print_line(self) -> None:
        """Print a plain line now."""
        if self._quiet or self.live:
            return
        now = self._clock()
        line, self._last = self.line(), self.done
        self._due = now + (SECOND_LINE if self._printed < self._start else LINE_EVERY)
        self._printed = now
        echo(line, stream=self.stream)

    def line(self) -> str:
        """The progress as one line: ``regions: 512 of 2,048 images, 25 images/s, 1 min 01 s left``."""
        idle, time_text = self._printed > self._start and self.done == self._last, duration(self._elapsed())
        first = f"still working after {time_text}" if idle else ""
        last = "" if idle or self._rate() else time_text
        return f"{one_line(self.label)}: {', '.join(filter(None, [first, self._counts(), *self._speed(), last]))}"

    def live_line(self, width: int) -> str:
        """The progress with a bar and a clock that shows each second, in less than ``width`` cells."""
        label, clock, (speed, left) = one_line(self.label), clock_time(self._elapsed()), self._speed()
        for parts in ((self._counts(), speed, clock, left), (self._counts(), clock), (clock,)):
            text = ", ".join(filter(None, parts))
            if _cells(f"{label} {text}") < width:  # where there is no room for all, the clock stays
                break
        room = min(_BAR, width - 3 - _cells(f"{label}{text}"))
        bar = ""
        if self.total and room >= 8:
            full, empty = "━╌" if "utf" in (getattr(self.stream, "encoding", None) or "").lower() else "#."
            filled = min(room, room * self.done // self.total)
            bar = f"{full * filled}{empty * (room - filled)} "
        return _cut(f"{label} {bar}{text}", width - 1)

    def _counts(self) -> str:
        if not self.unit:
            return ""
        if not self.total:
            return f"{self.done:,} {self.unit}"
        return f"{min(self.done, self.total):,} of {self.total:,} {self.unit}"

    def _speed(self) -> tuple[str, str]:
        rate = self._rate()
        left = f"{duration(max(self.total - self.done, 0) / rate)} left" if self.total and rate else ""
        return one_line(self.note) or (rate_text(rate, self.unit) if rate and self.unit else ""), left

    def _elapsed(self) -> float:
        return self._clock() - self._start

    def _rate(self) -> float:
        return max(self.done - self._before, 0) / max(self._elapsed() - self._paused, 1e-9)


def rate_text(rate: float, unit: str) -> str:
    """A rate with the digits that matter.

    >>> rate_text(2310.4, "images"), rate_text(35.2, "MB"), rate_text(1.23, "pairs")
    ('2,310 images/s', '35 MB/s', '1.2 pairs/s')
    >>> rate_text(0.4, "answers"), rate_text(0.02, "answers")
    ('0.4 answers/s', '50 s per answer')
    """
    if rate < 0.095:
        return f"{duration(1 / rate)} per {unit.removesuffix('s')}"
    return f"{rate:,.{0 if rate >= 9.95 else 1}f} {unit}/s"


def duration(seconds: float) -> str:
    """A duration in the two largest units.

    >>> duration(12.3), duration(65), duration(3725), duration(200_000)
    ('12 s', '1 min 05 s', '1 h 02 min', '2 d 07 h')
    """
    rest = round(seconds)
    for large, unit, small, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if rest >= large:
            return f"{rest // large} {unit} {rest % large // small:02d} {part}"
    return f"{rest} s"


def clock_time(seconds: float) -> str:
    """A duration as a clock.

    >>> clock_time(12.3), clock_time(3725)
    ('0:12', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _cells(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def _cut(text: str, cells: int) -> str:
    if _cells(text) <= cells:
        return text
    while text and _cells(text) > cells - 1:
        text = text[:-1]
    return f"{text}…"


# ── the screen ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Above:
    """A standard stream while a live line is shown: what is written to it appears above that line."""

    def __init__(self, raw: Any, screen: _Screen) -> None:
        self.raw, self._screen = raw, screen

    def write(self, text: str) -> int:
        return self._screen.write_above(self.raw, text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


class _Screen:
    """Shows the innermost open `Progress`. On a terminal, it is always the last line, and the cursor stays visible."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open: list[Progress] = []
        self._thread: tuple[threading.Thread, threading.Event] | None = None
        self._live: Any = None  # the stream with the live line
        self._between_lines = True
        self._replaced: dict[str, _Above] = {}

    def add(self, progress: Progress) -> None:
        with self._lock:
            self._open.append(progress)
            if self._thread is None:
                end = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(end,), name="progress", daemon=True), end
                self._thread[0].start()

    def remove(self, progress: Progress) -> None:
        with self._lock:
            self._open.remove(progress)
            if self._open:
                self._open[-1].resume_after(progress)
                return
            self._erase()
            for name, above in self._replaced.items():
                if getattr(sys, name) is above:
                    setattr(sys, name, above.raw)
            self._replaced.clear()
            ended, self._thread = self._thread, None
        if ended is not None:
            ended[1].set()
            ended[0].join()

    def write_above(self, raw: Any, text: str) -> int:
        with self._lock:
            self._erase()
            if text:
                self._between_lines = text.endswith(("\n", "\r"))
            return int(raw.write(text))

    def _run(self, end: threading.Event) -> None:
        # A closed stream, or a pipe that nobody reads: there is nothing left to show.
        with contextlib.suppress(OSError, ValueError):
            while not end.wait(_REDRAW_EVERY):
                with self._lock:
                    if self._open and not end.is_set():
                        self.show(self._open[-1])

    def show(self, progress: Progress) -> None:
        if not progress.live:
            progress.print_if_due()
            return
        for name in () if self._replaced else ("stdout", "stderr"):
            if (raw := getattr(sys, name)) is not None and raw.isatty():
                self._replaced[name] = _Above(raw, self)
                setattr(sys, name, self._replaced[name])
        if self._between_lines:
            # The cursor goes back to the start, so that what others write there replaces the line.
            width = shutil.get_terminal_size().columns
            progress.stream.write(f"\r{progress.live_line(width)}\x1b[K\r")
            progress.stream.flush()
            self._live = progress.stream

    def _erase(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            with contextlib.suppress(OSError, ValueError):
                live.write("\r\x1b[K")
                live.flush()


_SCREEN = _Screen()
