"""The signals that ask a process to end."""

from __future__ import annotations

import signal

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Schedulers send SIGTERM; a terminal that is closed sends SIGHUP. Windows lacks the second."""
STOPPING = (signal.SIGINT, *ENDING)
"""With Ctrl-C."""
