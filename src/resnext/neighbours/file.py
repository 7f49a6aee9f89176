"""The file of an index, and the unfinished one that an interrupted call continues.

FILE.index        a safetensors file: embeddings of length 1, thumbnails, classes and names
FILE.index.part   a line of settings, then a record for each image, in order
"""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float16, Float32, Int64, UInt8
from safetensors import SafetensorError, safe_open

from resnext.errors import CheckpointError, MissingFileError
from resnext.system.atomic import lock, write_atomically

_VERSION = 2
_KEY = "resnext_index"
_HEAD = struct.Struct("<II")  # of a record: checksum, bytes of the thumbnail
_BLOCK = 1 << 20  # bytes that are read at once: what is computed of them stays in the cache
_TYPES: dict[str, tuple[str, Any]] = {
    "thumbnail_ends": ("I64", "<i8"),
    "name_ends": ("I64", "<i8"),
    "targets": ("I32", "<i4"),
    "embeddings": ("F16", "<f2"),
    "names": ("U8", "u1"),
    "thumbnails": ("U8", "u1"),
    "checksum": ("U8", "u1"),
}


class Record(NamedTuple):
    """What is kept of an image; None in place of one that cannot be read."""

    vector: Float16[np.ndarray, " d"]
    """The embedding, divided by its length."""
    thumbnail: bytes
    """A JPEG of at most 96 pixels."""


def unfinished_path(out: Path) -> Path:
    """The unfinished file of an index."""
    return out.with_name(f"{out.name}.part")


class UnfinishedIndex:
    """The records so far, on disk. They are continued if the settings are the same.

    Args:
        out: The index that will be written.
        settings: Everything that the records depend on.
        width: Length of an embedding.
        step: Of an earlier call, a multiple of this many records is kept.

    Raises:
        CheckpointError: The file cannot be written, or another run is writing it.
    """

    def __init__(self, out: Path, settings: dict[str, Any], width: int, step: int) -> None:
        self.out, self.width = out, width
        self.path = unfinished_path(out)
        self.sizes = array("q")
        """Bytes of each thumbnail; 0 for an image that could not be read."""
        line = json.dumps({_KEY: _VERSION, **settings}).encode() + b"\n"
        self._start = len(line)
        try:
            self._file: IO[bytes] = self.path.open("r+b" if self.path.exists() else "w+b")
            lock(self._file.fileno(), self.path)
            if self._file.readline() == line:
                self._keep(step)
            else:
                self._file.seek(0)
                self._file.truncate()
                self._file.write(line)
        except CheckpointError:
            self._file.close()
            raise
        except OSError as error:
            raise self._not_written(error) from error

    def add(self, records: Sequence[Record | None]) -> None:
        """Append the next records.

        Raises:
            CheckpointError: The disk is full, for example.
        """
        try:
            for record in records:
                vector, thumbnail = record or (np.zeros(self.width, "<f2"), b"")
                body = np.asarray(vector, "<f2").tobytes() + thumbnail
                head = _HEAD.pack(zlib.crc32(body), len(thumbnail))
                self._file.write(head + body)
            self._file.flush()
        except OSError as error:
            raise self._not_written(error) from error
        self.sizes.extend(0 if record is None else len(record.thumbnail) for record in records)

    def finish(
        self, names: Sequence[str], targets: Sequence[int], description: dict[str, Any]
    ) -> None:
        """Write the index and remove the unfinished file.

        Args:
            names: Name of each image, also of those that could not be read.
            targets: Class of each image, -1 for none.
            description: What to keep beside the images.

        Raises:
            CheckpointError: The index cannot be written; the unfinished file stays.
        """
        rows = np.flatnonzero(np.asarray(self.sizes)).tolist()
        encoded = [names[i].encode("utf-8", "surrogateescape") for i in rows]
        small = {
            "thumbnail_ends": np.cumsum(np.asarray(self.sizes)[rows]),
            "name_ends": np.cumsum([*map(len, encoded)]),
            "targets": np.asarray(targets, np.int64)[rows],
        }
        shapes = {name: [len(rows)] for name in small}
        shapes |= {"embeddings": [len(rows), self.width], "names": [sum(map(len, encoded))]}
        shapes |= {"thumbnails": [sum(self.sizes)], "checksum": [4]}

        def write(temporary: str) -> None:
            with Path(temporary).open("wb") as file:
                file.write(_header(shapes, {"version": _VERSION, **description}))
                checksum = 0
                for part in self._parts(small, encoded):
                    file.write(part)
                    checksum = zlib.crc32(part, checksum)
                for _, thumbnail in self._records():
                    file.write(thumbnail)
                file.write(checksum.to_bytes(4, "little"))

        write_atomically(self.out, write)
        self._file.close()
        self.path.unlink(missing_ok=True)

    def vectors(self, rows: Iterable[int]) -> Float32[np.ndarray, "n d"]:
        """The vectors of some of the images that could be read, by their number among those."""
        wanted = {*rows}
        found = [vector for i, (vector, _) in enumerate(self._records()) if i in wanted]
        return np.frombuffer(b"".join(found), "<f2").reshape(-1, self.width).astype(np.float32)

    def close(self) -> None:
        """Close the file and leave it as it is."""
        with suppress(OSError):  # reported when it was written
            self._file.close()

    def _parts(self, small: dict[str, np.ndarray], names: list[bytes]) -> Iterator[bytes]:
        """Everything before the thumbnails, in the order of `_TYPES`."""
        for name, values in small.items():
            yield values.astype(_TYPES[name][1]).tobytes()
        yield from (vector for vector, _ in self._records())
        yield from names

    def _records(self) -> Iterator[tuple[bytes, bytes]]:
        """Vector and thumbnail of each image that could be read."""
        size = 2 * self.width
        with self.path.open("rb") as file:
            file.seek(self._start)
            for thumbnail in self.sizes:
                file.seek(_HEAD.size, os.SEEK_CUR)
                body = file.read(size + thumbnail)
                if thumbnail:
                    yield body[:size], body[size:]

    def _keep(self, step: int) -> None:
        """Count the complete records of an earlier call, and cut off what follows."""
        end = self._start
        while len(head := self._file.read(_HEAD.size)) == _HEAD.size:
            checksum, size = _HEAD.unpack(head)
            body = self._file.read(2 * self.width + size)
            if len(body) < 2 * self.width + size or zlib.crc32(body) != checksum:
                break
            self.sizes.append(size)
        kept = len(self.sizes) // step * step
        del self.sizes[kept:]
        end += kept * (_HEAD.size + 2 * self.width) + sum(self.sizes)
        self._file.seek(end)
        self._file.truncate()

    def _not_written(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self.path} cannot be written: {error.strerror or error}. What is done is kept; the "
            f"same command continues from there."
        )


def _header(shapes: dict[str, list[int]], description: dict[str, Any]) -> bytes:
    """The header of the safetensors file."""
    entries: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(description)}}
    end = 0
    for name, (kind, dtype) in _TYPES.items():
        begin = end
        end += int(np.prod(shapes[name])) * np.dtype(dtype).itemsize
        entries[name] = {"dtype": kind, "shape": shapes[name], "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def single(halves: Float16[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Finite half-precision numbers in single precision: six times as fast as `astype`.

    The bits of exponent and fraction move to their new positions, and a multiplication corrects the
    exponent, which counts from 127 in place of 15.
    """
    bits = halves.view(np.int16).astype(np.int32)  # the sign fills the upper half
    bits <<= 13
    bits &= np.int32(~0x70000000)  # of the sign, keep one bit
    values = bits.view(np.float32)
    values *= np.float32(2.0**112)
    return values


class IndexFile:
    """A finished index, read in parts.

    Args:
        path: The file.

    Raises:
        MissingFileError: The file does not exist.
        CheckpointError: The file is not an index, is damaged, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise MissingFileError(
                f"{path} does not exist. Make it with resnext index PHOTOS --model FILE."
            )
        try:
            self._file: Any = safe_open(path, framework="np")
            description = (self._file.metadata() or {}).get(_KEY)
            if description is None:
                raise CheckpointError(
                    f"{path} is not an index of images. Make one with resnext index."
                )
            self.description: dict[str, Any] = json.loads(description)
            version = self.description.get("version")
            if version != _VERSION:
                raise CheckpointError(
                    f"{path} was written by another version of resnext (format {version}, not "
                    f"{_VERSION}). Make it again with resnext index."
                )
            threshold = self.description.get("unknown_threshold")
            self.unknown_threshold = None if threshold is None else float(threshold)
            self.unknown_weight = float(self.description.get("unknown_weight", 0.0))
            crop = self.description.get("crop")
            self.crop = None if crop is None else (int(crop[0]), int(crop[1]))
            self.targets: Int64[np.ndarray, " n"] = self._tensor("targets").astype(np.int64)
            self._ends = {name: self._tensor(f"{name}_ends") for name in ("name", "thumbnail")}
            self.width = int(self._file.get_slice("embeddings").get_shape()[1])
        except (OSError, SafetensorError, ValueError, KeyError, IndexError, TypeError) as error:
            raise self.damaged() from error

    def __len__(self) -> int:
        return len(self.targets)

    def vectors(self) -> Iterator[Float32[np.ndarray, "n d"]]:
        """The vectors of length 1, some rows at a time.

        Raises:
            CheckpointError: The checksum is wrong.
        """
        if not self._sound:
            raise self.damaged()
        for halves in self._blocks("embeddings"):
            block = single(halves)
            length = np.sqrt(np.einsum("nd,nd->n", block, block))  # rounding changed it
            block /= length[:, None].clip(1e-30)
            yield block

    def some_vectors(self, rows: Iterable[int]) -> Float32[np.ndarray, "m d"]:
        """The vectors of some rows, read one by one; the checksum is not compared."""
        table = self._file.get_slice("embeddings")
        return np.concatenate([table[i : i + 1] for i in rows]).astype(np.float32)

    def name(self, row: int) -> str:
        """Name of an image."""
        return self._piece("name", row).tobytes().decode("utf-8", "surrogateescape")

    def thumbnail(self, row: int) -> bytes:
        """The JPEG of an image."""
        return self._piece("thumbnail", row).tobytes()

    def _piece(self, kind: str, row: int) -> UInt8[np.ndarray, " b"]:
        ends = self._ends[kind]
        start = int(ends[row - 1]) if row else 0
        return self._file.get_slice(f"{kind}s")[start : int(ends[row])]

    def _blocks(self, name: str) -> Iterator[np.ndarray]:
        rows = self._file.get_slice(name)
        count, *others = rows.get_shape()
        step = max(_BLOCK // (math.prod(others) * np.dtype(_TYPES[name][1]).itemsize), 1)
        return (rows[i : min(i + step, count)] for i in range(0, count, step))

    @cached_property
    def _sound(self) -> bool:
        """Whether the checksum of everything but the thumbnails is right."""
        checksum = 0
        for name in itertools.takewhile(lambda name: name != "thumbnails", _TYPES):
            for block in self._blocks(name):
                checksum = zlib.crc32(block.data, checksum)
        return checksum == int.from_bytes(self._tensor("checksum").tobytes(), "little")

    def _tensor(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def damaged(self) -> CheckpointError:
        """The error for a damaged index."""
        return CheckpointError(
            f"{self.path} is damaged, or not an index. Make it again with resnext index."
        )
