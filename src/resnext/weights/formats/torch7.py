"""Torch7's binary files (.t7): the modules of a network with their tensors. Functions are skipped.

Source: Torch7's documentation of its serialization.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from resnext.errors import CheckpointError
from resnext.weights.formats.pickles import brief

_NIL, _NUMBER, _STRING, _TABLE, _OBJECT, _BOOLEAN, _FUNCTION = range(7)
_FUNCTIONS = (_FUNCTION, 7, 8)
_TYPES = {
    "Float": "<f4",
    "Cuda": "<f4",
    "Double": "<f8",
    "CudaDouble": "<f8",
    "Long": "<i8",
    "CudaLong": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "<i1",
    "Byte": "<u1",
}
_DEEPEST = 60


class Module(NamedTuple):
    """An object of Lua: its class and its fields."""

    kind: str
    """Name of the class: `nn.Sequential`."""
    fields: dict[Any, Any]

    def children(self) -> list[Module]:
        """Modules inside, in order."""
        modules = self.fields.get("modules")
        if not isinstance(modules, dict):
            return []
        order = sorted(key for key in modules if isinstance(key, int))
        return [modules[key] for key in order if isinstance(modules[key], Module)]


def read_torch7(path: Path) -> Any:
    """The content of a file: a `Module`, a dictionary, an array or a plain value.

    Raises:
        CheckpointError: The file is not Torch7's, or is damaged.
    """
    with path.open("rb") as file:
        try:
            return _Reader(file, path.stat().st_size).read()
        except (struct.error, ValueError, OverflowError, UnicodeError, RecursionError) as error:
            raise CheckpointError(f"{path} is a damaged Torch7 file ({brief(error)}).") from error


class _Reader:
    """Reads one file. Objects are numbered; a number that occurs again is a reference."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file = file
        self.left = size
        self.known: dict[int, Any] = {}

    def read(self, depth: int = 0) -> Any:
        """The next value."""
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        kind = self.number("<i")
        if kind == _NIL:
            return None
        if kind == _NUMBER:
            value = self.number("<d")
            return int(value) if value.is_integer() else value
        if kind == _STRING:
            return self.text()
        if kind == _BOOLEAN:
            return self.number("<i") == 1
        index = self.number("<i")
        if index in self.known:
            return self.known[index]
        if kind == _TABLE:
            return self.table(index, depth)
        if kind == _OBJECT:
            return self.instance(index, depth)
        if kind in _FUNCTIONS:
            self.known[index] = None
            self.raw(self.number("<i"))  # its code, which is skipped
            self.read(depth + 1)  # its upvalues
            return None
        raise ValueError(f"unknown type {kind}")

    def table(self, index: int, depth: int) -> dict[Any, Any]:
        """A table: keys and values in turn."""
        table: dict[Any, Any] = {}
        self.known[index] = table
        for _ in range(self.count(self.number("<i"), 8)):
            key, value = self.read(depth + 1), self.read(depth + 1)
            if isinstance(key, str | int | float):
                table[key] = value
        return table

    def instance(self, index: int, depth: int) -> Any:
        """An object: a tensor, a storage or a module."""
        name = self.text()
        if name.startswith("V "):
            name = self.text()
        short = name.removeprefix("torch.")
        for ending in ("Tensor", "Storage"):
            element = _TYPES.get(short.removesuffix(ending))
            if short.endswith(ending) and element is not None:
                read = self.tensor if ending == "Tensor" else self.storage
                self.known[index] = None
                self.known[index] = read(np.dtype(element), depth)
                return self.known[index]
        module = Module(name, {})
        self.known[index] = module
        fields = self.read(depth + 1)
        if isinstance(fields, dict):
            module.fields.update(fields)
        return module

    def storage(self, dtype: np.dtype[Any], depth: int) -> np.ndarray[Any, Any]:
        """A flat array."""
        count = self.count(self.number("<q"), dtype.itemsize)
        return np.frombuffer(self.raw(count * dtype.itemsize), dtype)

    def tensor(self, dtype: np.dtype[Any], depth: int) -> np.ndarray[Any, Any]:
        """A view of a storage."""
        dimensions = self.number("<i")
        if not 0 <= dimensions <= 8:
            raise ValueError(f"{dimensions} dimensions")
        shape = [self.number("<q") for _ in range(dimensions)]
        strides = [self.number("<q") for _ in range(dimensions)]
        offset = self.number("<q") - 1
        storage = self.read(depth + 1)
        if not isinstance(storage, np.ndarray) or not dimensions or 0 in shape:
            return np.zeros(0, dtype)
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if min(shape) < 0 or min(strides) < 0 or offset < 0 or last >= len(storage):
            raise ValueError("a tensor reaches beyond its storage")
        if math.prod(shape) > len(storage):
            raise ValueError("a tensor repeats its storage")
        steps = [s * storage.itemsize for s in strides]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.raw(struct.calcsize(code)))[0]

    def text(self) -> str:
        return self.raw(self.number("<i")).decode("latin1")

    def count(self, number: int, least: int) -> int:
        """A number of elements that the rest of the file can hold.

        Args:
            number: The number that the file states.
            least: Fewest bytes that an element takes.
        """
        if not 0 <= number * least <= self.left:
            raise ValueError(f"{number} elements in {self.left} bytes")
        return number

    def raw(self, count: int) -> bytes:
        content = self.file.read(self.count(count, 1))
        if len(content) != count:
            raise ValueError("cut off")
        self.left -= count
        return content
