"""Numbers, nouns and times in messages."""

from __future__ import annotations

import time


def counted(count: int, noun: str) -> str:
    """A number and its noun: "1 image", "2 images", "1,000 images"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """A time span, as precise as a reader needs: "45 s", "38 min", "6 h 10 min", "2 days 3 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes, -1), 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def clock_time(seconds: float, now: float | None = None) -> str:
    """The local time some seconds from now: "14:20", or "Thu 03:10" on another day.

    Args:
        seconds: Seconds from now.
        now: Seconds since 1970; None asks the clock.
    """
    now = time.time() if now is None else now
    then, today = time.localtime(now + seconds), time.localtime(now)
    if then[:3] == today[:3]:
        return time.strftime("%H:%M", then)
    return time.strftime("%a %H:%M" if seconds < 6 * 86400 else "%Y-%m-%d %H:%M", then)
