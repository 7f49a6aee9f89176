"""Files that are written completely or not at all, and whether a file can be written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from resnext.errors import CheckpointError, ResNeXtError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def check_writable(path: Path, error: type[ResNeXtError] = CheckpointError) -> None:
    """Refuse a file that could not be written, before the work whose result it will hold.

    Its folder need not exist. Nothing is created.

    Raises:
        ResNeXtError: The path is a folder or a device, or its folder cannot be written or made; of
            the class `error`.
    """
    if path.is_dir():
        raise error(f"{path} is a folder. Give the name of a file.")
    if path.exists() and not path.is_file():
        raise error(f"{path} is not a regular file. Give the name of a file.")
    folder = existing_folder(path)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise error(
            f"{path} cannot be written: {folder}: {problem.strerror}. Write somewhere else."
        ) from problem


def existing_folder(path: Path) -> Path:
    """The folder of a file, or the innermost one above it that exists."""
    return next(folder for folder in path.absolute().parents if folder.exists())


def make_folder(path: Path, error: type[ResNeXtError] = CheckpointError) -> None:
    """Create the folder of a file that is about to be written.

    Raises:
        ResNeXtError: It cannot be created; of the class `error`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise error(f"{path} cannot be written: {problem}.") from problem


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other runs out of a folder, which is created; nothing is left in it.

    Args:
        folder: The folder.
        wait: Whether to wait for another run; else it is an error.

    Raises:
        CheckpointError: Another run is in it, or it cannot be created.
    """
    make_folder(folder / "any")
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle, folder, wait=wait)
        yield
    finally:
        os.close(handle)


def lock(handle: int, path: Path, *, wait: bool = False) -> None:
    """Keep other runs out of an open file or folder until it is closed, where locks exist.

    Args:
        handle: Its descriptor.
        path: Its path, for the message.
        wait: Whether to wait for another run; else it is an error.

    Raises:
        CheckpointError: Another run is writing it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise CheckpointError(
            f"Another run is writing {path}. Wait until it ends, or choose another name."
        ) from error
    except OSError:  # a file system without locks
        pass


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
