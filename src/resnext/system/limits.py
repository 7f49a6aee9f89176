"""Limits of the container or job that this process runs in: CPU time, memory, shared memory.

cgroups are read in both versions, for the process's own group and all groups above it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from threading import Condition

ROOT = Path("/")
"""Where `proc` and `sys` are read; tests give another folder."""
_PIXELS = 48_000_000  # decoded at once, at about 12 bytes each


class DecodingRoom:
    """Limits how many pixels threads decode at once; an image above the limit is decoded alone.

    Args:
        size: The limit; None for one that takes at most a quarter of the available memory.
    """

    def __init__(self, size: int | None = None) -> None:
        if size is None:
            memory = available_memory()
            size = _PIXELS if memory is None else max(min(_PIXELS, memory // 4 // 12), 1)
        self.size = self._free = size
        self._changed = Condition()

    @contextmanager
    def reserve(self, wanted: int) -> Iterator[None]:
        """Wait until this many pixels fit, and reserve room for them inside the `with` block."""
        wanted = min(wanted, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


def cpu_quota() -> float | None:
    """Number of CPUs whose time cgroups grant this process; None without a quota."""
    quotas = [quota for folder in _groups("cpu") if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def total_memory() -> int | None:
    """Bytes of memory that this process may use: the machine's, or less if cgroups limit it."""
    limits = [_meminfo("MemTotal"), *(_memory_limit(folder) for folder in _groups("memory"))]
    return min((limit for limit in limits if limit is not None), default=_physical_memory())


def available_memory() -> int | None:
    """Bytes of memory that can still be used without swapping or exceeding a limit."""
    rooms = [_meminfo("MemAvailable"), *(_memory_room(folder) for folder in _groups("memory"))]
    return min((max(room, 0) for room in rooms if room is not None), default=_physical_memory())


def free_shared_memory() -> int | None:
    """Free bytes in `/dev/shm`, through which worker processes pass images; None if unlimited."""
    if sys.platform != "linux":
        return None
    try:
        return shutil.disk_usage(ROOT / "dev" / "shm").free
    except OSError:
        return 0


def _groups(controller: str) -> Iterator[Path]:
    """Folders of this process's cgroup and of the groups above it that have a controller."""
    own = {}
    for line in _text(ROOT / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)  # version 2 has the name ""
    for line in _text(ROOT / "proc/self/mountinfo").splitlines():
        place, _, kind = line.partition(" - ")
        (*_, top, mount), (version, _, options) = place.split()[:5], kind.split()[:3]
        name = {"cgroup": controller, "cgroup2": ""}.get(version)
        if name not in own or (name and name not in options.split(",")):
            continue
        path = PurePosixPath(own[name])
        inside = path.relative_to(top) if path.is_relative_to(top) else PurePosixPath()
        for part in (inside, *inside.parents):
            yield ROOT / mount.lstrip("/") / part


def _quota(folder: Path) -> float | None:
    quota, period, *_ = (*_text(folder / "cpu.max").split(), "", "")
    if not quota:  # version 1
        quota, period = (_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    limit, per = _number(quota), _number(period)
    return limit / per if limit and per else None


def _memory_limit(folder: Path) -> int | None:
    """The limit of a group, without swap; version 1 also tells that of groups out of sight."""
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    limits = [_number(_text(folder / name)) for name in names]
    limits.append(_number(_memory_statistics(folder).get("hierarchical_memory_limit", "")))
    return min((limit for limit in limits if limit is not None), default=None)


def _memory_statistics(folder: Path) -> dict[str, str]:
    return dict(line.split()[:2] for line in _text(folder / "memory.stat").splitlines())


def _memory_room(folder: Path) -> int | None:
    """The limit of a group minus what it uses; cached files count as free."""
    limit = _memory_limit(folder)
    used = _number(_text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes"))
    if limit is None or used is None:
        return limit
    statistics = _memory_statistics(folder)
    cached = statistics.get("total_inactive_file", statistics.get("inactive_file", "0"))
    return limit - used + int(cached)


def _meminfo(name: str) -> int | None:
    for line in _text(ROOT / "proc/meminfo").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _physical_memory() -> int | None:
    sysconf: Callable[[str], int] | None = getattr(os, "sysconf", None)
    return sysconf("SC_PHYS_PAGES") * sysconf("SC_PAGE_SIZE") if sysconf else None


def _number(text: str) -> int | None:
    """A non-negative number; None for "max", -1 and a file that does not exist."""
    return int(text) if text.strip().isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
