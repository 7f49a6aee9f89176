"""Words, times and hashes for messages and file names."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from resnext.system.digest import file_sha256, short_digest
from resnext.system.text import clock_time, counted, duration


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1000, "1,000 images")],
)
def test_counted(count: int, text: str) -> None:
    """Messages said "1 images", or avoided numbers."""
    assert counted(count, "image") == text


def test_digests(tmp_path: Path) -> None:
    """A path that is not UTF-8 must have a cache file, too."""
    assert short_digest("ü") == hashlib.sha256("ü".encode()).hexdigest()[:16]
    assert short_digest(os.fsdecode(b"\xff")) == hashlib.sha256(b"\xff").hexdigest()[:16]
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (38 * 60, "38 min"),
        (99 * 60, "99 min"),
        (100 * 60, "1 h 40 min"),
        (2 * 3600, "2 h"),
        (6 * 3600 + 11 * 60, "6 h 10 min"),
        (3 * 86400 + 2 * 3600, "3 days 2 h"),
        (4 * 86400, "4 days"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    """Two units at most, and no more digits than an estimate has."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        (10, "14:20"),
        (10 * 60, "Thu 00:10"),
        (30 * 60, "Thu 20:10"),
        (9 * 24 * 60, "2026-12-04 14:10"),
    ],
)
def test_clock_time(minutes: int, text: str) -> None:
    """A time on another day has the day, or it is taken for today's."""
    now = time.mktime((2026, 11, 25, 14, 10, 0, 0, 0, -1))
    assert clock_time(60 * minutes, now) == text
