"""A describer like the fake one that fails on demand, in whatever process it is: for tests of engines.

Faults are files in the folder that the environment variable ``FAULTS`` names. ``kill-1``, ``raise-1`` and ``refuse-1``
happen once, in the process that removes the file first; ``raise-always`` stays.
"""

import os
import signal
import sys
import time
from pathlib import Path

from spr.config.backends import DESCRIBERS
from spr.core.errors import InputError
from spr.models.fakes import FakeDescriber


class FaultyDescriber(FakeDescriber):
    """`FakeDescriber`, whose answers it gives unless it fails."""

    def describe(self, requests):
        folder = Path(os.environ["FAULTS"])
        for path in sorted(folder.iterdir()):
            kind, _, which = path.name.partition("-")
            if which != "always":
                try:
                    path.unlink()
                except FileNotFoundError:
                    continue  # another process fails
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "raise":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if kind == "refuse":
                raise InputError("The model refuses this")
            if kind == "sleep":
                (folder.parent / f"slept-{os.getpid()}").touch()
                time.sleep(600)
        return super().describe(requests)


def install(folder, monkeypatch):
    """Let this process and those that it starts find the describer ``faulty``; returns the folder for faults."""
    info = folder / "site" / "faulty-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[spr.describers]\nfaulty = faulty:FaultyDescriber\n")
    paths = [str(info.parent), str(Path(__file__).parent)]
    monkeypatch.setattr(sys, "path", [*paths, *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths), prepend=os.pathsep)
    monkeypatch.setitem(DESCRIBERS._entries, "faulty", FaultyDescriber)
    faults = folder / "faults"
    faults.mkdir()
    monkeypatch.setenv("FAULTS", str(faults))
    return faults
