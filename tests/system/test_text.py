"""Words and hashes for messages and file names."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from resnext.system.digest import file_sha256, short_digest
from resnext.system.text import counted


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
