"""What a command shows while it works: a bar in a terminal, else plain lines, or nothing."""

from __future__ import annotations

import sys
import time
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
    """Told what happens."""

    def start(self, title: str, total: int) -> None:
        """A task of `total` images, or of another unit, begins."""

    def advance(self, images: int) -> None:
        """So many were just done."""

    def note(self, text: str) -> None:
        """What belongs to the running task: the current accuracy."""

    def line(self, text: str) -> None:
        """Something worth a line of its own."""

    def stop(self) -> None:
        """Nothing more comes."""


def reporter(show: bool, unit: str = "images") -> Reporter:
    """The one that fits where standard error goes to; `unit` is what is counted."""
    if not show:
        return SilentReporter()
    return LiveReporter(unit=unit) if sys.stderr.isatty() else PlainReporter(unit)


class SilentReporter:
    """Shows nothing."""

    def start(self, title: str, total: int) -> None: ...  # noqa: D102
    def advance(self, images: int) -> None: ...  # noqa: D102
    def note(self, text: str) -> None: ...  # noqa: D102
    def line(self, text: str) -> None: ...  # noqa: D102
    def stop(self) -> None: ...  # noqa: D102


class PlainReporter:
    """One line for each finished task, and one every half minute in between."""

    def __init__(self, unit: str = "images") -> None:
        self._unit = unit
        self._every = 30.0
        self._begun = self._shown = time.monotonic()
        self._done = self._total = 0
        self._title = ""

    def start(self, title: str, total: int) -> None:
        """Remember what begins."""
        self._title, self._total, self._done = title, total, 0
        self._begun = self._shown = time.monotonic()

    def advance(self, images: int) -> None:
        """Print a line if the last one is old."""
        self._done += images
        now = time.monotonic()
        if now - self._shown > self._every and self._done:
            self._shown = now
            rate = self._done / (now - self._begun)
            left = (self._total - self._done) / rate
            self.line(
                f"{self._title}: {self._done}/{self._total} {self._unit}, "
                f"{rate:.0f} {self._unit}/s, {left:.0f} s left"
            )

    def note(self, text: str) -> None:
        """Say nothing: the line of the epoch says it."""

    def line(self, text: str) -> None:
        """Print it."""
        print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Leave nothing behind."""


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

    def start(self, title: str, total: int) -> None:
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
        """Show it behind the bar."""
        self._note = text
        self._progress.update(self._task, note=text)

    def line(self, text: str) -> None:
        """Print it above the bar."""
        self._progress.console.print(text, highlight=False)

    def stop(self) -> None:
        """Take the bar away."""
        self._progress.stop()
