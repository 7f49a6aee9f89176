"""MXNet's lists of arrays: `.params` files of Gluon and of the older module interface.

A file is a list of arrays and a list of names, both preceded by their length. All numbers are
little-endian. Source: `NDArray::Save` in MXNet's `src/ndarray/ndarray.cc`.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import IO

import numpy as np

from resnext.errors import CheckpointError

START = b"\x12\x01\0\0\0\0\0\0"
"""The first bytes of every such file."""

_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA  # versions of an array
_TYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
_MOST_DIMENSIONS = 8


def read_mxnet(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a file, by name.

    Raises:
        CheckpointError: The file is damaged, or holds arrays that are not dense.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            file.seek(16)  # behind the first bytes, and as many that are not used
            (count,) = _numbers(file, "<Q", size // 8)
            arrays = [_array(file, size) for _ in range(count)]
            (named,) = _numbers(file, "<Q", size // 8)
            names = [_text(file, size) for _ in range(named)]
        except (struct.error, ValueError, IndexError) as error:
            raise CheckpointError(f"{path} is a damaged MXNet file: {error}.") from error
    if len(names) != len(arrays) or len(set(names)) != len(names):
        raise CheckpointError(f"{path} has {len(arrays)} arrays, but not as many names.")
    return {
        name.removeprefix("arg:").removeprefix("aux:"): array
        for name, array in zip(names, arrays, strict=True)
    }


def _numbers(file: IO[bytes], kind: str, most: int) -> tuple[int, ...]:
    """Numbers in the file, none of which may exceed `most`."""
    numbers = struct.unpack(kind, file.read(struct.calcsize(kind)))
    if any(number > most for number in numbers):
        raise ValueError(f"it states {max(numbers)}, more than the file can hold")
    return numbers


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """One array: version, shape, device, type, values."""
    (version,) = struct.unpack("<I", file.read(4))
    if version in (_V2, _V3) and struct.unpack("<i", file.read(4)) != (0,):
        raise ValueError("an array is sparse")
    dimensions = version
    if version in (_V1, _V2, _V3):
        (dimensions,) = struct.unpack("<i", file.read(4))
    if not 0 <= dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"an array has {dimensions} dimensions")
    number = "q" if version in (_V1, _V2, _V3) else "I"
    shape = _numbers(file, f"<{dimensions}{number}", size)
    if not dimensions and version != _V3:
        return np.zeros(0, np.float32)  # nothing follows
    file.read(8)  # the device it was on
    (kind,) = struct.unpack("<i", file.read(4))
    dtype = np.dtype(_TYPES[kind] if kind >= 0 else "")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > size:
        raise ValueError(f"an array has shape {shape}, more than the file can hold")
    return np.frombuffer(file.read(wanted), dtype).reshape(shape)


def _text(file: IO[bytes], size: int) -> str:
    (length,) = _numbers(file, "<Q", size)
    return file.read(length).decode()
