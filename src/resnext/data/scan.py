"""Checks every image before training: unreadable ones, copies, leaks between splits."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from resnext.data.dataset import ImageSet, Problem, Splits
from resnext.data.decoding import ValueRange
from resnext.data.duplicates import Conflict, ImageIndex, Sizes
from resnext.data.scan_cache import RECORD, ScanCache, cache_file
from resnext.errors import CheckpointError, DataError
from resnext.system.atomic import make_folder, write_atomically
from resnext.system.cpu import available_cores
from resnext.system.progress import Reporter
from resnext.system.text import counted

_TOO_MANY = 0.05
_BATCH = 32


@dataclass(frozen=True)
class Leak:
    """A training image that is also in another split.

    Args:
        train: Name of the training image.
        part: The other split, "val" or "test".
        other: Name of the image there.
        exact: Whether the files are equal; otherwise they look alike.
    """

    train: str
    part: str
    other: str
    exact: bool


@dataclass(frozen=True)
class Scan:
    """The result of a scan.

    Args:
        splits: The data without unreadable images, and without training images that are equal to
            one of another split.
        counts: Number of images of each class, by split of `splits`.
        sizes: Sizes of the images; None if none can be read.
        unreadable: Unreadable images.
        leaks: Training images that are also in another split. Equal ones are not in `splits`.
        duplicates: Number of training images that repeat another one.
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
        """Number of images and classes and the range of sizes, as one sentence."""
        classes = len(self.splits.train.labels)
        return f"{self._numbers()} images of {classes} classes{self._pixels(', ')}."

    def overview(self) -> list[str]:
        """Classes, images per class, and files that are not used: three lines to check."""
        labels = self.splits.train.labels
        totals = sum(self.counts.values())
        assert not isinstance(totals, int), "a scan has a split"
        few, many = int(totals.argmin()), int(totals.argmax())
        each = f"{totals[few]:,} of each class"
        if totals[few] != totals[many]:
            each = f"{totals[few]:,} ({labels[few]}) to {totals[many]:,} ({labels[many]}) per class"
        return [
            f"Classes: {len(labels):,} ({_shortened(labels)}).",
            f"Images: {self._numbers()}; {each}{self._pixels('; ')}.",
            f"Passed over: {self._passed_over() or 'nothing'}.",
        ]

    def _pixels(self, separator: str) -> str:
        """Range of sizes, after a separator; empty if no image can be read."""
        if self.sizes is None:
            return ""
        small, large = (f"{w}×{h}" for w, h in (self.sizes.smallest, self.sizes.largest))
        return f"{separator}{small if small == large else f'{small} to {large}'} pixels"

    def _numbers(self) -> str:
        """Number of images of each split, then of unlabelled ones."""
        numbers = [f"{counts.sum():,} {name}" for name, counts in self.counts.items()]
        if self.splits.unlabelled is not None:
            numbers.append(f"{len(self.splits.unlabelled):,} unlabelled")
        return ", ".join(numbers)

    def _passed_over(self) -> str:
        """Numbers of files, images and samples that are not used; empty if all are used."""
        parts: list[str] = []
        if others := len(self.splits.passed_over):
            parts.append(f"{others:,} {'file or folder' if others == 1 else 'files and folders'}")
        if self.unreadable:
            parts.append(counted(len(self.unreadable), "unreadable image"))
        if copies := len({leak.train for leak in self.leaks if leak.exact}):
            parts.append(f"{counted(copies, 'training image')} equal to one of another part")
        return "; ".join(parts)

    def lines(self) -> list[str]:
        """The findings, one sentence each; empty without findings."""
        lines = [*self.splits.passed_over.lines(), *self.splits.notes]
        if self.splits.value_range is not None:
            low, high = self.splits.value_range
            lines.append(
                f"Grey images of more than 8 bits use the values {low:,} to {high:,}: these become "
                f"0 and 255, here and in predictions (value_range in the card)."
            )
        if self.unreadable:
            first = self.unreadable[0]
            lines.append(
                f"{counted(len(self.unreadable), 'image')} left out as unreadable, such as "
                f"{first.title}: {first.reason}"
            )
        for exact in (True, False):
            leaks = [leak for leak in self.leaks if leak.exact == exact]
            if leaks:
                images = counted(len({leak.train for leak in leaks}), "training image")
                relation = "equal to" if exact else "that look like"
                action = "left out of training" if exact else "check whether they are copies"
                lines.append(
                    f"{images} {relation} one of another part; {action}, such as "
                    f"{leaks[0].train} and {leaks[0].other}."
                )
        if self.duplicates:
            lines.append(f"{counted(self.duplicates, 'training image')} equal to another one.")
        if self.conflicts:
            (a, b), (x, y) = self.conflicts[0].titles, self.conflicts[0].labels
            images = counted(len(self.conflicts), "image")
            lines.append(f"{images} in two classes, such as {a} ({x}) and {b} ({y}).")
        return lines


def scan(
    splits: Splits,
    progress: Reporter,
    *,
    cache: Path | Literal["auto"] | None = "auto",
    threads: int | None = None,
    quarantine: Path | None = None,
) -> Scan:
    """Read and decode every image once, and compare them.

    Records of readable images are cached by path, size and modification time, and such images are
    not decoded again while these are unchanged.

    Args:
        splits: The data.
        progress: Shows progress.
        cache: Folder of the cached records; "auto" for `scans` in the cache folder, None to cache
            nothing.
        threads: Number of decoding threads; by default one per core, at most 8.
        quarantine: File that lists the unusable images, written if there are too many.

    Raises:
        DataError: More than 5 % of a class in `train` and `val` together cannot be read, more
            than 5 % of the samples there cannot be used, no training image of a class or no
            validation image is left, or the list cannot be written.
    """
    images = splits.by_name()
    records: dict[str, np.ndarray] = {}
    errors: dict[str, dict[int, str]] = {}
    progress.start("Checking images", sum(map(len, images.values())))
    folder = None if cache is None or cache == "auto" else Path(cache)
    file = None if cache is None else cache_file(splits.train.name, folder)
    known = ScanCache(file, splits.value_range)
    try:
        for name, split in images.items():
            records[name], errors[name] = _read_all(split, splits.colour, known, progress, threads)
    finally:
        known.save(progress, complete=len(records) == len(images))
        del known  # frees its records
    unreadable = (*splits.problems, *_problems(images, errors))
    _refuse_too_many(splits, unreadable, quarantine)
    kept = {
        name: np.setdiff1d(np.arange(len(split)), list(errors[name]))
        for name, split in images.items()
    }
    readable = ImageIndex(images, records, kept)
    leaks = readable.leaks()
    leaking = np.unique([pair.train for pair in leaks]).astype(np.int64)
    kept["train"] = np.setdiff1d(kept["train"], leaking)
    _refuse_empty(splits, kept, errors)
    remaining = ImageIndex(images, records, kept)
    selected = {name: _select(split, kept[name]) for name, split in images.items()}
    return Scan(
        replace(splits, train=selected["train"], val=selected["val"], test=selected.get("test")),
        {name: split.counts() for name, split in selected.items()},
        readable.sizes(),
        unreadable,
        tuple(
            Leak(splits.train.title(p.train), p.part, images[p.part].title(p.other), p.exact)
            for p in (*leaks, *remaining.lookalikes())
        ),
        remaining.duplicates(),
        readable.conflicts(),
    )


def read_records(
    images: ImageSet, colour: str, progress: Reporter, values: ValueRange = None
) -> tuple[np.ndarray, dict[int, str]]:
    """A record of each image, from the cache where it is, and why images cannot be read.

    Args:
        images: The images.
        colour: "L" if they are grey by nature, else "RGB".
        progress: Shows progress.
        values: What becomes 0 and 255 in 16-bit images, as in a card's `value_range`.
    """
    progress.start("Comparing images", len(images))
    cache = ScanCache(cache_file(images.name), values)
    return _read_all(images, colour, cache, progress, None)


def _shortened(labels: Sequence[str], width: int = 90) -> str:
    """Class names separated by commas; of many, the first ones and the last."""
    if len(", ".join(labels)) <= width:
        return ", ".join(labels)
    first = [label for i, label in enumerate(labels) if sum(map(len, labels[: i + 1])) < width // 2]
    return f"{', '.join(first or labels[:1])}, …, {labels[-1]}"


def _select(images: ImageSet, kept: np.ndarray) -> ImageSet:
    return images if len(kept) == len(images) else images.select(kept, images.name)


def _problems(
    splits: Mapping[str, ImageSet], errors: Mapping[str, Mapping[int, str]]
) -> Iterator[Problem]:
    for name, images in splits.items():
        for index, reason in errors[name].items():
            title = images.title(index)
            label = images.labels[images.targets[index]]
            yield Problem(name, title, label, reason.removeprefix(f"{title}: "))


def _refuse_too_many(
    splits: Splits, unreadable: Sequence[Problem], quarantine: Path | None
) -> None:
    """Refuse data that lost too much of a class, or too many samples whatever their class."""
    lost = [problem for problem in unreadable if problem.part != "test"]
    samples = [problem for problem in splits.problems if problem.part != "test"]
    counts = Counter(problem.label for problem in samples)
    for images in (splits.train, splits.val):
        for label, count in zip(images.labels, images.counts().tolist(), strict=True):
            counts[label] += count
    labels = [label for label in counts if label]
    by_class = Counter(problem.label for problem in lost)
    worst = too_many(np.array([by_class[x] for x in labels]), np.array([counts[x] for x in labels]))
    if worst is not None:
        label = labels[worst]
        first = next(problem for problem in lost if problem.label == label)
        what = f"{by_class[label]} of {counts[label]} images of class {label!r}"
    elif len(samples) > _TOO_MANY * counts.total():
        first, what = samples[0], f"{len(samples)} of {counts.total()} samples"
    else:
        return
    every = ""
    if quarantine is not None:
        write_quarantine(quarantine, unreadable)
        every = f"{quarantine} lists all. "
    raise DataError(
        f"{what} cannot be read, more than {100 * _TOO_MANY:.0f} %. The first: {first.title}: "
        f"{first.reason} {every}Repair or remove them, then start again."
    )


def _refuse_empty(
    splits: Splits, kept: Mapping[str, np.ndarray], errors: Mapping[str, Mapping[int, str]]
) -> None:
    """Refuse a class whose training images were all left out, and a validation without images."""
    train, targets = splits.train, np.asarray(splits.train.targets, np.int64)
    left, unreadable = (
        np.bincount(targets[[*chosen]], minlength=len(train.labels))
        for chosen in (kept["train"], errors["train"])
    )
    for i, before in enumerate(train.counts().tolist()):
        if not before or left[i]:
            continue
        reasons = ["cannot be read"] if unreadable[i] else []
        if unreadable[i] < before:
            reasons.append("are also in another split")
        of = f"training images of class {train.labels[i]!r}"
        if len(train.labels) == 1:  # images without classes
            of = f"images in {train.name}"
        raise DataError(
            f"All {before} {of} {' or '.join(reasons)}. Add others, which can be read and are in "
            f"no other split."
        )
    if not len(kept["val"]):
        raise DataError(
            f"No image of {splits.val.name} can be read, so there is nothing to validate on. The "
            f"first: {next(iter(errors['val'].values()))} Repair them, or add others."
        )


def too_many(unreadable: np.ndarray, counts: np.ndarray) -> int | None:
    """The class with the largest unreadable fraction, if that is more than 5 %.

    Args:
        unreadable: Number of unreadable images of each class.
        counts: Number of images of each class, including the unreadable ones.
    """
    fractions = np.asarray(unreadable) / np.maximum(counts, 1)
    worst = int(fractions.argmax())
    return worst if fractions[worst] > _TOO_MANY else None


def write_quarantine(path: Path, problems: Iterable[Problem]) -> None:
    """List images that cannot be used as CSV, with columns part, image, label and reason.

    The folder of the list is created.

    Raises:
        DataError: The file cannot be written.
    """

    def write(temporary: str) -> None:
        with Path(temporary).open(
            "w", encoding="utf-8", errors="surrogateescape", newline=""
        ) as file:
            table = csv.writer(file)
            table.writerow(["part", "image", "label", "reason"])
            table.writerows([p.part, p.title, p.label, p.reason] for p in problems)

    make_folder(path, DataError)
    try:
        write_atomically(path, write)
    except CheckpointError as error:
        raise DataError(str(error)) from error


def add_to_quarantine(path: Path, problems: Iterable[Problem]) -> None:
    """List further images in a file that `write_quarantine` wrote; what it lists stays.

    Raises:
        DataError: The file cannot be written.
    """
    listed: list[Problem] = []
    with (
        suppress(FileNotFoundError),
        path.open(encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        listed = [Problem(*row) for row in csv.reader(file) if len(row) == 4][1:]
    write_quarantine(path, dict.fromkeys([*listed, *problems]))


def record_unreadable(
    images: ImageSet,
    known: dict[str, str],
    found: Mapping[int, str],
    path: Path | None,
    log: Callable[[str], None],
) -> None:
    """Log images that have become unreadable since the scan, and list them in quarantine.csv.

    Args:
        images: The training images.
        known: Why each image that was recorded earlier is unreadable, by its index as text; new
            ones are added.
        found: The same, by index, of those that were just found.
        path: The file quarantine.csv; None to leave it alone.
        log: Called with a line about each new one.

    Raises:
        DataError: More than 5 % of a class cannot be read, or the file cannot be written.
    """
    new = {index: reason for index, reason in found.items() if str(index) not in known}
    known.update({str(index): reason for index, reason in new.items()})
    problems: list[Problem] = []
    for index, reason in new.items():
        log(f"Left out: {reason}")
        title, label = images.title(index), images.labels[images.targets[index]]
        problems.append(Problem("train", title, label, reason.removeprefix(f"{title}: ")))
    if problems and path is not None:
        add_to_quarantine(path, problems)
    lost = np.bincount([int(images.targets[int(i)]) for i in known], minlength=len(images.labels))
    worst = too_many(lost, images.counts())
    if worst is not None:
        raise DataError(
            f"{lost[worst]} of {images.counts()[worst]} images of class {images.labels[worst]!r} "
            f"cannot be read any more, which is more than 5 %."
        )


def _read_all(
    images: ImageSet, colour: str, cache: ScanCache, progress: Reporter, threads: int | None
) -> tuple[np.ndarray, dict[int, str]]:
    """A record of each image, and the error of each image that cannot be read."""
    records = np.zeros(len(images), RECORD)
    errors: dict[int, str] = {}

    def read(start: int) -> list[tuple[int, str]]:
        failed: list[tuple[int, str]] = []
        for index in range(start, min(start + _BATCH, len(images))):
            try:
                records[index] = cache.record(images, index, colour)
            except DataError as error:
                failed.append((index, str(error)))
        return failed

    starts = range(0, len(images), _BATCH)
    try:
        with closing(_in_order(read, starts, threads)) as results:
            for start, failed in zip(starts, results, strict=True):
                errors.update(failed)
                progress.advance(min(_BATCH, len(images) - start))
    finally:
        cache.add(records)
    return records, errors


def _in_order(
    work: Callable[[int], list[tuple[int, str]]], items: Sequence[int], threads: int | None
) -> Generator[list[tuple[int, str]]]:
    """Results of `work` in order, at most a few of them ahead of the consumer."""
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
