"""Limits of containers: what cgroups of both versions grant, not what the machine has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resnext.system import cpu, limits
from resnext.system.device import inference_batch, pick_device

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
CPU_V1 = "31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
MEMORY_V1 = "32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
DOCKER_V1 = "33 23 0:27 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root folder that is read instead of the machine's."""
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    """Write files below a root folder; those of `proc/self` by their name alone."""
    for name, text in files.items():
        path = root / (f"proc/self/{name}" if "/" not in name else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


QUOTAS = {
    "half a CPU": (
        {"cgroup": "0::/", "mountinfo": V2, "sys/fs/cgroup/cpu.max": "50000 100000"},
        0.5,
    ),
    "no quota": (
        {"cgroup": "0::/", "mountinfo": V2, "sys/fs/cgroup/cpu.max": "max 100000"},
        None,
    ),
    "the group above is stricter": (
        {
            "cgroup": "0::/slurm/job_7/step_0",
            "mountinfo": V2,
            "sys/fs/cgroup/slurm/job_7/step_0/cpu.max": "max 100000",
            "sys/fs/cgroup/slurm/job_7/cpu.max": "300000 100000",
            "sys/fs/cgroup/slurm/cpu.max": "800000 100000",
        },
        3.0,
    ),
    "version 1": (
        {
            "cgroup": "4:memory:/m\n3:cpu,cpuacct:/a/b\n0::/unified",
            "mountinfo": f"{MEMORY_V1}\n{CPU_V1}",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000",
        },
        1.5,
    ),
    "version 1, which Docker mounts from its own group": (
        {
            "cgroup": "3:cpuacct,cpu:/docker/abc",
            "mountinfo": DOCKER_V1,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        2.0,
    ),
    "no cgroups": ({}, None),
}


@pytest.mark.parametrize(("files", "wanted"), QUOTAS.values(), ids=QUOTAS)
def test_cpu_quota(machine: Path, files: dict[str, str], wanted: float | None) -> None:
    """With a quota of half a CPU, two threads are stopped half of the time."""
    write(machine, files)
    assert limits.cpu_quota() == wanted


@pytest.mark.parametrize(
    ("quota", "cores"), [("50000", 1), ("100000", 1), ("150000", 2), ("800000", 8), ("max", 12)]
)
def test_cores_follow_the_quota(
    machine: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    """Threads, workers and plans ask these; torch's own threads are lowered too."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr(cpu, "_text", lambda _: "")  # no hyper-threads
    write(machine, {"cgroup": "0::/", "mountinfo": V2})
    write(machine, {"sys/fs/cgroup/cpu.max": f"{quota} 100000"})
    assert (cpu.core_count(), cpu.available_cores()) == (cores, cores)
    threads: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    pick_device("cpu")
    assert threads == ([cores] if cores < 12 else [])
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert cpu.core_count() == 7
    pick_device("cpu")
    assert len(threads) <= 1  # whoever sets the variable decides


MEMINFO = "MemTotal:  8000 kB\nMemFree:  100 kB\nMemAvailable:  6000 kB"
MEMORY = {
    "the machine's": ({}, 8000, 6000),
    "version 2": (
        {
            "cgroup": "0::/job",
            "mountinfo": V2,
            "sys/fs/cgroup/job/memory.max": str(2000 * 1024),
            "sys/fs/cgroup/job/memory.current": str(1500 * 1024),
            "sys/fs/cgroup/job/memory.stat": f"anon 5\ninactive_file {400 * 1024}",
        },
        2000,
        900,
    ),
    "version 2 throttles before it kills": (
        {
            "cgroup": "0::/job",
            "mountinfo": V2,
            "sys/fs/cgroup/job/memory.max": "max",
            "sys/fs/cgroup/job/memory.high": str(3000 * 1024),
            "sys/fs/cgroup/job/memory.current": str(4000 * 1024),
        },
        3000,
        0,
    ),
    "version 1": (
        {
            "cgroup": "2:memory:/",
            "mountinfo": MEMORY_V1,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(1000 * 1024),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(900 * 1024),
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\n"
            f"total_inactive_file {100 * 1024}",
        },
        1000,
        200,
    ),
    "version 2, and the group above is stricter; swap is slow, so it does not count": (
        {
            "cgroup": "0::/kubepods/pod/job",
            "mountinfo": V2,
            "sys/fs/cgroup/kubepods/pod/job/memory.max": "max",
            "sys/fs/cgroup/kubepods/pod/job/memory.swap.max": "max",
            "sys/fs/cgroup/kubepods/pod/job/memory.current": str(100 * 1024),
            "sys/fs/cgroup/kubepods/pod/memory.max": str(4000 * 1024),
            "sys/fs/cgroup/kubepods/pod/memory.swap.max": str(9000 * 1024),
            "sys/fs/cgroup/kubepods/pod/memory.current": str(3500 * 1024),
            "sys/fs/cgroup/kubepods/memory.max": str(7000 * 1024),
        },
        4000,
        500,
    ),
    "version 1, limited by a group out of sight": (
        {
            "cgroup": "2:memory:/docker/abc",
            "mountinfo": "32 23 0:28 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup "
            "rw,memory",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": str(1500 * 1024),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(500 * 1024),
            "sys/fs/cgroup/memory/memory.stat": f"cache 5\nhierarchical_memory_limit {2000 * 1024}",
        },
        2000,
        1500,
    ),
    "version 1 without a limit": (
        {
            "cgroup": "2:memory:/",
            "mountinfo": MEMORY_V1,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "900",
        },
        8000,
        6000,
    ),
}


@pytest.mark.parametrize(("files", "total", "available"), MEMORY.values(), ids=MEMORY)
def test_memory(machine: Path, files: dict[str, str], total: int, available: int) -> None:
    """A container is killed at its own limit, however much memory the machine has."""
    write(machine, {**files, "proc/meminfo": MEMINFO})
    assert limits.total_memory() == total * 1024
    assert limits.available_memory() == available * 1024


@pytest.mark.parametrize(
    ("megabytes", "batch"), [(64, 1), (512, 4), (1024, 8), (2048, 16), (65536, 16)]
)
def test_batches_follow_the_memory(machine: Path, megabytes: int, batch: int) -> None:
    """The kernel ends a process that computes sixteen large images in a container of 512 MB."""
    write(machine, {"cgroup": "0::/", "mountinfo": V2})
    write(machine, {"sys/fs/cgroup/memory.max": str(megabytes * 2**20)})
    assert inference_batch(torch.device("cpu")) == batch
    assert inference_batch(torch.device("cuda")) == 64
