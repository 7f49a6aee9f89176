"""labels.csv: what `train` reads is what was decided, whatever was in the file before."""

from __future__ import annotations

import csv
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnext.data import open_splits
from resnext.data.sources.csv_list import LEFT_OUT
from resnext.errors import CheckpointError, DataError
from resnext.review import decisions
from resnext.review.decisions import Entry, LabelList, decided


def photos(folder: Path, count: int = 4) -> list[Entry]:
    """Images of cats and dogs in class folders."""
    entries: list[Entry] = []
    for label in ("cat", "dog"):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(count):
            path = folder / "photos" / label / f"{i}.png"
            values = np.random.default_rng([i, label == "cat"]).integers(0, 255, (8, 8, 3))
            Image.fromarray(values.astype(np.uint8)).save(path)
            entries.append(Entry(str(path), label))
    return entries


def table(file: Path) -> list[dict[str, str]]:
    """The rows of the file."""
    with file.open(newline="") as lines:
        return [*csv.DictReader(lines)]


def test_train_reads_what_was_decided(tmp_path: Path) -> None:
    """Changed, kept and left out: the loader of lists must see exactly these classes."""
    entries = photos(tmp_path)
    labels = LabelList(tmp_path / "labels.csv", entries)
    labels.update(decided(entries[0], "dog"))
    labels.update(decided(entries[1], None), decided(entries[4], "dog"))
    splits = open_splits(tmp_path / "labels.csv")
    found = {
        str(path): images.labels[target]
        for images in (splits.train, splits.val)
        for path, target in zip(images.images, images.targets, strict=True)
    }
    wanted = {entry.path: entry.label for entry in entries} | {entries[0].path: "dog"}
    del wanted[entries[1].path]
    assert found == wanted
    rows = table(tmp_path / "labels.csv")
    assert rows[0] == {"path": "photos/cat/0.png", "label": "dog", "decision": "changed"}
    assert [row["decision"] for row in rows] == ["changed", LEFT_OUT, "", "", "kept", "", "", ""]


def test_splits_are_kept(tmp_path: Path) -> None:
    """Without the column, test images would be trained on."""
    entries = [e._replace(split=s) for e, s in zip(photos(tmp_path, 1), ("train", "test"))]  # noqa: B905
    LabelList(tmp_path / "labels.csv", entries).write()
    assert [row["split"] for row in table(tmp_path / "labels.csv")] == ["train", "test"]


def test_an_existing_list_is_continued(tmp_path: Path) -> None:
    """Earlier decisions, columns of the user and images elsewhere must survive the first write."""
    entries = photos(tmp_path)
    file = tmp_path / "labels.csv"
    file.write_text(
        "label,path,photographer\ndog,photos/cat/0.png,Ann\nfox,/elsewhere/1.png,Ben\n\n"
    )
    labels = LabelList(file, entries)
    assert labels[entries[0].path].label == "dog"
    labels.update(decided(labels[entries[7].path], "cat"))
    rows = table(file)
    assert [*rows[0]] == ["path", "label", "decision", "photographer"]
    assert rows[0]["photographer"] == "Ann"
    assert rows[1] == {
        "path": "/elsewhere/1.png", "label": "fox", "decision": "", "photographer": "Ben"
    }  # fmt: skip
    assert (rows[-1]["path"], rows[-1]["label"]) == ("photos/dog/3.png", "cat")
    assert len(rows) == 9
    again = LabelList(file, entries)
    assert again.entries == labels.entries


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("file;class\na;b\n", "its columns are file, class"),
        ("path,label\na.png\n", "row 2 has 1 fields"),
        ("", "not enough values"),
    ],
)
def test_another_table_is_left_as_it_is(tmp_path: Path, content: str, reason: str) -> None:
    """A list of the user in another form must not be overwritten."""
    file = tmp_path / "labels.csv"
    file.write_text(content)
    with pytest.raises(DataError, match=rf"not a list of labels.*{reason}.*left as it is"):
        LabelList(file, photos(tmp_path))
    assert file.read_text() == content


def test_a_failed_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision that is only in memory would be lost without a word."""
    entries = photos(tmp_path)
    labels = LabelList(tmp_path / "labels.csv", entries)
    labels.write()
    before = (tmp_path / "labels.csv").read_bytes()

    def full(*_: object) -> None:
        raise CheckpointError("labels.csv cannot be written: no space left.")

    monkeypatch.setattr(decisions, "write_bytes_atomically", full)
    with pytest.raises(CheckpointError, match="no space"):
        labels.update(decided(entries[0], "dog"))
    assert labels[entries[0].path] == entries[0]
    monkeypatch.undo()
    labels.write()
    assert (tmp_path / "labels.csv").read_bytes() == before


FORMS = {
    "semicolons": (";", "utf-8"),
    "with a mark": (",", "utf-8-sig"),
    "of Windows": (";", "cp1252"),
    "tabs": ("\t", "utf-16"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_spreadsheet_may_save_the_list(tmp_path: Path, form: str) -> None:
    """It uses its own separators and encoding, and drops empty cells at the end of a row."""
    entries = photos(tmp_path)
    named = tmp_path / "photos" / "cat" / "Käse.png"
    Path(entries[0].path).rename(named)
    entries[0] = entries[0]._replace(path=str(named))
    first = LabelList(tmp_path / "labels.csv", entries)
    first.update(decided(entries[0], "dog"))
    separator, encoding = FORMS[form]
    rows = first.file.read_text(encoding="utf-8").splitlines()
    saved = [separator.join(row.split(",")).rstrip(separator) for row in rows]
    first.file.write_text("\r\n".join(saved) + "\r\n", encoding=encoding, newline="")
    again = LabelList(first.file, entries)
    assert again.entries == first.entries
    again.update(decided(entries[1], None))
    splits = open_splits(first.file)
    names = {str(path): images.labels[t] for images in (splits.train, splits.val)
             for path, t in zip(images.images, images.targets, strict=True)}  # fmt: skip
    assert names == {e.path: e.label for e in again.entries if e.decision != LEFT_OUT}
    written = first.file.read_bytes()
    assert written.startswith(b"\xef\xbb\xbf") == (form != "semicolons")
    assert written.splitlines()[0].decode("utf-8-sig").split(separator)[0] == "path"


def test_classes_are_written_in_several_ways(tmp_path: Path) -> None:
    """A Mac takes letters and accents apart, and people add spaces: `train` sees the same class."""
    entries = [entry._replace(label=f"{entry.label}é") for entry in photos(tmp_path)]
    labels = LabelList(tmp_path / "labels.csv", entries)
    labels.write()
    text = labels.file.read_text(encoding="utf-8")
    text = text.replace("caté", " cate\N{COMBINING ACUTE ACCENT} ")
    labels.file.write_text(text, encoding="utf-8")
    again = LabelList(labels.file, entries, classes=("caté", "dogé"))
    assert again.entries == entries


def test_names_of_files_need_not_be_text(tmp_path: Path) -> None:
    """`train` must read what the review wrote."""
    entries = photos(tmp_path)
    for i in (0, 5):
        name = Path(entries[i].path).with_name(os.fsdecode(b"caf\xe9.png"))
        Path(entries[i].path).rename(name)
        entries[i] = entries[i]._replace(path=str(name))
    first = LabelList(tmp_path / "labels.csv", entries)
    first.update(decided(entries[0], "dog"))
    assert LabelList(first.file, entries).entries == first.entries
    splits = open_splits(first.file)
    found = {str(path) for images in (splits.train, splits.val) for path in images.images}
    assert found == {entry.path for entry in entries}


def test_two_reviews_at_once(tmp_path: Path) -> None:
    """Each writes the whole list; the decisions of the other must stay, and its moves."""
    entries = photos(tmp_path)
    a, b = (LabelList(tmp_path / "labels.csv", entries) for _ in range(2))
    a.update(decided(entries[0], "dog"))
    b.update(decided(entries[1], None))
    a.update(decided(entries[7], "cat"))
    assert [row["decision"] for row in table(a.file)] == [
        "changed", LEFT_OUT, "", "", "", "", "", "changed"
    ]  # fmt: skip
    new = tmp_path / "photos" / "dog" / "9.png"
    Path(entries[0].path).rename(new)
    b.refresh()
    b.move(entries[0].path, str(new))
    b.write()
    a.update(decided(entries[2], "dog"))
    assert next(row["path"] for row in table(a.file)) == "photos/dog/9.png"
    assert len(table(a.file)) == 8
    with pytest.raises(DataError, match="another program moved it"):
        a.update(decided(entries[0], "cat"))


def test_reviews_wait_for_each_other(tmp_path: Path) -> None:
    """Without a lock, the last one to write would undo what the others decided meanwhile."""
    entries = photos(tmp_path, 10)
    lists = [LabelList(tmp_path / "labels.csv", entries) for _ in range(4)]

    def decide(number: int) -> None:
        for entry in entries[number::4]:
            lists[number].update(decided(entry, None))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decide, range(4)))
    assert [row["decision"] for row in table(lists[0].file)] == [LEFT_OUT] * 20
