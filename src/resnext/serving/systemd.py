"""What systemd passes and wants to hear: sockets (LISTEN_FDS) and states (NOTIFY_SOCKET)."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

_FIRST = 3  # the first inherited descriptor, after standard input, output and error


def passed_sockets() -> list[socket.socket]:
    """The listening sockets that systemd opened for this process; none without systemd."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = os.environ.get("LISTEN_FDS", "")
    found = [
        socket.socket(fileno=_FIRST + i) for i in range(int(count) if count.isdecimal() else 0)
    ]
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return found


def notify(state: str) -> None:
    """Tell systemd about a state: "READY=1", "RELOADING=1", "STOPPING=1"; else do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if state.startswith("RELOADING"):
        state += f"\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(state.encode())
