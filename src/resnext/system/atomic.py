"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from resnext.errors import CheckpointError


def write_atomically(path: Path, write: Callable[[str], None]) -> None:
    """Let `write` fill a file of another name, then put it in its place.

    Raises:
        CheckpointError: It cannot be written; what was there before still is.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            write(temporary)
            Path(temporary).chmod(0o666 & ~_umask())
            fsync(temporary)
            Path(temporary).replace(path)
            fsync(path.parent)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}.") from error


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """The same for content that is known already."""

    def write(temporary: str) -> None:
        Path(temporary).write_bytes(content)

    write_atomically(path, write)


def fsync(path: str | Path) -> None:
    """Have the disk hold what was written, so that a power cut cannot lose it."""
    with suppress(PermissionError):  # a folder that may be written but not read
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
