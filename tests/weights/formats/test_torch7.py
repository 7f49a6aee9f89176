"""The original release's files, read like `torchfile` reads them and loaded as networks."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles.lua import Lua, network, sequence, written
from oracles.originals import randomize

from resnext import ResNeXt, ResNeXtConfig, load
from resnext.errors import CheckpointError
from resnext.weights.formats.torch7 import Module, read_torch7

CONFIGS = {
    "imagenet": ResNeXtConfig((2, 1, 1, 1), 4, 8, num_classes=5),
    "cifar": ResNeXtConfig(
        (1, 1, 1), 8, 16, num_classes=3, num_stages=3, channels=(64, 128, 256), small_stem=True
    ),
}


def model(name: str) -> ResNeXt:
    network = ResNeXt(CONFIGS[name])
    randomize(network)
    return network.eval()


@pytest.mark.parametrize("kind", ["Float", "Cuda", "Double"])
@pytest.mark.parametrize("name", CONFIGS)
def test_networks(tmp_path: Path, name: str, kind: str) -> None:
    """Every weight finds its place by the order of the modules."""
    ours = model(name)
    written(tmp_path / "a.t7", network(ours.state_dict(), ours.config), kind)
    loaded = load(tmp_path / "a.t7")
    assert isinstance(loaded, ResNeXt)
    assert loaded.config == ours.config
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), ours(x))


def compare(ours: Any, theirs: Any) -> int:
    """Compare with another reader's objects; the number of arrays that were the same."""
    if isinstance(theirs, torchfile.TorchObject):
        assert isinstance(ours, Module)
        assert ours.kind == theirs._typename.decode()
        return compare(ours.fields, theirs._obj)
    if isinstance(theirs, list):
        return sum(compare(ours[i + 1], x) for i, x in enumerate(theirs))
    if isinstance(theirs, dict):
        return sum(compare(ours[_text(key)], value) for key, value in theirs.items())
    if isinstance(theirs, np.ndarray):
        assert np.array_equal(ours, theirs)
        return 1
    assert ours == _text(theirs)
    return 0


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def test_as_another_reader(tmp_path: Path) -> None:
    """`torchfile` reads the same from the same bytes."""
    ours = model("imagenet")
    written(tmp_path / "a.t7", network(ours.state_dict(), ours.config))
    arrays = compare(read_torch7(tmp_path / "a.t7"), torchfile.load(str(tmp_path / "a.t7")))
    assert arrays == sum("num_batches" not in name for name in ours.state_dict())


def test_wrappers(tmp_path: Path) -> None:
    """Several GPUs, and a checkpoint with other things beside the model."""
    ours = model("cifar")
    inner = network(ours.state_dict(), ours.config)
    wrapped = sequence("nn.DataParallelTable", inner)
    written(tmp_path / "a.t7", {"epoch": 3, "model": wrapped, "list": {1: "a", 2: 0.5, 3: True}})
    assert load(tmp_path / "a.t7").config == ours.config


def test_flat_convolutions(tmp_path: Path) -> None:
    """nn.SpatialConvolutionMM keeps its filters as rows."""
    ours = model("cifar")
    lua = network(ours.state_dict(), ours.config)
    first = lua.fields["modules"][1]
    first.kind = "nn.SpatialConvolutionMM"
    first.fields |= {"weight": first.fields["weight"].reshape(64, -1), "kH": 3, "kW": 3}
    written(tmp_path / "a.t7", lua)
    weight = load(tmp_path / "a.t7").state_dict()["conv1.weight"]
    assert torch.equal(weight, ours.state_dict()["conv1.weight"])


def path(stage: Lua) -> Any:
    """Modules of the first path of a stage's first block, counted from 1."""
    both = stage.fields["modules"][1].fields["modules"][1]
    return both.fields["modules"][1].fields["modules"]


def changed(change: Any) -> Lua:
    ours = model("cifar")
    lua = network(ours.state_dict(), ours.config)
    change(lua.fields["modules"])
    return lua


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m[1].fields.update(bias=np.ones(64)), "conv1 has a bias"),
        (lambda m: m[1].fields.pop("weight"), "conv1 .* has no weight"),
        (lambda m: m[2].fields.update(running_std=np.ones(64)), "running_std"),
        (lambda m: m[2].fields.update(eps=1e-3), "bn1 has eps 0.001, not 1e-5"),
        (lambda m: m[1].fields.update(dW=2), "conv1 has dW 2, not 1 as the original has"),
        (lambda m: path(m[5])[1].fields.update(dH=2), r"layer2\.0\.conv1 has dH 2, not 1"),
        (lambda m: path(m[5])[4].fields.update(dW=1), r"layer2\.0\.conv2 has dW 1, not 2"),
        (lambda m: path(m[5])[4].fields.update(padW=2), r"layer2\.0\.conv2 has padW 2, not 1"),
        (
            lambda m: path(m[5])[4].__setattr__("kind", "nn.SpatialDilatedConvolution"),
            "not a block of form C",
        ),
        (lambda m: path(m[5])[3].__setattr__("kind", "nn.ELU"), r"layer2\.0 holds nn\.ELU"),
        (
            lambda m: m.pop(2),
            r"holds cudnn\.SpatialConvolution, cudnn\.ReLU, nn\.Sequential, nn\.Sequential, "
            r"nn\.Sequential, nn\.View…: not the convolution, norm, stages and linear layer",
        ),
        (lambda m: m[4].fields["modules"][1].fields["modules"].pop(1), "not a block of form C"),
        (
            lambda m: (
                m[4]
                .fields["modules"][1]
                .fields["modules"][1]
                .fields["modules"]
                .update({2: Lua("nn.Concat")})
            ),
            "nn.Concat, not a projection",
        ),
    ],
)
def test_other_networks(tmp_path: Path, change: Any, said: str) -> None:
    """Form B, plain ResNets and old norms are refused, not misread."""
    written(tmp_path / "a.t7", changed(change))
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path / "a.t7")


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<ii", 4, 1) + struct.pack("<i", -5),
        struct.pack("<ii", 4, 1) + struct.pack("<i", 1 << 30) + b"x",
        struct.pack("<iii", 3, 1, 1 << 30),
        struct.pack("<iii", 3, 1, 1) + struct.pack("<ii", 9, 9),
        b"".join(struct.pack("<iii", 3, i, 1) for i in range(500)),
    ],
    ids=["negative", "long", "many", "unknown", "deep"],
)
def test_damage(tmp_path: Path, content: bytes) -> None:
    """Lengths in a file are claims."""
    (tmp_path / "a.t7").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged Torch7"):
        read_torch7(tmp_path / "a.t7")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1), value=st.binary(min_size=1, max_size=8), cut=st.booleans())
def test_any_damage(tmp_path: Path, where: float, value: bytes, cut: bool) -> None:
    """One kind of error, or a network."""
    small = sequence("nn.Sequential", Lua("nn.Linear", weight=np.ones((2, 3)), bias=np.ones(2)))
    written(tmp_path / "a.t7", small)
    content = bytearray((tmp_path / "a.t7").read_bytes())
    at = int(where * len(content))
    content[at : at + len(value)] = b"" if cut else value
    (tmp_path / "b.t7").write_bytes(content[:at] if cut else content)
    try:
        load(tmp_path / "b.t7")
    except CheckpointError:
        return


def test_tensors_stay_in_their_storage(tmp_path: Path) -> None:
    """Shape, strides and offset are claims as well: beyond the storage is other memory."""
    lua = Lua("nn.Linear", weight=np.arange(6.0).reshape(2, 3))
    written(tmp_path / "a.t7", lua)
    content = bytearray((tmp_path / "a.t7").read_bytes())
    at = content.index(struct.pack("<qq", 2, 3))
    for place, value in ((at, 7), (at + 16, 1000), (at + 32, 5), (at + 32, -3), (at + 16, -1)):
        other = bytearray(content)
        other[place : place + 8] = struct.pack("<q", value)
        (tmp_path / "b.t7").write_bytes(other)
        with pytest.raises(CheckpointError, match="damaged Torch7"):
            read_torch7(tmp_path / "b.t7")
