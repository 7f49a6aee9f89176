"""Lists of images in CSV files."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from sample_data import classes, levels, picture, trained_on

from resnext.data.open import open_for_evaluation, open_splits
from resnext.data.scan import scan
from resnext.errors import DataError
from resnext.system.progress import SilentReporter


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
    shuffled = open_splits(table(tmp_path / "shuffled.csv", rows[:3] + rows[:2:-1]))
    assert shuffled.fingerprint == splits.fingerprint
    assert levels(shuffled.val) == levels(splits.val)  # the order of the lines says nothing


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
        [0, 11, 3, 4, 7, 8],  # in the order of the paths, as in a folder
        [1, 5, 9],
        [10, 2, 6],
    ]
    assert (list(splits.val.targets), splits.val_fraction) == ([1, 1, 1], None)
    (tmp_path / "3.png").unlink()
    assert len(open_splits(tmp_path / "list.csv").train) == 6  # the scan counts it as unreadable


def pictures(folder: Path, names: list[str]) -> None:
    """An image under each name."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(i))


ROWS = [[f"img/{k}{i}.png", k] for k in ("cat", "dog") for i in range(3)]


def opened(path: Path) -> dict[str, list[str]]:
    """Names of the images of each class, in train and val together."""
    splits = open_splits(path)
    found: dict[str, list[str]] = {label: [] for label in splits.train.labels}
    for part in (splits.train, splits.val):
        for i, label in enumerate(classes(part)):
            part.open(i, "RGB")
            found[label].append(Path(part.title(i)).name)
    return {label: sorted(names) for label, names in found.items()}


WANTED = {k: [f"{k}{i}.png" for i in range(3)] for k in ("cat", "dog")}


@pytest.mark.parametrize(
    "header",
    [
        "path,label",
        "file_name,label",
        "filename,class",
        "image,category",
        "Image Path,Class-Name",
        "filepaths,labels",
        "img_path,species",
        "file,target",
        "path,class_id",
    ],
)
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_names_of_columns_and_separators(tmp_path: Path, header: str, separator: str) -> None:
    """Every publisher calls the two columns otherwise, and spreadsheets write semicolons."""
    pictures(tmp_path, [name for name, _ in ROWS])
    lines = [header.split(","), *ROWS]
    text = "\r\n".join(separator.join(line) for line in lines)
    for path, start in (("a.csv", ""), ("b.csv", f"sep={separator}\n"), ("c.tsv", "\n\n")):
        (tmp_path / path).write_bytes((start + text).encode())
        assert opened(tmp_path / path) == WANTED


def test_the_better_of_two_columns(tmp_path: Path) -> None:
    """Lists have numbers beside names, a name beside a path, and columns `set` of other kinds."""
    pictures(tmp_path, [name for name, _ in ROWS])
    rows = [["class id", "image", "filepaths", "labels", "data set", "set"]]
    rows += [[str(len(k)), "x", name, k, "train", "a"] for name, k in ROWS]
    rows += [["3", "x", "img/cat0.png", "cat", "valid", "b"]]
    splits = open_splits(table(tmp_path / "birds.csv", [row[:5] for row in rows]))
    assert splits.train.labels == ("cat", "dog")
    assert (len(splits.train), len(splits.val)) == (6, 1)
    other = table(tmp_path / "other.csv", [row[2:4] + row[5:] for row in rows])
    assert len(open_splits(other).train) + len(open_splits(other).val) == 7


def test_paths_of_windows(tmp_path: Path) -> None:
    r"""`img\cat0.png` is one name elsewhere, and was missing; a real backslash stays one."""
    pictures(tmp_path, [name for name, _ in ROWS])
    rows = [[name.replace("/", "\\"), k] for name, k in ROWS]
    assert opened(table(tmp_path / "a.csv", [["path", "label"], *rows])) == WANTED
    if os.name == "posix":
        (tmp_path / r"img\cat0.png").write_bytes(picture(77))
        assert r"img\cat0.png" in opened(tmp_path / "a.csv")["cat"]


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-8-sig", ""),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16"),
        ("utf-16-be", "utf-16"),
        ("utf-32", "utf-32"),
        ("cp1252", "cp1252"),
    ],
)
def test_encodings(tmp_path: Path, encoding: str, name: str) -> None:
    """Excel writes UTF-16 as "Unicode text" and the Windows code page as "CSV"."""
    rows = [[f"{k}/{i}.png", k] for k in ("café", "Käse") for i in range(3)]
    pictures(tmp_path, [name for name, _ in rows])
    path = table(tmp_path / "a.csv", [["path", "label"], *rows], encoding)
    assert set(opened(path)) == {"café", "Käse"}
    splits = open_splits(path)
    assert splits.notes == ((f"{path} is read as {name}, not UTF-8.",) if name else ())
    found = scan(splits, SilentReporter(), cache=None)
    assert set(splits.notes) <= set(found.lines())


@pytest.mark.parametrize("encoding", ["cp1250", "cp1251", "latin-1", "shift-jis"])
def test_ambiguous_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    """`kočka` in the Czech code page is `koèka` in the western one: only a file's name tells."""
    label = {"cp1250": "kočka", "cp1251": "кот", "latin-1": "café"}.get(encoding, "猫")
    pictures(tmp_path, [f"{i}.png" for i in range(4)])
    rows = [["path", "label"], *([f"{i}.png", (label, "dog")[i % 2]] for i in range(4))]
    with pytest.raises(DataError, match=r"cannot be read as CSV in UTF-8: .* Save it as") as caught:
        open_splits(table(tmp_path / "a.csv", rows, encoding))
    assert "\n" not in str(caught.value)


def test_json_lines(tmp_path: Path) -> None:
    """Hugging Face's image folders have `metadata.jsonl` or `metadata.csv` and no class folders."""
    pictures(tmp_path / "train", [name for name, _ in ROWS])
    path = tmp_path / "train" / "metadata.jsonl"
    lines = [json.dumps({"file_name": name, "n": 1, "label": k}) for name, k in ROWS]
    path.write_text("\n".join(lines) + "\n\n")
    assert opened(path) == WANTED
    path.write_text("\n".join(line.replace('"cat"', "10").replace('"dog"', "9") for line in lines))
    assert list(opened(path)) == ["9", "10"]
    for content, problem in (
        ('{"file_name": "a.png", "text": "a cat"}', "it has file_name, text"),
        ('{"file_name": "a", "label": "b"}\n{', "line 2: not JSON"),
        ('{"file_name": "a", "label": "b"}\n[1]', "line 2: give an object"),
        ('{"file_name": "a", "label": null}', "line 1: label is empty"),
        ('{"file_name": "a", "label": ""}', "line 1: label is empty"),
        ('{"file_name": "a", "label": true}', "line 1: label is true, not text or a whole number"),
        ('{"file_name": "a", "label": 1.5}', r"line 1: label is 1\.5, not text or a whole"),
        ('{"file_name": "a", "label": ["x", 1]}', r'line 1: label is \["x", 1\], not text or a'),
        ('{"file_name": "a", "label": {"n": 1}}', r'line 1: label is \{"n": 1\}, not text or a'),
        ('{"file_name": ["a"], "label": "b"}', r'line 1: path is \["a"\], not text'),
        ('{"file_name": "a", "label": "b", "split": true}', "must be train.*, not 'true'"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=problem):
            open_splits(path)
    for folder in (tmp_path, tmp_path / "train"):
        with pytest.raises(DataError, match=r"no class folders\. Give its list .*metadata\.jsonl"):
            open_splits(folder)


@pytest.mark.parametrize("values", [("true", "null"), ("1.5", "x"), ("[1]", "007"), ("1", "2.0")])
def test_labels_stay_text(tmp_path: Path, values: tuple[str, str]) -> None:
    """Only JSON has other kinds than text; whole numbers are written as such."""
    names = [f"{i}.png" for i in range(6)]
    pictures(tmp_path, names)
    rows = [[name, values[i % 2]] for i, name in enumerate(names)]
    assert set(opened(table(tmp_path / "a.csv", [["path", "label"], *rows]))) == {*values}
    lines = [json.dumps({"path": name, "label": label}) for name, label in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert set(opened(tmp_path / "a.jsonl")) == {*values}
    numbers = [f'{{"path": "{name}", "label": {i % 2}.0}}' for i, name in enumerate(names)]
    (tmp_path / "b.jsonl").write_text("\n".join(numbers))
    assert set(opened(tmp_path / "b.jsonl")) == {"0", "1"}


def test_spaces_around_names_are_as_in_a_folder(tmp_path: Path) -> None:
    """The folder ` 1` was the class ` 1`, in a list it was `1`, and its images were missing."""
    folder = tmp_path / "set"
    names = [f"{k}/{i}.png" for k in (" 1", "2 ", "three") for i in range(3)] + [" 1/ 4.png"]
    pictures(folder, names)
    rows = [[name, f" {name.partition('/')[0]} "] for name in names]
    listed = open_splits(table(folder / "a.csv", [[" path", "label "], *rows]))
    found = open_splits(folder)
    assert found.train.labels == listed.train.labels == ("1", "2", "three")
    for one, other in ((found.train, listed.train), (found.val, listed.val)):
        paths = [
            [Path(str(x)).relative_to(folder) for x in images.images] for images in (one, other)
        ]
        assert paths[0] == paths[1]
        assert list(one.targets) == list(other.targets)
    assert looks_whole(listed)


def looks_whole(splits: Any) -> bool:
    """Whether every image can be read."""
    return not scan(splits, SilentReporter(), cache=None).unreadable


@pytest.mark.parametrize("column", ["image_id", "id", "Image ID", "image"])
@pytest.mark.parametrize("below", ["", "train/"])
def test_names_without_endings(tmp_path: Path, column: str, below: str) -> None:
    """Lists of competitions name images by their number: the only file of that name is meant."""
    names = [f"{below}ISIC_{i}.v2.{'png' if i % 2 else 'PNG'}" for i in range(6)]
    pictures(tmp_path, names)
    rows = [[f"ISIC_{i}.v2", "ab"[i % 2]] for i in range(6)]
    path = table(tmp_path / "a.csv", [[column, "label"], *rows])
    splits = open_splits(path)
    assert looks_whole(splits)
    assert len(splits.train) + len(splits.val) == 6
    (tmp_path / "other").mkdir()
    pictures(tmp_path / "other", ["ISIC_0.v2.jpg"])
    wanted = r"line 2: ISIC_0\.v2 may be .* or .*ISIC_0\.v2\..*\. Give the paths of the files\.$"
    with pytest.raises(DataError, match=wanted) as caught:
        open_splits(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_unicode_forms_of_names(tmp_path: Path, forms: tuple[Any, Any]) -> None:
    """A Mac writes `café` in another form than the spreadsheet that lists it."""
    disk, written = forms
    names = [f"café/{i}.png" for i in range(3)] + [f"tea/é{i}.png" for i in range(3)]
    pictures(tmp_path, [unicodedata.normalize(disk, name) for name in names])
    rows = [[unicodedata.normalize(written, name), name.partition("/")[0]] for name in names]
    assert [len(x) for x in opened(table(tmp_path / "a.csv", [["path", "label"], *rows])).values()]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "lists no image"),
        ("path,label\n\n", "lists no image"),
        ("text,label\na.png,a\n", r"must begin with .* it has text, label\.$"),
        ("path,class,category\na,a,b\n", r"must begin .* class, category\. Call one of them label"),
        ("file,filename,label\na,a,b\n", r"must begin .* it has .* Call one of them path"),
        ("path;label\na;b.png;a\n", r"line 2: wanted 2 fields .* Put semicolons inside quotes"),
        ("path,class,subset\na,a,train\nb,b,later\n", "line 3: split must be train, val or test"),
        ("path,label,label\na.png,a,b\n", "once each; it has path, label, label"),
        ("path,label\na, b.png,a\n", r"line 2: wanted 2 fields \(path, label\), found 3"),
        ("path,label\na.png,a\nb.png\n", "line 3: label is empty"),
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
