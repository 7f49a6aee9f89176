"""SIGINT, SIGTERM and SIGHUP: the run stops after the running step, at a second Ctrl-C at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from resnext.errors import Terminated
from resnext.system.signals import ENDING, STOPPING


class Interrupts:
    """Remembers signals until the run reaches a point where it can stop.

    `timeout` and `torchrun` send a signal to the whole group and once more to their children, so a
    second SIGTERM, and under `torchrun` a second Ctrl-C, does not force anything.
    """

    def __init__(self) -> None:
        self.requested: int | None = None  # the signal that asked to stop
        self.forced = False  # a second Ctrl-C came, possibly in the middle of a step
        self._repeated = "TORCHELASTIC_RUN_ID" in os.environ

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Handle these signals inside the `with` block, if this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.getsignal(s) for s in STOPPING}
        try:
            for number, handler in before.items():
                if handler is not signal.SIG_IGN:
                    signal.signal(number, self._handle)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Stop if a signal asked for it.

        Raises:
            KeyboardInterrupt: As `stop` does.
        """
        if self.requested is not None:
            self.stop()

    def stop(self) -> None:
        """End the run as this process's signal asks; as Ctrl-C if another process got the signal.

        Raises:
            KeyboardInterrupt: Always; for SIGTERM and SIGHUP, its subclass `Terminated`.
        """
        if self.requested is not None and self.requested in ENDING:
            raise Terminated(self.requested)
        raise KeyboardInterrupt

    def _handle(self, number: int, _: object) -> None:
        if self.requested is None:
            self.requested = number
        elif number == signal.SIGINT and not self._repeated:
            self.forced = True
            raise KeyboardInterrupt
