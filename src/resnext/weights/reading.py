"""Files of weights: which format they are in, and the tensors that are in them.

Nothing in a file is ever executed. Pickles are read with torch's `weights_only`, or by `inert.py`.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resnext.dialects.recognise import is_candidate
from resnext.errors import CheckpointError, MissingFileError
from resnext.weights.inert import STUBS, Inert, read_pickle

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
# Where weights are in a dictionary, best first: averages are what was evaluated. mmengine swaps:
# its `state_dict` holds the average and `ema_state_dict` the raw weights.
_PLACES = ("model_ema", "state_dict_ema", "ema", "", "state_dict", "model", "model_state_dict")
_PLACES += ("net", "network", "weights", "content", "params", "ema_state_dict")


class Contents(NamedTuple):
    """What a file holds."""

    format: str
    """safetensors, torch, torch (legacy), Lucid (.lcd), pickle of arrays or NumPy."""
    place: str
    """Entry of the file's dictionary that holds the weights; empty for the file itself."""
    state: dict[str, Tensor]
    metadata: dict[str, Any]
    """Everything beside the weights that could be read, harmless."""


def read(path: Path) -> Contents:
    """The tensors of a file, whatever its format.

    Raises:
        MissingFileError: There is no such file.
        CheckpointError: It is in no known format, damaged, or holds what could be code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if not start:
            raise CheckpointError(f"{path} is empty.")
        return _READERS[_format(path, start)](path)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def _format(path: Path, start: bytes) -> str:
    """The format, from the first bytes: names of files are often wrong."""
    if zipfile.is_zipfile(path):
        arrays = any(entry.filename.endswith(".npy") for entry in _entries(path))
        return "numpy" if arrays else "torch"
    if len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 1 << 30:
        return "safetensors"
    if start[:4] == b"PK\x03\x04":
        return "torch"  # cut off: its table is at the end
    if start[:1] == b"\x80":
        return "legacy" if b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" in start[:16] else "pickle"
    raise CheckpointError(f"{path} is no file of weights: {_guess(start)}.")


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    """What a zip says it holds.

    Raises:
        CheckpointError: Its table is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointError(f"{path} is a damaged zip file: {error}.") from error


def _guess(start: bytes) -> str:
    text = start.lstrip().lower()
    for head, what in (
        (b"<!doctype", "it is a web page; the download went wrong"),
        (b"<html", "it is a web page; the download went wrong"),
        (b"version https://git-lfs", "it is a pointer of Git LFS; run git lfs pull"),
        (b"\x1f\x8b", "it is gzip; unpack it first"),
        (b"\x89hdf", "it is HDF5, which Keras writes"),
        (b"\x08", "it looks like ONNX"),
        (b"\x04\x00\x00\x00", "it looks like Torch7 (.t7), which is not read"),
        (b"{", "it is JSON, perhaps the config of the file beside it"),
    ):
        if text.startswith(head):
            return what
    return f"it starts with {start[:8]!r}"


# -- safetensors -----------------------------------------------------------------------------------


def read_safetensors(path: Path) -> Contents:
    """A safetensors file, read into aligned memory of its own, one tensor at a time.

    The library checks the header; it maps the file into memory, which counts twice while its
    tensors are copied, so the values are read here.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or damaged: {error}.") from error
    state: dict[str, Tensor] = {}
    with path.open("rb", buffering=0) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if about["dtype"] not in _SAFETENSORS:
                raise CheckpointError(
                    f"{path}: {name} has type {about['dtype']}; weights of that type are not read."
                )
            start, end = about["data_offsets"]
            tensor = torch.empty(about["shape"], dtype=_SAFETENSORS[about["dtype"]])
            if end > start:
                file.seek(8 + length + start)
                _fill(file, tensor, path)
            state[name] = tensor
    order = {name: state[name] for name in sorted(state, key=list(header).index)}
    return Contents("safetensors", "", order, metadata)


def _fill(file: io.RawIOBase | io.FileIO, tensor: Tensor, path: Path) -> None:
    """Read a tensor's bytes into it."""
    view = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise CheckpointError(f"{path} is cut off.")
        done += count


# -- torch -----------------------------------------------------------------------------------------


def _read_torch(path: Path) -> Contents:
    entries = _entries(path)
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(
            f"{path} is a TorchScript archive, which holds code. Save the state dict instead: "
            f"torch.save(model.state_dict(), …)."
        )
    size = sum(entry.file_size for entry in entries)
    if size > 20 * path.stat().st_size + (1 << 20):
        raise CheckpointError(f"{path} unpacks to {size:,} bytes, which no weights do.")
    return _contents("torch", path, _unpickled(path))


def _read_legacy(path: Path) -> Contents:
    return _contents("torch (legacy)", path, _unpickled(path))


def _unpickled(path: Path) -> Any:
    """What torch reads with `weights_only`; harmless foreign objects stand in for themselves."""
    stubs: list[Any] = [(stub, name) for name, stub in STUBS.items()]
    try:
        with torch.serialization.safe_globals(stubs):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it asks for {type(error).__name__}.") from error
    except Exception as error:  # torch's reader raises almost anything on damaged files
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} names {named[1]}, which is not known to be harmless, so it is not "
                f"loaded; nothing was executed. If you trust it, load it with the library that "
                f"wrote it and save the state dict alone."
            ) from error
        reason = str(error).partition("\n")[0].strip(" .") or type(error).__name__
        raise CheckpointError(f"{path} cannot be read: {reason[:200]}.") from error


# -- others ----------------------------------------------------------------------------------------


def _read_pickle(path: Path) -> Contents:
    with path.open("rb") as file:
        try:
            content = read_pickle(file)
        except CheckpointError as error:
            raise CheckpointError(f"{path} is not loaded: {error}.") from error
    lucid = isinstance(content, dict) and "format_version" in content
    return _contents("Lucid (.lcd)" if lucid else "pickle of arrays", path, content)


def _read_numpy(path: Path) -> Contents:
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except Exception as error:  # NumPy's and zipfile's readers raise almost anything
        raise CheckpointError(f"{path} is a damaged NumPy archive: {error}.") from error
    return _contents("NumPy", path, content)


_READERS = {
    "safetensors": read_safetensors,
    "torch": _read_torch,
    "legacy": _read_legacy,
    "pickle": _read_pickle,
    "numpy": _read_numpy,
}


def _contents(format: str, path: Path, content: Any) -> Contents:
    """The best dictionary of tensors in what was read, and everything beside it."""
    if not isinstance(content, Mapping):
        kind = "an object" if isinstance(content, Inert) else f"a {type(content).__name__}"
        raise CheckpointError(f"{path} holds {kind}, not a dictionary of tensors.")
    found = [(place, state) for place, state in _dictionaries(content) if is_candidate(state)]
    if not found:
        place, state = max(_dictionaries(content), key=lambda item: len(item[1]))
        return Contents(format, place, state, _metadata(content))

    def rank(item: tuple[str, dict[str, Tensor]]) -> int:
        return _PLACES.index(item[0]) if item[0] in _PLACES else len(_PLACES)

    place, state = min(found, key=rank)
    return Contents(format, place, state, _metadata(content))


def _dictionaries(
    content: Mapping[Any, Any], place: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary in a dictionary, with its tensors by name."""
    yield place, {k: _tensor(v) for k, v in content.items() if isinstance(k, str) and _is_array(v)}
    for key, value in content.items():
        if isinstance(value, Mapping) and isinstance(key, str) and depth < 4:
            inner = f"{place}.{key}" if place else key
            yield from _dictionaries(value, inner, depth + 1)


def _is_array(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.layout == torch.strided and not value.is_quantized and not value.is_meta
    return (
        isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.itemsize <= 8
    )


def _tensor(value: Tensor | np.ndarray) -> Tensor:
    """The tensor, in memory of its own."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
    value = value.detach()
    size = math.prod(value.shape) * value.element_size()
    if value.untyped_storage().nbytes() > size or not value.is_contiguous():
        value = value.clone(memory_format=torch.contiguous_format)
    return value


def _metadata(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Plain values beside the weights, and what OpenMMLab keeps under `meta`."""
    plain = {k: v for k, v in content.items() if isinstance(v, str | int | float | bool)}
    meta = content.get("meta")
    return {**plain, **({"meta": meta} if isinstance(meta, dict) else {})}
