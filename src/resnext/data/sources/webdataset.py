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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import urlsplit

from resnext.checks import brief
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
    LABELS,
    LoadedSplit,
    Source,
    by_split,
    file_name,
    is_url,
    missing_package,
    named,
    split_title,
    visible,
)
from resnext.errors import DataError
from resnext.system.download import fetch_shard
from resnext.system.text import counted

_NAMES = ("classnames.txt", "labels.txt", "classes.txt")
_COMPRESSED = re.compile(r"\.(tgz|tbz2?|txz|tar\.\w+)$", re.IGNORECASE)
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_LONGEST = 1 << 24  # bytes of a class or of JSON; what is longer is neither
_AGAIN = "Copy or download it again."
_INPUTS = ("input", "image", "img")


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

    Files of a sample share their key, the path up to the first dot of the name: `0001.jpg` and
    `0001.cls`, also `0001.input.jpg` and `0001.target.cls`. The class is a number or a text in
    `.cls`, or in `.json` under a name that lists use too. Names of numbered classes are the lines
    of `classnames.txt`, `labels.txt` or `classes.txt` next to the shards.

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
    scattered, unused = list[str](), list[str]()
    which, offsets, sizes = array("q"), array("q"), array("q")

    def image_names() -> Iterator[str]:
        for number, path in enumerate(paths):
            for sample in samples(path, files[number]):
                image, label = sample.image, sample.label
                key = f"{titles[number]}:{sample.key}"
                if not isinstance(image, Member) or not isinstance(label, str):
                    fault = image if isinstance(image, Fault) else label
                    assert isinstance(fault, Fault), "a sample is whole or says why not"
                    known = label if isinstance(label, str) and not fault.images else ""
                    lost = [f"{titles[number]}:{name}" for name in fault.images] or [key]
                    problems.extend(Problem(split, name, known, fault.reason) for name in lost)
                    continue
                which.append(number)
                offsets.append(image.offset)
                sizes.append(image.size)
                classes.add(label)
                if sample.scattered:
                    scattered.append(key)
                unused.extend(f"{titles[number]}:{other}" for other in sample.others)
                yield image.name

    members = Members(paths, titles, which, offsets, sizes, Names(image_names()))
    if not members:
        first = f"{problems[0].title}: {problems[0].reason}" if problems else "They are empty."
        raise DataError(
            f"{title}: none of {len(problems)} samples has an image (.jpg, .png, …) and a class "
            f"(.cls or .json with label) of the same name up to its first dot. {first}"
        )
    known = _class_names(files)
    targets, labels, own = classes.finish(title, known, labels)
    numbers = {str(i): label for i, label in enumerate(known or ())}
    lines = (
        f"{titles[number]}:{member} {size} {labels[target]}"
        for number, member, size, target in zip(which, members.names, sizes, targets, strict=True)
    )
    return LoadedSplit(
        ImageSet(members, targets, labels, title),
        own,
        lambda: fingerprint(lines),
        tuple(replace(p, label=numbers.get(p.label, p.label)) for p in problems),
        notes=tuple(_notes(scattered, unused)),
    )


def _notes(scattered: Sequence[str], unused: Sequence[str]) -> Iterator[str]:
    """What is read otherwise than WebDataset does, or not read."""
    if scattered:
        yield (
            f"Files of {counted(len(scattered), 'sample')} are not next to each other in their "
            f"shard, such as {scattered[0]}; they are read, but WebDataset needs shards of tar "
            f"--sort=name."
        )
    if unused:
        yield (
            f"{counted(len(unused), 'image')} not used, because the sample has another one before, "
            f"such as {unused[0]}."
        )


def _local(file: str) -> Path:
    if not is_url(file):
        return Path(file)
    return fetch_shard(file, check=partial(_check_tar, title=file))


class Member(NamedTuple):
    """A file in a tar: its name, and where its content is."""

    name: str
    offset: int
    size: int


class Fault(NamedTuple):
    """Why a sample cannot be used, and the names of its images if it has several."""

    reason: str
    images: tuple[str, ...] = ()


class Sample(NamedTuple):
    """The image and the class of one key in a tar, or why it has none.

    Args:
        key: Path up to the first dot of the name.
        image: The image.
        label: The class.
        others: Names of further images that are not used.
        scattered: Whether other samples lie between its files.
    """

    key: str
    image: Member | Fault
    label: str | Fault
    others: tuple[str, ...]
    scattered: bool = False


class _Files(NamedTuple):
    """The files of one key so far, each with its ending: what follows the first dot."""

    key: str
    images: list[tuple[str, Member]]
    labels: list[tuple[str, str]]
    others: list[str]
    """Endings of all other files."""

    def add(self, more: _Files) -> None:
        """Take over the files that come later in the tar."""
        self.images.extend(more.images)
        self.labels.extend(more.labels)
        self.others.extend(more.others)

    def sample(self) -> Sample:
        """The sample that these files are."""
        image, others = _only_image(self)
        return Sample(self.key, image, _only_label(self), others)


def samples(path: Path, title: str) -> Iterator[Sample]:
    """Every sample of a tar: in order, then those whose files are incomplete or not neighbours.

    Raises:
        DataError: The tar is damaged, cut off or compressed.
    """
    waiting: dict[str, _Files] = {}
    for files in _neighbours(path, title):
        if files.images and files.labels:
            yield files.sample()
        elif (before := waiting.get(files.key)) is None:
            waiting[files.key] = files
        else:
            before.add(files)
            if before.images and before.labels:
                yield waiting.pop(files.key).sample()._replace(scattered=True)
    for files in waiting.values():
        yield files.sample()


def _neighbours(path: Path, title: str) -> Iterator[_Files]:
    """Files with the same key that follow each other in a tar."""
    files: _Files | None = None
    for member, file in _members(path, title):
        match = re.match(r"((?:.*/)?[^./]+)\.([^/]*)$", member.name)
        if match is None:  # hidden, or without an ending
            continue
        key, ending = match[1], match[2].lower()
        kind = ending.rpartition(".")[2]
        if files is None or files.key != key:
            if files:
                yield files
            files = _Files(key, [], [], [])
        if f".{kind}" in EXTENSIONS:
            place = Member(member.name, member.offset_data, member.size)
            files.images.append((ending, place))
        elif kind in ("cls", "json") and member.size < _LONGEST:
            file.seek(member.offset_data)
            label = _label(file.read(member.size), kind)
            if isinstance(label, Fault):
                files.others.append(f"{ending} whose {label.reason}")
            elif label is not None:
                files.labels.append((ending, label))
        else:
            files.others.append(ending)
    if files:
        yield files


def _only_image(files: _Files) -> tuple[Member | Fault, tuple[str, ...]]:
    """The image of a sample, and names of further ones with an ending as plain as its own.

    Of `.jpg`, `.seg.png` and `.input.jpg` it is the first, of the last two the last.
    """
    plain = [member for ending, member in files.images if "." not in ending]
    inputs = [member for ending, member in files.images if ending.split(".")[0] in _INPUTS]
    every = [member for _, member in files.images]
    chosen = plain or (inputs if len(inputs) == 1 else every)
    if not chosen:
        return Fault(f"The sample has no image{_instead(files)}."), ()
    pairs = _stems(files.images) & _stems(files.labels)
    if len(pairs) > 1 or (len(chosen) > 1 and not plain):
        names = tuple(member.name for member in every)
        return Fault(_several("images", [ending for ending, _ in files.images]), names), ()
    return chosen[0], tuple(member.name for member in chosen[1:])


def _only_label(files: _Files) -> str | Fault:
    """The class of a sample: in `.cls`, else in `.json`, else in a file with a longer ending."""
    for wanted in (r"cls", r"json", r".*\.cls", r".*\.json"):
        found = {ending: text for ending, text in files.labels if re.fullmatch(wanted, ending)}
        if len({*found.values()}) > 1:
            return Fault(_several("classes", [*found]))
        if found:
            return next(iter(found.values()))
    return Fault(f"The sample has no class{_instead(files)}.")


def _stems(files: Iterable[tuple[str, object]]) -> set[str]:
    """Endings without their last part: "5m" of "5m.jpg", "" of "jpg"."""
    return {ending.rpartition(".")[0] for ending, _ in files}


def _instead(files: _Files) -> str:
    return f", but a .{files.others[0]}" if files.others else ""


def _several(what: str, endings: Sequence[str]) -> str:
    return (
        f"The sample has {len(endings)} {what} (.{endings[0]}, .{endings[1]}): its name ends at "
        f"the first dot. Give files names without other dots."
    )


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


def _label(content: bytes, ending: str) -> str | Fault | None:
    """The class in a `.cls` or `.json` member, as text; None if it holds none."""
    try:
        if ending == "cls":
            return content.decode("utf-8-sig").strip() or None
        values = json.loads(content)
    except ValueError:
        return None
    names = named(values, LABELS) if isinstance(values, dict) else []
    label = values[names[0]] if len(names) == 1 else None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if label is not None and (isinstance(label, bool) or not isinstance(label, int | str)):
        found = brief(json.dumps(label))[1:-1]
        return Fault(f"{names[0]} is {found}, not text or a whole number")
    return None if label is None else str(label).strip() or None


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
