"""Commands that are killed lose nothing and end with the same bytes (`kills`, which can do more)."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.processes
def test_a_dozen_kills_lose_nothing_and_change_no_byte():
    command = [sys.executable, Path(__file__).with_name("kills.py"), "--light", "--kills", "12", "--seed", "14"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert " 0 failures" in done.stdout
