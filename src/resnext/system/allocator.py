"""glibc's memory allocator: keep freed memory for the next batch.

By default glibc returns every block above 32 MB to the kernel, which clears each of its pages again
for the next batch. The activations of a batch are such blocks, and clearing can take longer than
computing them.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # numbers of mallopt(3)
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_KEPT = 2**30  # bytes; larger blocks, and free memory above it, are still returned


@functools.cache
def keep_freed_memory() -> bool:
    """Make glibc reuse blocks of up to 1 GiB instead of returning them; whether it was done.

    Thresholds that the user has set stay as they are.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in tunables or not os.environ.keys().isdisjoint(_SETTINGS):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT) and mallopt(_TRIM_THRESHOLD, _KEPT))


@functools.cache
def few_arenas(count: int = 2) -> bool:
    """Make glibc's threads share a few heaps; whether it was done.

    By default each thread gets a heap of its own, up to eight per core, and what one of them has
    freed is of no use to the others: a server that decodes in several threads grows for hours.
    A number that the user has set stays as it is.
    """
    own = "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    if own or platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_ARENA_MAX, count))
