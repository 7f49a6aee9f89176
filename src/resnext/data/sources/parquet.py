"""Parquet files of images, as Hugging Face's `datasets` writes them.

The images are copied into one file in the cache, where each is (file, offset, size): any order
costs the same, and an interrupted epoch can be continued exactly.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from resnext.checks import brief
from resnext.data.dataset import (
    ImageSet,
    Members,
    Names,
    Problem,
    SplitName,
    compact,
    fingerprint,
)
from resnext.data.labels import Classes
from resnext.data.sources.base import (
    LABELS,
    PATHS,
    LoadedSplit,
    Source,
    by_split,
    file_name,
    missing_package,
    named,
    split_of,
    split_title,
    visible,
)
from resnext.errors import CheckpointError, DataError
from resnext.system.atomic import write_atomically
from resnext.system.cache import cache_folder
from resnext.system.digest import short_digest


def parquet_in(folder: Path) -> list[Path]:
    """Parquet files in a folder, or in `data` inside it."""
    for candidate in (folder, folder / "data"):
        if candidate.is_dir():
            files = [f for f in visible(candidate) if f.suffix == ".parquet" and f.is_file()]
            if files:
                return files
    return []


def split_folders(root: Path) -> dict[SplitName, list[str]]:
    """Parquet files in folders named after splits, as in `default/train/0000.parquet`.

    These folders are in `root`, or in the only folder there that has some.

    Raises:
        DataError: Several folders have some.
    """
    found: dict[Path, dict[SplitName, list[str]]] = {}
    for base in (root, *(path for path in visible(root) if path.is_dir())):
        for name in ("train", "validation", "val", "test"):  # a class may have many files: no list
            split, folder = split_of(name), base / name
            files = parquet_in(folder) if folder.is_dir() else []
            if split and files:
                found.setdefault(base, {}).setdefault(split, []).extend(map(str, files))
    if len(found) > 1:
        first, second, *_ = found
        raise DataError(
            f"{root} has several data sets in Parquet: {first.name}, {second.name}. Give one of "
            f"them, such as {first if first != root else second}."
        )
    return next(iter(found.values()), {})


def parquet(root: Path, files: Sequence[Path]) -> Source:
    """A Hugging Face data set: Parquet files with a column of images and one of classes.

    The image column is the one of type Image, else the first with `bytes` inside. The class
    column is `label`, else the first of type ClassLabel, else the only one with a name in use.

    Raises:
        DataError: A file of a numbered series is missing.
    """
    _check_complete(root, files)
    return parquet_splits(root, by_split(str(root), [str(file) for file in files]))


def parquet_splits(root: Path, splits: Mapping[SplitName, Sequence[str]]) -> Source:
    """A Hugging Face data set whose files are known for each split."""
    return Source(
        str(root), {split: partial(_load, root, split, splits[split]) for split in splits}
    )


def _check_complete(root: Path, files: Iterable[Path]) -> None:
    there = {file.name for file in files}
    for name in sorted(there):
        match = re.fullmatch(r"(.*-)(\d{5})(-of-)(\d{5})(.*\.parquet)", name)
        if match and "-" not in match[5]:  # with a hash in it, the other names are unknown
            for i in range(int(match[4])):
                wanted = f"{match[1]}{i:05}{match[3]}{match[4]}{match[5]}"
                if wanted not in there:
                    raise DataError(f"{root}: {wanted} is missing. Download it.")


class _Copied(NamedTuple):
    """The images of one Parquet file, copied one after the other into another file."""

    path: Path
    key: str
    rows: np.ndarray
    """Row of each image in the Parquet file."""
    offsets: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray
    """Index into `texts` of each image."""
    texts: list[str]
    known: tuple[str, ...] | None
    """Names of the classes if `texts` are numbers."""
    lacking: list[tuple[int, str]]
    """Rows that lack something, and whether it is the "class", or the "image" in some words."""


def _load(
    root: Path, split: SplitName, files: Sequence[str], labels: tuple[str, ...] | None
) -> LoadedSplit:
    title = split_title(root, split)
    copied = [_copy(Path(file)) for file in files]
    known = copied[0].known
    for file, copy in zip(files, copied, strict=True):
        if copy.known != known:
            raise DataError(f"{file} has other class names than {files[0]}. Keep one kind.")
    titles = [file_name(file) for file in files]
    classes = Classes()
    for copy in copied:
        for i in copy.classes.tolist():
            classes.add(copy.texts[i])
    problems = tuple(
        Problem(split, f"{name}:{row}", "", f"The row has no {lacks}.")
        for name, copy in zip(titles, copied, strict=True)
        for row, lacks in copy.lacking
    )
    which = compact(np.repeat(np.arange(len(copied)), [len(copy.rows) for copy in copied]))
    if not which:
        first = f" {problems[0].title}: {problems[0].reason}" if problems else ""
        raise DataError(
            f"{title}: none of {len(problems)} rows has an image and a class.{first} Remove "
            f"{titles[0]}, or give it classes."
        )
    offsets = compact(np.concatenate([copy.offsets for copy in copied]))
    sizes = compact(np.concatenate([copy.sizes for copy in copied]))
    rows = Names(str(row) for copy in copied for row in copy.rows.tolist())
    members = Members([copy.path for copy in copied], titles, which, offsets, sizes, rows)
    targets, labels, own = classes.finish(title, known, labels)
    images = ImageSet(members, targets, labels, title)
    return LoadedSplit(images, own, lambda: fingerprint(copy.key for copy in copied), problems)


def _copy(source: Path) -> _Copied:
    """Copy the images of a Parquet file into the cache, unless they are there already.

    Takes about twice the memory of its largest row group.
    """
    try:
        import pyarrow.parquet as pq
        from pyarrow import ArrowException
    except ImportError as error:
        raise missing_package("pyarrow", "parquet") from error
    try:
        with pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as table:
            key = f"{source.stat().st_size} {_footer_hash(source)}"
            path = cache_folder() / "images" / f"{short_digest(key)}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                index = path.with_suffix(".npz")
                copied = _cached(path, index)
                if copied is None:
                    index.unlink(missing_ok=True)
                    arrays: dict[str, np.ndarray] = {}
                    write_atomically(
                        path, lambda temporary: arrays.update(_copy_rows(table, temporary))
                    )
                    write_atomically(index, lambda temporary: _save(temporary, arrays))
                    copied = _cached(path, index)
    except (ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{source} cannot be read as Parquet: {reason}. Download it again."
        ) from error
    except CheckpointError as error:
        raise DataError(f"Images of {source} cannot be copied: {error}") from error
    assert copied is not None
    return copied


def _footer_hash(source: Path) -> str:
    """Hash of a Parquet file's footer: sizes, offsets and statistics of all columns."""
    with source.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return hashlib.sha256(file.read(length)).hexdigest()


def _copy_rows(table: Any, temporary: str) -> dict[str, np.ndarray]:
    """Write all images one after the other; returns the arrays of `_Copied`."""
    image, label, known = _columns(table.schema_arrow)
    texts: dict[str, int] = {}
    lacking: list[tuple[int, str]] = []
    rows, offsets, sizes, classes = (array("q") for _ in range(4))
    row = -1
    with Path(temporary).open("wb") as out:
        for batch in table.iter_batches(batch_size=64, columns=[image, label]):
            struct, values = batch.column(image), batch.column(label).to_pylist()
            parts = dict(zip((x.name for x in struct.type), struct.flatten(), strict=True))
            content = parts["bytes"]
            paths = parts.get("path", [None] * len(content))
            for data, path, value in zip(content, paths, values, strict=True):
                row += 1
                no_class = value is None or value == "" or (known is not None and value == -1)
                if isinstance(value, float) and value.is_integer():
                    value = int(value)
                strange = None if isinstance(value, str | int) else value
                if no_class or strange is not None or not data.is_valid:
                    only_path = path is not None and path.is_valid
                    no_image = "image, only its path" if only_path else "image"
                    what = "class"
                    if strange is not None:
                        what = f"class of text or a whole number, but {brief(strange)}"
                    lacking.append((row, what if data.is_valid else no_image))
                    continue
                rows.append(row)
                offsets.append(out.tell())
                sizes.append(out.write(data.as_buffer()))
                classes.append(texts.setdefault(str(value), len(texts)))
    about = json.dumps({"texts": list(texts), "known": known, "lacking": lacking}).encode()
    arrays = {"rows": rows, "offsets": offsets, "sizes": sizes, "classes": classes}
    return {
        "about": np.frombuffer(about, np.uint8),
        **{name: np.array(values, dtype=np.int64) for name, values in arrays.items()},
    }


def _columns(schema: Any) -> tuple[str, str, list[str] | None]:
    """The image column, the class column, and the names of the classes if these are numbers."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    kinds = {n: f.get("_type") for n, f in features.items() if isinstance(f, dict)}
    images = [n for n in schema.names if _holds_bytes(schema.field(n).type)]
    marked = [n for n in images if kinds.get(n) == "Image"]
    numbered = [n for n in schema.names if kinds.get(n) == "ClassLabel"]
    in_use = named(schema.names, LABELS)
    labels = ["label"] if "label" in schema.names else numbered
    labels = labels or (in_use if len(in_use) == 1 else [])
    if not images and (paths := [n for n in schema.names if _holds_paths(n, schema.field(n).type)]):
        raise DataError(
            f"A Parquet file has paths of images in the column {paths[0]}, not the images. Write a "
            f"list.csv with the columns path and label, beside the images, and give that."
        )
    if not images or not labels:
        lacks = "a column label, or one of type ClassLabel" if images else "a column of images"
        raise DataError(
            f"A Parquet file of images needs {lacks}; its columns are {', '.join(schema.names)}."
        )
    known = features[labels[0]].get("names") if labels[0] in numbered else None
    return (marked or images)[0], labels[0], known


def _holds_bytes(kind: Any) -> bool:
    return hasattr(kind, "fields") and any(field.name == "bytes" for field in kind.fields)


def _holds_paths(name: str, kind: Any) -> bool:
    inside = hasattr(kind, "fields") and any(field.name == "path" for field in kind.fields)
    return inside or (str(kind) in ("string", "large_string") and bool(named([name], PATHS)))


def _save(temporary: str, arrays: dict[str, np.ndarray]) -> None:
    with Path(temporary).open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def _cached(path: Path, index: Path) -> _Copied | None:
    """A finished copy from the cache; None if it does not exist, or is damaged."""
    try:
        with index.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            about = json.loads(saved["about"].tobytes())
            if path.stat().st_size != int(saved["sizes"].sum()):
                return None
            return _Copied(
                path=path,
                key=path.stem,
                rows=saved["rows"],
                offsets=saved["offsets"],
                sizes=saved["sizes"],
                classes=saved["classes"],
                texts=about["texts"],
                known=None if about["known"] is None else tuple(about["known"]),
                lacking=[(row, lacks) for row, lacks in about["lacking"]],
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
