"""What machine this is."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def core_count() -> int:
    """How many threads computing should use: `OMP_NUM_THREADS`, else the cores we may use.

    Two hardware threads of one core count once, as torch counts them.
    """
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdigit() and int(chosen):
        return int(chosen)
    if not hasattr(os, "sched_getaffinity"):
        return available_cores()
    allowed = os.sched_getaffinity(0)
    siblings = {_text(f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings") for i in allowed}
    return len(allowed) if "" in siblings else len(siblings)


def available_cores() -> int:
    """How many logical processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
