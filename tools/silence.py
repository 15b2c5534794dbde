"""Measures the longest stretch in which a command shows nothing new.

In a log (the default), the output is a pipe, and any output ends a stretch. With ``--terminal``, it is a terminal,
and only a change of what is shown ends one, such as the next second of a clock; a command that leaves the cursor hidden
fails. Exit code: 1 if a stretch is longer than ``--limit``, else that of the command. Use it as

    python -m tools.silence --limit 60 -- spr quickstart --out /tmp/q
    python -m tools.silence --terminal --limit 2 -- spr quickstart --out /tmp/q
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

COLUMNS = 100
_ENDS = re.compile(rb"\r|\n|\x1b\[K")


@dataclass(slots=True)
class Silence:
    """The longest stretches without anything new: ``add`` takes output as it comes, at a time in seconds.

    Attributes:
        stretches: Seconds of each stretch, with the time of its start and the last output before it.
        columns: Number of characters of the longest line.
    """

    start: float
    terminal: bool = False
    stretches: list[tuple[float, float, str]] = field(default_factory=list)
    columns: int = 0
    lines: int = 0
    cursor_hidden: bool = False
    _since: float = 0.0
    _shown: bytes = b""
    _rest: bytes = b""

    def __post_init__(self) -> None:
        self._since = self.start

    def add(self, now: float, data: bytes) -> None:
        """Take output; a stretch ends if it is new."""
        for code in re.findall(rb"\x1b\[\?25([lh])", data):
            self.cursor_hidden = code == b"l"
        *ended, self._rest = _ENDS.split(self._rest + data)
        self.lines += data.count(b"\n")
        pieces = [piece for piece in ended if piece.strip()]
        self.columns = max([self.columns, *(len(piece.decode("utf-8", "replace")) for piece in pieces)])
        new = [piece for piece in pieces if piece != self._shown] if self.terminal else [data]
        if new:
            self._end_stretch(now)
        self._shown = pieces[-1] if pieces else self._shown

    def end(self, now: float) -> None:
        """End the last stretch."""
        self._end_stretch(now)

    def _end_stretch(self, now: float) -> None:
        self.stretches.append((now - self._since, self._since - self.start, self._shown.decode("utf-8", "replace")))
        self._since = now

    def longest(self, count: int = 3) -> list[tuple[float, float, str]]:
        """The longest stretches, longest first."""
        return sorted(self.stretches, reverse=True)[:count]


def watch(command: Sequence[str], *, terminal: bool, show: Callable[[bytes], object]) -> tuple[Silence, int]:
    """Run a command; returns its silence and its exit code."""
    silence = Silence(time.monotonic(), terminal)
    ours, theirs = pty.openpty() if terminal else os.pipe()
    environment = {**os.environ, "TERM": "xterm"}
    if terminal:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        environment |= {"COLUMNS": str(COLUMNS), "LINES": "40"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment)  # noqa: S603
    os.close(theirs)
    try:
        for data in _output(ours):
            silence.add(time.monotonic(), data)
            show(data)
        code = process.wait()
    finally:
        os.close(ours)
        if process.poll() is None:
            process.terminate()
            process.wait()
    silence.end(time.monotonic())
    return silence, code


def _output(descriptor: int) -> Iterator[bytes]:
    while True:
        select.select([descriptor], [], [])
        try:
            data = os.read(descriptor, 2**16)
        except OSError:  # the other end of a pseudo-terminal is closed
            return
        if not data:
            return
        yield data


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds")
    parser.add_argument("--terminal", action="store_true", help="give the command a pseudo-terminal")
    parser.add_argument("--quiet", action="store_true", help="don't repeat the command's output")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)

    def show(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    ignore: Callable[[bytes], object] = len
    silence, code = watch(options.command, terminal=options.terminal, show=ignore if options.quiet else show)
    total = sum(seconds for seconds, _, _ in silence.stretches)
    print(f"\n{total:.1f} s, {silence.lines} lines of at most {silence.columns} characters; longest stretches:")
    for seconds, at, shown in silence.longest():
        print(f"  {seconds:6.1f} s from {at:.1f} s, after: {shown.strip()[:COLUMNS]}")
    if silence.cursor_hidden:
        print("The cursor is still hidden.")
    if silence.longest(1)[0][0] > options.limit or silence.cursor_hidden:
        return 1
    return code if code >= 0 else 128 - code  # ended by a signal


if __name__ == "__main__":
    sys.exit(main())
