"""Forms of computing a network: merged groups are the same function, and are chosen once."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import resnext
from resnext import ResNeXtConfig
from resnext import grouped_conv as forms
from resnext.architectures import variant, variants
from resnext.grouped_conv import (
    MergedConv2d,
    fastest_groups,
    grouped_convolutions,
    merge_groups,
)
from resnext.network import ResNeXt
from resnext.system import device

CPU = torch.device("cpu")
SMALL = ResNeXtConfig((2, 1), 4, 32, num_classes=3, channels=(16, 32), num_stages=2)

pytestmark = pytest.mark.usefixtures("one_thread")


def spread_by_hand(weight: Tensor, groups: int, merged: int) -> Tensor:
    """Weights of the wider convolution, one block at a time."""
    k, c = weight.shape[0] // groups, weight.shape[1]
    wide = torch.zeros(groups * k, c * merged, *weight.shape[2:], dtype=weight.dtype)
    for group in range(groups):
        place = group % merged
        rows = slice(group * k, (group + 1) * k)
        wide[rows, place * c : (place + 1) * c] = weight[rows]
    return wide


@settings(max_examples=80)
@given(data=st.data())
def test_merged_convolutions_are_the_same_function(data: st.DataObject) -> None:
    """A wrong block of zeros gives a network that trains, to something else."""
    merged = data.draw(st.integers(1, 4))
    groups = merged * data.draw(st.integers(1, 4))
    width, out_width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    height, across = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    kernel = data.draw(st.sampled_from([1, 3, (1, 3)]))
    dilation = data.draw(st.integers(1, 2))
    torch.manual_seed(data.draw(st.integers(0, 100)))
    plain = nn.Conv2d(
        groups * width,
        groups * out_width,
        kernel,
        stride=data.draw(st.integers(1, 3)),
        padding=2,
        dilation=dilation,
        groups=groups,
        bias=data.draw(st.booleans()),
    ).double()
    other = copy.deepcopy(plain)
    merge_groups(nn.ModuleDict({"conv": other}), {"conv": merged})
    assert isinstance(other, MergedConv2d)
    assert torch.equal(
        forms.spread(plain.weight, groups, merged), spread_by_hand(plain.weight, groups, merged)
    )
    x = torch.randn(2, groups * width, height, across, dtype=torch.float64)
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = plain(inputs[0]), other(inputs[1])
    assert torch.allclose(y, z, atol=1e-12)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (z * weights).sum().backward()
    pairs = zip((inputs[0], *plain.parameters()), (inputs[1], *other.parameters()), strict=True)
    for a, b in pairs:
        assert a.grad is not None
        assert b.grad is not None
        assert a.grad.shape == b.grad.shape
        assert torch.allclose(a.grad, b.grad, atol=1e-11)


def merged_twins(config: ResNeXtConfig, merged: int) -> tuple[ResNeXt, ResNeXt]:
    """A network, and the same with so many groups as one wherever they can be."""
    torch.manual_seed(0)
    plain = ResNeXt(config)
    other = copy.deepcopy(plain)
    least = max(config.min_size, 8)
    found = grouped_convolutions(other, (1, config.in_channels, least, least))
    choice = {name: merged for name, conv, _ in found if conv.groups % merged == 0}
    merge_groups(other, choice)
    assert {n for n, m in other.named_modules() if isinstance(m, MergedConv2d)} == set(choice)
    return plain, other


UNLIKE = {  # named variants that differ in more than their number of blocks
    repr(variant(name, layers=(2,) + (1,) * (variant(name).num_stages - 1))): name
    for name in variants()
}


@pytest.mark.parametrize("name", UNLIKE.values())
def test_named_variants_are_the_same_networks_when_merged(name: str) -> None:
    """Every way a block can be built has to survive: strides, pooling, attention, 1 group.

    A part of the channels, and two blocks in the first stage only, to be quick.
    """
    config = variant(name)
    config = config.replace(
        layers=(2,) + (1,) * (config.num_stages - 1),
        channels=tuple(c // max(config.base_width // 8, 2) for c in config.channels),
        num_classes=5,
    )
    plain, other = merged_twins(config, 2)
    plain, other = plain.double(), other.double()
    side = max(config.min_size, 16 if config.small_stem else 32)
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        for training in (True, False):
            y, z = plain.train(training)(x), other.train(training)(x)
            assert y.std() > 1e-3
            assert (y - z).abs().max() <= 1e-9
    for (key, a), b in zip(plain.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), atol=1e-9), key


def test_merging_changes_neither_keys_nor_weights(tmp_path: Path) -> None:
    """A model file of a merged network must be one of the plain network, and the other way."""
    plain, other = merged_twins(SMALL, 4)
    before, after = plain.state_dict(), other.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in other.named_parameters()]

    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = other.eval()(x)
        twin = copy.deepcopy(other)
        assert sum(isinstance(m, MergedConv2d) for m in twin.modules()) == 3
        assert torch.equal(twin(x), wanted)
        twin.get_parameter("layer1.0.conv2.weight").zero_()  # its weights are not shared
        assert torch.equal(other(x), wanted)

        resnext.save(other, tmp_path / "m.safetensors")
        loaded = resnext.load(tmp_path / "m.safetensors")
        assert not any(isinstance(m, MergedConv2d) for m in loaded.modules())
        assert torch.allclose(loaded.eval()(x), wanted, atol=1e-5)
        torch.save(other, tmp_path / "whole.pt")
        whole = torch.load(tmp_path / "whole.pt", weights_only=False)
        assert torch.equal(whole(x), wanted)
        other.load_state_dict({k: torch.zeros_like(v) for k, v in before.items()})
        assert not other.get_parameter("layer2.0.conv2.weight").any()


def test_merging_keeps_the_parameters_that_an_optimizer_holds() -> None:
    """A new parameter object would never be trained."""
    network = ResNeXt(SMALL)
    held = [id(p) for p in network.parameters()]
    merge_groups(network, {"layer1.0.conv2": 2})
    assert [id(p) for p in network.parameters()] == held
    merge_groups(network, {"layer1.0.conv2": 4})  # and again, in another form
    assert network.get_submodule("layer1.0.conv2").merged == 4
    assert nn.Conv2d.__dict__.get("merged") is None
    assert MergedConv2d.merged == 1


# -- which there are --------------------------------------------------------------------------


@pytest.mark.parametrize("name", variants())
def test_all_grouped_convolutions_are_found(name: str) -> None:
    """One that is overlooked stays slow; one with a wrong input is measured for nothing."""
    config = variant(name)
    if name != "resnext50_32x4d":  # deeper ones repeat their blocks
        config = config.replace(layers=tuple(min(blocks, 2) for blocks in config.layers))
    with torch.device("meta"):
        network = ResNeXt(config)
    side = 64
    found = {n: (c, shape) for n, c, shape in grouped_convolutions(network, (3, 3, side, side))}
    wanted = {}
    pixels = side // config.stem_stride
    for i, stage in enumerate(config.stages):
        for j in range(len(stage.drop_path)):  # the 3×3 strides, so its input does not yet
            if stage.groups > 1:
                wanted[f"layer{i + 1}.{j}.conv2"] = (3, stage.width, pixels, pixels)
            pixels //= stage.stride if j == 0 else 1
    assert {n: shape for n, (_, shape) in found.items()} == wanted
    for n, (conv, _) in found.items():
        assert conv is network.get_submodule(n)


@pytest.mark.parametrize(
    ("style", "anti_alias"), [("pytorch", None), ("caffe", None), ("pytorch", "blur")]
)
def test_shapes_are_those_of_a_real_pass(style: Any, anti_alias: Any) -> None:
    """Where a block strides decides what its grouped convolution sees."""
    config = SMALL.replace(style=style, anti_alias=anti_alias, attention="se", stem_type="deep")
    network = ResNeXt(config).train()
    seen: dict[str, tuple[int, ...]] = {}
    before = {k: v.clone() for k, v in network.state_dict().items()}
    found = {n: shape for n, _, shape in grouped_convolutions(network, (2, 3, 37, 50))}
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)  # of batch norms too
    assert all(not x.is_meta for x in after.values())
    assert network.training
    assert not any(m._forward_pre_hooks for m in network.modules())

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.register_forward_pre_hook(
                lambda *passed, name=name: seen.__setitem__(name, tuple(passed[1][0].shape))
            )
    network(torch.randn(2, 3, 37, 50))
    assert found == seen
    assert len(found) == 3


def test_convolutions_that_are_not_plain_are_left_alone() -> None:
    """Padding by reflection or standardized weights would be lost in merging."""
    odd = {"padding_mode": "reflect"}, {"conv": "weight_standardized"}, {"conv": "same_padding"}
    for changes in odd:
        network = ResNeXt(SMALL.replace(**changes))
        assert list(grouped_convolutions(network, (1, 3, 64, 64))) == []
    network = ResNeXt(SMALL)
    merge_groups(network, {"layer1.0.conv2": 2})
    left = [name for name, *_ in grouped_convolutions(network, (1, 3, 64, 64))]
    assert left == ["layer1.1.conv2", "layer2.0.conv2"]


# -- which are fastest ------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, fresh_cache: Path) -> list[tuple[Any, ...]]:
    """What is measured: the answer is always 2. The cache is empty."""
    asked: list[tuple[Any, ...]] = []

    def fastest(conv: nn.Conv2d, shape: tuple[int, ...], *rest: Any) -> int:
        asked.append((conv.groups, shape, *rest))
        return 2

    monkeypatch.setattr(forms, "_fastest", fastest)
    return asked


ALL = {"layer1.0.conv2": 2, "layer1.1.conv2": 2, "layer2.0.conv2": 2}
SIZE = (4, 3, 32, 32)


def test_each_kind_of_convolution_is_measured_once(measured: list[Any]) -> None:
    """Measuring takes seconds; doing so at every start, or for every block, is waste."""
    network = ResNeXt(SMALL)
    assert fastest_groups(network, SIZE, CPU, torch.float32) == ALL
    assert len(measured) == 2  # the blocks of the first stage are alike
    assert fastest_groups(ResNeXt(SMALL), SIZE, CPU, torch.float32) == ALL
    assert len(measured) == 2
    fastest_groups(network, SIZE, CPU, torch.bfloat16)
    assert len(measured) == 4
    fastest_groups(network, (8, *SIZE[1:]), CPU, torch.float32)
    assert len(measured) == 6
    fastest_groups(network, SIZE, CPU, torch.float32)
    assert len(measured) == 6


def test_what_does_not_gain_stays_as_it_is(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice of 1 would replace a convolution by itself, spread for nothing at each step."""
    monkeypatch.setattr(forms, "_fastest", lambda *_: measured.append(()) or 1)
    assert fastest_groups(ResNeXt(SMALL), SIZE, CPU, torch.float32) == {}
    assert fastest_groups(ResNeXt(SMALL), SIZE, CPU, torch.float32) == {}
    assert len(measured) == 2


def test_another_processor_or_number_of_threads_measures_again(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home folder is often shared by machines that are unlike."""
    for change in (lambda: None, lambda: monkeypatch.setattr(device, "cpu_name", lambda: "Z80")):
        change()
        measured.clear()
        fastest_groups(ResNeXt(SMALL), SIZE, CPU, torch.float32)
        assert len(measured) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    fastest_groups(ResNeXt(SMALL), SIZE, CPU, torch.float32)
    assert len(measured) == 4


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"7", b'{"a": null}', b'{"a": "b"}']
)
def test_a_damaged_memory_is_measured_anew(
    measured: list[Any], fresh_cache: Path, content: bytes
) -> None:
    """A cache that was cut off by a full disk must not stop every later run."""
    fastest_groups(ResNeXt(SMALL), SIZE, CPU, torch.float32)
    (file,) = (fresh_cache / "forms").iterdir()
    good = file.read_bytes()
    file.write_bytes(content)
    measured.clear()
    assert fastest_groups(ResNeXt(SMALL), SIZE, CPU, torch.float32) == ALL
    assert len(measured) == 2
    assert json.loads(file.read_text()) == json.loads(good)
    assert list((fresh_cache / "forms").iterdir()) == [file]


def test_a_memory_that_cannot_be_written_stops_nothing(
    measured: list[Any], fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers often have a home folder that is read-only."""
    fresh_cache.write_text("a file where a folder should be")
    for _ in range(2):
        assert fastest_groups(ResNeXt(SMALL), SIZE, CPU, torch.float32) == ALL
    assert len(measured) == 4

    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    fresh_cache.unlink()
    monkeypatch.setattr(Path, "write_bytes", full)
    assert fastest_groups(ResNeXt(SMALL), SIZE, CPU, torch.float32) == ALL
    assert list((fresh_cache / "forms").iterdir()) == []


def test_a_form_must_be_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of a few percent must not decide how a network is computed for ever."""
    conv = nn.Conv2d(128, 128, 3, groups=32)  # 4 wide

    def answer(times: dict[int, float]) -> int:
        monkeypatch.setattr(forms, "_seconds", lambda conv, x, merged: times[merged])
        return forms._fastest(conv, (1, 128, 5, 5), CPU, torch.float32)

    assert answer({1: 1.0, 2: 0.95, 4: 0.91, 8: 2.0, 16: 2.0}) == 1
    assert answer({1: 1.0, 2: 0.8, 4: 0.5, 8: 0.6, 16: 2.0}) == 4
    wide = nn.Conv2d(128, 128, 3, groups=2)  # nothing wider fits
    monkeypatch.setattr(forms, "_seconds", lambda *_: pytest.fail("nothing to compare"))
    assert forms._fastest(wide, (1, 128, 5, 5), CPU, torch.float32) == 1


@pytest.mark.usefixtures("fresh_cache")
def test_what_is_measured_can_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that does not divide the groups would be found out by a crash in the first step."""
    config = SMALL.replace(cardinality=6, widths=(18, 30))  # 3 and 5 wide
    network = ResNeXt(config)
    tried: list[int] = []

    def seconds(conv: nn.Conv2d, x: Tensor, merged: int) -> float:
        assert conv.groups % merged == 0
        tried.append(merged)
        return 1 / merged  # the widest is the fastest

    with monkeypatch.context() as patch:
        patch.setattr(forms, "_seconds", seconds)
        choice = fastest_groups(network, SIZE, CPU, torch.float32)
    assert set(tried) == {1, 2, 3, 6}
    conv = network.get_submodule("layer1.0.conv2")
    assert isinstance(conv, nn.Conv2d)
    weights = conv.weight.detach().clone()
    assert forms._seconds(conv, torch.randn(2, 18, 8, 8, requires_grad=True), 2) > 0
    assert conv.weight.grad is None  # measuring must not train
    assert torch.equal(conv.weight, weights)
    wanted = copy.deepcopy(network).eval()(torch.ones(1, 3, 32, 32))
    merge_groups(network, choice)
    assert torch.allclose(network.eval()(torch.ones(1, 3, 32, 32)), wanted, atol=1e-5)
