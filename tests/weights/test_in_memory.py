"""`load` and `save` of what is in memory: state dicts, networks, and networks in wrappers."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_network
from oracles.originals import randomize, timm, torchvision
from torch import Tensor, nn

import resnext
from resnext import Backbone, Card, ResNeXt, ResNeXtConfig, load, load_backbone, mmcls
from resnext.errors import CheckpointError

CONFIG = ResNeXtConfig((1, 1, 1, 1), 4, 8, num_classes=5, channels=(16, 32, 64, 128))
COMPILING = pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning")
X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def torchvisions(**changes: Any) -> nn.Module:
    """A small network of torchvision's own class."""
    resnet = torchvision.models.resnet
    settings = {"num_classes": 7, "groups": 8, "width_per_group": 4, **changes}
    model = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], **settings)
    randomize(model)
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X)


@pytest.mark.parametrize("pack", [dict, lambda s: {"state_dict": s, "epoch": 3, "optimizer": {}}])
def test_state_dicts(pack: Any) -> None:
    """`load(torch.load(file))` and `load(model.state_dict())` are habits of torch's users."""
    theirs = torchvisions()
    ours = load(pack(theirs.state_dict()))
    assert torch.equal(logits(ours), logits(theirs))
    assert isinstance(load_backbone(pack(theirs.state_dict())), Backbone)


def test_weights_are_copied() -> None:
    """Training the loaded network must not change the one it came from."""
    for theirs in (torchvisions(), tiny_network(CONFIG)):
        before = deepcopy(theirs.state_dict())
        ours = load(theirs)
        with torch.no_grad():
            for value in ours.state_dict().values():
                value.zero_()
        assert all(torch.equal(x, before[n]) for n, x in theirs.state_dict().items())


def test_networks_of_other_libraries() -> None:
    """Also of timm and of our own mmcls, and in half precision or training mode."""
    se = timm.create_model("seresnext26t_32x4d", num_classes=4)
    randomize(se)
    for theirs in (torchvisions(), torchvisions().train(), se):
        ours = load(theirs)
        assert torch.allclose(logits(ours), logits(deepcopy(theirs).eval()), atol=1e-5)
    half: Any = load(torchvisions().half())
    assert half.fc.weight.dtype == torch.float32
    maps = load(mmcls.ResNeXt(depth=50, groups=32, width_per_group=4))
    assert isinstance(maps, Backbone)


def test_a_network_that_computes_something_else_is_refused() -> None:
    """Dilation and anti-aliasing leave no trace in a state dict, but in what is computed."""
    dilated = torchvisions(replace_stride_with_dilation=[False, True, True])
    with pytest.raises(CheckpointError, match=r"computes something else.*config="):
        load(dilated)
    config = load(dilated.state_dict()).config
    strides = {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)}
    with pytest.raises(CheckpointError, match="computes something else"):  # torchvision's first
        load(dilated, config=config.replace(**strides))  # block of a stage keeps the old dilation
    aa = timm.create_model("seresnextaa101d_32x8d", num_classes=4)
    with pytest.raises(CheckpointError, match="computes something else"):
        load(aa)
    assert load(
        aa, config=resnext.variant("seresnextaa101d_32x8d", num_classes=4)
    ).config.anti_alias


def test_our_own_networks() -> None:
    """Config and card are known; a replaced classifier counts."""
    model = tiny_network(CONFIG, Card(labels=tuple("abcde")))
    again = load(model)
    assert torch.equal(logits(again), logits(model))
    assert again.card == model.card
    model.fc = nn.Linear(512, 9)
    assert load(model.eval(), num_classes=3).config.num_classes == 3
    backbone = Backbone(CONFIG).eval()
    for got, wanted in zip(logits(load(backbone)), logits(backbone), strict=True):
        assert torch.equal(got, wanted)


def compiled(model: nn.Module) -> Any:
    """The network in the wrapper of `torch.compile`."""
    return torch.compile(model)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": compiled,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled in DataParallel": lambda m: nn.DataParallel(compiled(m)),
}


@COMPILING
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_taken_off(tmp_path: Path, wrap: Any) -> None:
    """`save` said that a network in DataParallel is none."""
    model = tiny_network(CONFIG)
    resnext.save(wrap(model), tmp_path / "a.safetensors")
    assert torch.equal(logits(load(tmp_path / "a.safetensors")), logits(model))
    assert torch.equal(logits(load(wrap(model))), logits(model))
    theirs = torchvisions()
    assert torch.equal(logits(load(wrap(theirs))), logits(theirs))


@COMPILING
def test_compiled_in_place(tmp_path: Path) -> None:
    """`model.compile()` keeps the class."""
    model = tiny_network(CONFIG)
    model.compile()
    resnext.save(model, tmp_path / "a.safetensors")
    assert isinstance(load(tmp_path / "a.safetensors"), ResNeXt)


class Sharded:
    """A stand-in for torch.distributed's DTensor on some processes."""

    def __init__(self, value: Tensor, processes: int) -> None:
        self.value, self.processes = value, processes

    @property
    def device_mesh(self) -> Sharded:
        """The processes."""
        return self

    def size(self) -> int:
        """How many there are."""
        return self.processes

    def full_tensor(self) -> Tensor:
        """The whole tensor."""
        return self.value


def test_sharded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathering on one process alone would wait for the others for ever."""
    model = tiny_network(CONFIG)
    state = model.state_dict()
    for processes in (1, 2):
        shards = {name: Sharded(value, processes) for name, value in state.items()}
        monkeypatch.setattr(model, "state_dict", lambda shards=shards: shards)
        if processes == 1:
            resnext.save(model, tmp_path / "a.safetensors")
            assert torch.equal(logits(load(tmp_path / "a.safetensors")), logits(model))
            continue
        for use in (load, lambda m: resnext.save(m, tmp_path / "b.safetensors")):
            with pytest.raises(CheckpointError, match=r"over 2 processes.*full_state_dict"):
                use(model)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({}, "it holds no tensors"),
        ({"a": 1}, "it holds no tensors"),
        (nn.Linear(2, 3), "^Linear: No ResNeXt"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "^Sequential: No ResNeXt"),
        (None, "a state dict or a network, not None"),
        ([1, 2], "not \\[1, 2\\]"),
        (torch.zeros(3), "not tensor"),
    ],
    ids=str,
)
def test_other_things_are_refused_in_one_line(source: Any, said: str) -> None:
    """A message of 3,276 lines showed the weights instead of the reason."""
    with pytest.raises(CheckpointError, match=said) as error:
        load(source)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
