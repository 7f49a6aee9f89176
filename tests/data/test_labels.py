"""Class names stay as they are written; numbers only decide their order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from oracles.originals import sklearn
from PIL import Image

from resnext.data.labels import Classes
from resnext.data.open import open_splits
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


def test_a_list_and_a_folder_agree(tmp_path: Path) -> None:
    """The same images with the same classes, whichever way they are described."""
    photo = Image.fromarray(sklearn.datasets.load_sample_images().images[0]).resize((30, 20))
    rows = ["path,label"]
    for name in ("001", "01", "1", "010"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            photo.save(tmp_path / "photos" / name / f"{i}.jpg")
            rows.append(f"photos/{name}/{i}.jpg,{name}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    folder, listed = open_splits(tmp_path / "photos"), open_splits(tmp_path / "list.csv")
    assert {*folder.train.labels} == {*listed.train.labels} == {"001", "01", "1", "010"}
    for splits in (folder, listed):
        for part in (splits.train, splits.val):
            for i, target in enumerate(part.targets):
                assert Path(part.title(i).partition(",")[0]).parent.name == part.labels[target]
