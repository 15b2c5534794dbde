"""Freed memory is kept for the next tensor, instead of being returned to the operating system.

The C library of Linux (glibc) gives each large block of memory back as soon as it is freed, and the kernel clears the
pages of the next one. For the tensors of a training step on the CPU, this takes as long as the arithmetic on them that
is not a matrix product: 20 ms instead of 3 ms for one operation on 39 MB.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of ``mallopt``, from glibc's <malloc.h>."""
_AFTERWARDS = ((_MMAP_MAX, 65_536), (_MMAP_THRESHOLD, 32 * 2**20), (_TRIM_THRESHOLD, 64 * 2**20))
"""Values of glibc, whose thresholds grow to these as large blocks are freed, until one is set (mallopt(3))."""
_KEPT = ContextVar("kept", default=False)
"""True within `kept_memory`."""


@contextmanager
def kept_memory(*, active: bool) -> Iterator[None]:
    """Context in which this process keeps the memory that it frees, if ``active`` and its C library is glibc.

    Freed memory is returned at the end.
    """
    if not active or platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)
        for parameter, value in _AFTERWARDS:
            library.mallopt(parameter, value)
        library.malloc_trim(0)


@contextmanager
def returned_blocks() -> Iterator[None]:
    """Context within `kept_memory` in which blocks of more than 32 MiB are returned as soon as they are freed.

    For few operations on very large tensors: a block that is kept may not fit the next tensor of its size, because
    tensors are aligned to 64 bytes, and then both are in memory.
    """
    if not _KEPT.get():
        yield
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
    library.mallopt(_MMAP_MAX, 65_536)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, 0)
