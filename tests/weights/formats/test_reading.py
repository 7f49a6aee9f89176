"""Files of weights in every format, harmless and hostile."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, MissingFileError
from resnext.network import ResNeXt
from resnext.weights.formats import reading
from resnext.weights.load import load
from resnext.weights.recognise import ChosenWeights, choose_weights

TINY = ResNeXtConfig((1,), 2, 8, num_stages=1, channels=(16,), num_classes=3)
STATE = ResNeXt(TINY).state_dict()


def read(path: Path) -> ChosenWeights:
    """The weights that are chosen from a file."""
    return choose_weights(reading.read(path))


def zipped(content: Any, path: Path) -> None:
    torch.save(content, path)


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def arrays(state: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value.numpy() for name, value in state.items()}


def pickled(protocol: int) -> Callable[[Any, Path], None]:
    def write(content: Any, path: Path) -> None:
        path.write_bytes(pickle.dumps(arrays(content), protocol))

    return write


def same(got: dict[str, Tensor], wanted: dict[str, Tensor] = STATE) -> bool:
    return list(got) == list(wanted) and all(
        got[name].dtype == value.dtype and torch.equal(got[name], value)
        for name, value in wanted.items()
    )


@pytest.mark.parametrize(
    "write",
    [
        zipped,
        legacy,
        lambda state, path: save_file(state, path),
        lambda state, path: np.savez(path.open("wb"), **arrays(state)),
        lambda state, path: np.savez_compressed(path.open("wb"), **arrays(state)),
        *(pickled(protocol) for protocol in (2, 3, 4, 5)),
    ],
    ids=["zip", "legacy", "safetensors", "npz", "npz, packed", "2", "3", "4", "5"],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_format(tmp_path: Path, write: Callable[[Any, Path], None]) -> None:
    """The first bytes decide, because names of files are often wrong; order and bits are kept."""
    path = tmp_path / "weights.anything"
    write(STATE, path)
    state = read(path).state
    assert same({name: state[name] for name in STATE})
    assert set(state) == set(STATE)
    for value in state.values():  # elsewhere last bits of sums would differ
        assert value.data_ptr() % 16 == 0
        assert value.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8])
def test_types_of_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    """Values are read here, not by the library, so each type needs a look."""
    state = {"b": torch.arange(-3, 4).to(dtype), "a": torch.zeros((2, 0), dtype=dtype)}
    save_file(state, tmp_path / "a")
    assert same(read(tmp_path / "a").state, {name: state[name] for name in ("a", "b")}) or same(
        read(tmp_path / "a").state, state
    )


def test_unknown_types_are_named(tmp_path: Path) -> None:
    """Eight-bit floats are no weights of a ResNeXt."""
    save_file({"x": torch.zeros(3).to(torch.float8_e4m3fn)}, tmp_path / "a")
    with pytest.raises(CheckpointError, match="x has type F8_E4M3"):
        read(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"model": STATE}, "model"),
        ({"state_dict": STATE, "epoch": 3}, "state_dict"),
        ({"model": STATE, "model_ema": STATE}, "model_ema"),
        ({"state_dict": STATE, "state_dict_ema": STATE}, "state_dict_ema"),
        ({"state_dict": STATE, "ema_state_dict": STATE}, "state_dict"),  # mmengine swaps them
        ({"a": {"b": {"c": STATE}}}, "a.b.c"),
        ({"optimizer": {"state": {0: {"m": torch.ones(3)}}}, "net": STATE}, "net"),
    ],
)
@pytest.mark.parametrize("write", [zipped, legacy])
def test_where_the_weights_are(
    tmp_path: Path, content: Any, key: str, write: Callable[[Any, Path], None]
) -> None:
    """Averages are what was evaluated, so they are taken where there are some."""
    marked = {name: value.clone() for name, value in STATE.items()}
    outer, _, last = key.rpartition(".")
    inside = content
    for part in outer.split(".") if outer else []:
        inside = inside[part]
    inside[last] = marked
    write(content, tmp_path / "a")
    weights = read(tmp_path / "a")
    assert weights.key == key
    assert same(weights.state)


def test_views_and_parameters(tmp_path: Path) -> None:
    """A slice of a large tensor must not keep it alive; a parameter is a tensor."""
    large = torch.arange(1_000_000.0)
    state = {"layer1.0.conv2.weight": large[10:14].view(1, 1, 2, 2), "p": large[:4].view(2, 2).t()}
    state["q"] = torch.nn.Parameter(torch.ones(3))
    torch.save(state, tmp_path / "a")
    state = read(tmp_path / "a").state
    assert torch.equal(state["layer1.0.conv2.weight"].flatten(), large[10:14])
    assert state["p"].tolist() == [[0, 2], [1, 3]]
    assert all(x.untyped_storage().nbytes() == x.numel() * 4 for x in state.values())
    assert not state["q"].requires_grad


def foreign(name: str, base: type = object) -> type:
    """A class of a library that is not installed here."""
    module, _, last = name.rpartition(".")
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[: i + 1]), types.ModuleType(parts[i]))
    kind = type(last, (base,), {"__module__": module, "__qualname__": last})
    setattr(sys.modules[module], last, kind)
    return kind


@pytest.mark.parametrize("write", [zipped, legacy])
def test_harmless_foreign_objects(tmp_path: Path, write: Callable[[Any, Path], None]) -> None:
    """What mmengine and timm leave in checkpoints must not keep weights from being read."""
    before = set(sys.modules)
    buffer = foreign("mmengine.logging.history_buffer.HistoryBuffer")()
    buffer.__dict__ = {"_log_history": np.arange(5.0), "_max_length": 10, "_s": np.float64(3)}
    config = foreign("mmengine.config.config.ConfigDict", dict)({"type": "ResNeXt"})
    counts = defaultdict(list)
    counts["a"].append(1)
    content = {
        "state_dict": STATE,
        "message_hub": {"log_scalars": OrderedDict(loss=buffer)},
        "opt": {"hypers": foreign("fastcore.foundation.L")()},
        "args": argparse.Namespace(model="resnext50_32x4d", lr=0.1),
        "cfg": config,
        "counts": counts,
        "path": Path("work"),
        "meta": {"epoch": 7},
    }
    write(content, tmp_path / "a")
    for name in set(sys.modules) - before:
        del sys.modules[name]
    assert same(read(tmp_path / "a").state)
    metadata = reading.read(tmp_path / "a").metadata
    assert set(metadata) == {"state_dict", "message_hub", "opt", "cfg", "counts", "meta"}
    assert metadata["meta"] == {"epoch": 7}
    assert metadata["cfg"] == {"type": "ResNeXt"}
    assert metadata["counts"] == {"a": [1]}
    assert not any(name.startswith("mmengine") for name in sys.modules)


class Commands:
    """Runs a command if it is ever made."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


class Evaluates:
    """As harmless a name as any, until it is called."""

    def __reduce__(self) -> Any:
        return eval, ("1",)


@pytest.mark.parametrize("kind", [Commands, Evaluates])
@pytest.mark.parametrize("write", [zipped, legacy, None], ids=["zip", "legacy", "plain"])
def test_code_is_refused_by_name(
    tmp_path: Path, kind: type, write: Callable[[Any, Path], None] | None
) -> None:
    """The error names what the file wants to call, so that users can decide whether to trust it."""
    content = {"state_dict": STATE, "x": kind()}
    if write:
        write(content, tmp_path / "a.pth")
    else:
        (tmp_path / "a.pth").write_bytes(pickle.dumps({"w": np.ones(3), "x": kind()}))
    with pytest.raises(CheckpointError, match=r"a\.pth.* names \S*(system|eval)") as caught:
        read(tmp_path / "a.pth")
    assert "executed" in str(caught.value)


@pytest.mark.parametrize("write", [zipped, legacy])
def test_getattr_does_nothing(tmp_path: Path, write: Callable[[Any, Path], None]) -> None:
    """A name on the list of harmless ones is never the thing itself."""
    write({"state_dict": STATE, "x": Attribute()}, tmp_path / "a")
    assert same(read(tmp_path / "a").state)


class Attribute:
    """`getattr` is among the harmless names, because it is never called."""

    def __reduce__(self) -> Any:
        return getattr, ("text", "upper")


def test_a_model_pickled_whole_is_refused(tmp_path: Path) -> None:
    """torch.save(model) stores classes, so reading it would import and run their code."""
    torch.save(ResNeXt(TINY), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"names resnext\.network\.ResNeXt"):
        read(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    """It holds code, and torch.load would run it."""
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match="TorchScript"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x1f\x8b\x08", "gzip; unpack"),
        (b"BZh91AY", "bzip2; unpack"),
        (b"\xfd7zXZ\x00", "xz; unpack"),
        (b"7z\xbc\xaf\x27\x1c", "7z; unpack"),
        (b"\x28\xb5\x2f\xfd", "Zstandard; unpack"),
        (b"\x89HDF\r\n\x1a\n", r"HDF5, which Keras writes; .*numpy\.savez"),
        (b"\x08\x07\x12\x07pytorch", "ONNX; save its arrays"),
        (b"\n\x0bResNeXt-50", "Caffe's model; save its arrays"),
        (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite"),
        (b"\x82\xa6params", "Flax"),
        (b"MATLAB 5.0 MAT-file", "MATLAB"),
        (b"x^l{y<", "packed by zlib"),
        (b"x\x9c\xed\xbd", r"perhaps by joblib; torch\.save the state dict"),
        (b"GGUF\x03", "GGUF"),
        (b"\x93NUMPY\x01", r"numpy\.savez"),
        (b"\n\n<!DOCTYPE html>", "web page"),
        (b"\x04\x00\x00\x00\x01", "Torch7"),
        (b'{"a": 1}', "JSON"),
        (b"hello", "b'hello'"),
        (b"PK\x03\x04" + b"x" * 200, "damaged zip"),
        (struct.pack("<Q", 1 << 40) + b"{}", "is no"),
    ],
    ids=repr,
)
def test_what_is_no_file_of_weights(tmp_path: Path, content: bytes, said: str) -> None:
    """The message must say what the file is, so that the right one can be fetched."""
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["model.ckpt-9.index", "model.ckpt.data-00000-of-00001"])
def test_parts_of_tensorflow(tmp_path: Path, name: str) -> None:
    """Their first bytes are a table's or a number's, and looked like other formats'."""
    (tmp_path / name).write_bytes(b"\x00\x00\x0c\x08\x01" + bytes(99))
    with pytest.raises(CheckpointError, match=r"TensorFlow's checkpoint; save .*numpy\.savez"):
        read(tmp_path / name)


def test_plain_pickles_of_tensors(tmp_path: Path) -> None:
    """Their tensors are rebuilt by functions of torch, which may load anything."""
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(STATE))
    with pytest.raises(CheckpointError, match=r"names torch\..*torch\.save its state dict\.$"):
        read(tmp_path / "a.pkl")


def test_archives_are_unpacked_by_the_user(tmp_path: Path) -> None:
    """torch's own message asks for `weights_only=False`, which would execute the file."""
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "inner.pth")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "inner.pth", "inner.pth")
    with pytest.raises(CheckpointError, match=r"is a tar archive\. Unpack it"):
        read(tmp_path / "a.tar")
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"\x89HDF")
    with pytest.raises(CheckpointError, match=r"torch did not write.*'model\.weights\.h5'"):
        read(tmp_path / "a.keras")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_parts_with_an_index(tmp_path: Path, suffix: str) -> None:
    """Large models of the Hugging Face Hub come in parts."""
    state = ResNeXt(TINY).state_dict()
    names = list(state)
    index: dict[str, str] = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{i}-of-00002.{suffix}"
        write = save_file if suffix == "safetensors" else torch.save
        write({name: state[name] for name in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    at = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[suffix]
    (tmp_path / f"{at}.index.json").write_text(json.dumps({"weight_map": index}))
    for path in (tmp_path, tmp_path / f"{at}.index.json"):
        model = load(path)
        assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    with pytest.raises(CheckpointError, match="one of several parts: load their folder"):
        load(tmp_path / f"model-00001-of-00002.{suffix}")
    (tmp_path / f"model-00002-of-00002.{suffix}").unlink()
    with pytest.raises(CheckpointError, match=r"names 'model-00002.*not next to it"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"weight_map": 1}', '{"weight_map": {"a": "../a.bin"}}']
)
def test_wrong_indexes(tmp_path: Path, text: str) -> None:
    """A name must not lead out of the folder."""
    (tmp_path / "a.bin.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"no weight_map|not next to it"):
        read(tmp_path / "a.bin.index.json")


def test_files_of_optimizers(tmp_path: Path) -> None:
    """They hold tensors, but by number; the message says what to save."""
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    for content in (optimizer.state_dict(), {"optimizer": optimizer.state_dict(), "epoch": 3}):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=r"no tensors by name.*not an optimizer's"):
            load(tmp_path / "a.pth")


def test_missing_and_folders(tmp_path: Path) -> None:
    """Both are mistakes of typing."""
    with pytest.raises(MissingFileError):
        read(tmp_path / "a")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path)


def test_bombs(tmp_path: Path) -> None:
    """A small file must not ask for all the memory there is."""
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(200_000_000))
    with pytest.raises(CheckpointError, match="unpacks to"):
        read(tmp_path / "a.pth")
    for header in (
        b'{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}',
        b'{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
    ):
        (tmp_path / "b").write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(CheckpointError):
            read(tmp_path / "b")


@pytest.mark.parametrize("depth", [12, None])
def test_dictionaries_in_themselves(tmp_path: Path, depth: int | None) -> None:
    """A few hundred bytes once kept it busy for ever."""
    inner: dict[str, Any] = {}
    if depth is None:
        inner.update({str(i): inner for i in range(10)})
    else:
        for _ in range(depth):
            inner = {str(i): inner for i in range(4)}
    (tmp_path / "a").write_bytes(pickle.dumps({**arrays(STATE), "x": inner}))
    assert same({name: read(tmp_path / "a").state[name] for name in STATE})
    torch.save({"state_dict": STATE, "x": inner}, tmp_path / "b")
    assert same(read(tmp_path / "b").state)


def test_small_files_that_ask_for_much(tmp_path: Path) -> None:
    """Nine bytes once took gigabytes; tensors beside the weights are never made."""
    (tmp_path / "a").write_bytes(b"\x80\x02}r" + struct.pack("<I", 0x7FFFFFFF) + b".")
    assert read(tmp_path / "a").state == {}
    torch.save({"state_dict": STATE, "x": {"y": torch.zeros(1).expand(1 << 40)}}, tmp_path / "b")
    assert same(read(tmp_path / "b").state)
    header = b'{"x":{"dtype":"F32","shape":[0,4611686018427387904,8],"data_offsets":[0,0]}}'
    (tmp_path / "c").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError):
        read(tmp_path / "c")
    with (tmp_path / "d").open("wb") as file:
        np.savez_compressed(file, x=np.zeros(30_000_000))
    with pytest.raises(CheckpointError, match="unpacks to"):
        read(tmp_path / "d")


def test_special_files(tmp_path: Path) -> None:
    """A pipe would be waited for, a device read for ever."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="is not a regular file"):
            read(path)


@pytest.mark.parametrize("write", [zipped, legacy])
def test_arrays_in_files_of_torch(tmp_path: Path, write: Callable[[Any, Path], None]) -> None:
    """Some save arrays with torch.save."""
    write({"model": arrays(STATE)}, tmp_path / "a")
    assert same(read(tmp_path / "a").state)
