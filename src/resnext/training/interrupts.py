"""SIGINT and SIGTERM: the first one stops after the running step, the second one immediately."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from resnext.errors import Terminated


class Interrupts:
    """Remembers signals until the run reaches a point where it can stop."""

    def __init__(self) -> None:
        self.requested: int | None = None  # the signal that asked to stop
        self.forced = False  # a second signal came, possibly in the middle of a step

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Handle both signals inside the `with` block, if this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number, handler in before.items():
                if handler is not signal.SIG_IGN:
                    signal.signal(number, self._handle)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """End the run as this process's signal asks; as Ctrl-C if another process got the signal.

        Raises:
            KeyboardInterrupt: Always; for SIGTERM, its subclass `Terminated`.
        """
        raise Terminated if self.requested == signal.SIGTERM else KeyboardInterrupt

    def _handle(self, number: int, _: object) -> None:
        if self.requested is not None:
            self.forced = True
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.requested = number
