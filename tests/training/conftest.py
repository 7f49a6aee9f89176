"""Fixtures of the tests of training."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from training_runs import colour_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of a dozen images."""
    return colour_photos(tmp_path)


@pytest.fixture
def environment() -> dict[str, str]:
    """Environment of a command: one thread, which is faster for tiny networks."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
