"""Worker processes: how many, and what is said when one dies or cannot start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import photo_folder
from torch import Tensor
from torch.utils.data import Dataset

from resnext.data import workers
from resnext.data.workers import (
    WORKER_BYTES,
    Loading,
    check_workers,
    default_workers,
    fitting,
    loaded_batches,
    shared_memory_line,
    stacked,
    worker_loader,
)
from resnext.errors import DataError, InputError, ResourceError
from resnext.system import cpu

MB = 10**6


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the cores and the free memory that the functions see."""

    def limit(cores: int = 4, memory: int | None = 10**12, shared: int | None = None) -> None:
        for module in (cpu, workers):
            monkeypatch.setattr(module, "available_cores", lambda: cores)
        monkeypatch.setattr(workers, "available_memory", lambda: memory)
        monkeypatch.setattr(workers, "free_shared_memory", lambda: shared)

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    limit()
    return limit


@pytest.mark.parametrize(
    ("free", "batch", "wanted", "expected"),
    [
        (None, 10 * MB, 8, Loading(8, 4)),  # no /dev/shm, as on a Mac
        (2000 * MB, 10 * MB, 8, Loading(8, 4)),
        (64 * MB, 9_633_792, 8, Loading(3, 1)),  # Docker: batches of 64 images at 224
        (64 * MB, 9_633_792, 2, Loading(2, 1)),
        (200 * MB, 9_633_792, 4, Loading(4, 4)),
        (64 * MB, 77 * MB, 4, Loading(0, None)),  # not one batch fits
        (0, 1, 4, Loading(0, None)),
        (64 * MB, MB, 0, Loading(0, None)),
    ],
)
def test_batches_ahead_and_workers_fit_into_shared_memory(
    machine: Any, free: int | None, batch: int, wanted: int, expected: Loading
) -> None:
    """64 MB of shared memory ended every run in a container with a bus error."""
    machine(shared=free)
    assert fitting(wanted, 4, batch) == expected


def test_shared_memory_is_memory(machine: Any) -> None:
    """A container with 8 GB of /dev/shm and 400 MB of memory is ended when 400 MB are in it."""
    machine(memory=400 * MB, shared=8000 * MB)
    loading = fitting(8, 4, 10 * MB)
    assert loading == Loading(8, 2)
    loading = fitting(8, 4, 30 * MB)
    assert loading == Loading(4, 1)
    line = shared_memory_line(8, loading.workers)
    assert line is not None
    assert line.startswith("400 MB of memory are free, enough for 4 of 8 workers;")


def test_processes_share_a_machine(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun starts several, each of which saw all of it."""
    machine(cores=16, memory=16 * WORKER_BYTES, shared=200 * MB)
    assert default_workers(16) == 8  # half of the memory
    assert fitting(4, 4, 10 * MB) == Loading(4, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers(16) == 2
    assert fitting(4, 4, 10 * MB) == Loading(2, 1)


def test_fewer_workers_are_told(machine: Any) -> None:
    """Slower without a word makes users look elsewhere."""
    machine(shared=64 * MB)
    assert shared_memory_line(3, 3) is None
    line = shared_memory_line(4, 3)
    assert line is not None
    assert line.startswith("/dev/shm has 64 MB free, enough for 3 of 4 workers;")


@pytest.mark.parametrize(
    ("cores", "memory", "allowed", "refused", "message"),
    [
        (2, None, 16, 17, "workers must be at most 16 with 2 cores, not 17"),
        (1, None, 16, 1000, "workers must be at most 16 with 1 core, not 1000"),
        (64, None, 256, 257, "workers must be at most 256 with 64 cores, not 257"),
        (64, 10 * WORKER_BYTES, 10, 11, "11 workers would need 2,307 MB of memory; 2,097 MB are"),
        (2, 0, 0, 1, "1 worker would need 210 MB of memory; 0 MB are free. Give fewer --workers."),
    ],
)
def test_too_many_workers(
    machine: Any, cores: int, memory: int | None, allowed: int, refused: int, message: str
) -> None:
    """A thousand processes took all memory of a machine."""
    machine(cores=cores, memory=memory)
    check_workers(allowed)
    with pytest.raises(InputError) as caught:
        check_workers(refused)
    assert str(caught.value).startswith(message)


class Failing(Dataset[Tensor]):
    """Does something in the second batch of a worker."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        """A number, or what fails."""
        if index == 4:
            self.what()
        return torch.tensor([index])


def refused(what: Any, kind: type[Exception] = ResourceError) -> str:
    """What is raised when a worker does something, after the batches before it."""
    feed = loaded_batches(worker_loader(Failing(what), Loading(1, 1), batch_size=2))
    assert [next(feed).flatten().tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(kind) as caught:
        next(feed)
    return str(caught.value)


def raising(error: Exception) -> Any:
    """A function that raises an error."""

    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "was ended for lack of memory (SIGKILL or a failed allocation)"),
        (signal.SIGBUS, "Shared memory (/dev/shm, "),
        (signal.SIGUSR1, "ended early (SIGUSR1)"),
    ],
)
def test_a_worker_that_dies(number: signal.Signals, reason: str) -> None:
    """torch's error is a traceback that names a process number."""
    before = signal.getsignal(signal.SIGCHLD)
    text = refused(lambda: os.kill(os.getpid(), number))
    assert reason in text
    assert "\n" not in text
    assert signal.getsignal(signal.SIGCHLD) is before  # torch's raises in the middle of a step


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "was ended for lack of memory"),
        (RuntimeError("unable to allocate shared memory(shm) for file </x>"), "Shared memory ("),
        (RuntimeError("[enforce fail] can't allocate memory"), "for lack of memory"),
        (OSError(24, "Too many open files"), "Too many files are open"),
        (RuntimeError("received 0 items of ancdata"), "Too many files are open"),
    ],
)
def test_a_worker_that_lacks_something(error: Exception, reason: str) -> None:
    """Each has its own remedy."""
    text = refused(raising(error))
    assert reason in text
    assert "Traceback" not in text


def test_a_mistake_in_a_worker_stays_one() -> None:
    """An error that nothing was lacking for must keep its traceback."""
    assert "in DataLoader worker process" in refused(raising(RuntimeError("a bug")), RuntimeError)
    assert "ZeroDivisionError" in refused(raising(ZeroDivisionError()), ZeroDivisionError)
    assert refused(raising(DataError("a, b: gone.")), DataError) == "a, b: gone."


@pytest.mark.parametrize("number", [11, 12])
def test_processes_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A limit on processes, or no memory: those that were started must not stay."""
    started: list[BaseProcess] = []
    start = BaseProcess.start

    def limited(self: BaseProcess) -> None:
        if started:
            raise OSError(number, os.strerror(number))
        start(self)
        started.append(self)

    monkeypatch.setattr(BaseProcess, "start", limited)
    with pytest.raises(ResourceError) as caught:
        next(loaded_batches(worker_loader(Failing(int), Loading(2, 1), batch_size=2)))
    assert str(caught.value) == (
        "A worker process that decodes images was ended for lack of memory (SIGKILL or a failed "
        "allocation). Give fewer --workers or a smaller --batch-size, or allow more memory."
        if number == 12
        else "Worker processes cannot be started: Resource temporarily unavailable. Give fewer "
        "--workers."
    )
    assert not started[0].is_alive()


def test_stacked_is_the_same_in_a_worker() -> None:
    """There it goes into shared memory."""
    loader = worker_loader(Failing(int), Loading(1, 1), batch_size=4, collate_fn=stacked)
    found = list(loaded_batches(loader))
    assert all(batch.is_shared() for batch in found)
    assert torch.cat(found).tolist() == [[i] for i in range(8)]
    assert stacked([torch.ones(2), torch.zeros(2)]).tolist() == [[1, 1], [0, 0]]


UNGUARDED = """
import multiprocessing, sys
from pathlib import Path
import resnext
from training_runs import QUICK, TINY

multiprocessing.set_start_method(sys.argv[1], force=True)
resnext.train("photos", TINY, recipe=QUICK, size=16, workers=1, out="m.safetensors",
              overwrite=True, progress=False)
"""


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_a_script_without_a_guard(tmp_path: Path, method: str) -> None:
    """Where processes are not forked, workers ran the script again, on the same files."""
    photo_folder(tmp_path / "photos")
    (tmp_path / "script.py").write_text(UNGUARDED)
    (tmp_path / "m.safetensors").write_text("kept")
    paths = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "script.py", method],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "resnext.errors.InputError: A worker process ran the script that started it once more. "
        'Put the call under if __name__ == "__main__".'
    )
    assert done.stderr.count("Traceback") == 1
    assert (tmp_path / "m.safetensors").read_text() == "kept"


ABANDONED = """
import sys, threading, torch
from resnext.data.workers import Loading, loaded_batches, worker_loader

class Slow(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i):
        if i > 3: threading.Event().wait()  # for ever
        return torch.tensor(i)

feed = loaded_batches(worker_loader(Slow(), Loading(2, 1), batch_size=2))
print(next(feed).tolist())
kept = feed
raise ValueError("the traceback keeps the loader")
"""


def test_workers_that_ignore_signals_end_with_the_main_process(tmp_path: Path) -> None:
    """Python ends its children by SIGTERM and then waits for them, for ever if they ignore it."""
    script = tmp_path / "script.py"
    script.write_text(ABANDONED)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout) == (1, "[0, 1]\n")


FROM_STDIN = """
import multiprocessing, sys
from torch.utils.data import TensorDataset
import torch
from resnext.data.workers import Loading, loaded_batches, worker_loader
from resnext.errors import InputError

multiprocessing.set_start_method(sys.argv[1])
data = TensorDataset(torch.arange(4))
try:
    print(len(list(loaded_batches(worker_loader(data, Loading(1, 1), batch_size=2)))))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("fork", "2"),
        (
            "spawn",
            "Worker processes import the script that starts them, and <stdin> is not a file. Put "
            "the script into a file, or give workers=0.",
        ),
    ],
)
def test_a_script_from_standard_input(method: str, said: str) -> None:
    """Each worker printed a traceback, and the advice did not help."""
    done = subprocess.run(
        [sys.executable, "-", method],
        input=FROM_STDIN,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.strip(), done.stderr) == (said, "")
