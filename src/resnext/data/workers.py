"""Worker processes that decode images: how many fit, how they start, take signals, and end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from resnext.errors import DataError, InputError, ResourceError
from resnext.system.cpu import available_cores, check_worker_count
from resnext.system.limits import available_memory, free_shared_memory
from resnext.system.main_guard import (
    GUARD,
    STARTING,
    UNGUARDED,
    refuse_in_new_process,
    refuse_without_script,
)
from resnext.system.signals import STOPPING
from resnext.system.text import counted

WORKER_BYTES = 200 * 2**20
"""Memory that a worker process needs besides its images."""


class Loading(NamedTuple):
    """Worker processes of a loader, and batches that each of them prepares in advance."""

    workers: int
    prefetch: int | None
    """None without workers."""


def check_workers(workers: int) -> None:
    """Refuse more worker processes than the machine can use.

    Raises:
        InputError: There would be too many for the cores or the memory.
    """
    check_worker_count(workers, "process")
    memory = available_memory()
    if memory is not None and workers * WORKER_BYTES > memory:
        raise InputError(
            f"{counted(workers, 'worker')} would need {_size(workers * WORKER_BYTES)} of memory; "
            f"{_size(memory)} are free. Give fewer --workers."
        )


def default_workers(most: int) -> int:
    """This process's share of the cores, at most `most`, in half of the memory; at least 1."""
    processes, memory = processes_here(), available_memory()
    share = min(available_cores() // processes, most)
    if memory is not None:
        share = min(share, memory // 2 // processes // WORKER_BYTES)
    return max(share, 1)


def fitting(workers: int, prefetch: int, batch_bytes: int, *, held: int = 2) -> Loading:
    """As many workers and prepared batches as fit into shared memory, prepared batches first.

    Args:
        workers: Worker processes that are wanted.
        prefetch: Batches that each should prepare in advance.
        batch_bytes: Size of a batch.
        held: Batches that the main process holds besides those that workers have ready.
    """
    free, memory = free_shared_memory(), available_memory()
    if free is not None:
        if memory is not None:
            free = min(free, memory // 2)  # what is in shared memory counts as memory
        room = int(0.9 * free) // processes_here() // batch_bytes - held
        workers = max(min(workers, room), 0)
        prefetch = min(prefetch, room // max(workers, 1))
    return Loading(workers, prefetch if workers else None)


def shared_memory_line(wanted: int, workers: int) -> str | None:
    """What to print if there is shared memory for fewer workers than wanted; else None."""
    if workers == wanted:
        return None
    few = f"enough for {workers} of {counted(wanted, 'worker')}; the result is the same, "
    few += "only slower."
    free, memory = free_shared_memory() or 0, available_memory()
    if memory is not None and memory // 2 < free:
        return f"{_size(memory)} of memory are free, {few}"
    return f"/dev/shm has {_size(free)} free, {few} Docker gives more with --shm-size=1g."


def worker_loader(data: Any, loading: Loading, **options: Any) -> DataLoader[Any]:
    """A `DataLoader` whose workers leave signals to the main process; see `loaded_batches`.

    Args:
        data: The data set.
        loading: Number of workers and of batches in advance.
        options: Further arguments of `DataLoader`.
    """
    with _no_advice():
        return DataLoader(
            data,
            num_workers=loading.workers,
            prefetch_factor=loading.prefetch,
            worker_init_fn=_ignore_signals,
            **options,
        )


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of equal shape joined into one `(n, …)`.

    A worker puts them directly into shared memory. It would get there anyway, but from a thread
    whose errors do not reach the main process.
    """
    if get_worker_info() is None:
        return torch.stack([*tensors])
    shape, first = (len(tensors), *tensors[0].shape), tensors[0]
    count = len(tensors) * first.numel()
    shared = torch.UntypedStorage._new_shared(count * first.element_size())
    return torch.stack([*tensors], out=first.new_empty(0).set_(shared, 0, shape))  # pyright: ignore


def loaded_batches(loader: DataLoader[Any]) -> Generator[Any]:
    """Batches of a loader; workers that do not persist are ended with it.

    A signal to the whole process group reaches only this process: workers ignore it from their
    first moment and are ended from here.

    Raises:
        DataError: As a worker raised it.
        InputError: Worker processes ran the calling script again.
        ResourceError: A worker was killed, or lacks memory, shared memory or open files.
    """
    refuse_in_new_process("A data loader with workers")
    iterator, batch = None, None
    try:
        while True:
            try:
                iterator = iterator or _started(loader)
                batch = next(iterator)
            except StopIteration:
                return
            except DataError as error:  # torch puts a worker's traceback into the message
                error.__traceback__ = None  # its frames would keep the loader and workers alive
                raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None
            except (OSError, EOFError, RuntimeError, MemoryError) as error:
                processes = _processes(iterator or loader._iterator)
                if any(process.exitcode == UNGUARDED for process in processes):
                    raise InputError(
                        f"A worker process ran the script that started it once more. {GUARD}"
                    ) from None
                reason = _reason(error, processes) if loader.num_workers else None
                if reason is None:
                    raise
                raise ResourceError(reason) from None
            yield batch
            batch = None  # frees its shared memory before the next one arrives
    finally:
        if not loader.persistent_workers:
            _stop(iterator)


def stop_workers(loader: DataLoader[Any]) -> None:
    """End a loader's persistent workers now: an exception that refers to it would keep them."""
    _stop(loader._iterator)


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """An iterator of a loader, whose processes are ended at the latest with this one."""
    if not loader.num_workers or loader._iterator is not None:
        return iter(loader)
    refuse_without_script()
    before = {*multiprocessing.active_children()}
    with _starting(), _no_advice():
        try:
            iterator = iter(loader)
        except BaseException as error:
            _kill({*multiprocessing.active_children()} - before)
            for frame, _ in traceback.walk_tb(error.__traceback__):
                half: Any = frame.f_locals.get("self")
                if hasattr(half, "_workers_done_event"):
                    half._shutdown = True  # else its finalizer prints an error
            raise
    Finalize(iterator, _kill, (_processes(iterator),), exitpriority=0)
    return iterator


@contextmanager
def _starting() -> Iterator[None]:
    """Start processes inside: they inherit that signals are held back until they ignore them.

    torch's handler of SIGCHLD is removed again. It raises an error when a worker dies, in the
    middle of whatever the main process does, for instance half a step; a dead worker is noticed
    without it when its next batch is due.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    on_child = signal.getsignal(signal.SIGCHLD)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    os.environ[STARTING] = "1"
    try:
        yield
    finally:
        del os.environ[STARTING]
        signal.signal(signal.SIGCHLD, on_child)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextmanager
def _no_advice() -> Iterator[None]:
    """Silence torch, which warns of more workers than cores; network disks need them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


def _ignore_signals(_: int) -> None:
    """What a worker does first: leave Ctrl-C, SIGTERM and SIGHUP to the main process."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "SIGBUS"):
        signal.signal(signal.SIGBUS, signal.SIG_DFL)  # torch's handler would print


def _reason(error: Exception, processes: Iterable[BaseProcess]) -> str | None:
    """Why workers cannot go on, and what to do; None if it was not for lack of anything."""
    codes = {code for p in processes if (code := p.exitcode)}
    text = str(error)
    if "shared memory" in text or "No space left" in text or -getattr(signal, "SIGBUS", 0) in codes:
        return (
            f"Shared memory (/dev/shm, {_size(free_shared_memory() or 0)} free) is too small for "
            f"the images that workers have ready. Enlarge it (docker run --shm-size=1g), or give "
            f"fewer --workers or a smaller --batch-size."
        )
    if "Too many open files" in text or "ancdata" in text:
        return (
            "Too many files are open to receive images from workers. Raise the limit (ulimit -n "
            "4096), or give fewer --workers."
        )
    if isinstance(error, MemoryError) or "allocate memory" in text or -9 in codes:
        return (
            "A worker process that decodes images was ended for lack of memory (SIGKILL or a "
            "failed allocation). Give fewer --workers or a smaller --batch-size, or allow more "
            "memory."
        )
    if isinstance(error, OSError):
        return (
            f"Worker processes cannot be started: {error.strerror or text}. Give fewer --workers."
        )
    if codes:
        code = codes.pop()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"A worker process that decodes images ended early ({how}). Try --workers 0."
    return None


def _processes(iterator: Any) -> list[BaseProcess]:
    return [*getattr(iterator, "_workers", ())]


def _stop(iterator: Any) -> None:
    """End the worker processes of a loader's iterator, by force if they do not answer."""
    if processes := _processes(iterator):
        iterator._shutdown_workers()
        _kill(processes)


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join(5)


def processes_here() -> int:
    """Training processes on this machine, which share its cores and memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _size(count: int) -> str:
    """A number of bytes in MB, or GB from 10,000 MB."""
    return f"{count / 1e6:,.0f} MB" if count < 1e10 else f"{count / 1e9:,.0f} GB"
