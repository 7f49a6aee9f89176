"""Moving files as decided: only with a journal, and back again byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from resnext.cli.app import app
from resnext.data.sources.csv_list import LEFT_OUT
from resnext.errors import DataError, InputError
from resnext.review import moves
from resnext.review.decisions import Entry, LabelList
from resnext.review.moves import ASIDE, Moves, journal_of, read_moves


def tree(folder: Path) -> dict[str, bytes]:
    """All files under a folder with their content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def labels(tmp_path: Path) -> LabelList:
    """Two cats that are dogs, one in a folder deeper, one that is left out, and a name taken."""
    names = ("cat/1.jpg", "cat/in/2.jpg", "cat/3.jpg", "cat/4.jpg", "dog/1.jpg", "dog/5.jpg")
    for name in names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(name.encode())
    entries = [Entry(str(tmp_path / "photos" / n), n.partition("/")[0]) for n in names]
    entries[0] = entries[0]._replace(label="dog", decision="changed")
    entries[1] = entries[1]._replace(label="dog", decision="changed")
    entries[2] = entries[2]._replace(decision=LEFT_OUT)
    labels = LabelList(tmp_path / "labels.csv", entries)
    labels.write()
    return labels


def opened(labels: LabelList, folder: Path) -> Moves:
    """The moves of the data, as a new process would make them."""
    files = (p for p in (folder / "photos").rglob("*.jpg") if ASIDE not in p.parts)
    classes = {str(p): p.relative_to(folder / "photos").parts[0] for p in files}
    journal = {m["from"]: m["to"] for m in read_moves(journal_of(labels.file))}
    images = [Entry(path, label) for path, label in classes.items()]
    again = LabelList(labels.file, images, journal)
    return Moves(again, folder / "photos", classes)


def test_files_go_where_they_belong_and_back(labels: LabelList, tmp_path: Path) -> None:
    """No file may be overwritten, and the list must follow."""
    before, listed = tree(tmp_path / "photos"), labels.file.read_bytes()
    assert opened(labels, tmp_path).apply() == 3
    assert tree(tmp_path / "photos") == {
        ".left-out/cat/3.jpg": b"cat/3.jpg",
        "cat/4.jpg": b"cat/4.jpg",
        "dog/1-2.jpg": b"cat/1.jpg",
        "dog/1.jpg": b"dog/1.jpg",
        "dog/5.jpg": b"dog/5.jpg",
        "dog/in/2.jpg": b"cat/in/2.jpg",
    }
    assert "photos/dog/1-2.jpg,dog,changed" in labels.file.read_text()
    assert opened(labels, tmp_path).apply() == 0
    assert opened(labels, tmp_path).undo() == 3
    assert tree(tmp_path / "photos") == before
    assert labels.file.read_bytes() == listed
    with pytest.raises(DataError, match="nothing to undo"):
        opened(labels, tmp_path).undo()


@pytest.mark.parametrize("where", ["before the move", "after the move"])
def test_an_interruption_between_journal_and_list_loses_nothing(
    labels: LabelList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The journal is written first, the list last; whatever is between may not have happened."""
    before, original = tree(tmp_path / "photos"), moves._move

    def interrupted(old: Path, new: Path) -> None:
        if where == "after the move":
            original(old, new)
        raise KeyboardInterrupt

    monkeypatch.setattr(moves, "_move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(labels, tmp_path).apply()
    monkeypatch.undo()
    opened(labels, tmp_path).apply()
    listed = [entry.path for entry in opened(labels, tmp_path).labels.entries]
    assert len(listed) == 6
    assert all(Path(path).exists() for path in listed)
    opened(labels, tmp_path).undo()
    assert tree(tmp_path / "photos") == before


def test_the_command_needs_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake is one line that says what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for options, message in (
        (["photos", "--apply", "--undo"], "not both"),
        (["photos", "--apply"], r"labels\.csv does not exist\. Decide first"),
        (["list.csv", "--apply"], "has no class folders"),
        (["photos"], "Give the model that judges"),
    ):
        with pytest.raises(InputError, match=message):
            app(["review", *options], exit_on_error=False)


def made(folder: Path, *names: str) -> None:
    """Small images that all differ."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / name, "png")


def apply(folder: Path, *rows: str) -> None:
    """Write labels.csv and run `review photos --apply` in a folder."""
    (folder / "labels.csv").write_text("\n".join(("path,label,decision", *rows)) + "\n")
    app(["review", "photos", "--apply"], exit_on_error=False)


def test_a_class_may_be_called_like_its_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A toy train among the training images must not be moved into the folder `train/car`."""
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    made(photos, *(f"{s}/{c}/{i}.png" for s in ("train", "val") for c in ("train", "car", "car ")
                   for i in range(2)))  # fmt: skip
    shutil.rmtree(photos / "train" / "car")
    shutil.rmtree(photos / "val" / "car ")
    before = tree(photos)
    apply(
        tmp_path,
        "photos/train/train/0.png,car,changed",
        "photos/val/train/1.png,car,changed",
    )
    moved = {after: before[was] for was, after in (
        ("train/train/0.png", "train/car /0-2.png"), ("val/train/1.png", "val/car/1-2.png")
    )}  # fmt: skip
    rest = {k: v for k, v in before.items() if k not in ("train/train/0.png", "val/train/1.png")}
    assert tree(photos) == rest | moved
    app(["review", "photos", "--undo"], exit_on_error=False)
    assert tree(photos) == before


@pytest.mark.parametrize("label", ["../elsewhere", "a/b", ".left-out", "..", "__pycache__"])
def test_a_label_that_is_no_folder_moves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    """A list that was edited by hand must not move images out of the data, or out of sight."""
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "photos", "cat/1.png", "cat/2.png", "dog/1.png")
    before = tree(tmp_path)
    with pytest.raises(DataError, match="cannot be the name of a folder of images"):
        apply(tmp_path, "photos/cat/1.png,dog,changed", f"photos/cat/2.png,{label},changed")
    assert {**tree(tmp_path), "labels.csv": b""} == {**before, "labels.csv": b""}


def test_links_lead_to_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative link means another file in another folder."""
    monkeypatch.chdir(tmp_path)
    made(tmp_path, "photos/cat/1.png", "photos/dog/1.png", "store/2.png")
    link = tmp_path / "photos" / "cat" / "2.png"
    link.symlink_to("../../store/2.png")
    (tmp_path / "photos" / "dog" / "2.png").symlink_to("gone.png")
    apply(tmp_path, "photos/cat/2.png,cat,left out", "photos/cat/1.png,dog,changed")
    moved = tmp_path / "photos" / ASIDE / "cat" / "2.png"
    assert moved.read_bytes() == (tmp_path / "store" / "2.png").read_bytes()
    app(["review", "photos", "--undo"], exit_on_error=False)
    assert link.read_bytes() == (tmp_path / "store" / "2.png").read_bytes()
    assert not moved.is_symlink()


@pytest.mark.parametrize("there", ["both", "neither"])
def test_undo_keeps_its_journal(labels: LabelList, tmp_path: Path, there: str) -> None:
    """Where another file is, or none, nothing is overwritten and the journal is not lost."""
    opened(labels, tmp_path).apply()
    journal = journal_of(labels.file).read_text()
    old, new = (Path(read_moves(journal_of(labels.file))[-1][x]) for x in ("from", "to"))
    if there == "both":
        old.write_text("new")
    else:
        new.rename(tmp_path / "elsewhere")
    before = tree(tmp_path)
    with pytest.raises(DataError, match="cannot be moved back"):
        opened(labels, tmp_path).undo()
    assert tree(tmp_path) == before
    assert journal_of(labels.file).read_text() == journal
