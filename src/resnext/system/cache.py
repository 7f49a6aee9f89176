"""The cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of downloads and measurements: `RESNEXT_HOME`, else `~/.cache/resnext`."""
    if chosen := os.environ.get("RESNEXT_HOME"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnext"
