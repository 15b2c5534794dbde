"""Memory that a training on the CPU frees is used again, and returned to the system at the end."""

import json
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spr.training.kept_memory import kept_memory, returned_blocks
from spr.training.loss import token_logps

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # glibc's <malloc.h>
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's memory is kept")

SIZE = 10_000_000
"""Numbers of float32: 40 MB, which glibc by itself always returns."""
MEASURED = f"""
import json, resource
import psutil, torch
from spr.training.kept_memory import kept_memory

def faults(size):
    for _ in range(16):  # the first ones leave holes into which none fits
        torch.ones(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

process, found = psutil.Process(), {{}}
with kept_memory(active=False):
    found["faults inactive"] = faults({SIZE})
    found["memory before"] = process.memory_info().rss
with kept_memory(active=True):
    found["faults"] = faults({SIZE})
    found["memory"] = process.memory_info().rss
found["memory after"] = process.memory_info().rss
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def measured():
    """Page faults of five tensors each, and the process's memory; in a process of its own, whose heap has no holes."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@glibc
def test_pages_are_used_again_within_the_context(measured):
    assert measured["faults inactive"] > 1000 + 3 * measured["faults"]


@glibc
def test_memory_is_returned_at_the_end(measured):
    assert measured["memory"] - measured["memory after"] > SIZE * 4 * 0.9
    assert measured["memory after"] - measured["memory before"] < SIZE


@glibc
def test_the_thresholds_are_then_those_that_glibc_lets_its_own_grow_to(monkeypatch):
    calls = []
    library = SimpleNamespace(mallopt=lambda *given: calls.append(given), malloc_trim=lambda _: calls.append("trim"))
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    with kept_memory(active=True):
        within = dict(calls)
    assert within[M_MMAP_MAX] == 0
    *values, last = calls[len(within) :]
    # mallopt(3), M_MMAP_THRESHOLD: up to 4 · 1024 · 1024 · sizeof(long), and the trim threshold is twice as much.
    assert dict(values) == {M_MMAP_MAX: 65_536, M_MMAP_THRESHOLD: 33_554_432, M_TRIM_THRESHOLD: 67_108_864}
    assert last == "trim"


@glibc
def test_large_blocks_are_returned_where_they_are_not_worth_keeping(monkeypatch):
    calls = []
    library = SimpleNamespace(mallopt=lambda *given: calls.append(given), malloc_trim=lambda _: None)
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    with returned_blocks():
        assert calls == []  # nothing is kept
    with kept_memory(active=True):
        calls.clear()
        with returned_blocks():
            assert dict(calls) == {M_MMAP_THRESHOLD: 33_554_432, M_MMAP_MAX: 65_536}
        assert calls[-1] == (M_MMAP_MAX, 0)
        calls.clear()
        hidden = torch.randn(3, 4, requires_grad=True)
        token_logps(hidden, torch.tensor([0, 1, 2]), nn.Linear(4, 5).requires_grad_(False))
        assert calls[-2:] == [(M_MMAP_MAX, 65_536), (M_MMAP_MAX, 0)]  # logits are large
    calls.clear()
    with returned_blocks():
        assert calls == []


def test_an_error_within_the_context_is_raised():
    with pytest.raises(ValueError, match="inside"), kept_memory(active=True):
        raise ValueError("inside")
