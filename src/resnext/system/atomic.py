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
    """Write a temporary file, then move it to `path`.

    Args:
        path: The file to write.
        write: Fills the file whose path it is given.

    Raises:
        CheckpointError: The file cannot be written; a file that was there before is unchanged.
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
    """Write `content` to a temporary file, then move it to `path`.

    Raises:
        CheckpointError: The file cannot be written; a file that was there before is unchanged.
    """

    def write(temporary: str) -> None:
        Path(temporary).write_bytes(content)

    write_atomically(path, write)


def fsync(path: str | Path) -> None:
    """fsync a file or folder, so that a power cut loses nothing that was written."""
    with suppress(PermissionError):  # a folder may be writable but not readable
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
