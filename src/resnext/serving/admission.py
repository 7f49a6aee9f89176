"""How much work is accepted. Used by the event loop only, so it needs no lock."""

from __future__ import annotations

import math
import time

from resnext.serving.problems import Problem
from resnext.system.text import counted

_SMOOTH = 0.9  # weight of the past in the mean time of an image
_LONGEST = 60  # seconds in Retry-After


class Admission:
    """Counts the images and bytes of requests, from their header to their answer.

    Args:
        most_images: Images that may be in the server.
        most_bytes: Bytes of bodies that may be in the server.
    """

    def __init__(self, most_images: int, most_bytes: int) -> None:
        self.most_images, self.most_bytes = most_images, most_bytes
        self.images = self.bytes = 0
        self._seconds = 0.0  # of an image, while there is work
        self._last = 0.0

    def enter(self, size: int) -> Ticket:
        """Let in a request with one image.

        Args:
            size: Bytes of its body as far as they are known.

        Raises:
            Problem: 429; the server is full.
        """
        ticket = Ticket(self)
        ticket.add(images=1, size=size)
        return ticket

    def refusal(self, images: int, size: int) -> Problem | None:
        """429 if there is no room for so many more images and bytes."""
        if self.images + images > self.most_images:
            waiting = counted(self.images, "image")
            detail = f"The server has {waiting} to answer, as many as it takes."
        elif self.bytes + size > self.most_bytes:
            detail = "The server holds as many bytes of requests as it takes."
        else:
            return None
        return Problem(
            429,
            f"{detail} Send the request again after the seconds in Retry-After.",
            "overloaded",
            {"Retry-After": str(self.retry_after())},
        )

    def computed(self, images: int, busy: bool) -> None:
        """Learn the throughput from a batch that is done.

        Args:
            images: Images of the batch.
            busy: Whether it began as soon as the batch before was done.
        """
        now = time.monotonic()
        if busy:
            seconds = (now - self._last) / images
            self._seconds = _SMOOTH * (self._seconds or seconds) + (1 - _SMOOTH) * seconds
        self._last = now

    def retry_after(self) -> int:
        """Seconds until the images that are here now will be done."""
        return max(1, min(math.ceil(self.images * self._seconds), _LONGEST))


class Ticket:
    """The share of a request; given back at the end of a `with` block."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.images = self.bytes = 0

    def add(self, images: int = 0, size: int = 0) -> None:
        """Take more.

        Raises:
            Problem: 429; the server is full.
        """
        whole = self._admission
        if (problem := whole.refusal(images, size)) is not None:
            raise problem
        whole.images += images
        whole.bytes += size
        self.images += images
        self.bytes += size

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.images -= self.images
        self._admission.bytes -= self.bytes
        self.images = self.bytes = 0
