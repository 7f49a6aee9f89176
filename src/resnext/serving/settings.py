"""Options and limits of a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Options and limits of a server.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        token: Secret that clients must send; None for none.
        hosts: Names of the server in the header Host, besides IP addresses, localhost and the
            machine's name.
        origins: Origins of other pages that may call the server (CORS).
        gate: Labelled images on which a new version of the model must not be worse.
        reference: Answers to images as they should be, that the model's answers are compared with.
        watch: Whether to load the model file again when it changes.
        device: "auto", or a torch device.
        plan: Whether to use the plan next to the model file.
        images: Images that may wait or be computed at once.
        queue_bytes: Bytes of request bodies that may be held at once.
        body: Largest request body, bytes.
        pixels: Largest image, pixels.
        per_request: Most images in a request.
        deadline: Longest time from a complete body to the answer, seconds.
        idle: Longest time without a byte of the body, seconds.
        whole: Longest time for the whole body, seconds.
        header: Longest time for the header of a request, seconds.
        drain: Longest time for admitted work after the signal to end, seconds.
        last_bytes: Longest time for bodies that are still being sent then, seconds.
        connections: Connections that are served at once.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    gate: Path | None = None
    reference: Path | None = None
    watch: bool = False
    device: str = "auto"
    plan: bool = True
    images: int = 256
    queue_bytes: int = 128_000_000
    body: int = 20_000_000
    pixels: int = 50_000_000
    per_request: int = 16
    deadline: float = 30.0
    idle: float = 10.0
    whole: float = 30.0
    header: float = 10.0
    drain: float = 25.0
    last_bytes: float = 5.0
    connections: int = 1000
