"""WebDataset's tar shards, local or at a URL.

Each image becomes (file, offset, size), so any order costs the same and an interrupted epoch can
be continued exactly.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import urlsplit

from resnext.data.dataset import (
    EXTENSIONS,
    ImageSet,
    Members,
    Names,
    Problem,
    SplitName,
    fingerprint,
)
from resnext.data.labels import Classes
from resnext.data.sources.base import (
    LoadedSplit,
    Source,
    by_split,
    file_name,
    is_url,
    missing_package,
    split_title,
    visible,
)
from resnext.errors import DataError
from resnext.system.download import fetch_shard

_NAMES = ("classnames.txt", "labels.txt", "classes.txt")
_COMPRESSED = re.compile(r"\.(tgz|tbz2?|txz|tar\.\w+)$", re.IGNORECASE)
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_LONGEST = 1 << 24  # bytes of a class or of JSON; what is longer is neither
_AGAIN = "Copy or download it again."


def is_tar_name(name: str) -> bool:
    """Whether a file is a tar by its name, compressed or not."""
    return name.lower().endswith(".tar") or _COMPRESSED.search(name) is not None


def is_pattern(source: str) -> bool:
    """Whether a text is a URL, or names several files in braces."""
    return is_url(source) or ("{" in source and not Path(source).exists())


def tars_in(folder: Path) -> list[str]:
    """Tars in a folder that has no subfolders."""
    inside = visible(folder)
    if any(path.is_dir() for path in inside):
        return []
    return [str(path) for path in inside if path.is_file() and is_tar_name(path.name)]


def webdataset(name: str, files: Sequence[str] | None = None) -> Source:
    """Tar shards as WebDataset writes them.

    Files of a sample share their name up to the first dot: `0001.jpg` and `0001.cls`. The class
    is a number or a text in `.cls`, or "label" or "cls" in `.json`. Names of numbered classes are
    the lines of `classnames.txt`, `labels.txt` or `classes.txt` next to the shards.

    Args:
        name: The source as the user gave it.
        files: The shards; None if `name` is a pattern with braces, or a URL.

    Raises:
        DataError: A shard is missing, or is not a plain tar.
    """
    if files is None:
        files = _expand_braces(name)
    for file in files:
        if _COMPRESSED.search(file_name(file)):
            raise _compressed(file)
        if not file_name(file).lower().endswith(".tar"):
            raise DataError(f"{file} is not a tar. Give plain .tar shards.")
    missing = [file for file in files if not is_url(file) and not Path(file).is_file()]
    if missing:
        others = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]} is missing{others}. Give a pattern of shards that exist.")
    splits = by_split(name, files)
    return Source(name, {split: partial(_load, name, split, splits[split]) for split in splits})


def _expand_braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise missing_package("webdataset", "shards") from error
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(
            f"{pattern}: a brace is not closed. Write train-{{000..009}}.tar."
        ) from error


def _compressed(name: str) -> DataError:
    return DataError(
        f"{name} is compressed, so single images cannot be read from it. Unpack it to a plain .tar."
    )


def _load(
    name: str, split: SplitName, files: Sequence[str], labels: tuple[str, ...] | None
) -> LoadedSplit:
    title = split_title(name, split)
    paths = [_local(file) for file in files]
    titles = [file_name(file) for file in files]
    classes, problems = Classes(), list[Problem]()
    which, offsets, sizes = array("q"), array("q"), array("q")

    def image_names() -> Iterator[str]:
        for number, path in enumerate(paths):
            for sample in samples(path, files[number]):
                if sample.image is None or sample.label is None:
                    lacks = "image" if sample.image is None else "class"
                    sample_title = f"{titles[number]}:{sample.key}"
                    reason = f"The sample has no {lacks}."
                    problems.append(Problem(split, sample_title, sample.label or "", reason))
                    continue
                which.append(number)
                offsets.append(sample.offset)
                sizes.append(sample.size)
                classes.add(sample.label)
                yield sample.image

    members = Members(paths, titles, which, offsets, sizes, Names(image_names()))
    if not members:
        first = f"{problems[0].title}: {problems[0].reason}" if problems else "They are empty."
        raise DataError(
            f"{title}: none of {len(problems)} samples has an image (.jpg, .png, …) and a class "
            f"(.cls or .json with label). {first}"
        )
    targets, labels, own = classes.finish(title, _class_names(files), labels)
    lines = (
        f"{titles[number]}:{member} {size} {labels[target]}"
        for number, member, size, target in zip(which, members.names, sizes, targets, strict=True)
    )
    images = ImageSet(members, targets, labels, title)
    return LoadedSplit(images, own, lambda: fingerprint(lines), tuple(problems))


def _local(file: str) -> Path:
    if not is_url(file):
        return Path(file)
    return fetch_shard(file, check=partial(_check_tar, title=file))


class Sample(NamedTuple):
    """The files of one key in a tar; image and label are None if missing."""

    key: str
    image: str | None
    offset: int
    size: int
    label: str | None


def samples(path: Path, title: str) -> Iterator[Sample]:
    """Every sample of a tar, in order.

    Raises:
        DataError: The tar is damaged, cut off or compressed.
    """
    sample: Sample | None = None
    for member, file in _members(path, title):
        match = re.match(r"((?:.*/)?[^./]+)\.([^/]*)$", member.name)
        if match is None:  # hidden, or without an ending
            continue
        key, ending = match[1], match[2].lower()
        if sample is None or sample.key != key:
            if sample:
                yield sample
            sample = Sample(key, None, 0, 0, None)
        if f".{ending}" in EXTENSIONS and sample.image is None:
            sample = sample._replace(image=member.name, offset=member.offset_data, size=member.size)
        elif ending in ("cls", "json") and member.size < _LONGEST:
            file.seek(member.offset_data)
            label = _label(file.read(member.size), ending)
            if label is not None and (ending == "cls" or sample.label is None):
                sample = sample._replace(label=label)
    if sample:
        yield sample


def _check_tar(path: Path, title: str) -> None:
    for _ in _members(path, title):
        pass


def _members(path: Path, title: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Files in a tar, each with the tar opened for reading.

    `tarfile` ends silently at a damaged header or at a truncation; this raises instead.
    """
    try:
        with path.open("rb") as file:
            if file.read(6).startswith(_MAGIC):
                raise _compressed(title)
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            last = "its beginning"
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # else it would keep millions
                    last = member.name
                    if member.offset_data + member.size > length:
                        raise DataError(f"{title} is cut off inside {last}. {_AGAIN}")
                    if member.isreg():
                        yield member, file
                file.seek(tar.offset)
                end = file.read(512)
                if end != bytes(512):
                    fault = "damaged" if len(end) == 512 else "cut off"
                    raise DataError(
                        f"{title} is {fault} after {last}, byte {tar.offset:,}. {_AGAIN}"
                    )
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{title} cannot be read as a tar: {error}. {_AGAIN}") from error


def _label(content: bytes, ending: str) -> str | None:
    """The class in a `.cls` or `.json` member, as text; None if it holds none."""
    try:
        if ending == "cls":
            return content.decode("utf-8-sig").strip() or None
        values = json.loads(content)
    except ValueError:
        return None
    label = values.get("label", values.get("cls")) if isinstance(values, dict) else None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, int | str):
        return None
    return str(label).strip() or None


def _class_names(files: Sequence[str]) -> tuple[str, ...] | None:
    """Class names from a text file next to the shards; None without one."""
    folder = files[0].rpartition("/")[0]
    for name in _NAMES:
        if is_url(files[0]):
            url = urlsplit(files[0])
            if url.query or url.scheme not in ("http", "https"):
                return None  # a signed URL is signed for one file
            path = fetch_shard(f"{folder}/{name}", optional=True)
        else:
            path = Path(folder) / name
        if not path.is_file() or not path.stat().st_size:
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as text in UTF-8: {error}.") from error
        names = tuple(line.strip() for line in lines)
        if not names or "" in names:
            raise DataError(f"{path}, line {names.index('') + 1 if names else 1} is empty.")
        return names
    return None
