"""A look at every image before any time is spent on training."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from resnext.data.dataset import ImageSet, Problem, Splits, Stored
from resnext.data.decoding import decode_image
from resnext.errors import CheckpointError, DataError
from resnext.system.atomic import write_atomically
from resnext.system.cache import cache_folder
from resnext.system.cpu import available_cores
from resnext.system.progress import Reporter

_TOO_MANY = 0.05
_BATCH = 32
_SMALLEST = 64
"""Pixels of the shorter side below which only equal files count as copies."""
_GRID = 9
_STEP = 2
"""Levels by which neighbours must differ to count as different; less is noise of encoding."""
_BANDS = 8
_COMMON = 20_000
"""Pairs that share a band; what so many share is no sign of a copy."""
_ALIKE = 0.1
"""Mean difference of two looks, in standard deviations. Copies at JPEG quality 50 or half the size
stay below 0.07; of other photographs, none came below 0.45."""
_RECORD = np.dtype(
    [
        ("key", "u8"),
        ("content", "u8"),
        ("width", "u4"),
        ("height", "u4"),
        ("look", "u1", (_GRID, _GRID)),
    ]
)
_VERSION = 1


@dataclass(frozen=True)
class Leak:
    """A training image that is also in another part.

    Args:
        train: The training image.
        part: "val" or "test".
        other: The image there.
        exact: Whether the files are equal, else they look the same.
    """

    train: str
    part: str
    other: str
    exact: bool


@dataclass(frozen=True)
class Conflict:
    """The same file under two classes."""

    titles: tuple[str, str]
    labels: tuple[str, str]


@dataclass(frozen=True)
class Sizes:
    """Width and height of the images with the fewest, the middle and the most pixels."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]


@dataclass(frozen=True)
class Scan:
    """What was found.

    Args:
        splits: The data without what cannot be read, and without training images that are also
            in another part.
        counts: Number of images of each class in each part of `splits`.
        sizes: How large images are; None if none can be read.
        unreadable: Images that cannot be used.
        leaks: Training images that are also in another part. Equal ones were left out of training.
        duplicates: Training images that repeat another one.
        conflicts: Equal images with different classes.
    """

    splits: Splits
    counts: dict[str, np.ndarray]
    sizes: Sizes | None
    unreadable: tuple[Problem, ...]
    leaks: tuple[Leak, ...]
    duplicates: int
    conflicts: tuple[Conflict, ...]

    def summary(self) -> str:
        """How many images of how many classes there are, and how large they are."""
        parts = ", ".join(f"{counts.sum():,} {part}" for part, counts in self.counts.items())
        text = f"{parts} images of {len(self.splits.train.labels)} classes"
        if self.sizes is None:
            return f"{text}."
        small, large = (f"{w}×{h}" for w, h in (self.sizes.smallest, self.sizes.largest))
        return f"{text}, {small if small == large else f'{small} to {large}'} pixels."

    def lines(self) -> list[str]:
        """What was found, in short sentences; nothing about what was not."""
        found: list[str] = []
        if self.unreadable:
            first = self.unreadable[0]
            found.append(
                f"{_images(len(self.unreadable))} left out as unreadable, such as "
                f"{first.title}: {first.reason}"
            )
        for exact in (True, False):
            leaks = [leak for leak in self.leaks if leak.exact == exact]
            if leaks:
                how = "equal to" if exact else "that look like"
                then = "; left out of training" if exact else "; look whether they are copies"
                found.append(
                    f"{_images(len({leak.train for leak in leaks}), 'training image')} {how} one "
                    f"of another part{then}, such as {leaks[0].train} and {leaks[0].other}."
                )
        if self.duplicates:
            found.append(f"{_images(self.duplicates, 'training image')} equal to another one.")
        if self.conflicts:
            (a, b), (x, y) = self.conflicts[0].titles, self.conflicts[0].labels
            found.append(
                f"{_images(len(self.conflicts))} in two classes, such as {a} ({x}) and {b} ({y})."
            )
        return found


def _images(count: int, what: str = "image") -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def scan(
    splits: Splits,
    report: Reporter,
    *,
    cache: Path | Literal["auto"] | None = "auto",
    threads: int | None = None,
    quarantine: Path | None = None,
) -> Scan:
    """Read and decode every image once, and compare them.

    What was decoded without a problem is remembered by name, size and time of change, and not
    decoded again while these are the same.

    Args:
        splits: The data.
        report: Told how far it is.
        cache: Folder of what is remembered; "auto" is `scans` in the cache of downloads, None
            remembers nothing.
        threads: How many decode at a time; by default one for each processor, but at most 8.
        quarantine: File to list the images in that cannot be used, if there are any.

    Raises:
        DataError: More than 5 % of a class in `train` and `val` together cannot be read, or the
            list cannot be written.
    """
    parts = splits.parts()
    looks: dict[str, np.ndarray] = {}
    bad: dict[str, dict[int, str]] = {}
    report.start("Checking images", sum(map(len, parts.values())))
    memory = _ScanCache(None if cache is None else _cache_file(splits, cache))
    try:
        for name, part in parts.items():
            looks[name], bad[name] = _look_at(part, splits.colour, memory, report, threads)
    finally:
        memory.keep(report, complete=len(looks) == len(parts))
        del memory
    unreadable = (*splits.problems, *_problems(parts, bad))
    if quarantine is not None and unreadable:
        write_quarantine(quarantine, unreadable)
    _refuse_too_many(splits, bad, quarantine)
    kept = {
        name: np.setdiff1d(np.arange(len(part)), list(bad[name])) for name, part in parts.items()
    }
    everything = _ImageIndex(parts, looks, kept)
    leaks = everything.leaks()
    leaking = np.unique([pair.train for pair in leaks]).astype(np.int64)
    kept["train"] = np.setdiff1d(kept["train"], leaking)
    _refuse_empty(splits.train, kept["train"])
    rest = _ImageIndex(parts, looks, kept)
    whole = {name: _selected(part, kept[name]) for name, part in parts.items()}
    return Scan(
        replace(splits, train=whole["train"], val=whole["val"], test=whole.get("test")),
        {name: part.counts() for name, part in whole.items()},
        everything.sizes(),
        unreadable,
        tuple(
            Leak(splits.train.title(p.train), p.part, parts[p.part].title(p.other), p.exact)
            for p in (*leaks, *rest.lookalikes())
        ),
        rest.duplicates(),
        everything.conflicts(),
    )


def _selected(part: ImageSet, kept: np.ndarray) -> ImageSet:
    return part if len(kept) == len(part) else part.select(kept, part.name)


def _problems(parts: dict[str, ImageSet], bad: dict[str, dict[int, str]]) -> Iterator[Problem]:
    for name, part in parts.items():
        for index, reason in bad[name].items():
            title = part.title(index)
            label = part.labels[part.targets[index]]
            yield Problem(name, title, label, reason.removeprefix(f"{title}: "))


def _refuse_too_many(
    splits: Splits, bad: dict[str, dict[int, str]], quarantine: Path | None
) -> None:
    k = len(splits.train.labels)
    lost = np.zeros(k, np.int64)
    for name, part in (("train", splits.train), ("val", splits.val)):
        for index in bad[name]:
            lost[part.targets[index]] += 1
    counts = splits.train.counts() + splits.val.counts()
    worst = too_many(lost, counts)
    if worst is None:
        return
    for name, part in (("train", splits.train), ("val", splits.val)):
        for index, reason in bad[name].items():
            if part.targets[index] == worst:
                where = f"{quarantine} lists all." if quarantine else f"The first: {reason}"
                raise DataError(
                    f"{lost[worst]} of {counts[worst]} images of class "
                    f"{splits.train.labels[worst]!r} cannot be read, "
                    f"more than {100 * _TOO_MANY:.0f} %. "
                    f"{where} Repair or remove them, then start again."
                )


def _refuse_empty(train: ImageSet, kept: np.ndarray) -> None:
    """Every class that was learnt from must have something left to be learnt from."""
    counts = np.bincount(np.asarray(train.targets)[kept], minlength=len(train.labels))
    for label, before, after in zip(train.labels, train.counts(), counts, strict=True):
        if before and not after:
            raise DataError(
                f"All {before} training images of class {label!r} are also in another part. "
                f"Give training images of its own to the class."
            )


def too_many(bad: np.ndarray, counts: np.ndarray) -> int | None:
    """The class of which the largest part is unreadable, if that is more than 5 %.

    Args:
        bad: Number of unreadable images of each class.
        counts: Number of images of each class, the unreadable ones among them.
    """
    shares = np.asarray(bad) / np.maximum(counts, 1)
    worst = int(shares.argmax())
    return worst if shares[worst] > _TOO_MANY else None


def write_quarantine(path: Path, problems: Iterable[Problem]) -> None:
    """List images that cannot be used, with columns part, image, label and reason.

    Raises:
        DataError: The file cannot be written.
    """

    def save(temporary: str) -> None:
        with Path(temporary).open(
            "w", encoding="utf-8", errors="surrogateescape", newline=""
        ) as file:
            table = csv.writer(file)
            table.writerow(["part", "image", "label", "reason"])
            table.writerows([p.part, p.title, p.label, p.reason] for p in problems)

    try:
        write_atomically(path, save)
    except CheckpointError as error:
        raise DataError(str(error)) from error


# -- looking at each image --------------------------------------------------------------------


def _look_at(
    part: ImageSet, colour: str, memory: _ScanCache, report: Reporter, threads: int | None
) -> tuple[np.ndarray, dict[int, str]]:
    """A record of each image, and what is wrong with those that have none."""
    records = np.zeros(len(part), _RECORD)
    bad: dict[int, str] = {}

    def check(start: int) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        for index in range(start, min(start + _BATCH, len(part))):
            try:
                records[index] = memory.recall(part, index, colour)
            except DataError as error:
                found.append((index, str(error)))
        return found

    starts = range(0, len(part), _BATCH)
    try:
        with closing(_in_order(check, starts, threads)) as results:
            for start, found in zip(starts, results, strict=True):
                bad.update(found)
                report.advance(min(_BATCH, len(part) - start))
    finally:
        memory.add(records)
    return records, bad


def _in_order(
    work: Callable[[int], list[tuple[int, str]]], items: Sequence[int], threads: int | None
) -> Generator[list[tuple[int, str]]]:
    """Results of `work` in order, never many ahead of what was asked for."""
    threads = threads or min(available_cores(), 8)
    waiting: deque[Future[list[tuple[int, str]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _record(data: bytes | np.ndarray, name: str, colour: str) -> tuple[int, int, int, np.ndarray]:
    """Hash, width, height and looks of an image."""
    if isinstance(data, np.ndarray):
        about = f"{data.shape} ".encode()
        content = _hash(about + np.ascontiguousarray(data).tobytes())
        return content, data.shape[1], data.shape[0], np.zeros((_GRID, _GRID), np.uint8)
    (width, height), small = _decoded(data, name, colour)
    scale = round(max(width, height) / max(small.size))
    inside = (0, 0, width / scale, height / scale)  # a JPEG at an eighth has part of a pixel more
    grid = small.resize((_GRID, _GRID), Image.Resampling.BOX, box=inside)
    return _hash(data), width, height, np.asarray(grid)


def _decoded(data: bytes, name: str, colour: str) -> tuple[tuple[int, int], Image.Image]:
    """Size of an image, and the image in grey, maybe smaller."""
    if data[:2] == b"\xff\xd8" and (found := _jpeg(data)):
        return found
    image = decode_image(data, name, colour)
    return image.size, image.convert("L")


def _jpeg(data: bytes) -> tuple[tuple[int, int], Image.Image] | None:
    """Size, and an eighth of a JPEG; None if anything is wrong, which the usual way tells better.

    All bytes are decoded, so truncation is noticed: only the last step is cheaper.
    """
    with suppress(Exception), Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
        width, height = image.size
        if width * height <= (Image.MAX_IMAGE_PIXELS or 0):
            image.draft("L", (max(width // 8, 4 * _GRID), max(height // 8, 4 * _GRID)))
            image.load()
            small = ImageOps.exif_transpose(image).convert("L")
            upright = (width > height) == (small.width > small.height)
            return ((width, height) if upright else (height, width)), small
    return None


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class _ScanCache:
    """Records of earlier scans, by name, size and time of change."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._old = np.zeros(0, _RECORD)
        self._new: list[np.ndarray] = []
        self._times: dict[Path, tuple[int, int]] = {}
        self._folder: tuple[Path | None, str] = (None, "")
        self._changed = False
        if path is not None:
            with suppress(OSError, ValueError, EOFError, zipfile.BadZipFile):
                with path.open("rb") as file:
                    found = np.load(file, allow_pickle=False)
                if isinstance(found, np.ndarray) and found.dtype == _RECORD and found.ndim == 1:
                    self._old = found[np.argsort(found["key"])]
        self._keys = np.ascontiguousarray(self._old["key"])

    def recall(self, part: ImageSet, index: int, colour: str) -> np.void:
        """The record of an image, remembered or made.

        Raises:
            DataError: It cannot be read.
        """
        record = np.zeros(1, _RECORD)[0]
        key = self._key(part.images[index])
        if key:
            at = int(np.searchsorted(self._keys, np.uint64(key)))
            if at < len(self._keys) and self._keys[at] == key:
                return self._old[at]
        data = part.read(index)
        name = part.title(index) if isinstance(data, bytes) else ""
        content, width, height, thumbnail = _record(data, name, colour)
        record["key"], record["content"] = key, content
        record["width"], record["height"], record["look"] = width, height, thumbnail
        self._changed = self._changed or key != 0
        return record

    def _key(self, image: Path | np.ndarray | Stored) -> int:
        """What an image is remembered by; 0 for an array, which needs no decoding."""
        if isinstance(image, np.ndarray):
            return 0
        file = image.file if isinstance(image, Stored) else image
        known = self._times.get(file)
        if known is None:
            try:
                stat = file.stat()
            except OSError:
                return 0  # reading says what is wrong
            known = stat.st_size, stat.st_mtime_ns
            if isinstance(image, Stored):
                self._times[file] = known
        inside = f"{image.offset} {image.size}" if isinstance(image, Stored) else ""
        about = f"{_VERSION}\0{os.path.abspath(file)}\0{known}\0{inside}"  # noqa: PTH100
        return _hash(about.encode("utf-8", "surrogateescape")) or 1

    def add(self, records: np.ndarray) -> None:
        """Remember these, too."""
        self._new.append(records)

    def keep(self, report: Reporter, complete: bool) -> None:
        """Write the file, if there is anything new in it."""
        if self.path is None or not self._changed:
            return
        parts = [*self._new, *([] if complete else [self._old])]
        records = np.concatenate([part[part["key"] != 0] for part in parts])

        def save(temporary: str) -> None:
            with Path(temporary).open("wb") as file:
                np.save(file, records)

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, save)
        except (OSError, CheckpointError) as error:
            report.line(f"The next run will check all images again: {error}")


def _cache_file(splits: Splits, cache: Path | Literal["auto"]) -> Path:
    """One file for each data set, by its place."""
    folder = cache_folder() / "scans" if cache == "auto" else Path(cache)
    place = os.path.abspath(splits.train.name)  # noqa: PTH100
    digest = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()
    return folder / f"{digest[:16]}.npy"


# -- comparing images -------------------------------------------------------------------------


class _Pair(NamedTuple):
    """Positions of a training image and of the same image in another part."""

    train: int
    part: str
    other: int
    exact: bool


class _ImageIndex:
    """The readable images of all parts, one after the other."""

    def __init__(
        self,
        parts: dict[str, ImageSet],
        looks: dict[str, np.ndarray],
        kept: dict[str, np.ndarray],
    ) -> None:
        self.parts, self.names, self.looks = parts, list(parts), looks
        self.part = np.repeat(np.arange(len(parts)), [len(kept[name]) for name in parts])
        self.index = np.concatenate([kept[name] for name in parts])
        self.content = np.concatenate([looks[name]["content"][kept[name]] for name in parts])

    def sizes(self) -> Sizes | None:
        """The smallest, the median and the largest."""
        if not len(self.index):
            return None
        sides = ("width", "height")
        width, height = (np.concatenate([x[side] for x in self.looks.values()]) for side in sides)
        pixels = width.astype(np.int64) * height
        order = np.argsort(pixels, kind="stable")[np.count_nonzero(pixels == 0) :]
        chosen = (order[i] for i in (0, len(order) // 2, -1))
        return Sizes(*((int(width[i]), int(height[i])) for i in chosen))

    def leaks(self) -> list[_Pair]:
        """Training images that are equal to one of another part."""
        pairs: list[_Pair] = []
        for group in _groups(self.content, self.part == 0):
            other = int(group[self.part[group] != 0][0])
            pairs += [self._pair(i, other, True) for i in group[self.part[group] == 0].tolist()]
        return sorted(pairs)

    def lookalikes(self) -> list[_Pair]:
        """Training images that look like one of another part, without being equal to it."""
        codes = {name: _difference_hash_bands(records) for name, records in self.looks.items()}
        found: dict[int, _Pair] = {}
        for band in range(_BANDS):
            values = self._chosen({name: code[:, band] for name, code in codes.items()})
            for group in _groups(values, self.part == 0):
                train, others = (group[(self.part[group] == 0) == is_train] for is_train in (1, 0))
                if len(train) * len(others) > _COMMON:
                    continue
                a, b = self._looks(train)[:, None], self._looks(others)[None]
                apart = np.abs(a - b).mean((2, 3)) / a.std((2, 3))
                apart[self.content[train][:, None] == self.content[others]] = np.inf
                for i, row in zip(train.tolist(), apart, strict=True):
                    if row.min() < _ALIKE:
                        found.setdefault(i, self._pair(i, int(others[row.argmin()]), False))
        return sorted(found.values())

    def _pair(self, train: int, other: int, exact: bool) -> _Pair:
        index = self.index
        return _Pair(int(index[train]), self.names[self.part[other]], int(index[other]), exact)

    def _chosen(self, values: dict[str, np.ndarray]) -> np.ndarray:
        """Values of the images that take part."""
        parts = enumerate(self.names)
        return np.concatenate([values[name][self.index[self.part == i]] for i, name in parts])

    def _looks(self, images: np.ndarray) -> np.ndarray:
        names = [self.names[part] for part in self.part[images]]
        pairs = zip(names, self.index[images].tolist(), strict=True)
        return np.stack([self.looks[name]["look"][i] for name, i in pairs]).astype(np.int16)

    def duplicates(self) -> int:
        """How many training images repeat another one."""
        content = self.content[self.part == 0]
        return len(content) - len(np.unique(content))

    def conflicts(self) -> tuple[Conflict, ...]:
        """Equal images of different classes."""
        found: list[Conflict] = []
        for group in _groups(self.content):
            seen: dict[str, str] = {}
            for i in map(int, group):
                part = self.parts[self.names[self.part[i]]]
                index = int(self.index[i])
                seen.setdefault(part.labels[part.targets[index]], part.title(index))
            first, *rest = seen
            found += [Conflict((seen[first], seen[x]), (first, x)) for x in rest]
        return tuple(found)


def _groups(values: np.ndarray, train: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Positions of equal values that are not 0, at least two each.

    Args:
        values: What must be equal.
        train: Which are of the training part; then a group has some that are and some that are
            not.
    """
    if not len(values):
        return
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    begins = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    lengths = np.diff(np.r_[begins, len(order)])
    wanted = (lengths > 1) & (ranked[begins] != 0)
    if train is not None:
        count = np.add.reduceat(train[order].astype(np.int64), begins)
        wanted &= (count > 0) & (count < lengths)
    for begin, length in zip(begins[wanted], lengths[wanted], strict=True):
        yield order[begin : begin + length]


def _difference_hash_bands(records: np.ndarray) -> np.ndarray:
    """Which neighbours in a look get brighter, 18 of 144 in each band; copies share most bands.

    0 stands for bands that say little, and for small images and such with hardly any contrast.
    """
    result = np.zeros((len(records), _BANDS), np.uint32)
    for start in range(0, len(records), 8192):
        part = records[start : start + 8192]
        thumbnail = part["look"].astype(np.int16)
        rises = [(np.diff(thumbnail, axis=axis) > _STEP).reshape(len(part), -1) for axis in (1, 2)]
        bits = np.concatenate(rises, axis=1).reshape(len(part), _BANDS, -1)
        weights = 1 << np.arange(bits.shape[2], dtype=np.uint32)
        codes = (bits * weights).sum(2, dtype=np.uint32)
        codes[(bits.sum(2) < 3) | (bits.sum(2) > bits.shape[2] - 3)] = 0
        codes[thumbnail.reshape(len(part), -1).std(1) < 8] = 0
        codes[np.minimum(part["width"], part["height"]) < _SMALLEST] = 0
        result[start : start + 8192] = codes
    return result
