"""Memory and CPU time of a process and everything that it started, sampled from ``/proc`` (Linux)."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")


class Sample(NamedTuple):
    """What a tree of processes uses at one moment.

    ``time`` is in seconds since the epoch. ``pss`` is the sum of the proportional set sizes in bytes: a page that
    several processes share counts once. ``driver`` is that of the first process alone. ``cpu`` is the CPU time in
    seconds of all processes that were seen so far. ``own`` is the part of ``pss`` that is not in files: a page of a
    library counts less the more processes of the machine have loaded it, which does not change this part.
    """

    time: float
    pss: int
    driver: int
    cpu: float
    own: int


class ProcessTree:
    """Samples a process and its descendants in a thread until the block ends."""

    def __init__(self, pid: int, every: float = 0.25) -> None:
        self.samples: list[Sample] = []
        self._pid, self._every, self._cpu = pid, every, dict[int, float]()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ProcessTree:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self.sample()
            if self._end.wait(self._every):
                return

    def sample(self) -> None:
        """Take one sample now."""
        total, driver, own = 0, 0, 0
        for pid in _tree(self._pid):
            with contextlib.suppress(OSError, ValueError):
                pss, outside_files = _pss(pid)
                total += pss
                own += outside_files
                driver = pss if pid == self._pid else driver
                # utime and stime; the name of the program, in parentheses, may contain spaces
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._cpu[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
        if total:
            self.samples.append(Sample(time.time(), total, driver, sum(self._cpu.values()), own))

    def between(self, start: float, end: float) -> tuple[float, int]:
        """CPU seconds and the highest PSS in bytes from one moment to another."""
        inside = [sample for sample in self.samples if start <= sample.time <= end]
        before = [sample.cpu for sample in self.samples if sample.time < start]
        if not inside:
            return 0.0, 0
        return inside[-1].cpu - (before[-1] if before else 0.0), max(sample.pss for sample in inside)


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def _pss(pid: int) -> tuple[int, int]:
    """The proportional set size in bytes, and its part that is not in files."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss"):
            name, value = line.split()[:2]
            found[name] = int(value) * 1024
    return found.get("Pss:", 0), found.get("Pss_Anon:", 0) + found.get("Pss_Shmem:", 0)
