"""SHA-256 of files and texts."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_digest(text: str) -> str:
    """The first 16 hexadecimal digits of a text's SHA-256, for names of files in the cache.

    Paths that are not UTF-8 are hashed as their bytes.
    """
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
