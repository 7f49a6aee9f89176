"""The priority of threads."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from resnext.system.priority import give_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority")


def priority(thread: int = 0) -> int:
    """The nice value of a thread, or of this one."""
    return os.getpriority(os.PRIO_PROCESS, thread or threading.get_native_id())


def test_a_thread_and_those_it_starts_give_way_to_the_main_one() -> None:
    """Once, however often it is asked; the main thread keeps its priority."""
    usual, found = priority(), list[int]()

    def work(often: int) -> None:
        give_way()
        found.append(priority())
        if often:
            again = threading.Thread(target=work, args=(often - 1,))
            again.start()
            again.join()

    thread = threading.Thread(target=work, args=(2,))
    thread.start()
    thread.join()
    give_way()
    assert priority() == usual
    assert usual < found[0] == found[1] == found[2]
