"""Lists of images in CSV files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from sample_data import classes, levels, picture, trained_on

from resnext.data.open import open_for_evaluation, open_splits
from resnext.errors import DataError


def table(path: Path, rows: list[list[str]], encoding: str = "utf-8") -> Path:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_list_of_images(tmp_path: Path) -> None:
    """Spreadsheets write marks of byte order, quotes, blank lines and further columns."""
    rows = [["Label", "note", " path "], [], ["", "", ""]]
    for i in range(10):
        name = f"pics/n{i}, the {i}th \u00fc.png"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture(i))
        rows += [[("odd", "even")[i % 2 == 0], 'a "note"\nin two lines', name], []]
    path = table(tmp_path / "list.csv", rows, "utf-8-sig")
    splits = open_splits(path)
    assert splits.train.labels == ("even", "odd")
    assert (len(splits.train), len(splits.val), splits.test) == (8, 2, None)
    for part in (splits.train, splits.val):
        assert classes(part) == [("odd", "even")[level % 2 == 0] for level in levels(part)]
    assert levels(open_for_evaluation(path, ("odd", "even"), trained_on(splits))) == levels(
        splits.val
    )
    shuffled = table(tmp_path / "shuffled.csv", rows[:3] + rows[:2:-1])
    assert open_splits(shuffled).fingerprint != splits.fingerprint  # the seed draws by position


def test_a_list_with_splits(tmp_path: Path) -> None:
    """Numbers as classes sort as numbers, and a class is the same number in all parts."""
    rows = [["path", "label", "split"]]
    for i, part in enumerate(["train", "valid", "test", "Train"] * 3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
        rows.append(
            [f"{i}.png", ("2", "10")[i // 2 % 2] if part.lower() == "train" else "10", part]
        )
    splits = open_splits(table(tmp_path / "list.csv", rows))
    assert splits.test is not None
    assert splits.train.labels == splits.val.labels == splits.test.labels == ("2", "10")
    assert [levels(part) for part in (splits.train, splits.val, splits.test)] == [
        [0, 3, 4, 7, 8, 11],
        [1, 5, 9],
        [2, 6, 10],
    ]
    assert (list(splits.val.targets), splits.val_fraction) == ([1, 1, 1], None)
    (tmp_path / "3.png").unlink()
    assert len(open_splits(tmp_path / "list.csv").train) == 6  # the scan counts it as unreadable


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "lists no image"),
        ("path,label\n\n", "lists no image"),
        ("file,label\na.png,a\n", r"must begin with .* it has file, label"),
        ("path,label,label\na.png,a,b\n", "once each; it has path, label, label"),
        ("path,label\na, b.png,a\n", r"line 2: wanted 2 fields \(path, label\), found 3"),
        ("path,label\na.png,a\nb.png\n", "line 3: wanted 2 fields"),
        ("path,label\na.png,\n", "line 2: label is empty"),
        ("path,label\n,a\n", "line 2: path is empty"),
        (
            "path,label,split\na.png,a,later\n",
            "line 2: split must be train, val or test, not 'later'",
        ),
        ("path,label,split\na.png,a,\n", "line 2: split must be"),
        ("path,label\na.png,a\nb.png,a\n", "only one class, 'a'"),
        ("path,label\na.png,a\nb.png,a\nc.png,b\n", "Class 'b' of .* has one image"),
        ('path,label\n"a.png,a\n', "cannot be read as CSV"),
        (b"path,label\n\xff\xfe.png,a\n", "cannot be read as CSV in UTF-8"),
        ("path,label,split\na.png,a,val\n", "has val inside, but no train"),
        (
            "path,label,split\na,a,train\nb,b,train\nc,eel,val\n",
            "has a class 'eel'; known are a, b",
        ),
    ],
)
def test_unusable_lists(tmp_path: Path, content: str | bytes, problem: str) -> None:
    """A list is edited by hand: the line must be named."""
    path = tmp_path / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=problem) as caught:
        open_splits(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
