"""Memory that a training on the CPU frees is used again, and returned to the system at the end."""

import platform
import subprocess
import sys

import psutil
import pytest
import torch

from spr.training.kept_memory import kept_memory

SIZE = 10_000_000  # of float32: 40 MB, which glibc by itself always returns

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's memory is kept")


FAULTS = """
import resource, sys, torch
from spr.training.kept_memory import kept_memory
with kept_memory(active=sys.argv[1] == "kept"):
    for _ in range(30):  # small blocks settle in between the large ones
        torch.ones(10_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@glibc
def test_pages_are_used_again_within_the_context_only():
    # In processes of their own: in this one, other tests may have left free memory that glibc uses again by itself.
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "returned")
    )
    assert returned > 3 * kept


@glibc
def test_memory_is_returned_at_the_end():
    process = psutil.Process()
    with kept_memory(active=True):
        before = process.memory_info().rss
        torch.ones(5 * SIZE)
        within = process.memory_info().rss
    after = process.memory_info().rss
    assert within - before > 3 * SIZE * 4
    assert after - before < SIZE * 4


def test_an_error_within_the_context_is_raised():
    with pytest.raises(ValueError, match="inside"), kept_memory(active=True):
        raise ValueError("inside")
