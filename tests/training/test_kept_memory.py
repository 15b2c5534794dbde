"""Memory that a training on the CPU frees is used again, and returned to the system at the end."""

import platform
import resource

import psutil
import pytest
import torch

from spr.training.kept_memory import kept_memory

SIZE = 10_000_000  # of float32: 40 MB, which glibc by itself always returns

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's memory is kept")


def faults_of_five_tensors() -> int:
    torch.ones(SIZE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(SIZE)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
def test_pages_are_used_again_within_the_context_only():
    with kept_memory(active=True):
        kept = faults_of_five_tensors()
    outside = faults_of_five_tensors()
    with kept_memory(active=False):
        inactive = faults_of_five_tensors()
    # Within, the first one may still take new pages, because the block before it is not aligned as it wants.
    assert min(outside, inactive) > 3 * kept


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
