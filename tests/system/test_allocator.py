"""Freed memory is kept for the next batch; each case in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")

CALL = """
from resnext.system.allocator import keep_freed_memory
print(keep_freed_memory())
"""
# Then the page faults of filling 64 MB whose predecessors were freed.
FAULTS = """
import resource
import torch
for _ in range(12):  # blocks must lie side by side before an aligned one fits into their place
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**26, dtype=torch.uint8).fill_(1)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""
PAGES = 2**26 // os.sysconf("SC_PAGE_SIZE")


def printed(code: str, **environment: str) -> list[str]:
    """What Python prints in a process whose environment chooses nothing else for glibc."""
    usual = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**usual, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.split()


def test_large_blocks_are_reused() -> None:
    kept, count = printed(CALL + FAULTS)
    assert kept == "True"
    assert int(count) < PAGES / 100


@pytest.mark.parametrize(
    "setting",
    [
        {"MALLOC_MMAP_THRESHOLD_": "1048576"},
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"},
    ],
)
def test_the_users_thresholds_stay(setting: dict[str, str]) -> None:
    assert printed(CALL, **setting) == ["False"]


def test_another_setting_decides_nothing() -> None:
    assert printed(CALL, MALLOC_ARENA_MAX="2") == ["True"]


# The heaps after eight threads have asked for memory at the same time.
HEAPS = """
import ctypes, threading
from resnext.system.allocator import few_arenas
print(few_arenas(), flush=True)
libc = ctypes.CDLL(None)
together = threading.Barrier(8)
def work():
    together.wait()
    for _ in range(1000):
        libc.malloc(5000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def test_threads_share_heaps() -> None:
    """A server whose threads each had one grew for hours."""
    done, *lines = printed(HEAPS)
    assert done == "True"
    assert lines.count("<heap") <= 2
    usual = printed(HEAPS.replace("few_arenas()", "False"))
    assert usual.count("<heap") > 2


def test_the_users_number_of_heaps_stays() -> None:
    assert printed(HEAPS, MALLOC_ARENA_MAX="3")[0] == "False"
