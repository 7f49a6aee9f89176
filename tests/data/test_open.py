"""Data sets opened for training and for evaluation: splits, and images that are still new."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sample_data import COUNTS, by_class, fill, names, trained_on, write

from resnext.data.open import open_for_evaluation, open_splits
from resnext.errors import DataError


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """An archive has to be unpacked first."""
    write(tmp_path / "set.png")
    for opened_by in (open_splits, lambda path: open_for_evaluation(path, ("a", "b"), {})):
        with pytest.raises(DataError, match=r"set.png is a file\. Give a folder"):
            opened_by(tmp_path / "set.png")


@pytest.mark.parametrize("fraction", [0, 1, 0.0, 1.0, -0.2, 1.2, 20, float("nan"), float("inf")])
@pytest.mark.parametrize("source", ["digits", "folder"])
def test_val_fraction_must_leave_something_on_both_sides(
    tmp_path: Path, source: str, fraction: float
) -> None:
    """20 was meant to be per cent; NaN compares false with everything."""
    root = source if source == "digits" else fill(tmp_path, {"a": 4, "b": 4})
    with pytest.raises(DataError, match="between 0 and 1"):
        open_splits(root, val_fraction=fraction)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None])
def test_seeds_are_whole_numbers(seed: Any) -> None:
    """NumPy's own error names neither the argument nor a way out; None would never repeat."""
    with pytest.raises(DataError, match="seed must be"):
        open_splits("digits", seed=seed)


# -- what is left to measure on ---------------------------------------------------------------


def test_test_is_preferred_to_val_and_both_to_train(tmp_path: Path) -> None:
    """The best epoch was chosen on `val`, so its accuracy there is flattering."""
    fill(tmp_path / "train", {"a": 5, "b": 5})
    fill(tmp_path / "val", {"a": 3, "b": 3})
    note = trained_on(open_splits(tmp_path), 0)
    assert len(open_for_evaluation(tmp_path, ("a", "b"), note)) == 6
    fill(tmp_path / "test", {"a": 1, "b": 1})
    assert len(open_for_evaluation(tmp_path, ("a", "b"), note)) == 2
    shutil.rmtree(tmp_path / "train")
    assert len(open_for_evaluation(tmp_path, ("a", "b"), note)) == 2
    shutil.rmtree(tmp_path / "val")
    assert len(open_for_evaluation(tmp_path, ("a", "b"), note)) == 2


@pytest.mark.parametrize("inner", ["", "train"])
def test_the_images_that_training_held_out_are_found_again(tmp_path: Path, inner: str) -> None:
    """An evaluation on the training folder must not include training images."""
    fill(tmp_path / inner, COUNTS)
    for seed, fraction in ((0, 0.2), (4, 0.5)):
        splits = open_splits(tmp_path, seed=seed, val_fraction=fraction)
        for root in (tmp_path, tmp_path / inner):
            measured = open_for_evaluation(root, splits.train.labels, trained_on(splits, seed))
            assert [*measured.images] == [*splits.val.images]
            assert measured.targets == splits.val.targets
            assert "held-out images" in measured.name


def test_the_training_folder_is_known_wherever_it_is_moved(tmp_path: Path) -> None:
    """A model is measured on another machine than it was trained on."""
    splits = open_splits(fill(tmp_path / "here", COUNTS), seed=2)
    held = names(splits.val, tmp_path / "here")
    moved = shutil.copytree(tmp_path / "here", tmp_path / "there" / "deeper")
    measured = open_for_evaluation(moved, splits.train.labels, trained_on(splits, 2))
    assert names(measured, moved) == held


def test_another_folder_is_used_whole(tmp_path: Path) -> None:
    """New data holds no training images; leaving most of it out would waste it."""
    splits = open_splits(fill(tmp_path / "old", COUNTS))
    new = fill(tmp_path / "new", {"dog": 4, "ant": 1})
    measured = open_for_evaluation(new, splits.train.labels, trained_on(splits, 0))
    assert measured.labels == splits.train.labels
    assert by_class(measured, new) == [("ant", "ant"), *[("dog", "dog")] * 4]
    assert len(open_for_evaluation(new, splits.train.labels, {})) == 5


def test_a_folder_used_completely_for_training_is_refused(tmp_path: Path) -> None:
    """The answer would be the training accuracy under another name."""
    fill(tmp_path / "train", {"a": 5, "b": 5})
    fill(tmp_path / "val", {"a": 3, "b": 3})
    note = trained_on(open_splits(tmp_path), 0)
    with pytest.raises(
        DataError, match=r"trained on every image in .*train\. Evaluate it on other data"
    ):
        open_for_evaluation(tmp_path / "train", ("a", "b"), note)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(
        DataError, match=r"trained on every image in .*train\. Evaluate it on other data"
    ):
        open_for_evaluation(tmp_path, ("a", "b"), note)


def test_targets_follow_the_models_labels(tmp_path: Path) -> None:
    """Folders are sorted by name, the model's classes need not be."""
    root = fill(tmp_path, {"a": 1, "b": 2, "c": 3})
    measured = open_for_evaluation(root, ("c", "x", "a", "b"), {})
    assert measured.counts().tolist() == [3, 0, 1, 2]
    assert all(folder == label for folder, label in by_class(measured, root))


def test_classes_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    """Skipping them silently would leave out the images that are hardest for the model."""
    root = fill(tmp_path, {"a": 1, "eel": 2})
    with pytest.raises(DataError, match=r"'eel'; known are a, b, c, d, e and 1 more"):
        open_for_evaluation(root, tuple("abcdef"), {})


def test_a_folder_that_has_changed_since_training_is_refused(tmp_path: Path) -> None:
    """With one file added, all training images were evaluated as if they were new."""
    for label in ("cat", "dog"):
        for i in range(5):
            (tmp_path / "pets" / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / "pets" / label / f"{i}.png")
    splits = open_splits(tmp_path / "pets", seed=3)
    known = {"data": "pets", "fingerprint": splits.fingerprint, "seed": 3, "val_fraction": 0.2}
    held_out = open_for_evaluation(tmp_path / "pets", ("cat", "dog"), known)
    assert [*held_out.images] == [*splits.val.images]
    Image.new("RGB", (4, 4)).save(tmp_path / "pets" / "cat" / "new.png")
    with pytest.raises(DataError, match="has changed since the model was trained"):
        open_for_evaluation(tmp_path / "pets", ("cat", "dog"), known)
    (tmp_path / "pets").rename(tmp_path / "others")
    assert len(open_for_evaluation(tmp_path / "others", ("cat", "dog"), known)) == 11
