"""How many threads train fastest: fewer than there are cores, while other programs run.

All threads wait for the slowest at the end of every operation. Where another program has one of two
cores, two threads are slower than one.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resnext.network import ResNeXt
from resnext.system.text import counted

CLEARLY = 1.3
"""How many times faster another number of threads must be."""
_IMAGES = 8  # more do not change which is faster


def fastest_threads(network: ResNeXt, side: int, dtype: torch.dtype, most: int) -> float:
    """Set the number of threads of this process to the one that trains fastest.

    Halves of `most` are tried, as long as they are clearly faster. Nothing is tried and nothing
    changes if the user chose the number (`OMP_NUM_THREADS`).

    Args:
        network: The network, on the CPU. It is not changed.
        side: Height and width of the images, pixels.
        dtype: Compute precision.
        most: Number of threads without other programs.

    Returns:
        Time of a step relative to that with the threads before.
    """
    before = torch.get_num_threads()
    if most == 1 or "OMP_NUM_THREADS" in os.environ:
        return 1.0
    network = copy.deepcopy(network).train()
    took = {count: step_seconds(network, side, dtype, count) for count in {before, most}}
    best = most
    while best > 1:
        fewer = best // 2
        if fewer not in took:
            took[fewer] = step_seconds(network, side, dtype, fewer)
        if took[fewer] * CLEARLY > took[best]:
            break
        best = fewer
    torch.set_num_threads(best)
    return took[best] / took[before]


@contextmanager
def kept_threads() -> Iterator[None]:
    """Leave this process with the number of threads that it has now."""
    count = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(count)


def changed_threads(change: float) -> str:
    """A line about a new number of threads.

    Args:
        change: What `fastest_threads` returned.
    """
    return (
        f"Training with {counted(torch.get_num_threads(), 'thread')}: while other programs run, "
        f"that is {1 / change:.1f} times as fast."
    )


def step_seconds(network: ResNeXt, side: int, dtype: torch.dtype, threads: int) -> float:
    """Seconds of the second of two passes forward and back, with so many threads."""
    torch.set_num_threads(threads)
    x = torch.zeros(_IMAGES, network.config.in_channels, side, side)
    x = x.to(memory_format=torch.channels_last)
    began = 0.0
    for _ in range(2):
        began = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            value = network(x).float().sum()
        value.backward()
    return time.perf_counter() - began
