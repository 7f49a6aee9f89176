"""Images in arrays: the digits, and idx files."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles.originals import sklearn
from sample_data import classes, levels, trained_on

from resnext.data.open import open_for_evaluation, open_splits
from resnext.data.sources.arrays import DIGITS, FASHION
from resnext.errors import DataError

# -- digits -----------------------------------------------------------------------------------


def digit(image: Any) -> bytes:
    """Something to compare digits by."""
    assert image.shape == (8, 8)
    assert image.dtype == np.uint8
    return image.tobytes()


def test_digits_are_all_there_and_shared_out_once() -> None:
    """An image in two parts makes the measured accuracy better than it is."""
    splits = open_splits("digits", seed=5)
    assert splits.test is not None
    parts = (splits.train, splits.val, splits.test)
    assert [part.labels for part in parts] == [DIGITS] * 3
    assert splits.colour == "L"
    original: Any = sklearn.datasets.load_digits()
    scaled = [digit(np.rint(x * 255 / 16).astype(np.uint8)) for x in original.images]
    wanted = Counter(zip(scaled, original.target.tolist(), strict=True))
    got = Counter(
        (digit(image), target)
        for part in parts
        for image, target in zip(part.images, part.targets, strict=True)
    )
    assert got == wanted
    assert sum(got.values()) == 1797
    for part, share in zip(parts, (0.64, 0.16, 0.2), strict=True):
        assert np.abs(part.counts() - share * np.bincount(original.target)).max() < 2


def test_the_test_part_of_digits_never_changes() -> None:
    """Runs with different seeds could not be compared, and one's test would be another's train."""
    first, second = (open_splits("digits", seed=s, val_fraction=0.2 + 0.3 * s) for s in (0, 1))
    assert first.test is not None
    assert second.test is not None
    assert [*map(digit, first.test.images)] == [*map(digit, second.test.images)]
    content = b"".join(map(digit, first.test.images)) + bytes([*first.test.targets])
    assert hashlib.sha256(content).hexdigest().startswith("65e28e13178c87c7")  # since 0.1
    assert [*map(digit, first.val.images)] != [*map(digit, second.val.images)]
    measured = open_for_evaluation("digits", DIGITS, {"seed": 9})
    assert [*map(digit, measured.images)] == [*map(digit, first.test.images)]
    assert measured.targets == first.test.targets


def test_digits_open_as_images() -> None:
    """Grey arrays must become what image files become."""
    images = open_splits("digits").train
    pixels: Any = images.images[0]
    assert np.array_equal(np.asarray(images.open(0, "L")), pixels)
    assert np.array_equal(np.asarray(images.open(0, "RGB")), np.stack([pixels] * 3, 2))
    assert max(x.max() for x in images.images if isinstance(x, np.ndarray)) == 255


def test_digits_need_the_model_to_know_digits() -> None:
    """Targets would index into classes that mean something else."""
    for labels in (("cat", "dog"), DIGITS[::-1], DIGITS[:9], ()):
        with pytest.raises(DataError, match="classes 0 to 9"):
            open_for_evaluation("digits", labels, {})


# -- idx files --------------------------------------------------------------------------------


def idx(path: Path, array: np.ndarray) -> Path:
    """An idx file, compressed if it is called so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def mnist(folder: Path, train: int = 40, test: int = 10, end: str = ".gz") -> Path:
    """Images whose first pixel is their number, and whose class is its last digit."""
    for prefix, first, count in (("train", 0, train), ("t10k", 100, test)):
        numbers = np.arange(first, first + count)
        images = np.zeros((count, 5, 4))
        images[:, 0, 0] = numbers
        idx(folder / f"{prefix}-images-idx3-ubyte{end}", images)
        idx(folder / f"{prefix}-labels-idx1-ubyte{end}", numbers % 10)
    return folder


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files(tmp_path: Path, end: str) -> None:
    """Held-out images come from the training file; those of t10k are for the very end."""
    root = mnist(tmp_path / "numbers", end=end)
    splits = open_splits(root, seed=2)
    assert splits.test is not None
    assert (splits.colour, splits.val_fraction) == ("L", 0.2)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [30, 10, 10]
    assert sorted(levels(splits.train) + levels(splits.val)) == [*range(40)]
    assert levels(splits.test) == [*range(100, 110)]
    for part in (splits.train, splits.val, splits.test):
        assert classes(part) == [str(level % 10) for level in levels(part)]
    assert splits.train.open(0, "L").size == (4, 5)
    assert levels(open_for_evaluation(root, splits.train.labels, {})) == levels(splits.test)
    other = open_splits(mnist(tmp_path / "other", train=41, end=end))
    assert other.fingerprint != splits.fingerprint
    for path in root.glob("t10k*"):
        path.unlink()
    alone = open_splits(root, seed=2)
    assert alone.test is None
    assert levels(open_for_evaluation(root, splits.train.labels, trained_on(alone, 2))) == levels(
        splits.val
    )


def test_fashion_has_names(tmp_path: Path) -> None:
    """A "9" says less than "Ankle boot", and a model keeps its labels for ever."""
    splits = open_splits(mnist(tmp_path / "Fashion-MNIST" / "raw"))
    assert splits.train.labels == FASHION
    assert classes(splits.val)[:1] == [FASHION[levels(splits.val)[0] % 10]]


def test_arrays_are_not_copied(tmp_path: Path) -> None:
    """70,000 arrays of 784 bytes take three times the memory of one."""
    splits = open_splits(mnist(tmp_path))
    one, other = (images.images[0] for images in (splits.train, splits.val))
    assert isinstance(one, np.ndarray)
    assert isinstance(other, np.ndarray)
    assert one.base is not None
    assert one.base is other.base


def wrong_magic(root: Path) -> None:
    """A label file under the name of an image file."""
    idx(root / "train-images-idx3-ubyte.gz", np.zeros(5))


def too_short(root: Path) -> None:
    """A file that ends early."""
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def too_long(root: Path) -> None:
    """A file with too many bytes."""
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"x"))


def cut_gzip(root: Path) -> None:
    """An interrupted download."""
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-10])


def no_gzip(root: Path) -> None:
    """An HTML page about a missing file."""
    (root / "train-labels-idx1-ubyte.gz").write_text("<html>404</html>")


def huge(root: Path) -> None:
    """A header that announces terabytes."""
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", *[4_000_000_000] * 3) + bytes(99)
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))


def other_count(root: Path) -> None:
    """Labels of other images."""
    idx(root / "train-labels-idx1-ubyte.gz", np.zeros(5))


def only_labels(root: Path) -> None:
    """Half of the download."""
    (root / "train-images-idx3-ubyte.gz").unlink()


def only_test(root: Path) -> None:
    """The smaller half."""
    for path in root.glob("train*"):
        path.unlink()


def none_inside(root: Path) -> None:
    """Complete, but empty."""
    mnist(root, train=0)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (wrong_magic, r"images.* is not an idx file of bytes in 3 dimensions: .* 00 00 08 01"),
        (too_short, r"should hold 800 bytes \(40, 5, 4\) .* holds 799"),
        (too_long, "but holds more than 800"),
        (cut_gzip, "cannot be read: .*Download it again"),
        (no_gzip, "cannot be read: Not a gzipped file"),
        (huge, "but holds 99"),
        (other_count, "40 images, train-labels.* 5 labels"),
        (only_labels, "has no train-images-idx3-ubyte, only its labels"),
        (only_test, "has test inside, but no train"),
        (none_inside, "holds no image"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_damaged_idx_files(tmp_path: Path, damage: Any, problem: str) -> None:
    """A download that was cut short is the usual case; the file has to be named."""
    root = mnist(tmp_path / "set")
    damage(root)
    with pytest.raises(DataError, match=problem) as caught:
        open_splits(root)
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)
