"""Images in Parquet files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sample_data import levels, picture, trained_on

from resnext.data.open import open_for_evaluation, open_splits
from resnext.errors import DataError


def parquet(
    path: Path,
    rows: list[tuple[bytes | None, Any]],
    names: list[str] | None = None,
    image: str = "img",
    label: str = "label",
    rows_at_once: int = 3,
) -> Path:
    """A file as the `datasets` library writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [None if data is None else {"bytes": data, "path": "x.png"} for data, _ in rows]
    features: dict[str, Any] = {
        "id": {"dtype": "int64", "_type": "Value"},
        image: {"_type": "Image"},
    }
    features[label] = {"names": names, "_type": "ClassLabel"} if names else {"_type": "Value"}
    columns = {
        "id": pa.array(range(len(rows))),
        image: pa.array(images, kind),
        label: pa.array([value for _, value in rows]),
    }
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    whole = pa.table(columns).replace_schema_metadata(about)
    pq.write_table(whole, path, row_group_size=rows_at_once)
    return path


NAMES = ["zebra", "ant", "bee"]


def some_rows(first: int, count: int) -> list[tuple[bytes | None, Any]]:
    """Rows whose grey level is their number, and whose class its remainder."""
    return [(picture(i), i % 3) for i in range(first, first + count)]


@pytest.mark.parametrize("inner", ["", "data"])
def test_a_hugging_face_folder(tmp_path: Path, inner: str) -> None:
    """Labels are in the order of the features, not of the alphabet."""
    data = tmp_path / "set" / inner
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").write_text("# A data set")
    for i in range(2):
        parquet(data / f"train-0000{i}-of-00002.parquet", some_rows(10 * i, 7), NAMES)
    parquet(data / "validation-00000-of-00001.parquet", some_rows(30, 4), NAMES)
    parquet(data / "test-00000-of-00001.parquet", some_rows(40, 5), NAMES)
    splits = open_splits(tmp_path / "set")
    assert splits.test is not None
    parts = (splits.train, splits.val, splits.test)
    assert [levels(part) for part in parts] == [
        [*range(7), *range(10, 17)],
        [*range(30, 34)],
        [*range(40, 45)],
    ]
    for part in parts:
        assert part.labels == tuple(NAMES)
        assert list(part.targets) == [level % 3 for level in levels(part)]
    assert splits.train.title(8) == "train-00001-of-00002.parquet:1"
    assert splits.train.read(8) == picture(11)
    assert levels(open_for_evaluation(tmp_path / "set", tuple(NAMES), {})) == levels(splits.test)
    (data / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet is missing"):
        open_splits(tmp_path / "set")


def test_parquet_is_copied_once(
    tmp_path: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying at each start takes long; half a copy or one of another file must not be used."""
    import pyarrow.parquet as pq

    path = parquet(tmp_path / "a.parquet", some_rows(0, 12), NAMES)
    first = open_splits(path)
    [copy] = (fresh_cache / "images").glob("*.bin")
    assert copy.stat().st_size == sum(len(picture(i)) for i in range(12))
    batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    again = open_splits(path)
    assert again.fingerprint == first.fingerprint
    assert levels(again.train) == levels(first.train)
    assert levels(open_for_evaluation(path, tuple(NAMES), trained_on(first))) == levels(first.val)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", batches)
    for damaged in (copy, copy.with_suffix(".npz")):
        damaged.write_bytes(damaged.read_bytes()[:-1])
        assert levels(open_splits(path).train) == levels(first.train)
    other = open_splits(parquet(path, some_rows(20, 12), NAMES))
    assert other.fingerprint != first.fingerprint
    assert sorted(levels(other.train) + levels(other.val)) == [*range(20, 32)]


def test_parquet_with_texts_and_gaps(tmp_path: Path) -> None:
    """Test sets are published with class -1, and exports with empty cells."""
    rows: list[tuple[bytes | None, Any]] = [(picture(i), ("b", "a")[i % 2]) for i in range(8)]
    rows += [(None, "a"), (picture(1), None), (picture(2), "")]
    splits = open_splits(parquet(tmp_path / "a.parquet", rows, label="label"))
    assert splits.train.labels == ("a", "b")
    assert len(splits.train) + len(splits.val) == 8
    assert [(p.title, p.reason) for p in splits.problems] == [
        ("a.parquet:8", "The row has no image."),
        ("a.parquet:9", "The row has no class."),
        ("a.parquet:10", "The row has no class."),
    ]
    root = tmp_path / "set"
    parquet(root / "train.parquet", some_rows(0, 9), NAMES, label="fine_label")
    assert open_splits(root).train.labels == tuple(NAMES)
    parquet(root / "test.parquet", [(picture(1), -1)] * 3, NAMES, label="fine_label")
    with pytest.raises(DataError, match=r"test split: none of 3 rows has an image and a class"):
        open_splits(root)


@pytest.mark.parametrize(
    ("value", "found"), [(1.5, "1.5"), (float("nan"), "nan"), ([1], r"\[1\]")], ids=str
)
def test_labels_that_are_no_text(tmp_path: Path, value: Any, found: str) -> None:
    """Lists and missing numbers became classes called `[1]` and `nan`."""
    rows: list[tuple[bytes | None, Any]] = [(picture(i), value) for i in range(8)]
    wanted = rf"row has no class of text or a whole number, but {found}\."
    with pytest.raises(DataError, match=wanted) as caught:
        open_splits(parquet(tmp_path / "a.parquet", rows))
    assert "\n" not in str(caught.value)
    numbers: list[tuple[bytes | None, Any]] = [(picture(i), float(i % 2)) for i in range(8)]
    assert open_splits(parquet(tmp_path / "b.parquet", numbers)).train.labels == ("0", "1")


def test_unusable_parquet(tmp_path: Path) -> None:
    """Arrow's messages run over many lines and do not name the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = parquet(tmp_path / "a.parquet", some_rows(0, 6), NAMES)
    content = path.read_bytes()
    for damaged in (content[:-5], content[:50], b"", b"no table"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet: .") as caught:
            open_splits(path)
        assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"label": [0, 1], "x": [0, 1]}), path)
    with pytest.raises(DataError, match="needs a column of images; its columns are label, x"):
        open_splits(path)
    parquet(path, some_rows(0, 6), label="number")
    with pytest.raises(DataError, match="needs a column label, or one of type ClassLabel"):
        open_splits(path)
    parquet(tmp_path / "b.parquet", some_rows(0, 6), NAMES[::-1])
    parquet(path, some_rows(0, 6), NAMES)
    with pytest.raises(DataError, match="has other class names than"):
        open_splits(tmp_path)


@pytest.mark.parametrize("above", ["", "default", "plain_text"])
def test_folders_named_after_splits(tmp_path: Path, above: str) -> None:
    """The Hub converts every data set to `default/train/0000.parquet`; it was a class `default`."""
    for i, name in enumerate(("train", "validation", "test")):
        for k in range(2):
            path = tmp_path / above / name / f"000{k}.parquet"
            parquet(path, some_rows(20 * i + 9 * k, 9), NAMES)
    splits = open_splits(tmp_path)
    assert splits.test is not None
    assert [levels(x) for x in (splits.train, splits.val, splits.test)] == [
        [*range(18)],
        [*range(20, 38)],
        [*range(40, 58)],
    ]
    if above:
        parquet(tmp_path / "other" / "train" / "0000.parquet", some_rows(0, 3), NAMES)
        with pytest.raises(DataError, match=r"several data sets in Parquet: .* Give one of them"):
            open_splits(tmp_path)


def test_paths_instead_of_images(tmp_path: Path) -> None:
    """Such a file is of use only beside its images; what to give instead must be said."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = pa.array([0, 1])
    struct = pa.array([{"path": "a.png"}] * 2, pa.struct([("path", pa.string())]))
    for column in (struct, pa.array(["a.png", "b.png"])):
        pq.write_table(pa.table({"image": column, "label": labels}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"paths of images in the column image, .* list\.csv"):
            open_splits(tmp_path / "a.parquet")
    parquet(tmp_path / "b.parquet", [(None, 0), (None, 1)], NAMES)
    with pytest.raises(DataError, match="The row has no image"):
        open_splits(tmp_path / "b.parquet")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": None, "path": "a.png"}] * 2, kind)
    pq.write_table(pa.table({"image": column, "label": labels}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"The row has no image, only its path\."):
        open_splits(tmp_path / "c.parquet")


@pytest.mark.parametrize("label", ["class", "category", "species"])
def test_names_of_the_class_column(tmp_path: Path, label: str) -> None:
    """Lists and tables call it the same."""
    rows: list[tuple[bytes | None, Any]] = [(picture(i), ("b", "a")[i % 2]) for i in range(8)]
    assert open_splits(parquet(tmp_path / "a.parquet", rows, label=label)).train.labels == (
        "a",
        "b",
    )
