"""Class names stay as they are written; numbers only decide their order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from oracles.originals import sklearn
from PIL import Image
from sample_data import by_class, fill, names, trained_on

from resnext.data.labels import Classes
from resnext.data.open import open_for_evaluation, open_splits
from resnext.data.unlabelled import open_unlabelled
from resnext.errors import DataError


def finished(texts: Sequence[str], known: Sequence[str] | None = None) -> tuple[list[int], list]:
    """Targets and labels of images with these classes."""
    classes = Classes()
    for text in texts:
        classes.add(text)
    targets, labels, own = classes.finish("data", known, None)
    assert labels == own
    return [int(i) for i in targets], [*labels]


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["010", "001", "002"], ["001", "002", "010"]),  # was 1, 2, 10
        (["1", "01"], ["01", "1"]),  # was one class
        (["10", "2", "1"], ["1", "2", "10"]),  # 10 comes after 2
        (["007", "10", "8"], ["007", "8", "10"]),
        (["-1", "1"], ["-1", "1"]),
        (["1e3", "1000"], ["1000", "1e3"]),
        (["1.0", "1"], ["1", "1.0"]),
        (["٣", "3"], ["3", "٣"]),  # Arabic digits are text
        (["10", "2", "cat"], ["10", "2", "cat"]),
        (["9" * 30, "1"], ["1", "9" * 30]),
        (["9" * 5000, "10" * 2500, "8"], ["8", "10" * 2500, "9" * 5000]),  # too long for int
        (["0", "00", "1"], ["0", "00", "1"]),
    ],
)
def test_text_stays_text(texts: list[str], labels: list[str]) -> None:
    """A class under another name cannot be found again; two that merge are never told apart."""
    targets, found = finished(texts)
    assert found == labels
    assert [found[i] for i in targets] == texts


@pytest.mark.parametrize(
    ("texts", "known", "targets"),
    [
        (["2", "0", "1"], ["a", "b", "c"], [2, 0, 1]),  # numbers of classes
        (["c", "a"], ["a", "b", "c"], [2, 0]),  # names
        (["c", "0"], ["a", "b", "c"], [2, 0]),
        (["002", "010"], ["001", "002", "010"], [1, 2]),  # names, was refused or number 2
        (["0", "1"], ["1", "2", "3"], [0, 1]),
        (["01", "0"], ["0", "01"], [1, 0]),
    ],
)
def test_known_names(texts: list[str], known: list[str], targets: list[int]) -> None:
    """A text is the number of a class only if all texts are."""
    assert finished(texts, known) == (targets, known)


@pytest.mark.parametrize("texts", [["3", "1"], ["01", "1"]])
def test_a_name_that_is_the_number_of_another_class_is_refused(texts: list[str]) -> None:
    """With 3, these would be names; another split without a 3 would be read as numbers."""
    with pytest.raises(DataError, match="'1', which is the name of one class and the number of"):
        finished(texts, ["1", "01", "3"])


@pytest.mark.parametrize("text", ["3", "-1", "01", "d", ""])
def test_unknown_classes_are_refused(text: str) -> None:
    """-1 marks images without a class in some data sets; Python would take the last class."""
    with pytest.raises(DataError, match="its 3 class names are a, b, c"):
        finished(["a", text], ["a", "b", "c"])


@pytest.mark.parametrize(
    "classes", [("001", "01", "1", "010"), ("1", "2", "10", "20", "100"), ("cat", "Bird", "1e5")]
)
def test_a_list_and_a_folder_agree(tmp_path: Path, classes: tuple[str, ...]) -> None:
    """The same images with the same classes, whichever way they are described.

    Other images were held out, so a model of the one was measured on the other's training images.
    """
    photo = Image.fromarray(sklearn.datasets.load_sample_images().images[0]).resize((30, 20))
    rows = ["path,label"]
    for name in classes:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            photo.save(tmp_path / "photos" / name / f"{i}.jpg")
            rows.append(f"photos/{name}/{i}.jpg,{name}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    folder, listed = open_splits(tmp_path / "photos"), open_splits(tmp_path / "list.csv")
    assert folder.train.labels == listed.train.labels
    assert {*folder.train.labels} == {*classes}
    files = (tmp_path / "photos").rglob("*.jpg")
    inside = [*map(str, files)]
    for one, other in ((folder.train, listed.train), (folder.val, listed.val)):
        held = [
            [path for path in inside if path in map(part.title, range(len(part)))]
            for part in (one, other)
        ]
        assert held[0] == held[1]
    for splits in (folder, listed):
        for part in (splits.train, splits.val):
            for i, target in enumerate(part.targets):
                assert Path(part.title(i).partition(",")[0]).parent.name == part.labels[target]


NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("texts", "labels", "targets"),
    [
        ([NFC, NFD, "tea"], [NFC, "tea"], [0, 0, 1]),
        ([NFD, "tea"], [NFD, "tea"], [0, 1]),  # alone it stays as it is: old files know it so
        (["K\u00f6ln", "Ko\u0308ln", "\u212b", "\u00c5"], ["K\u00f6ln", "\u00c5"], [0, 0, 1, 1]),
    ],
)
def test_unicode_forms_are_one_class(
    texts: list[str], labels: list[str], targets: list[int]
) -> None:
    """Macs write accents as characters of their own; the halves of a class never met."""
    assert finished(texts) == (targets, labels)
    assert finished([NFD, "tea"], [NFC, "tea"]) == ([0, 1], [NFC, "tea"])


@pytest.mark.parametrize("first", [NFC, NFD])
def test_unicode_forms_in_folders_and_models(tmp_path: Path, first: str) -> None:
    """`train` from one machine, `val` from another, and a model that knows either form."""
    second = NFD if first == NFC else NFC
    for part, name in (("train", first), ("val", second)):
        fill(tmp_path / part, {name: 4, "tea": 4})
    splits = open_splits(tmp_path)
    assert splits.train.labels == splits.val.labels == (first, "tea")
    assert splits.val.counts().tolist() == [4, 4]
    found = open_for_evaluation(tmp_path / "train", ("tea", second), {})
    assert found.counts().tolist() == [4, 4]
    with pytest.raises(DataError, match="has a folder for the class"):
        open_unlabelled(tmp_path / "val", splits.train.labels)
    fill(tmp_path / "train", {second: 3})
    if len({path.name for path in (tmp_path / "train").iterdir()}) == 3:  # disks may merge them
        merged = open_splits(tmp_path / "train")
        assert merged.train.labels == (NFC, "tea")
        assert (merged.train.counts() + merged.val.counts()).tolist() == [7, 4]


def numbered_folder(root: Path) -> Path:
    """Twelve classes with numbers as names, five images in each."""
    return fill(root, {str(i): 5 for i in range(1, 13)})


def test_numbers_have_one_order(tmp_path: Path) -> None:
    """A folder had 1, 10, 2, and a list of the same images 1, 2, 10: two models never agreed."""
    root = numbered_folder(tmp_path / "photos")
    rows = [f"photos/{path.relative_to(root).as_posix()}" for path in sorted(root.rglob("*.png"))]
    text = "\n".join(["path,label", *(f"{row},{row.split('/')[1]}" for row in rows)])
    (tmp_path / "list.csv").write_text(text)
    wanted = tuple(str(i) for i in range(1, 13))
    for source in (root, tmp_path / "list.csv"):
        splits = open_splits(source)
        assert splits.train.labels == wanted
        for part in (splits.train, splits.val):
            for i, target in enumerate(part.targets):
                assert Path(part.title(i)).parent.name == part.labels[target]


HELD_OUT = (  # by the version that numbered folders as text
    *("1/004.png", "10/003.png", "11/000.png", "12/004.png", "2/004.png", "3/002.png"),
    *("4/004.png", "5/004.png", "6/003.png", "7/000.png", "8/000.png", "9/004.png"),
)


def test_models_of_the_old_order_hold_out_the_same_images(tmp_path: Path) -> None:
    """Classes are drawn from as text, as before: else a model is measured on what it learnt."""
    root = numbered_folder(tmp_path / "photos")
    text_order = tuple(sorted(str(i) for i in range(1, 13)))
    splits = open_splits(root, seed=3)
    before = open_splits(root, seed=3, order=text_order)  # as an unfinished run began
    assert before.train.labels == text_order
    assert names(before.val, root) == names(splits.val, root)
    assert names(before.val, root) == [*HELD_OUT]
    for labels in (text_order, splits.train.labels):
        found = open_for_evaluation(root, labels, trained_on(splits, seed=3))
        assert names(found, root) == names(splits.val, root)
        assert [row[0] for row in by_class(found, root)] == [
            row[1] for row in by_class(found, root)
        ]
    assert open_splits(root, order=("a", "b")).train.labels == splits.train.labels
