"""Images inside larger files: WebDataset's tar shards, and Hugging Face's Parquet files.

Both end as (file, offset, size) for each image, so that any order costs the same and an
interrupted epoch can be continued exactly.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from filelock import FileLock

from resnext.data.dataset import (
    ALIASES,
    EXTENSIONS,
    Classes,
    ImageSet,
    Members,
    Names,
    Part,
    Problem,
    Source,
    SplitName,
    compact,
    fingerprint,
)
from resnext.errors import CheckpointError, DataError
from resnext.system.atomic import write_atomically
from resnext.system.cache import cache_folder
from resnext.system.digest import short_digest
from resnext.system.download import is_offline

_NAMES = ("classnames.txt", "labels.txt", "classes.txt")
_PACKED = re.compile(r"\.(tgz|tbz2?|txz|tar\.\w+)$", re.IGNORECASE)
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_SMALL = 1 << 24  # nobody's class or JSON is longer


# -- which files ------------------------------------------------------------------------------


def is_tar_name(name: str) -> bool:
    """Whether a file is a tar by its name, compressed or not."""
    return name.lower().endswith(".tar") or _PACKED.search(name) is not None


def is_pattern(source: str) -> bool:
    """Whether it is a URL, or names several files in braces."""
    return _is_url(source) or ("{" in source and not Path(source).exists())


def _is_url(source: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def tars_in(folder: Path) -> list[str]:
    """Tars of a folder that has no folders inside."""
    return [str(path) for path in _flat(folder) if is_tar_name(path.name)]


def parquet_in(folder: Path) -> list[Path]:
    """Parquet files of a folder, or of `data` inside."""
    for place in (folder, folder / "data"):
        if place.is_dir():
            found = [path for path in _flat(place, alone=False) if path.suffix == ".parquet"]
            if found:
                return found
    return []


def _flat(folder: Path, alone: bool = True) -> list[Path]:
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if alone and any(path.is_dir() for path in inside):
        return []
    return [path for path in inside if path.is_file()]


def _by_part(name: str, files: Sequence[str]) -> dict[SplitName, list[str]]:
    """Files by the part that their names begin with; all are "train" if none does."""
    parts: dict[SplitName, list[str]] = {}
    others: list[str] = []
    for file in files:
        word = re.match(r"[a-z]*", _base(file).lower())
        part = ALIASES.get(word[0] if word else "")
        (others if part is None else parts.setdefault(part, [])).append(file)
    if parts and others:
        raise DataError(
            f"{name}: {_base(others[0])} belongs to no part, but {len(files) - len(others)} other "
            f"files do. Begin every name with train, val or test, or none."
        )
    return parts or {"train": others}


def _base(file: str) -> str:
    return (urlsplit(file).path if _is_url(file) else file).rpartition("/")[2]


# -- tar shards -------------------------------------------------------------------------------


def shards(name: str, files: Sequence[str] | None = None) -> Source:
    """WebDataset shards.

    Files of a sample share their name up to the first dot: `0001.jpg` and `0001.cls`. The class
    is a number or a text in `.cls`, or "label" or "cls" in `.json`. Names of numbered classes are
    the lines of `classnames.txt`, `labels.txt` or `classes.txt` beside the shards.

    Args:
        name: The source as it was given.
        files: The shards; without, `name` is a pattern with braces, or a URL.

    Raises:
        DataError: A shard is missing, or is no plain tar.
    """
    if files is None:
        files = _expanded(name)
    for file in files:
        if not _base(file).lower().endswith(".tar"):
            what = (
                "compressed, so single images" if _PACKED.search(_base(file)) else "no tar, so it"
            )
            raise DataError(f"{file} is {what} cannot be read from it. Give plain .tar shards.")
    missing = [file for file in files if not _is_url(file) and not Path(file).is_file()]
    if missing:
        more = f" So are {len(missing) - 1} others." if len(missing) > 1 else ""
        raise DataError(f"{missing[0]} is missing.{more} Give a pattern of shards that exist.")
    parts = _by_part(name, files)
    return Source(name, {part: partial(_tars, name, part, parts[part]) for part in parts})


def _expanded(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise _needs("webdataset", "shards") from error
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(
            f"{pattern}: a brace is not closed. Write train-{{000..009}}.tar."
        ) from error


def _needs(package: str, extra: str) -> DataError:
    return DataError(
        f'This data needs {package}, which is missing: pip install "resnext[{extra}]".'
    )


def _tars(name: str, part: SplitName, files: Sequence[str], labels: tuple[str, ...] | None) -> Part:
    title = name if part == "train" else f"{name}, {part} part"
    paths = [_local(file) for file in files]
    titles = [_base(file) for file in files]
    classes, problems = Classes(), list[Problem]()
    which, offsets, sizes = array("q"), array("q"), array("q")

    def every() -> Iterator[str]:
        for number, path in enumerate(paths):
            for sample in samples(path, files[number]):
                lacks = "image" if sample.image is None else "class"
                if sample.image is None or sample.label is None:
                    reason = f"The sample has no {lacks}."
                    called = f"{titles[number]}:{sample.key}"
                    problems.append(Problem(part, called, sample.label or "", reason))
                    continue
                which.append(number)
                offsets.append(sample.offset)
                sizes.append(sample.size)
                classes.add(sample.label)
                yield sample.image

    members = Members(paths, titles, which, offsets, sizes, Names(every()))
    if not members:
        found = f"{problems[0].title}: {problems[0].reason}" if problems else "They are empty."
        raise DataError(
            f"{title}: none of {len(problems)} samples has an image (.jpg, .png, …) and a class "
            f"(.cls or .json with label). {found}"
        )
    targets, labels, own = classes.finish(title, _class_names(files), labels)
    names = (
        f"{titles[w]}:{member} {size} {labels[target]}"
        for w, member, size, target in zip(which, members.names, sizes, targets, strict=True)
    )
    images = ImageSet(members, targets, labels, title)
    return Part(images, own, lambda: fingerprint(names), tuple(problems))


class Sample(NamedTuple):
    """What a tar holds under one key; image and label are None if it holds none."""

    key: str
    image: str | None
    offset: int
    size: int
    label: str | None


def samples(path: Path, title: str) -> Iterator[Sample]:
    """Every sample of a tar, in order.

    Raises:
        DataError: It is damaged, cut off or compressed.
    """
    sample: Sample | None = None
    for member, file in _members(path, title):
        found = re.match(r"((?:.*/)?[^./]+)\.([^/]*)$", member.name)
        if found is None:  # hidden, or without an ending
            continue
        key, end = found[1], found[2].lower()
        if sample is None or sample.key != key:
            if sample:
                yield sample
            sample = Sample(key, None, 0, 0, None)
        if f".{end}" in EXTENSIONS and sample.image is None:
            sample = sample._replace(image=member.name, offset=member.offset_data, size=member.size)
        elif end in ("cls", "json") and member.size < _SMALL:
            file.seek(member.offset_data)
            label = _label(file.read(member.size), end)
            if label is not None and (end == "cls" or sample.label is None):
                sample = sample._replace(label=label)
    if sample:
        yield sample


def _members(path: Path, title: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Files in a tar, with the tar opened for reading them."""
    again = "Copy or download it again."
    try:
        with path.open("rb") as file:
            start = file.read(6)
            if start.startswith(_MAGIC):
                raise DataError(
                    f"{title} is compressed, so single images cannot be read from it. Unpack it to "
                    f"a plain .tar."
                )
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            last = "its beginning"
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # else it would keep millions
                    last = member.name
                    if member.offset_data + member.size > length:
                        raise DataError(f"{title} is cut off inside {last}. {again}")
                    if member.isreg():
                        yield member, file
                file.seek(tar.offset)
                end = file.read(512)
                if end != bytes(512):
                    what = "damaged" if len(end) == 512 else "cut off"
                    raise DataError(f"{title} is {what} after {last}, byte {tar.offset:,}. {again}")
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{title} cannot be read as a tar: {error}. {again}") from error


def _label(content: bytes, end: str) -> str | None:
    """The class that a member tells, as text."""
    try:
        if end == "cls":
            return content.decode("utf-8-sig").strip() or None
        about = json.loads(content)
    except ValueError:
        return None
    value = about.get("label", about.get("cls")) if isinstance(about, dict) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return str(value).strip() or None


def _class_names(files: Sequence[str]) -> tuple[str, ...] | None:
    """Lines of a file of class names beside the shards."""
    beside = files[0].rpartition("/")[0]
    for name in _NAMES:
        if _is_url(files[0]):
            if urlsplit(files[0]).query or urlsplit(files[0]).scheme not in ("http", "https"):
                return None  # what is signed is signed for one file
            path = fetch_shard(f"{beside}/{name}", optional=True)
        else:
            path = Path(beside) / name
        if not path.is_file() or not path.stat().st_size:
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is no readable text in UTF-8: {error}.") from error
        names = tuple(line.strip() for line in lines)
        if not names or "" in names:
            raise DataError(f"{path}, line {names.index('') + 1 if names else 1} is empty.")
        return names
    return None


# -- downloads --------------------------------------------------------------------------------


def _local(file: str) -> Path:
    return fetch_shard(file) if _is_url(file) else Path(file)


def fetch_shard(url: str, optional: bool = False) -> Path:
    """A file from the cache; WebDataset downloads it if it is not there.

    Args:
        url: Where it is.
        optional: Whether an empty file stands for one that the server does not have.

    Raises:
        DataError: It cannot be had, or is a damaged tar.
    """
    folder = cache_folder() / "shards" / short_digest(url)
    path = folder / (re.sub(r"[^\w.+-]", "_", _base(url), flags=re.ASCII)[-120:] or "file")
    if path.exists():
        return path
    if is_offline():
        raise DataError(
            f"{url} is not in the cache ({cache_folder()}), and downloads are off. Unset "
            f"RESNEXT_OFFLINE, or give local shards."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                write_atomically(path, partial(_receive, url, optional))
    except (OSError, CheckpointError) as error:
        raise DataError(f"{url} cannot be kept in {cache_folder()}: {error}") from error
    return path


def _receive(url: str, optional: bool, temporary: str) -> None:
    try:
        with _remote(url) as stream, Path(temporary).open("wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
    except (OSError, ValueError, ImportError) as error:
        refused = "exit 22 " in str(error)  # curl's word for 404 and its like
        if refused and optional:
            return
        reason = "the server has no such file" if refused else str(error).partition("\n")[0]
        raise DataError(f"{url} cannot be downloaded: {reason}. Check the address.") from error
    if _base(url).lower().endswith(".tar"):
        for _ in _members(Path(temporary), url):
            pass


def _remote(url: str) -> Any:
    """A stream of what is at a URL, closed by `with`, which raises if it was not complete."""
    try:
        from webdataset.gopen import Pipe, gopen, gopen_schemes
    except ImportError as error:
        raise _needs("webdataset", "shards") from error
    scheme = urlsplit(url).scheme
    if scheme == "s3" and scheme not in gopen_schemes:  # WebDataset leaves it to AIStore
        return Pipe(["aws", "s3", "cp", "--quiet", url, "-"], mode="rb")
    return gopen(url)


# -- Parquet ----------------------------------------------------------------------------------


def parquet_files(root: Path, files: Sequence[Path]) -> Source:
    """A Hugging Face data set: Parquet files with a column of images and one of classes.

    The image column is the one of type Image, else the first with `bytes` inside. The class
    column is `label`, else the first of type ClassLabel.

    Raises:
        DataError: A file of a numbered row is missing.
    """
    _check_complete(root, files)
    parts = _by_part(str(root), [str(file) for file in files])
    return Source(str(root), {part: partial(_parquet, root, part, parts[part]) for part in parts})


def _check_complete(root: Path, files: Iterable[Path]) -> None:
    there = {file.name for file in files}
    for name in sorted(there):
        found = re.fullmatch(r"(.*-)(\d{5})(-of-)(\d{5})(.*\.parquet)", name)
        if found and "-" not in found[5]:  # with a hash in it, the other names are unknown
            for i in range(int(found[4])):
                wanted = f"{found[1]}{i:05}{found[3]}{found[4]}{found[5]}"
                if wanted not in there:
                    raise DataError(f"{root}: {wanted} is missing. Download it, too.")


class _Copied(NamedTuple):
    """Images of one Parquet file, after they were copied into another file one after the other."""

    path: Path
    key: str
    rows: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray
    """Index into `texts` of each image."""
    texts: list[str]
    known: tuple[str, ...] | None
    """Names of the classes that `texts` are the numbers of."""
    lacking: list[tuple[int, str]]
    """Rows without an image or a class, and which of both."""


def _parquet(
    root: Path, part: SplitName, files: Sequence[str], labels: tuple[str, ...] | None
) -> Part:
    title = str(root) if part == "train" else f"{root}, {part} part"
    copied = [_copy(Path(file)) for file in files]
    known = copied[0].known
    for file, copy in zip(files, copied, strict=True):
        if copy.known != known:
            raise DataError(f"{file} names its classes otherwise than {files[0]}. Keep one kind.")
    titles = [_base(file) for file in files]
    classes = Classes()
    for copy in copied:
        for i in copy.classes.tolist():
            classes.add(copy.texts[i])
    problems = tuple(
        Problem(part, f"{name}:{row}", "", f"The row has no {lacks}.")
        for name, copy in zip(titles, copied, strict=True)
        for row, lacks in copy.lacking
    )
    which = compact(np.repeat(np.arange(len(copied)), [len(copy.rows) for copy in copied]))
    if not which:
        found = f" {problems[0].title}: {problems[0].reason}" if problems else ""
        raise DataError(
            f"{title}: none of {len(problems)} rows has an image and a class.{found} Remove "
            f"{titles[0]}, or give it classes."
        )
    offsets = compact(np.concatenate([copy.offsets for copy in copied]))
    sizes = compact(np.concatenate([copy.sizes for copy in copied]))
    rows = Names(str(row) for copy in copied for row in copy.rows.tolist())
    members = Members([copy.path for copy in copied], titles, which, offsets, sizes, rows)
    targets, labels, own = classes.finish(title, known, labels)
    images = ImageSet(members, targets, labels, title)
    return Part(images, own, lambda: fingerprint(copy.key for copy in copied), problems)


def _copy(source: Path) -> _Copied:
    """Copy the images of a Parquet file into the cache, if they are not there.

    Takes about twice the memory of its largest row group.
    """
    try:
        import pyarrow.parquet as pq
        from pyarrow import ArrowException
    except ImportError as error:
        raise _needs("pyarrow", "parquet") from error
    try:
        with pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as table:
            key = f"{source.stat().st_size} {_footer(source)}"
            path = cache_folder() / "images" / f"{short_digest(key)}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                index = path.with_suffix(".npz")
                copied = _indexed(path, index)
                if copied is None:
                    index.unlink(missing_ok=True)
                    about: dict[str, np.ndarray] = {}
                    write_atomically(
                        path, lambda temporary: about.update(_copy_rows(table, temporary))
                    )
                    write_atomically(index, lambda temporary: _save(temporary, about))
                    copied = _indexed(path, index)
    except (ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{source} cannot be read as Parquet: {reason}. Download it again."
        ) from error
    except CheckpointError as error:
        raise DataError(f"Images of {source} cannot be copied: {error}") from error
    assert copied is not None
    return copied


def _footer(source: Path) -> str:
    """Hash of what a Parquet file says about itself: sizes, places and extremes of all columns."""
    with source.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return hashlib.sha256(file.read(length)).hexdigest()


def _copy_rows(table: Any, temporary: str) -> dict[str, np.ndarray]:
    """Write all images one after the other; where each is, and its class."""
    image, label, known = _columns(table.schema_arrow)
    texts: dict[str, int] = {}
    lacking: list[tuple[int, str]] = []
    rows, offsets, sizes, classes = (array("q") for _ in range(4))
    row = -1
    with Path(temporary).open("wb") as out:
        for batch in table.iter_batches(batch_size=64, columns=[f"{image}.bytes", label]):
            content, values = batch.column(image).flatten()[0], batch.column(label).to_pylist()
            for data, value in zip(content, values, strict=True):
                row += 1
                without = value is None or value == "" or (known is not None and value == -1)
                if without or not data.is_valid:
                    lacking.append((row, "image" if not data.is_valid else "class"))
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
    """The column of images, that of classes, and the names of the classes if it is numbered."""
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = about.get("info", {}).get("features", {})
    kinds = {n: f.get("_type") for n, f in features.items() if isinstance(f, dict)}
    images = [n for n in schema.names if _holds_bytes(schema.field(n).type)]
    marked = [n for n in images if kinds.get(n) == "Image"]
    numbered = [n for n in schema.names if kinds.get(n) == "ClassLabel"]
    labels = ["label"] if "label" in schema.names else numbered
    if not images or not labels:
        what = "a column label, or one of type ClassLabel" if images else "a column of images"
        raise DataError(
            f"A Parquet file of images needs {what}; its columns are {', '.join(schema.names)}."
        )
    known = features[labels[0]].get("names") if labels[0] in numbered else None
    return (marked or images)[0], labels[0], known


def _holds_bytes(kind: Any) -> bool:
    return hasattr(kind, "fields") and any(field.name == "bytes" for field in kind.fields)


def _save(temporary: str, arrays: dict[str, np.ndarray]) -> None:
    with Path(temporary).open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def _indexed(path: Path, index: Path) -> _Copied | None:
    """What was copied before; None if it is not there completely."""
    try:
        with index.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            rows, offsets, sizes = saved["rows"], saved["offsets"], saved["sizes"]
            classes = saved["classes"]
            about = json.loads(saved["about"].tobytes())
            if path.stat().st_size != int(sizes.sum()):
                return None
            known = None if about["known"] is None else tuple(about["known"])
            lacking = [(row, what) for row, what in about["lacking"]]
            place = (path, path.stem, rows, offsets, sizes, classes)
            return _Copied(*place, about["texts"], known, lacking)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
