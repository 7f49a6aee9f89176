"""What a command shows while it works."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from resnext.system import progress
from resnext.system.progress import LiveReporter, PlainReporter, SilentReporter, reporter


def test_live_shows_speed_time_left_and_accuracy() -> None:
    """A field that a new task lacks made rich fail in the middle of a run."""
    screen = io.StringIO()
    live = LiveReporter(Console(file=screen, force_terminal=True, width=120))
    for epoch in (1, 2):
        live.start(f"Epoch {epoch}/2", 100)
        for _ in range(10):
            live.advance(10)
        live.note("accuracy 98.00%")
        live.line(f"epoch {epoch} done")
    live._progress.refresh()
    live.stop()
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    assert "Epoch 2/2" in text
    assert "100/100" in text
    assert "images/s" in text
    assert re.search(r"\d:\d\d:\d\d|-:--:--", text)
    assert "accuracy 98.00%" in text
    assert "epoch 1 done" in text


def test_plain_log_says_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At most half a minute without a line, and not ten lines a second."""
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    plain = PlainReporter()
    plain.start("Epoch 1/1", 200)
    for _ in range(10):
        plain.advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Epoch 1/1: 40/200 images, 1 images/s, 160 s left",
        "Epoch 1/1: 80/200 images, 1 images/s, 120 s left",
    ]


def test_a_log_gets_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cursor movements in a log file cannot be read."""
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    assert isinstance(reporter(show=True), PlainReporter)
    assert isinstance(reporter(show=False), SilentReporter)


def test_a_file_name_is_no_markup() -> None:
    """rich took the brackets of `[old] photos` for a style and left them out."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    live = LiveReporter(console)
    live.line("Left out: [old] photos/[/x].jpg")
    live.stop()
    assert "[old] photos/[/x].jpg" in console.file.getvalue()  # pyright: ignore
