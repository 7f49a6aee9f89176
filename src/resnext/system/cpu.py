"""CPU name and core count."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

from resnext.errors import InputError
from resnext.system.limits import cpu_quota
from resnext.system.text import counted

_PER_CORE, _ALWAYS = 4, 16  # workers that may be requested: so many per core, or so many anywhere


def cpu_name() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def core_count() -> int:
    """Number of threads to compute with: `OMP_NUM_THREADS`, else the physical cores we may use.

    Two hardware threads of a core count once, as in torch. With a container's CPU quota, no more
    than it grants, rounded up.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads):
        return int(threads)
    if not hasattr(os, "sched_getaffinity"):
        return available_cores()
    allowed = os.sched_getaffinity(0)
    siblings = {_text(f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings") for i in allowed}
    return within_quota(len(allowed) if "" in siblings else len(siblings))


def available_cores() -> int:
    """Number of logical processors this process may run on, or that its CPU quota grants."""
    if hasattr(os, "sched_getaffinity"):
        return within_quota(len(os.sched_getaffinity(0)))
    return within_quota(os.cpu_count() or 1)


def within_quota(count: int) -> int:
    """A number of cores or threads, lowered to a container's CPU quota, rounded up."""
    quota = cpu_quota()
    return count if quota is None else max(min(count, math.ceil(quota)), 1)


def check_worker_count(workers: int, what: str) -> None:
    """Refuse more processes or threads that decode images than the cores can use.

    Args:
        workers: Their number.
        what: Noun for one of them.

    Raises:
        InputError: There would be too many.
    """
    cores = available_cores()
    most = max(_PER_CORE * cores, _ALWAYS)
    if workers > most:
        raise InputError(
            f"workers must be at most {most} with {counted(cores, 'core')}, not {workers}: each "
            f"is a {what} that decodes images. Give fewer --workers, or leave the option out."
        )


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
