"""Folders of images: classes, splits, and what is left out."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from helpers import photo_folder
from sample_data import COUNTS, by_class, fill, names, write

from resnext.data.dataset import Files, ImageSet
from resnext.data.open import open_for_evaluation, open_splits
from resnext.data.sources.base import split_of
from resnext.data.sources.folders import image_files
from resnext.errors import DataError


@pytest.mark.parametrize("fraction", [0.2, 0.01, 0.5, 0.99])
def test_every_class_is_split_by_the_same_fraction(tmp_path: Path, fraction: float) -> None:
    """A rare class on one side only is never trained on, or never evaluated."""
    root = fill(tmp_path, COUNTS)
    splits = open_splits(root, val_fraction=fraction)
    assert splits.train.labels == splits.val.labels == ("ant", "bee", "cat", "dog")
    assert (splits.test, splits.colour, splits.val_fraction) == (None, "RGB", fraction)
    for part in (splits.train, splits.val):
        assert all(folder == label for folder, label in by_class(part, root))
    held = Counter(folder for folder, _ in by_class(splits.val, root))
    assert held == {k: min(max(round(n * fraction), 1), n - 1) for k, n in COUNTS.items()}
    assert splits.val.counts().tolist() == [held[label] for label in splits.val.labels]
    every = {path.relative_to(root).as_posix() for path in root.rglob("*.png")}
    train, val = names(splits.train, root), names(splits.val, root)
    assert sorted(train + val) == sorted(every)  # complete, and no image twice


def test_the_seed_alone_decides_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems list in any order: another disk must not hold out other images."""
    first, second = tmp_path / "first", tmp_path / "elsewhere" / "second"
    files = [(name, i) for name, count in COUNTS.items() for i in range(count)]
    for name, i in files:
        write(first / name / f"{i}.png")
    for name, i in reversed(files):
        write(second / name / f"{i}.png")
    held = [names(open_splits(root, seed=7).val, root) for root in (first, second, first)]
    assert held[0] == held[1] == held[2]
    original = os.scandir

    @contextmanager
    def backwards(path: Any) -> Iterator[Any]:
        with original(path) as entries:
            yield iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    monkeypatch.setattr(os, "scandir", backwards)
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(listed(path), reverse=True)))
    assert names(open_splits(first, seed=7).val, first) == held[0]
    monkeypatch.undo()
    others = [names(open_splits(first, seed=seed).val, first) for seed in range(8)]
    assert len({tuple(other) for other in others}) > 4


def test_splits_are_drawn_not_cut(tmp_path: Path) -> None:
    """Names often follow time or place, so the first fifth is not like the rest."""
    root = fill(tmp_path, {"a": 50, "b": 50})
    held = names(open_splits(root).val, root)
    numbers = [int(Path(name).stem) for name in held if name.startswith("a/")]
    assert len(numbers) == 10
    assert min(numbers) < 15
    assert max(numbers) > 34
    assert 12 < sum(numbers) / 10 < 37


def test_files_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    """Thumbnails and notes left behind by file managers and notebooks are not data."""
    root = fill(tmp_path, {"a": 2, "b": 2})
    write(root / "a" / "x" / "y" / "deep.png")
    write(root / "a" / "LOUD.JPG")
    for name in (".hidden.png", "._LOUD.JPG", ".ipynb_checkpoints/000-checkpoint.png"):
        write(root / "a" / name)
    write(root / ".git" / "000.png")
    write(root / "loose.png")
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "no_ending", "paper.pdf", "film.mpg"):
        (root / "a" / name).write_text("no image")
    (root / "a" / "folder.png").mkdir()
    splits = open_splits(root)
    found = names(splits.train, root) + names(splits.val, root)
    wanted = ["a/000.png", "a/001.png", "a/LOUD.JPG", "a/x/y/deep.png", "b/000.png", "b/001.png"]
    assert sorted(found) == wanted
    assert [file.relative_to(root / "a").as_posix() for file in image_files(root / "a")] == [
        "000.png",
        "001.png",
        "LOUD.JPG",
        "x/y/deep.png",
    ]


def test_a_data_set_may_lie_in_a_hidden_folder(tmp_path: Path) -> None:
    """Caches do: ~/.cache/birds. Only what is hidden inside the data set is left out."""
    root = fill(tmp_path / ".cache" / "birds", {"a": 2, "b": 2})
    assert len(open_splits(root).train) == 2


def test_class_folders_may_be_links(tmp_path: Path) -> None:
    """Data sets are often put together from links to folders elsewhere."""
    fill(tmp_path / "store", {"a": 3, "b": 3})
    root = tmp_path / "set"
    root.mkdir()
    for name in "ab":
        (root / name).symlink_to(tmp_path / "store" / name)
    splits = open_splits(root)
    assert (len(splits.train), len(splits.val)) == (4, 2)


# -- folders that come split ------------------------------------------------------------------


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val", "VALID"])
@pytest.mark.parametrize("train", ["train", "Train"])
@pytest.mark.parametrize("test", ["test", None])
def test_given_splits_are_used(tmp_path: Path, train: str, val: str, test: str | None) -> None:
    """Splitting `train` again, or learning from `val`, would not be what was asked for."""
    fill(tmp_path / train, {"a": 5, "b": 4})
    fill(tmp_path / val, {"b": 3})
    if test:
        fill(tmp_path / test, {"a": 2, "b": 1})
    splits = open_splits(tmp_path, val_fraction=0.5)
    assert sorted(names(splits.train, tmp_path / train)) == [
        *(f"a/00{i}.png" for i in range(5)),
        *(f"b/00{i}.png" for i in range(4)),
    ]
    assert splits.val.labels == ("a", "b")
    assert list(splits.val.targets) == [1, 1, 1]
    assert names(splits.val, tmp_path / val) == ["b/000.png", "b/001.png", "b/002.png"]
    assert splits.val_fraction is None
    assert (splits.test is None) == (test is None)
    if splits.test:
        assert splits.test.counts().tolist() == [2, 1]


def test_without_val_part_of_train_is_held_out(tmp_path: Path) -> None:
    """The test images must not be what the best epoch is chosen by."""
    fill(tmp_path / "train", {"a": 10, "b": 10})
    fill(tmp_path / "test", {"a": 3, "b": 3})
    splits = open_splits(tmp_path, seed=3)
    assert (len(splits.train), len(splits.val), splits.val_fraction) == (16, 4, 0.2)
    assert splits.test is not None
    assert len(splits.test) == 6
    assert all("test" not in name for name in names(splits.val, tmp_path / "train"))
    train, val = (names(part, tmp_path / "train") for part in (splits.train, splits.val))
    assert not {*train} & {*val}


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    """Medical and quality data have a class "test"; without `train` it is not a split."""
    root = fill(tmp_path, {"test": 4, "control": 4})
    assert open_splits(root).train.labels == ("control", "test")


# -- errors -----------------------------------------------------------------------------------


def one_class(root: Path) -> None:
    fill(root, {"cat": 5})


def class_of_archives(root: Path) -> None:
    fill(root, {"cat": 5, "dog": 5}).joinpath("eel").mkdir()
    (root / "eel" / "photos.zip").touch()


def class_without_endings(root: Path) -> None:
    fill(root, {"cat": 5, "dog": 5}).joinpath("eel").mkdir()
    (root / "eel" / "0001").touch()


def only_notes(root: Path) -> None:
    fill(root, {"cat": 5}).joinpath("dog").mkdir()
    (root / "dog" / "notes.txt").write_text("the dogs are still to come")


def single_image(root: Path) -> None:
    fill(root, {"cat": 5, "dog": 1})


def loose_images(root: Path) -> None:
    write(root / "1.png")


def unknown_in_val(root: Path) -> None:
    fill(root / "train", {"cat": 2, "dog": 2})
    fill(root / "val", {"cat": 2, "eel": 2})


def unknown_in_test(root: Path) -> None:
    fill(root / "train", {"cat": 2, "dog": 2})
    fill(root / "val", {"cat": 2})
    fill(root / "test", {"eel": 2})


def no_train(root: Path) -> None:
    fill(root / "val", {"cat": 2, "dog": 2})
    fill(root / "test", {"cat": 2, "dog": 2})


def only_test(root: Path) -> None:
    fill(root / "test", {"cat": 2, "dog": 2})


def empty_val(root: Path) -> None:
    fill(root / "train", {"cat": 2, "dog": 2})
    (root / "val").mkdir()


def two_vals(root: Path) -> None:
    for part in ("train", "val", "valid"):
        fill(root / part, {"cat": 2, "dog": 2})


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda root: root.rmdir(), "does not exist"),
        (lambda root: None, "no class folders"),
        (loose_images, "no class folders"),
        (one_class, "only one class, 'cat'"),
        (class_of_archives, r"eel holds no image. 1 \.zip file passed over: unpack archives"),
        (class_without_endings, "eel holds no image. .* name images .jpg or .png"),
        (only_notes, "only one class, 'cat'.* 1 folder without images passed over, .*dog: not a"),
        (single_image, "'dog' of .* has one image"),
        (unknown_in_val, "val has a class 'eel'; known are cat, dog"),
        (unknown_in_test, "test has a class 'eel'"),
        (no_train, "test, val inside, but no train"),
        (only_test, "test inside, but no train"),
        (empty_val, "val has no class folders"),
        (two_vals, "val and valid"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_unusable_folders(tmp_path: Path, make: Any, problem: str) -> None:
    """What is wrong with a folder has to be said before training, by the folder's name."""
    root = tmp_path / "set"
    root.mkdir()
    make(root)
    with pytest.raises(DataError, match=problem) as caught:
        open_splits(root)
    assert str(root) in str(caught.value)


# -- fingerprints and the order of files ------------------------------------------------------


def test_the_fingerprint_notices_what_changes_the_split(tmp_path: Path) -> None:
    """With one file more or less, the same seed holds out other images."""
    root = fill(tmp_path, {"a": 5, "b": 5})
    seen = [open_splits(root).fingerprint]
    assert open_splits(root, seed=1, val_fraction=0.5).fingerprint == seen[0]
    (root / "a" / "000.png").touch()  # copying changes times
    assert open_splits(root).fingerprint == seen[0]
    write(root / "a" / "new.png")
    seen.append(open_splits(root).fingerprint)
    with (root / "a" / "new.png").open("ab") as file:
        file.write(b"\0")
    seen.append(open_splits(root).fingerprint)
    (root / "a" / "new.png").rename(root / "a" / "newer.png")
    seen.append(open_splits(root).fingerprint)
    (root / "a" / "newer.png").rename(root / "b" / "newer.png")
    seen.append(open_splits(root).fingerprint)
    (root / "b" / "newer.png").unlink()
    assert len({*seen}) == len(seen)
    assert open_splits(root).fingerprint == seen[0]


def test_an_empty_prediction_folder_is_refused(tmp_path: Path) -> None:
    """Silence would look like success."""
    with pytest.raises(DataError, match="holds no image"):
        image_files(tmp_path)


def test_files_keep_the_order_of_paths(tmp_path: Path) -> None:
    """Sorted as text, "a-b/1.png" comes before "a/1.png": the same seed drew another split."""
    for name in ("a/1.png", "a-b/1.png", "a.png", "b/c/2.png", "b/c.png"):
        write(tmp_path / name)
    assert image_files(tmp_path) == sorted(tmp_path.rglob("*.png"))


def test_fingerprints_and_splits_are_those_of_earlier_versions(tmp_path: Path) -> None:
    """Models of earlier versions would be evaluated on their training images."""
    root = tmp_path / "set"
    for name, count in {"cat": 7, "dog": 5}.items():
        for i in range(count):
            (root / name / "deep").mkdir(parents=True, exist_ok=True)
            (root / name / ("deep" if i % 2 else "") / f"{i}.png").write_bytes(bytes(i + 1))
    splits = open_splits(root, seed=3, val_fraction=0.4)
    assert splits.fingerprint == "9026bfb93a7f04b0"
    assert names(splits.val, root) == [
        "cat/4.png",
        "cat/deep/3.png",
        "cat/deep/5.png",
        "dog/0.png",
        "dog/2.png",
    ]


def test_links_and_hidden_folders_are_not_followed(tmp_path: Path) -> None:
    """A link to the folder above would list everything again and again."""
    root = fill(tmp_path / "set", {"a": 2, "b": 2})
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "linked.png").symlink_to(root / "b" / "000.png")
    (root / "a" / "broken.png").symlink_to(root / "nowhere.png")
    names = [file.name for file in image_files(root / "a")]
    assert names == ["000.png", "001.png", "broken.png", "linked.png"]
    with pytest.raises(DataError, match=r"broken\.png: no such file"):
        ImageSet(Files(root / "a", ["broken.png"]), [0], ("a",), "a").open(0, "RGB")


@pytest.mark.parametrize(
    "name", ["@eaDir", "__MACOSX", "lost+found", ".Trashes", "#recycle", "$RECYCLE.BIN"]
)
def test_folders_of_systems_are_skipped(tmp_path: Path, name: str) -> None:
    """A NAS keeps a thumbnail of every photo: 20 photos were 60, and a class "@eaDir" appeared."""
    root = fill(tmp_path / "set", {"a": 3, "b": 3})
    for folder in (root, root / "a"):
        fill(folder, {name: 2})
    (root / "b" / "Thumbs.db").touch()
    splits = open_splits(root)
    assert splits.train.labels == ("a", "b")
    assert len(splits.train) + len(splits.val) == 6
    first = min(root / name, root / "a" / name, key=str)
    assert splits.passed_over.lines() == [
        f"3 hidden or system files and folders passed over, such as {first}."
    ]


@pytest.mark.parametrize(
    "name", ["__pycache__", "node_modules", "venv", "site-packages", "wandb", "old.git", ".git"]
)
def test_folders_of_tools_are_skipped(tmp_path: Path, name: str) -> None:
    """Packages and logs hold images too: they became a class, or a class without images."""
    root = fill(tmp_path / "set", {"a": 3, "b": 3, name: 2})
    (root / "a" / name).mkdir()
    splits = open_splits(root)
    assert splits.train.labels == ("a", "b")
    assert splits.passed_over.lines() == [
        f"2 hidden or system files and folders passed over, such as {min(root / name, root / 'a')}"
        f"{'' if root / name < root / 'a' else '/' + name}."
    ]


@pytest.mark.parametrize("content", ["", "plot.py", "notes.txt", "deep/down/list.csv", ".DS_Store"])
def test_folders_without_images_are_no_classes(tmp_path: Path, content: str) -> None:
    """Scripts and notes beside the classes were taken for a class that lost all of its images."""
    root = fill(tmp_path / "set", {"a": 4, "b": 4})
    other = root / "scripts" / content
    other.parent.mkdir(parents=True, exist_ok=True)
    other.touch() if content else other.mkdir()
    splits = open_splits(root)
    assert splits.train.labels == ("a", "b")
    line = f"1 folder without images passed over, {root / 'scripts'}: not a class."
    assert splits.passed_over.lines() == [line]
    said: list[str] = []
    images = open_for_evaluation(root, ("a", "b", "scripts"), {}, said.append)
    assert (len(images), said) == (8, [line])


def test_what_is_passed_over(tmp_path: Path) -> None:
    """Photos beside the class folders, unknown endings and folders beside the splits are named."""
    photos = photo_folder(tmp_path / "photos", count=3)
    (photos / "IMG_1.jpg").write_bytes((photos / "cat" / "000.jpg").read_bytes())
    (photos / "cat" / "IMG_2.xyz").touch()
    (photos / "cat" / ".DS_Store").touch()
    (photos / "dog" / "more").mkdir()
    (photos / "dog" / "more" / "link").symlink_to(photos / "cat")
    assert open_splits(photos).passed_over.lines() == [
        f"1 image outside of the class folders passed over, {photos / 'IMG_1.jpg'}: move into a "
        f"class.",
        f"1 hidden or system file or folder passed over, {photos / 'cat' / '.DS_Store'}.",
        "1 .xyz file passed over: not an image ending.",
        f"1 linked folder passed over, {photos / 'dog' / 'more' / 'link'}: links to folders inside "
        f"a class are not followed.",
    ]
    for split in ("train", "val"):
        photo_folder(tmp_path / "split" / split, count=3)
    photo_folder(tmp_path / "split" / "unsorted", count=1)
    (tmp_path / "split" / "val" / "list.txt").touch()
    (tmp_path / "split" / "cover.jpg").write_bytes((photos / "cat" / "000.jpg").read_bytes())
    assert open_splits(tmp_path / "split").passed_over.lines() == [
        f"1 image outside of the class folders passed over, {tmp_path / 'split' / 'cover.jpg'}: "
        f"move into a class.",
        f"1 folder beside the splits passed over, {tmp_path / 'split' / 'unsorted'}.",
        "1 .txt file passed over: not an image ending.",
    ]


def test_a_class_that_is_a_broken_link_is_refused(tmp_path: Path) -> None:
    """A disk that is not mounted takes a whole class away; the run must not start without it."""
    photos = photo_folder(tmp_path / "photos", count=3)
    (photos / "eel").symlink_to(tmp_path / "store" / "eel")
    with pytest.raises(DataError, match=r"eel is a link to .*store/eel, which does not exist"):
        open_splits(photos)
    (photos / "eel").rename(photos / "notes.txt")
    [line] = open_splits(photos).passed_over.lines()
    assert line.startswith("1 broken link passed over, ")


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("train_images", "val_images"),
        ("TRAIN", "Validation"),
        ("train2017", "test2017"),
        ("images-train", "images-dev"),
        ("trainingset", "evalset"),
        ("traindata", "testdata"),
        ("TrainImages", "TestImages"),
        ("train_set", "evaluation"),
        ("the training images", "dev"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
        ("01_train", "02_valid-images"),
    ],
)
def test_parts_of_the_data_are_no_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    """Public data sets call them so; classes "Testing" and "Training" were learned instead."""
    for name in names:
        photo_folder(tmp_path / "photos" / name, count=5)
    splits = open_splits(tmp_path / "photos")
    assert splits.train.labels == ("cat", "dog")
    assert {Path(splits.train.title(i)).parents[1].name for i in range(len(splits.train))} == {
        names[0]
    }


@pytest.mark.parametrize("name", ["contest", "trains", "", "devices", "test_bench", "train val"])
def test_names_that_are_no_split(name: str) -> None:
    """A class whose name only contains such a word is a class."""
    assert split_of(name) is None


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """Among vehicles it is one, as in CIFAR-100."""
    photos = photo_folder(tmp_path / "photos", ("bus", "car", "train"), count=3)
    assert open_splits(photos).train.labels == ("bus", "car", "train")


@pytest.mark.parametrize("inner", ["seg_train/seg_train", "photos/photos", "photos"])
def test_one_level_too_high(tmp_path: Path, inner: str) -> None:
    """An archive that is unpacked into a folder of its name: one class, called like the archive."""
    photo_folder(tmp_path / "set" / inner, count=3)
    for opened_by in (open_splits, lambda path: open_for_evaluation(path, ("cat", "dog"), {})):
        with pytest.raises(DataError, match=r"\(cat, dog\)") as caught:
            opened_by(tmp_path / "set")
        assert str(caught.value).endswith(f"what you mean, give {tmp_path / 'set' / inner}.")


def test_one_level_too_low(tmp_path: Path) -> None:
    """The folder of one class is given instead of the one that holds all."""
    photos = photo_folder(tmp_path / "photos", count=3)
    with pytest.raises(DataError, match=rf"give the folder that holds all classes, {photos}\.$"):
        open_splits(photos / "cat")


def test_parts_below_classes_are_refused(tmp_path: Path) -> None:
    """Mixed, validation images would be trained on."""
    for label in ("cat", "dog"):
        photo_folder(tmp_path / "photos" / label, ("train", "val"), count=3)
    wanted = rf"Put the parts above the classes: {tmp_path / 'photos' / 'train' / 'cat'}\.$"
    with pytest.raises(DataError, match=wanted):
        open_splits(tmp_path / "photos")


def test_links_in_a_circle_are_broken_links(tmp_path: Path) -> None:
    """One of them made the whole folder unlistable."""
    photo_folder(tmp_path, count=3)
    for name in ("self.jpg", "self"):
        (tmp_path / "cat" / name).symlink_to(name)
    splits = open_splits(tmp_path)
    assert len(splits.train) + len(splits.val) == 7  # the scan reports self.jpg
    assert splits.passed_over.lines() == [f"1 broken link passed over, {tmp_path / 'cat/self'}."]


def test_one_part_in_each_class_is_refused(tmp_path: Path) -> None:
    """Two data sets of one part each became two classes."""
    for name in ("ours", "theirs"):
        photo_folder(tmp_path / "photos" / name / "train", count=3)
    with pytest.raises(DataError, match=r"ours and theirs hold the same folders \(train\)"):
        open_splits(tmp_path / "photos")


@pytest.mark.parametrize(
    ("first", "second", "split"),
    [("eval", "val", "val"), ("test", "testing", "test"), ("holdout", "test", "test"),
     ("dev", "val", "val"), ("valid", "validation", "val"), ("train_1", "train_2", "train")],
)  # fmt: skip
def test_two_names_of_one_part_are_refused(
    tmp_path: Path, first: str, second: str, split: str
) -> None:
    """One of them would be left out of what it was made for."""
    for name in {"train_1" if split == "train" else "train", first, second}:
        photo_folder(tmp_path / name, count=2)
    wanted = f"has both {first} and {second}, which both name the {split} split. Merge them, or "
    with pytest.raises(DataError, match=wanted):
        open_splits(tmp_path)


@pytest.mark.parametrize(
    "stray",
    [
        *("x.parquet", "train-00000-of-00001.parquet", "train.tar", "labels.csv", "train.csv"),
        *("metadata.csv", "metadata.jsonl", "annotations.json", "images.zip", "README", "list.tsv"),
        *("train-images-idx3-ubyte.gz", "train/x.parquet"),
    ],
)
def test_a_stray_file_is_not_the_data(tmp_path: Path, stray: str) -> None:
    """A forgotten table beside a thousand photos was what was trained on."""
    root = tmp_path / ("train" if "/" in stray else "")
    photo_folder(root, count=5)
    (tmp_path / stray).write_bytes(b"PAR1")
    splits = open_splits(tmp_path)
    assert splits.train.labels == ("cat", "dog")
    assert len(splits.train) + len(splits.val) == 10
    [line] = splits.passed_over.lines()
    assert line.startswith("1 ")


def test_the_list_above_the_images_is_named(tmp_path: Path) -> None:
    """Hugging Face's image folders may have one list for all parts."""
    photo_folder(tmp_path, ("train",), count=2)
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(DataError, match=r"Give its list of images, .*metadata\.jsonl\.$"):
        open_splits(tmp_path)


def test_parts_with_a_class_of_their_own_are_refused(tmp_path: Path) -> None:
    """A class that is missing from one fold must not hide that they are folds."""
    photo_folder(tmp_path / "photos" / "fold1", ("cat", "dog", "eel"), count=2)
    photo_folder(tmp_path / "photos" / "fold2", ("cat", "dog"), count=2)
    with pytest.raises(DataError, match="hold the same folders"):
        open_splits(tmp_path / "photos")


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_unicode_forms_are_one_class(
    tmp_path: Path, forms: tuple[Literal["NFC", "NFD"], Literal["NFC", "NFD"]]
) -> None:
    """Copied from a Mac, "café" is spelled with other bytes: it was a class that nobody knew."""
    cafes = [unicodedata.normalize(form, "café") for form in forms]
    for split, cafe in zip(("train", "val"), cafes, strict=True):
        photo_folder(tmp_path / "parts" / split, (cafe, "tea"), count=4)
    splits = open_splits(tmp_path / "parts")
    assert splits.train.labels == (cafes[0], "tea")
    assert splits.val.counts().tolist() == [4, 4]
    for label in cafes:  # models that were trained before have the form of their folders
        found = open_for_evaluation(tmp_path / "parts", ("tea", label), {})
        assert (found.labels, found.counts().tolist()) == (("tea", label), [4, 4])


def test_both_unicode_forms_in_one_folder(tmp_path: Path) -> None:
    """Two classes with the same name could not be told apart."""
    cafes = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    photo_folder(tmp_path / "photos", (*cafes, "tea"), count=4)
    splits = open_splits(tmp_path / "photos")
    assert len(splits.train.labels) == 2
    assert (splits.train.counts() + splits.val.counts()).tolist() == [8, 4]
    measured = open_for_evaluation(
        tmp_path / "photos",
        (cafes[1], "tea"),
        {"fingerprint": splits.fingerprint, "seed": 0, "val_fraction": 0.2},
    )
    assert names(measured, tmp_path) == names(splits.val, tmp_path)


@pytest.mark.parametrize("names", [("fold1", "fold2"), ("A", "B", "C"), ("trainval", "holdout")])
def test_folders_that_hold_the_same_folders_are_refused(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    """Whatever parts are called, classes do not all hold the same classes."""
    for name in names:
        photo_folder(tmp_path / "photos" / name, count=5)
    with pytest.raises(DataError, match=r"hold the same folders \(cat, dog\), so they look like p"):
        open_splits(tmp_path / "photos")


def test_classes_may_hold_folders(tmp_path: Path) -> None:
    """Folders by camera inside classes, or a class that is called like a part."""
    photos = photo_folder(tmp_path / "photos", count=5)
    for name in ("cat", "dog"):
        for camera in ("left", "right"):
            (photos / name / camera).mkdir()
    assert open_splits(photos).train.labels == ("cat", "dog")
    for name in ("test_bench", "data"):
        (photos / "cat").rename(photos / name)
        assert name in open_splits(photos).train.labels
        (photos / name).rename(photos / "cat")
