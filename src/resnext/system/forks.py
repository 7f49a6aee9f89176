"""What a process that was forked (`os.fork`, `gunicorn --preload`) inherits and cannot use.

A fork copies memory, but of all threads only the one that called it. What waits for the others
waits forever: thread pools of engines and of OpenMP, and locks that they held.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

from resnext.errors import ResourceError

_TASKS = Path("/proc/self/task")


@runtime_checkable
class Forked(Protocol):
    """An object that has to change in a forked process."""

    def after_fork(self) -> None:
        """Called in the forked process, before anything else runs there."""


_objects: WeakSet[Any] = WeakSet()


def change_after_fork(thing: Forked) -> None:
    """Call `thing.after_fork()` in every process that is forked from here while it exists."""
    _register()
    _objects.add(thing)


def leak(thing: object) -> None:
    """Never free an object: its destructor would wait for threads that do not exist."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


@cache
def skip_destructors_after_fork() -> None:
    """End processes that are forked from now on without the destructors of C++ libraries.

    Some of them wait for threads that do not exist there. Python's own exit handlers run before.
    """
    if sys.platform == "linux":
        os.register_at_fork(after_in_child=_skip_destructors)


def _skip_destructors() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc; the handler that is registered last is called first
        libc.on_exit(libc._exit, None)


def refuse_after_fork(process: int, what: str) -> None:
    """Refuse to use in a forked process what needs the threads of its parent.

    Args:
        process: The process that opened it.
        what: Its name.

    Raises:
        ResourceError: This is another process.
    """
    if process != os.getpid():
        raise ResourceError(
            f"{what} was started before this process was forked, and hangs in it. Open the model "
            f"in this process only, or start processes with "
            f"multiprocessing.get_context('spawn')."
        )


class _Computing:
    """Whether torch has started threads, which a forked process lacks."""

    def __init__(self) -> None:
        self.usual = _other_threads()  # such as NumPy's, which it starts again
        self.begun = False

    def before(self) -> None:
        """Look at the threads."""
        self.begun |= _other_threads() > self.usual

    def in_parent(self) -> None:
        """Forking has ended NumPy's threads here too."""
        self.usual = min(self.usual, _other_threads())

    def in_child(self) -> None:
        """Compute in this thread alone if torch would wait for others."""
        torch = sys.modules.get("torch")
        if torch is not None and self.begun:
            torch.set_num_threads(1)


@cache
def one_thread_after_fork() -> _Computing:
    """Let torch compute with one thread in processes that are forked from now on, if it must.

    OpenMP's threads of the parent do not exist there, and torch would wait for them. It may use all
    cores if the parent has not computed: then there are no threads yet. On macOS, OpenMP starts
    them again.

    Returns:
        What is known; set `begun` when torch computes.
    """
    state = _Computing()
    if _TASKS.is_dir():
        os.register_at_fork(
            before=state.before, after_in_parent=state.in_parent, after_in_child=state.in_child
        )
    return state


def _other_threads() -> int:
    """Threads of this process that Python did not start; 0 where that is unknown."""
    if not _TASKS.is_dir():
        return 0
    return len(os.listdir(_TASKS)) - threading.active_count()  # noqa: PTH208


@cache
def _register() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_change)


def _change() -> None:
    for thing in [*_objects]:
        thing.after_fork()
