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
_SECONDS = 0.1  # for less, another program may wait by chance


def fastest_threads(network: ResNeXt, side: int, dtype: torch.dtype, most: int) -> float:
    """Set the number of threads of this process to the one that trains fastest.

    Halves of `most` are tried, as long as they are clearly faster. The number stays if another is
    not clearly faster: times vary while other programs run. Nothing is tried and nothing changes if
    the user chose the number (`OMP_NUM_THREADS`).

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
    if took[best] * CLEARLY > took[before]:
        best = before
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


def changed_threads(change: float, before: int) -> str:
    """A line about a new number of threads.

    Args:
        change: What `fastest_threads` returned.
        before: The number before.
    """
    now = torch.get_num_threads()
    why = ", because other programs run" if now < before else ""
    return (
        f"Training with {counted(now, 'thread')} instead of {before}{why}: that is "
        f"{1 / change:.1f} times as fast."
    )


def step_seconds(network: ResNeXt, side: int, dtype: torch.dtype, threads: int) -> float:
    """Seconds of a pass forward and back with so many threads, after a first one."""
    torch.set_num_threads(threads)
    x = torch.zeros(_IMAGES, network.config.in_channels, side, side)
    x = x.to(memory_format=torch.channels_last)
    steps, began = -1, time.perf_counter()
    while True:
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            value = network(x).float().sum()
        value.backward()
        steps += 1
        if steps == 0:
            began = time.perf_counter()
        elif (elapsed := time.perf_counter() - began) > _SECONDS:
            return elapsed / steps
