"""Progress of a command: a bar in a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class Reporter(Protocol):
    """Receives the progress of a command."""

    def start(self, title: str, total: int | None) -> None:
        """Begin a task of `total` images, or of another unit; None if that is unknown."""

    def advance(self, images: int) -> None:
        """Count images that were just done."""

    def note(self, text: str) -> None:
        """Set a text about the running task, such as the current accuracy."""

    def line(self, text: str) -> None:
        """Print a line."""

    def stop(self) -> None:
        """End the display."""


def reporter(show: bool, unit: str = "images") -> Reporter:
    """The reporter for standard error: a bar in a terminal, else plain lines.

    Args:
        show: Whether to show anything.
        unit: Noun for the items that are counted.
    """
    if not show:
        return SilentReporter()
    return LiveReporter(unit=unit) if sys.stderr.isatty() else PlainReporter(unit)


class SilentReporter:
    """Shows nothing."""

    def start(self, title: str, total: int | None) -> None: ...  # noqa: D102
    def advance(self, images: int) -> None: ...  # noqa: D102
    def note(self, text: str) -> None: ...  # noqa: D102
    def line(self, text: str) -> None: ...  # noqa: D102
    def stop(self) -> None: ...  # noqa: D102


class PlainReporter:
    """Prints given lines, and one about the running task every half minute."""

    def __init__(self, unit: str = "images") -> None:
        self._unit = unit
        self._interval = 30.0
        self._begun = self._shown = time.monotonic()
        self._done, self._total = 0, None
        self._title = ""

    def start(self, title: str, total: int | None) -> None:
        """Begin a task, without printing."""
        self._title, self._total, self._done = title, total, 0
        self._begun = self._shown = time.monotonic()

    def advance(self, images: int) -> None:
        """Print a line if the last one is half a minute old."""
        self._done += images
        now = time.monotonic()
        if now - self._shown > self._interval and self._done:
            self._shown = now
            rate = self._done / (now - self._begun)
            done, left = f"{self._done}", ""
            if self._total is not None:
                done += f"/{self._total}"
                left = f", {(self._total - self._done) / rate:.0f} s left"
            self.line(f"{self._title}: {done} {self._unit}, {rate:.0f} {self._unit}/s{left}")

    def note(self, text: str) -> None:
        """Print nothing: the line of the epoch includes it."""

    def line(self, text: str) -> None:
        """Print a line to standard error; a terminal that is gone ends no training."""
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Do nothing: lines need no end."""


class LiveReporter:
    """A bar with images per second, time left and the current accuracy."""

    def __init__(self, console: Console | None = None, unit: str = "images") -> None:
        self._unit = unit
        self._note = ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("[bold]{task.fields[note]}"),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, speed="", note="", visible=False)
        self._progress.start()

    def start(self, title: str, total: int | None) -> None:
        """Show a new bar."""
        self._progress.reset(
            self._task, description=title, total=total, visible=True, speed="", note=self._note
        )

    def advance(self, images: int) -> None:
        """Move the bar."""
        self._progress.advance(self._task, images)
        speed = self._progress.tasks[0].speed
        self._progress.update(self._task, speed=f"{speed:,.0f} {self._unit}/s" if speed else "")

    def note(self, text: str) -> None:
        """Show a text behind the bar."""
        self._note = text
        self._progress.update(self._task, note=text)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, highlight=False, markup=False)

    def stop(self) -> None:
        """Remove the bar."""
        self._progress.stop()
