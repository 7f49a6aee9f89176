"""Records of images, and the cache of them, so that unchanged images are not decoded again."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from resnext.data.dataset import ImageSet, Stored
from resnext.data.decoding import ValueRange, convert, load_pixels, open_lazily, read_source
from resnext.errors import CheckpointError
from resnext.system.atomic import write_atomically
from resnext.system.cache import cache_folder
from resnext.system.digest import short_digest
from resnext.system.limits import DecodingRoom
from resnext.system.progress import Reporter

GRID = 9
"""Width and height of the thumbnail in a record, pixels."""
RECORD = np.dtype(
    [
        ("key", "u8"),  # identifies the image in the cache; 0 if it is not cached
        ("content", "u8"),  # hash of the bytes; 0 for an image that cannot be read
        ("width", "u4"),
        ("height", "u4"),
        ("look", "u1", (GRID, GRID)),  # thumbnail in grey
    ]
)
_VERSION = 1


class ScanCache:
    """Records of earlier scans, by path, size and modification time.

    Args:
        path: The file they are in; None to cache nothing.
        values: What becomes 0 and 255 in 16-bit images, as in a card's `value_range`.
    """

    def __init__(self, path: Path | None, values: ValueRange = None) -> None:
        self.path, self._values, self._room = path, values, DecodingRoom()
        self._old = np.zeros(0, RECORD)
        self._new: list[np.ndarray] = []
        self._stats: dict[Path, tuple[int, int]] = {}
        self._changed = False
        if path is not None:
            with suppress(OSError, ValueError, EOFError, zipfile.BadZipFile):
                with path.open("rb") as file:
                    saved = np.load(file, allow_pickle=False)
                if isinstance(saved, np.ndarray) and saved.dtype == RECORD and saved.ndim == 1:
                    self._old = saved[np.argsort(saved["key"])]
        self._keys = np.ascontiguousarray(self._old["key"])

    def record(self, images: ImageSet, index: int, colour: str) -> np.void:
        """The record of an image, from the cache or computed.

        Raises:
            DataError: The image cannot be read.
        """
        key = self._key(images.images[index])
        if key:
            at = int(np.searchsorted(self._keys, np.uint64(key)))
            if at < len(self._keys) and self._keys[at] == key:
                return self._old[at]
        data = images.read(index)
        name = images.title(index) if isinstance(data, bytes) else ""
        record = np.zeros(1, RECORD)[0]
        content, width, height, thumbnail = _measure(data, name, colour, self._values, self._room)
        record["key"], record["content"] = key, content
        record["width"], record["height"], record["look"] = width, height, thumbnail
        self._changed = self._changed or key != 0
        return record

    def _key(self, image: Path | np.ndarray | Stored) -> int:
        """Identifies an image in the cache; 0 for an array, which needs no decoding."""
        if isinstance(image, np.ndarray):
            return 0
        file = image.file if isinstance(image, Stored) else image
        known = self._stats.get(file)
        if known is None:
            try:
                stat = file.stat()
            except OSError:
                return 0  # reading it raises the error
            known = stat.st_size, stat.st_mtime_ns
            if isinstance(image, Stored):
                self._stats[file] = known
        inside = f"{image.offset} {image.size}" if isinstance(image, Stored) else ""
        text = f"{_VERSION}\0{os.path.abspath(file)}\0{known}\0{inside}"  # noqa: PTH100
        return _hash(text.encode("utf-8", "surrogateescape")) or 1

    def add(self, records: np.ndarray) -> None:
        """Keep these records for `save`."""
        self._new.append(records)

    def save(self, progress: Reporter, complete: bool) -> None:
        """Write the file if new records were added; a failure is only reported.

        Args:
            progress: Takes the line about a failure.
            complete: Whether all images were scanned, so that other old records can be dropped.
        """
        if self.path is None or not self._changed:
            return
        parts = [*self._new, *([] if complete else [self._old])]
        records = np.concatenate([part[part["key"] != 0] for part in parts])

        def write(temporary: str) -> None:
            with Path(temporary).open("wb") as file:
                np.save(file, records)

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, write)
        except (OSError, CheckpointError) as error:
            progress.line(f"The next run will check all images again: {error}")


def cache_file(name: str, folder: Path | None = None) -> Path:
    """The cache file of a data set, by its absolute path.

    Args:
        name: Name of the training split, which is its path.
        folder: Where the file is; None for `scans` in the cache folder.
    """
    digest = short_digest(os.path.abspath(name))  # noqa: PTH100
    return (cache_folder() / "scans" if folder is None else folder) / f"{digest}.npy"


def _measure(
    data: bytes | np.ndarray, name: str, colour: str, values: ValueRange, room: DecodingRoom
) -> tuple[int, int, int, np.ndarray]:
    """Hash, width, height and thumbnail of an image; arrays have no thumbnail."""
    if isinstance(data, np.ndarray):
        content = _hash(f"{data.shape} ".encode() + np.ascontiguousarray(data).tobytes())
        return content, data.shape[1], data.shape[0], np.zeros((GRID, GRID), np.uint8)
    (width, height), small = _decode(data, name, colour, values, room)
    scale = round(max(width, height) / max(small.size))
    inside = (0, 0, width / scale, height / scale)  # a JPEG at an eighth is up to a pixel larger
    grid = small.resize((GRID, GRID), Image.Resampling.BOX, box=inside)
    return _hash(data), width, height, np.asarray(grid)


def _decode(
    data: bytes, name: str, colour: str, values: ValueRange, room: DecodingRoom
) -> tuple[tuple[int, int], Image.Image]:
    """Size of an image, and the image in grey, possibly smaller."""
    if data[:2] == b"\xff\xd8" and (decoded := _decode_jpeg(data, room)):
        return decoded

    def read(source: io.BytesIO) -> tuple[tuple[int, int], Image.Image]:
        with open_lazily(source, name) as image, room.reserve(image.width * image.height):
            load_pixels(image, values)
            whole = convert(ImageOps.exif_transpose(image), colour, values)
            return whole.size, whole.convert("L")

    return read_source(io.BytesIO(data), name, read)


def _decode_jpeg(data: bytes, room: DecodingRoom) -> tuple[tuple[int, int], Image.Image] | None:
    """Size of a JPEG, and the image at an eighth of it; None on any failure.

    All bytes are decoded, so truncation is noticed: only the last step is cheaper. After a failure
    the ordinary decoder runs and raises the better message.
    """
    with suppress(Exception), Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
        width, height = image.size
        if width * height <= (Image.MAX_IMAGE_PIXELS or 0):
            image.draft("L", (max(width // 8, 4 * GRID), max(height // 8, 4 * GRID)))
            # a progressive JPEG is kept whole, as 2 bytes for each colour of each pixel
            whole = "progressive" in image.info
            with room.reserve(width * height // 2 if whole else image.width * image.height):
                image.load()
                small = ImageOps.exif_transpose(image).convert("L")
            upright = (width > height) == (small.width > small.height)
            return ((width, height) if upright else (height, width)), small
    return None


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
