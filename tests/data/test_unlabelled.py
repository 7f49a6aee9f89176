"""Unlabelled images: found at any depth, checked like all others, never validated on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from sample_data import fill, write

from resnext.data import open_splits
from resnext.data.scan import Scan, scan
from resnext.data.unlabelled import (
    Joined,
    open_unlabelled,
    scan_unlabelled,
    training_pool,
    unlabelled_fingerprint,
)
from resnext.errors import DataError
from resnext.system.progress import reporter

QUIET = reporter(False)


def scanned(root: Path, more: Path) -> Scan:
    """The scan of labelled and unlabelled images."""
    splits = open_splits(root)
    splits = replace(splits, unlabelled=open_unlabelled(more, splits.train.labels))
    return scan_unlabelled(scan(splits, QUIET, cache=None), QUIET)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten grey levels of one class, ten of another; of each, levels 0 to 2 are for validation."""
    for i, name in enumerate(("cat", "dog")):
        for level in range(10):
            split = "val" if level < 3 else "train"
            write(tmp_path / "data" / split / name / f"{level}.png", 100 * i + level)
    return tmp_path / "data"


def test_two_sequences_as_one() -> None:
    """An index that is off by one trains on an image with another one's class."""
    joined = Joined(["a", "b"], ["c"])
    assert list(joined) == ["a", "b", "c"]
    assert joined[-1] == "c"
    with pytest.raises(IndexError):
        joined[3]


def test_images_are_found_at_any_depth(tmp_path: Path) -> None:
    """Folders of a camera hold images beside folders of images."""
    fill(tmp_path, {"2024/summer": 2, "2025": 1})
    write(tmp_path / "first.png")
    images = open_unlabelled(tmp_path, ("cat", "dog"))
    assert [Path(str(x)).name for x in images.images] == [
        "000.png",
        "001.png",
        "000.png",
        "first.png",
    ]
    assert images.counts().tolist() == [4]


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("", "holds no image"),
        ("notes.txt", "holds no image"),
        ("cat/1.png", "has a folder for the class 'cat'"),
    ],
)
def test_what_is_refused(tmp_path: Path, inside: str, message: str) -> None:
    """An empty folder trains on nothing more; class folders hold labels that would be lost."""
    if inside.endswith(".png"):
        write(tmp_path / inside)
    elif inside:
        (tmp_path / inside).write_text("")
    with pytest.raises(DataError, match=message):
        open_unlabelled(tmp_path, ("cat", "dog"))
    with pytest.raises(DataError, match="is not a folder"):
        open_unlabelled(tmp_path / "nowhere", ("cat", "dog"))


def test_copies_of_validation_images_are_left_out(root: Path, tmp_path: Path) -> None:
    """A student that saw the validation images would look better than it is."""
    more = fill(tmp_path / "more", {"new": 30})  # levels 0 to 29
    found = scanned(root, more)
    pool = training_pool(found.splits)
    titles = {Path(pool.title(i)).relative_to(tmp_path).as_posix() for i in range(len(pool))}
    assert not titles & {"more/new/000.png", "more/new/001.png", "more/new/002.png"}
    assert len(titles) == len(pool) == 14 + 27
    assert pool.labels == ("cat", "dog", "unlabelled")
    assert pool.counts().tolist() == [7, 7, 27]
    assert found.summary().startswith("14 train, 6 val, 27 unlabelled images of 2 classes")
    assert len([leak for leak in found.leaks if "more" in leak.train]) == 3


def test_unreadable_images_are_listed_with_the_labelled_ones(root: Path, tmp_path: Path) -> None:
    """The second check must not remove what the first one found."""
    more = fill(tmp_path / "more", {"new": 60})
    (more / "new" / "050.png").write_bytes(b"damaged")
    for i in range(60, 90):  # so that one of a class is less than 5 %
        write(root / "train" / "dog" / f"{i}.png", 100 + i)
    (root / "train" / "dog" / "9.png").write_bytes(b"damaged")
    found = scanned(root, more)
    assert [(p.part, Path(p.title).name, p.label) for p in found.unreadable] == [
        ("train", "9.png", "dog"),
        ("train", "050.png", "unlabelled"),
    ]
    for path in (more / "new").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="images of class 'unlabelled' cannot be read"):
        scanned(root, more)


def test_a_folder_of_which_nothing_is_left(root: Path, tmp_path: Path) -> None:
    """The message spoke of training images of a class 'unlabelled', which nobody has."""
    more = fill(tmp_path / "more", {"new": 3})  # levels 0 to 2, as in validation
    with pytest.raises(DataError, match=r"All 3 images in .*more are also in another split"):
        scanned(root, more)
    for i in range(3, 60):  # so that three are less than 5 % of these and the unlabelled ones
        write(root / "val" / "cat" / f"{i}.png", 120 + i)
    for file in (more / "new").iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(DataError, match="3 of 3 images of class 'unlabelled' cannot be read"):
        scanned(root, more)


def test_without_unlabelled_images_nothing_changes(root: Path) -> None:
    """Ordinary training draws from the training images themselves."""
    splits = open_splits(root)
    assert training_pool(splits) is splits.train


def test_the_hash_follows_the_images_not_the_folder(tmp_path: Path) -> None:
    """A run resumes after its data was moved, and not with other images."""
    more = fill(tmp_path / "more", {"new": 3})

    def digest(folder: Path) -> str:
        return unlabelled_fingerprint(open_unlabelled(folder, ()))

    before = digest(more)
    moved = Path(shutil.move(more, tmp_path / "moved"))
    assert digest(moved) == before
    (moved / "new" / "000.png").unlink()
    assert digest(moved) != before
