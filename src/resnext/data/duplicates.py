"""Finds equal images, similar images, and equal images in two classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from resnext.data.dataset import ImageSet

_SMALLEST = 64
"""Shorter side, pixels, below which only equal files count as copies."""
_STEP = 2
"""Levels by which neighbours must differ to count as different; less is noise of encoding."""
_BANDS = 8
_COMMON = 20_000
"""Pairs that share a band; a band shared by more is common to many images, not a copy's."""
_ALIKE = 0.1
"""Mean difference of two thumbnails, in standard deviations. Copies at JPEG quality 50 or half the
size stay below 0.07; of other photographs, none came below 0.45."""


@dataclass(frozen=True)
class Conflict:
    """Two equal images with different classes.

    Args:
        titles: Names of the images.
        labels: Their classes.
    """

    titles: tuple[str, str]
    labels: tuple[str, str]


@dataclass(frozen=True)
class Sizes:
    """Width and height of the images with the fewest, the median and the most pixels."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]


class Pair(NamedTuple):
    """A training image and its copy in another split, by position in each."""

    train: int
    part: str
    other: int
    exact: bool


class Alike(NamedTuple):
    """Two images that are equal or look alike: split and position of each."""

    a: tuple[str, int]
    b: tuple[str, int]
    exact: bool


class ImageIndex:
    """The readable images of all splits, one after the other.

    Args:
        splits: The images by split, "train" first.
        records: Record of each image, by split.
        kept: Positions of the images to compare, by split.
    """

    def __init__(
        self,
        splits: Mapping[str, ImageSet],
        records: Mapping[str, np.ndarray],
        kept: Mapping[str, np.ndarray],
    ) -> None:
        self.splits, self.names, self.records = splits, list(splits), records
        self.split = np.repeat(np.arange(len(splits)), [len(kept[name]) for name in splits])
        self.index = np.concatenate([kept[name] for name in splits])
        self.content = np.concatenate([records[name]["content"][kept[name]] for name in splits])

    def sizes(self) -> Sizes | None:
        """The smallest, median and largest size; None without images."""
        if not len(self.index):
            return None
        sides = ("width", "height")
        width, height = (np.concatenate([x[side] for x in self.records.values()]) for side in sides)
        pixels = width.astype(np.int64) * height
        order = np.argsort(pixels, kind="stable")[np.count_nonzero(pixels == 0) :]
        chosen = (order[i] for i in (0, len(order) // 2, -1))
        return Sizes(*((int(width[i]), int(height[i])) for i in chosen))

    def leaks(self) -> list[Pair]:
        """Training images that are equal to one of another split."""
        pairs: list[Pair] = []
        for group in _groups(self.content, self.split == 0):
            other = int(group[self.split[group] != 0][0])
            pairs += [self._pair(i, other, True) for i in group[self.split[group] == 0].tolist()]
        return sorted(pairs)

    def lookalikes(self) -> list[Pair]:
        """Training images that look like one of another split but are not equal to it."""
        bands = {name: _difference_hash_bands(records) for name, records in self.records.items()}
        pairs: dict[int, Pair] = {}
        for i in range(_BANDS):
            codes = self._kept({name: code[:, i] for name, code in bands.items()})
            for group in _groups(codes, self.split == 0):
                train, others = (group[(self.split[group] == 0) == is_train] for is_train in (1, 0))
                if len(train) * len(others) > _COMMON:
                    continue
                distances = self._distances(train, others)
                for image, distance in zip(train.tolist(), distances, strict=True):
                    if distance.min() < _ALIKE:
                        other = int(others[distance.argmin()])
                        pairs.setdefault(image, self._pair(image, other, False))
        return sorted(pairs.values())

    def alike(self) -> list[Alike]:
        """Pairs of images that are equal or look alike, in whatever splits and classes.

        Of many that are alike, each is paired with the first equal or the most similar one.
        """
        pairs: dict[tuple[int, int], bool] = {}
        for group in _groups(self.content):
            first, *rest = group.tolist()
            pairs |= {(first, other): True for other in rest}
        bands = {name: _difference_hash_bands(records) for name, records in self.records.items()}
        for i in range(_BANDS):
            for group in _groups(self._kept({name: code[:, i] for name, code in bands.items()})):
                if len(group) ** 2 > _COMMON:
                    continue
                distances = self._distances(group, group)
                for image, distance in zip(group.tolist(), distances, strict=True):
                    if distance.min() < _ALIKE:
                        other = int(group[distance.argmin()])
                        pairs.setdefault((min(image, other), max(image, other)), False)
        return [Alike(self._at(a), self._at(b), exact) for (a, b), exact in sorted(pairs.items())]

    def _distances(self, some: np.ndarray, others: np.ndarray) -> np.ndarray:
        """How much images differ from others; infinite for equal files."""
        a, b = self._thumbnails(some)[:, None], self._thumbnails(others)[None]
        distances = np.abs(a - b).mean((2, 3)) / a.std((2, 3))
        distances[self.content[some][:, None] == self.content[others]] = np.inf
        return distances

    def _at(self, image: int) -> tuple[str, int]:
        """Split of an image, and its position there."""
        return self.names[self.split[image]], int(self.index[image])

    def _pair(self, train: int, other: int, exact: bool) -> Pair:
        index = self.index
        return Pair(int(index[train]), self.names[self.split[other]], int(index[other]), exact)

    def _kept(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Values of the images that are compared, in the index's order."""
        splits = enumerate(self.names)
        return np.concatenate([values[name][self.index[self.split == i]] for i, name in splits])

    def _thumbnails(self, images: np.ndarray) -> np.ndarray:
        names = [self.names[split] for split in self.split[images]]
        pairs = zip(names, self.index[images].tolist(), strict=True)
        return np.stack([self.records[name]["look"][i] for name, i in pairs]).astype(np.int16)

    def duplicates(self) -> int:
        """Number of training images that repeat another one."""
        content = self.content[self.split == 0]
        return len(content) - len(np.unique(content))

    def conflicts(self) -> tuple[Conflict, ...]:
        """Equal images with different classes."""
        conflicts: list[Conflict] = []
        for group in _groups(self.content):
            titles: dict[str, str] = {}  # of the first image with each class
            for i in map(int, group):
                images = self.splits[self.names[self.split[i]]]
                index = int(self.index[i])
                titles.setdefault(images.labels[images.targets[index]], images.title(index))
            first, *rest = titles
            conflicts += [Conflict((titles[first], titles[x]), (first, x)) for x in rest]
        return tuple(conflicts)


def _groups(values: np.ndarray, train: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Positions of equal values other than 0, for each value that occurs at least twice.

    Args:
        values: The values to compare.
        train: Which images are training images; then only groups that mix them with others.
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
    """Difference hash of each thumbnail, in bands of 18 of its 144 bits; copies share most bands.

    A bit says whether the next pixel is brighter. A band is 0, which matches nothing, if nearly
    all of its bits are equal, or if the image is small or has hardly any contrast.
    """
    result = np.zeros((len(records), _BANDS), np.uint32)
    for start in range(0, len(records), 8192):
        block = records[start : start + 8192]
        thumbnails = block["look"].astype(np.int16)
        rises = [
            (np.diff(thumbnails, axis=axis) > _STEP).reshape(len(block), -1) for axis in (1, 2)
        ]
        bits = np.concatenate(rises, axis=1).reshape(len(block), _BANDS, -1)
        weights = 1 << np.arange(bits.shape[2], dtype=np.uint32)
        codes = (bits * weights).sum(2, dtype=np.uint32)
        codes[(bits.sum(2) < 3) | (bits.sum(2) > bits.shape[2] - 3)] = 0
        codes[thumbnails.reshape(len(block), -1).std(1) < 8] = 0
        codes[np.minimum(block["width"], block["height"]) < _SMALLEST] = 0
        result[start : start + 8192] = codes
    return result
