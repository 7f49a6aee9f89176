"""Sets of images: what they hold, name, read and send to other processes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles.originals import sklearn
from sample_data import fill

from resnext.data.dataset import class_weights
from resnext.data.open import open_splits
from resnext.errors import DataError


def test_images_are_read_and_named(tmp_path: Path) -> None:
    """Messages and lists must say which image is meant, also after two selections."""
    splits = open_splits(fill(tmp_path, {"a": 3, "b": 3}))
    one = splits.train.select([1, 3], "some").select([1], "one")
    file = splits.train.images[3]
    assert isinstance(file, Path)
    assert (one.read(0), one.title(0)) == (file.read_bytes(), str(file))
    assert list(one.targets) == [splits.train.targets[3]]
    file.unlink()
    with pytest.raises(DataError, match=r"\.png: no such file"):
        one.read(0)
    digits = open_splits("digits").train.select([5], "one")
    pixels: Any = digits.read(0)
    original: Any = sklearn.datasets.load_digits()
    number = int(digits.title(0).split()[-1])
    assert np.array_equal(pixels, np.rint(original.images[number] * 255 / 16))


def test_sets_can_be_sent_to_workers(tmp_path: Path) -> None:
    """Where processes are not forked, a set is pickled; it must arrive whole and small."""
    images = open_splits(fill(tmp_path, {"a": 300, "b": 3})).train
    sent = pickle.dumps(images)
    assert len(sent) < 40 * len(images)
    arrived = pickle.loads(sent)
    assert [*arrived.images] == [*images.images]
    assert [*arrived.targets] == [*images.targets]


def test_sequences_are_sequences(tmp_path: Path) -> None:
    """`images[-1]`, slices and the end of a loop must be as for a list."""
    images = open_splits(fill(tmp_path, {"a": 4, "b": 4})).train.images
    files = [*images]
    assert (images[-1], images[1:3], images[::-2]) == (files[-1], files[1:3], files[::-2])
    with pytest.raises(IndexError):
        images[len(files)]


def test_class_weights_even_out() -> None:
    """Weights whose mean is not 1 change the learning rate; empty classes must not divide by 0."""
    weights = class_weights([0, 0, 0, 2], 4)
    assert weights == pytest.approx([0.5, 0, 1.5, 0])
    assert class_weights([], 2).tolist() == [0, 0]
