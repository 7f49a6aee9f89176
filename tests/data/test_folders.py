"""Where images come from: folders, digits, how they are split, and what is left to measure on."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from resnext.data.dataset import ImageSet, Splits, class_weights
from resnext.data.open import open_for_evaluation, open_splits
from resnext.data.sources.folders import image_files
from resnext.errors import DataError

DIGITS = tuple("0123456789")


def write(path: Path, level: int = 0) -> None:
    """A tiny image file; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (level % 256,) * 3).save(path)


def fill(root: Path, counts: dict[str, int]) -> Path:
    """So many images in each class folder of `root`."""
    for name, count in counts.items():
        for i in range(count):
            write(root / name / f"{i:03}.png", i)
    return root


def names(images: ImageSet, root: Path) -> list[str]:
    """Files of a set, relative to `root`."""
    files = [image for image in images.images if isinstance(image, Path)]
    assert len(files) == len(images)
    return [file.relative_to(root).as_posix() for file in files]


def by_class(images: ImageSet, root: Path) -> list[tuple[str, str]]:
    """Class by name, and class by target, of each image: they must be the same."""
    files = names(images, root)
    return [
        (file.split("/")[0], images.labels[t])
        for file, t in zip(files, images.targets, strict=True)
    ]


def memory(splits: Splits, seed: int) -> dict[str, object]:
    """What training notes down for evaluation."""
    return {
        "fingerprint": splits.fingerprint,
        "seed": seed,
        "val_fraction": splits.val_fraction,
    }


# -- folders split by us ----------------------------------------------------------------------

COUNTS = {"cat": 10, "ant": 2, "dog": 25, "bee": 3}


@pytest.mark.parametrize("fraction", [0.2, 0.01, 0.5, 0.99])
def test_every_class_is_split_by_the_same_fraction(tmp_path: Path, fraction: float) -> None:
    """A rare class that ends up on one side only is never learnt, or never measured."""
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
    """File systems list in any order: another disk must not hold out what was learnt from."""
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
    """Thumbnails and notes that file managers and notebooks leave behind are no data."""
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
    assert not {*splits.train.images} & {*splits.val.images}


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    """Medical and quality data have such classes; they are no split without a `train` beside."""
    root = fill(tmp_path, {"test": 4, "control": 4})
    assert open_splits(root).train.labels == ("control", "test")


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
    original = load_digits()
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
    assert np.array_equal(images.open(0, "L"), pixels)
    assert np.array_equal(images.open(0, "RGB"), np.stack([pixels] * 3, 2))
    assert max(x.max() for x in images.images if isinstance(x, np.ndarray)) == 255


def test_digits_need_the_model_to_know_digits() -> None:
    """Targets would index into classes that mean something else."""
    for labels in (("cat", "dog"), DIGITS[::-1], DIGITS[:9], ()):
        with pytest.raises(DataError, match="classes 0 to 9"):
            open_for_evaluation("digits", labels, {})


# -- errors -----------------------------------------------------------------------------------


def one_class(root: Path) -> None:
    fill(root, {"cat": 5})


def empty_class(root: Path) -> None:
    fill(root, {"cat": 5, "dog": 5}).joinpath("eel").mkdir()


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
        (one_class, "one class only, 'cat'"),
        (empty_class, "eel holds no image"),
        (only_notes, "dog holds no image"),
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


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """An archive has to be unpacked first."""
    write(tmp_path / "set.png")
    for how in (open_splits, lambda path: open_for_evaluation(path, ("a", "b"), {})):
        with pytest.raises(DataError, match=r"set.png is a file\. Give a folder"):
            how(tmp_path / "set.png")


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
    note = memory(open_splits(tmp_path), 0)
    assert len(open_for_evaluation(tmp_path, ("a", "b"), note)) == 6
    fill(tmp_path / "test", {"a": 1, "b": 1})
    assert len(open_for_evaluation(tmp_path, ("a", "b"), note)) == 2
    shutil.rmtree(tmp_path / "train")
    assert len(open_for_evaluation(tmp_path, ("a", "b"), note)) == 2
    shutil.rmtree(tmp_path / "val")
    assert len(open_for_evaluation(tmp_path, ("a", "b"), note)) == 2


@pytest.mark.parametrize("inner", ["", "train"])
def test_the_images_that_training_held_out_are_found_again(tmp_path: Path, inner: str) -> None:
    """Measuring on the training folder must not measure what was learnt by heart."""
    fill(tmp_path / inner, COUNTS)
    for seed, fraction in ((0, 0.2), (4, 0.5)):
        splits = open_splits(tmp_path, seed=seed, val_fraction=fraction)
        for root in (tmp_path, tmp_path / inner):
            measured = open_for_evaluation(root, splits.train.labels, memory(splits, seed))
            assert [*measured.images] == [*splits.val.images]
            assert measured.targets == splits.val.targets
            assert "held-out part" in measured.name


def test_the_training_folder_is_known_wherever_it_is_moved(tmp_path: Path) -> None:
    """A model is measured on another machine than it was trained on."""
    splits = open_splits(fill(tmp_path / "here", COUNTS), seed=2)
    held = names(splits.val, tmp_path / "here")
    moved = shutil.copytree(tmp_path / "here", tmp_path / "there" / "deeper")
    measured = open_for_evaluation(moved, splits.train.labels, memory(splits, 2))
    assert names(measured, moved) == held


def test_another_folder_is_used_whole(tmp_path: Path) -> None:
    """New data holds nothing that was learnt; leaving most of it out would waste it."""
    splits = open_splits(fill(tmp_path / "old", COUNTS))
    new = fill(tmp_path / "new", {"dog": 4, "ant": 1})
    measured = open_for_evaluation(new, splits.train.labels, memory(splits, 0))
    assert measured.labels == splits.train.labels
    assert by_class(measured, new) == [("ant", "ant"), *[("dog", "dog")] * 4]
    assert len(open_for_evaluation(new, splits.train.labels, {})) == 5


def test_a_folder_learnt_from_completely_is_refused(tmp_path: Path) -> None:
    """The answer would be the training accuracy under another name."""
    fill(tmp_path / "train", {"a": 5, "b": 5})
    fill(tmp_path / "val", {"a": 3, "b": 3})
    note = memory(open_splits(tmp_path), 0)
    with pytest.raises(DataError, match=r"has learnt from every image of .*train"):
        open_for_evaluation(tmp_path / "train", ("a", "b"), note)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(DataError, match=r"has learnt from every image of .*train"):
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


# -- fingerprints and damaged files -----------------------------------------------------------


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


def test_a_folder_that_has_changed_since_training_is_refused(tmp_path: Path) -> None:
    """With one file more, all images learnt from were measured as if they were new."""
    for label in ("cat", "dog"):
        for i in range(5):
            (tmp_path / "pets" / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / "pets" / label / f"{i}.png")
    splits = open_splits(tmp_path / "pets", seed=3)
    known = {"data": "pets", "fingerprint": splits.fingerprint, "seed": 3, "val_fraction": 0.2}
    held_out = open_for_evaluation(tmp_path / "pets", ("cat", "dog"), known)
    assert [*held_out.images] == [*splits.val.images]
    Image.new("RGB", (4, 4)).save(tmp_path / "pets" / "cat" / "new.png")
    with pytest.raises(DataError, match="has other files than when the model learnt"):
        open_for_evaluation(tmp_path / "pets", ("cat", "dog"), known)
    (tmp_path / "pets").rename(tmp_path / "others")
    assert len(open_for_evaluation(tmp_path / "others", ("cat", "dog"), known)) == 11


# -- holding images ---------------------------------------------------------------------------


def test_files_keep_the_order_of_paths(tmp_path: Path) -> None:
    """Sorted as text, "a-b/1.png" comes before "a/1.png": the same seed drew another split."""
    for name in ("a/1.png", "a-b/1.png", "a.png", "b/c/2.png", "b/c.png"):
        write(tmp_path / name)
    assert image_files(tmp_path) == sorted(tmp_path.rglob("*.png"))


def test_fingerprints_and_splits_are_those_of_earlier_versions(tmp_path: Path) -> None:
    """Models of earlier versions would be measured on what they learnt from."""
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
    assert [file.name for file in image_files(root / "a")] == ["000.png", "001.png", "linked.png"]


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
    number = int(digits.title(0).split()[-1])
    assert np.array_equal(pixels, np.rint(load_digits().images[number] * 255 / 16))


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
