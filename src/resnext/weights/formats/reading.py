"""Files of weights: their format, and the dictionaries of tensors in them.

No code in a file is ever executed. Pickles are read with torch's `weights_only`, or by
`pickles.py`. This module is independent of libraries and networks.
"""

from __future__ import annotations

import json
import re
import struct
import threading
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resnext.errors import CheckpointError, MissingFileError
from resnext.weights.formats import wrappers
from resnext.weights.formats.mxnet import START, read_mxnet
from resnext.weights.formats.pickles import STUBS, InertObject, brief, read_pickle, revived
from resnext.weights.formats.torch7 import Module, read_torch7

_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"bzh": "bzip2",
    b"\xfd7zxz": "xz",
    b"7z\xbc\xaf": "7z",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"rar!": "RAR",
}
_ARRAYS = "save its arrays by name with numpy.savez, in the shapes of torch"
_TENSORFLOW = re.compile(r"\.(?:index|data-\d+-of-\d+)$")
_READERS_AT_ONCE = 4
_LOCK = threading.Lock()  # torch has one list of safe names for all threads


Arrays = Mapping[str, Tensor | np.ndarray[Any, Any]]


class Contents(NamedTuple):
    """The content of a file."""

    path: Path
    format: str
    """safetensors, torch, torch (legacy), Torch7, Lucid (.lcd), pickle of arrays, NumPy, MXNet."""
    dictionaries: Mapping[str, Arrays]
    """Every dictionary in the file with the arrays in it, by the path of keys that leads to it."""
    metadata: Mapping[str, Any]
    """Plain values and dictionaries at the top of the file, all harmless."""
    root: object = None
    """The content if it is not a dictionary, such as the module of a Torch7 file."""


def read(path: Path) -> Contents:
    """The contents of a file, whatever its format.

    Raises:
        MissingFileError: The file does not exist.
        CheckpointError: The format is unknown, or the file is damaged or may hold code.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path} is not a regular file.")
        with path.open("rb") as file:
            start = file.read(512)
        if not start:
            raise CheckpointError(f"{path} is empty.")
        return _READERS[_format(path, start)](path)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def _format(path: Path, start: bytes) -> str:
    """The format, from the first bytes, because file names are often wrong."""
    if path.name.endswith(".index.json") and start[:1] == b"{":
        return "index"
    if start[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive. Unpack it and load the file in it.")
    if _is_zip(path):
        arrays = any(entry.filename.endswith(".npy") for entry in _entries(path))
        return "numpy" if arrays else "torch"
    if len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 1 << 30:
        return "safetensors"
    if start[:4] == b"PK\x03\x04":
        return "torch"  # cut off: its table is at the end
    if start.startswith(START):
        return "mxnet"
    if start[:4] in (b"\x03\0\0\0", b"\x04\0\0\0"):
        return "lua"
    if start[:1] == b"\x80":
        return "legacy" if b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" in start[:16] else "pickle"
    raise CheckpointError(f"{path} is not a file of weights: {_guess(path, start)}.")


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a damaged one
        return True


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip file, as its table states them.

    Raises:
        CheckpointError: Its table is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointError(f"{path} is a damaged zip file: {brief(error)}.") from error


def _bounded(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip file, checked not to unpack to far more than its size.

    Raises:
        CheckpointError: The file unpacks to far more, or is damaged.
    """
    entries = _entries(path)
    size = sum(entry.file_size for entry in entries)
    if size > 20 * path.stat().st_size + (1 << 20):
        raise CheckpointError(f"{path} unpacks to {size:,} bytes, far more than weights need.")
    return entries


def _guess(path: Path, start: bytes) -> str:
    if _TENSORFLOW.search(path.name):
        return f"it is a part of TensorFlow's checkpoint; {_ARRAYS}"
    if start[4:8] == b"TFL3":
        return f"it is TensorFlow Lite's; {_ARRAYS}"
    text = start.lstrip().lower()
    for head, guess in (
        (b"<!doctype", "it is a web page; the download went wrong"),
        (b"<html", "it is a web page; the download went wrong"),
        (b"version https://git-lfs", "it is a pointer of Git LFS; run git lfs pull"),
        *((head, f"it is {name}; unpack it first") for head, name in _PACKED.items()),
        (b"\x89hdf", f"it is HDF5, which Keras writes; {_ARRAYS}"),
        (b"\x93numpy", f"it is one NumPy array or a pickle in it; {_ARRAYS}"),
        *(
            (head, "it is packed by zlib, perhaps by joblib; torch.save the state dict in it")
            for head in (b"x\x01", b"x^", b"x\x9c", b"x\xda")
        ),
        (b"matlab", f"it is MATLAB's; {_ARRAYS}"),
        (b"gguf", f"it is GGUF; {_ARRAYS}"),
        (b"\x08", f"it looks like ONNX; {_ARRAYS}"),
        (b"\x82", f"it looks like Flax's msgpack; {_ARRAYS}"),
        (b"\n", f"it looks like TensorFlow's graph or Caffe's model; {_ARRAYS}"),
        (b"{", "it is JSON, perhaps the config of the file next to it"),
    ):
        if text.startswith(head) or start.startswith(head):
            return guess
    return f"it starts with {start[:8]!r}"


def _read_shards(path: Path) -> Contents:
    """The parts that an index names, which lie next to it, as one state dict.

    Raises:
        CheckpointError: A part is missing, or the index is not one.
    """
    try:
        names = {str(name) for name in json.loads(path.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not an index of weights: it has no weight_map."
        ) from error
    state: dict[str, Tensor | np.ndarray[Any, Any]] = {}
    format = ""
    for name in sorted(names):
        if Path(name).name != name or not (path.parent / name).is_file():
            raise CheckpointError(f"{path} names {name!r}, which is not next to it.")
        part = read(path.parent / name)
        format = part.format
        state |= part.dictionaries.get("", {})
    return Contents(path, format, {"": state}, {})


# -- safetensors -----------------------------------------------------------------------------------


def read_safetensors(path: Path) -> Contents:
    """The contents of a safetensors file, each tensor in its own aligned memory.

    The safetensors library checks the header. Values are read here, because the library maps the
    file into memory, which would be counted twice while tensors are copied.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged: {brief(error)}."
        ) from error
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    state: dict[str, Tensor] = {}
    targets: list[tuple[int, Tensor]] = []
    for name, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS:
            raise CheckpointError(
                f"{path}: {name} has type {entry['dtype']}; weights of that type are not read."
            )
        try:
            state[name] = torch.empty(entry["shape"], dtype=_SAFETENSORS[entry["dtype"]])
        except RuntimeError as error:
            raise CheckpointError(f"{path}: {name} has shape {entry['shape']}.") from error
        targets.append((8 + length + entry["data_offsets"][0], state[name]))
    with ThreadPoolExecutor(_READERS_AT_ONCE) as pool:
        shares = [targets[i::_READERS_AT_ONCE] for i in range(_READERS_AT_ONCE)]
        list(pool.map(lambda share: _fill(path, share), shares))
    return Contents(path, "safetensors", _plain(path, {"": state}), metadata)


def _fill(path: Path, targets: Iterable[tuple[int, Tensor]]) -> None:
    """Read the bytes of tensors, each from its offset in the file."""
    with path.open("rb", buffering=0) as file:
        for start, tensor in targets:
            if not tensor.numel():
                continue
            file.seek(start)
            view = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore
            done = 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise CheckpointError(f"{path} is cut off.")
                done += count


# -- torch -----------------------------------------------------------------------------------------


def _read_torch(path: Path) -> Contents:
    entries = _bounded(path)
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(
            f"{path} is a TorchScript archive, which holds code. Save the state dict instead: "
            f"torch.save(model.state_dict(), …)."
        )
    if entries and not any(entry.filename.endswith("data.pkl") for entry in entries):
        largest = max(entries, key=lambda entry: entry.file_size).filename
        raise CheckpointError(
            f"{path} is a zip archive that torch did not write. Unpack it and load {largest!r}."
        )
    return contents_of("torch", path, _unpickled(path))


def _read_legacy(path: Path) -> Contents:
    return contents_of("torch (legacy)", path, _unpickled(path))


def _python2(path: Path) -> Any:
    """The content of a file whose texts are bytes; torch applies the encoding, yet warns of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")


def _unpickled(path: Path) -> Any:
    """The content that torch reads with `weights_only`, with stand-ins for harmless objects."""
    stubs: list[Any] = [(stub, name) for name, stub in STUBS.items()]
    try:
        with _LOCK, torch.serialization.safe_globals(stubs):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
            except UnicodeDecodeError:  # Python 2 wrote bytes and text alike
                content = _python2(path)
        return revived(content)
    except (MemoryError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it asks for {type(error).__name__}.") from error
    except Exception as error:  # torch's reader raises almost anything on damaged files
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} names {named[1]}, which is not known to be harmless, so it is not "
                f"loaded; nothing was executed. If you trust it, load it with the library that "
                f"wrote it and save the state dict alone."
            ) from error
        raise CheckpointError(f"{path} cannot be read: {brief(error)}.") from error


# -- others ----------------------------------------------------------------------------------------


def _read_pickle(path: Path) -> Contents:
    with path.open("rb") as file:
        try:
            content = read_pickle(file)
        except CheckpointError as error:
            raise CheckpointError(f"{path} is not loaded: {error}.") from error
    lucid = isinstance(content, dict) and "format_version" in content
    return contents_of("Lucid (.lcd)" if lucid else "pickle of arrays", path, content)


def _read_numpy(path: Path) -> Contents:
    _bounded(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except Exception as error:  # NumPy's and zipfile's readers raise almost anything
        raise CheckpointError(f"{path} is a damaged NumPy archive: {brief(error)}.") from error
    return contents_of("NumPy", path, content)


def _read_lua(path: Path) -> Contents:
    content = read_torch7(path)
    if isinstance(content, dict):  # a checkpoint with its optimizer
        content = next((x for x in content.values() if isinstance(x, Module)), content)
    if not isinstance(content, Module):
        raise CheckpointError(f"{path} holds no network of Torch7.")
    return Contents(path, "Torch7", {}, {}, content)


def _read_mxnet(path: Path) -> Contents:
    return contents_of("MXNet", path, read_mxnet(path))


_READERS = {
    "index": _read_shards,
    "mxnet": _read_mxnet,
    "safetensors": read_safetensors,
    "torch": _read_torch,
    "legacy": _read_legacy,
    "pickle": _read_pickle,
    "numpy": _read_numpy,
    "lua": _read_lua,
}


def contents_of(format: str, path: Path, content: Any) -> Contents:
    """Every dictionary of arrays in the content of a file, and everything else in it.

    Args:
        format: Name of the file's format.
        path: The file, for messages.
        content: What the file holds.

    Raises:
        CheckpointError: It is not a dictionary, or weights in it cannot be computed.
    """
    if not isinstance(content, dict):
        kind = "object" if isinstance(content, InertObject) else type(content).__name__
        raise CheckpointError(f"{path} holds one {kind}, not a dictionary of tensors.")
    plain = {
        key: value
        for key, value in dict.items(content)
        if isinstance(value, str | int | float | bool | dict)
    }
    return Contents(path, format, _plain(path, _dictionaries(content)), plain)


def _plain(path: Path, dictionaries: Mapping[str, Arrays]) -> dict[str, Arrays]:
    """The dictionaries without what wrappers and reparametrizations left in them."""
    try:
        return {at: wrappers.plain(arrays) for at, arrays in dictionaries.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}.") from error


def _dictionaries(content: dict[Any, Any]) -> dict[str, Arrays]:
    """Every dictionary in a dictionary, each once even if it occurs several times."""
    seen: set[int] = set()
    dictionaries: dict[str, Arrays] = {}
    waiting: list[tuple[tuple[str, ...], dict[Any, Any]]] = [((), content)]
    while waiting:
        at, inner = waiting.pop(0)
        if id(inner) in seen or len(at) > 4:
            continue
        seen.add(id(inner))
        items = [(key, value) for key, value in dict.items(inner) if isinstance(key, str)]
        dictionaries[".".join(at)] = {k: v for k, v in items if isinstance(v, Tensor | np.ndarray)}
        waiting += [((*at, key), value) for key, value in items if isinstance(value, dict)]
    return dictionaries


def to_tensors(path: Path, arrays: Arrays) -> dict[str, Tensor]:
    """Arrays as tensors, each in its own memory.

    Raises:
        CheckpointError: An array is not of a kind that weights have; the message names file and
            array.
    """
    tensors = {name: _tensor(path, name, value) for name, value in arrays.items()}
    return {
        name: wrappers.counter(value) if name.endswith("num_batches_tracked") else value
        for name, value in tensors.items()
    }


def _tensor(path: Path, name: str, value: Tensor | np.ndarray) -> Tensor:
    """The tensor in its own memory.

    Raises:
        CheckpointError: The value is not of a kind that weights have.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
            raise CheckpointError(
                f"{path}: {name} has type {value.dtype}, which is not a type of weights."
            )
        native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(native)
    for kind, is_so in (
        ("quantized", value.is_quantized),
        ("sparse", value.layout != torch.strided),
        ("without values", value.is_meta),
        ("complex", value.is_complex()),
    ):
        if is_so:
            raise CheckpointError(f"{path}: {name} is {kind}. Save ordinary tensors.")
    value, size = value.detach(), value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > size:
        raise CheckpointError(f"{path}: {name} repeats its values to {tuple(value.shape)}.")
    if size > value.numel() * value.element_size() or not value.is_contiguous():
        value = value.clone(memory_format=torch.contiguous_format)
    return value
