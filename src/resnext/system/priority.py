"""Which threads of this process get a core first."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

_STEPS = 10  # of nice


def give_way() -> None:
    """Let this thread, and those that it starts from now on, wait for a core behind the main one.

    When there is more to compute than there are cores, the main thread then gets one as soon as it
    has something to do. Only Linux has a priority for each thread.
    """
    own, main = threading.get_native_id(), os.getpid()
    if sys.platform != "linux" or own == main:
        return
    with suppress(PermissionError):  # a sandbox may forbid it
        usual = os.getpriority(os.PRIO_PROCESS, main)
        os.setpriority(os.PRIO_PROCESS, own, usual + _STEPS)
