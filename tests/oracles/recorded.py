"""Outputs recorded from mmcls 0.25 and Lucid 2, and the rule their weights were filled by.

`tests/golden/README.md` says how the files were made.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_GOLDEN = Path(__file__).parent.parent / "golden"


@cache
def manifest(library: str) -> dict[str, Any]:
    """Cases, error cases and key lists of a library."""
    return json.loads(gzip.decompress((_GOLDEN / f"{library}.json.gz").read_bytes()))


@cache
def samples(library: str) -> dict[str, np.ndarray]:
    """Every sampled tensor, by `case/name`."""
    with np.load(_GOLDEN / f"{library}.npz") as file:
        return dict(file)


def thin(values: Tensor, stride: int = 1, *, count: int = 64) -> np.ndarray:
    """The entries of a tensor that were recorded: 1024 at `stride`, then `count` of those."""
    recorded = values.detach().double().flatten()[::stride]
    recorded = recorded[:1024] if stride > 1 or len(recorded) == 1024 else recorded
    return recorded[:: max(len(recorded) // count, 1)][:count].numpy()


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over largest value."""
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def seed(name: str) -> int:
    """Seed of the stream that belongs to a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """What an entry of a state dict is filled with: its name and shape decide."""
    stream, count = np.random.RandomState(seed(name)), int(np.prod(shape))
    kind = name.rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if kind == "running_var":
        values = 0.5 + stream.random_sample(count)
    elif kind in ("running_mean", "weight_beta"):
        values = 0.1 * stream.standard_normal(count)
    elif kind == "weight_gamma":
        values = 0.5 + 0.5 * stream.random_sample(count)
    elif len(shape) >= 2:
        values = stream.standard_normal(count) * np.sqrt(2 / np.prod(shape[1:]))
    elif kind == "bias":
        values = 0.1 * stream.standard_normal(count)
    else:
        values = 0.4 + 0.5 * stream.random_sample(count)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def fill(module: nn.Module, rename: Callable[[str], str] = str) -> None:
    """Fill a network in place; `rename` maps its keys to the recorded ones."""
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            tensor.copy_(weight(rename(key), tuple(tensor.shape)))


def images(shape: list[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The fixed input of a shape."""
    stream = np.random.RandomState(seed("input:" + "x".join(map(str, shape))))
    values = stream.standard_normal(int(np.prod(shape))).astype(np.float32)
    return torch.from_numpy(values.reshape(shape)).to(dtype)


def probe(name: str, like: Tensor) -> Tensor:
    """The fixed direction a gradient or output is projected on."""
    values = np.random.RandomState(seed(f"probe:{name}")).standard_normal(like.numel())
    return torch.from_numpy(values).view_as(like)


@cache
def files() -> dict[str, Any]:
    """Checkpoint files as the originals wrote them, without the weights, and their logits."""
    return json.loads(gzip.decompress((_GOLDEN / "files.json.gz").read_bytes()))


def file_bytes(name: str) -> bytes:
    """A checkpoint file as mmcls or Lucid wrote it: the recorded bytes, filled with weights."""
    if name in files()["zip"]:
        return _zipped(files()["zip"][name])
    about = files()["files"][name]
    content = bytearray(zlib.decompress(base64.b64decode(about["rest"])))
    for start, key, shape in about["pieces"]:
        values = weight(key, tuple(shape)).numpy().tobytes()
        content[start : start + len(values)] = values
    assert hashlib.sha256(content).hexdigest() == about["sha256"]
    return bytes(content)


def _zipped(records: list[list[Any]]) -> bytes:
    """A zip of torch's: its pickle as it was, and each storage (the optimizer's are zeros)."""
    out, shapes = io.BytesIO(), files()["shapes"]
    with zipfile.ZipFile(out, "w") as archive:
        for name, what, *packed in records:
            if packed:
                content = zlib.decompress(base64.b64decode(what))
            elif isinstance(what, int):
                content = bytes(what)
            else:
                content = weight(what, tuple(shapes[what])).numpy().tobytes()
            archive.writestr(name, content)
    return out.getvalue()
