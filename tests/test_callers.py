"""What torch's own tools, and habits of other libraries, ask of a network beside calling it."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_network
from network_cases import VARIANTS, filled, four, images, same, tiny
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

import resnext
from resnext import Backbone, ResNeXt, lucid, mmcls
from resnext.errors import ConfigError, ConfigTypeError
from resnext.summary import summarize

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["plain", "se", "eca", "blur", "group norm", "standardized"])
def test_functional_transforms(name: str) -> None:
    """Ensembles by `vmap` over stacked weights, and gradients of each image, equal a loop."""
    models = [filled(ResNeXt(tiny(**VARIANTS[name])), seed).eval() for seed in (0, 1)]
    x = images(3, 3, 24, 24)
    parameters, buffers = torch.func.stack_module_state(models)

    def answer(p: Any, b: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(models[0], (p, b), (x,))

    with torch.no_grad():
        together = torch.vmap(answer, in_dims=(0, 0, None))(parameters, buffers, x)
        same(together, torch.stack([model(x) for model in models]), 1e-8)

    def loss(p: Any, image: torch.Tensor) -> torch.Tensor:
        return answer(p, dict(models[0].named_buffers()), image[None]).square().sum()

    weights = dict(models[0].named_parameters())
    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for i, image in enumerate(x):
        models[0].zero_grad()
        models[0](image[None]).square().sum().backward()
        for key, parameter in models[0].named_parameters():
            same(found[key][i], parameter.grad, 1e-7)


def test_counted_operations() -> None:
    """Torch's counter counts two operations for each of our multiply-accumulates."""
    config = four(attention="se")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ResNeXt(config).eval()(torch.rand(1, 3, 64, 64))
    assert counter.get_total_flops() == 2 * summarize(config, 64).macs


def test_pruned_and_parametrized_networks_are_saved(tmp_path: Path) -> None:
    """The file has the weights that the network computes with."""
    model, x = tiny_network(), torch.rand(2, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", amount=0.3)
    parametrizations.weight_norm(model.fc)
    with torch.no_grad():
        wanted = model(x)
        resnext.save(model, tmp_path / "a.safetensors")
        again = resnext.load(tmp_path / "a.safetensors")
        torch.testing.assert_close(again(x), wanted)
    assert (again.state_dict()["layer1.0.conv2.weight"] == 0).float().mean() > 0.25


@pytest.mark.parametrize(
    "wrap",
    [
        AveragedModel,
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: torch.compile(AveragedModel(model), backend="eager"),
    ],
    ids=["average", "data parallel", "compiled", "compiled average"],
)
def test_wrapped_networks_are_saved(wrap: Any, tmp_path: Path) -> None:
    """The file of what is inside, with names that have no wrapper in them."""
    model = tiny_network()
    resnext.save(wrap(model), tmp_path / "a.safetensors")
    again = resnext.load(tmp_path / "a.safetensors")
    same(dict(again.state_dict()), dict(model.state_dict()), 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_wrappers_are_refused_in_one_line(tmp_path: Path) -> None:
    """torch.ao's wrapper has three children, a graph none that is a network."""
    for other in (
        torch.ao.quantization.QuantWrapper(tiny_network()),
        torch.fx.symbolic_trace(tiny_network()),
    ):
        with pytest.raises(resnext.ResNeXtError, match=r"^Only a ResNeXt can be saved, not a .*$"):
            resnext.save(other, tmp_path / "a.safetensors")  # pyright: ignore


def test_synchronized_norms() -> None:
    """`convert_sync_batchnorm` finds every norm, and the network answers the same."""
    model, x = filled(ResNeXt(tiny())).eval(), images(2, 3, 24, 24)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    with torch.no_grad():
        wanted = model(x)
        synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        same(synchronized(x), wanted)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in synchronized.modules()) == norms > 0


@pytest.mark.parametrize("name", ["plain", "se", "blur", "eca", "dropping"])
@pytest.mark.parametrize("build", [ResNeXt, Backbone])
def test_networks_without_memory(build: Any, name: str) -> None:
    """A network on `meta` is filled later; nothing may hold values that a state dict lacks."""
    config, x = tiny(**VARIANTS[name]), images(1, 3, 24, 24)
    wanted = filled(build(config)).eval()
    with torch.device("meta"):
        empty = build(config)
    assert {t.device.type for t in empty.state_dict().values()} == {"meta"}
    moved = empty.double().to_empty(device="cpu")
    moved.load_state_dict(wanted.state_dict())
    assigned = build(config).to("meta")
    assigned.load_state_dict(wanted.state_dict(), assign=True)
    for other in (moved, assigned):
        same(other.eval()(x), wanted(x), 0)


def test_parts_that_train() -> None:
    """The usual fine-tuning: the trunk frozen, two groups of the optimizer, children in order."""
    model: Any = ResNeXt(four())
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    assert [name for name, _ in model.named_children()] == [*names, "avgpool", "dropout", "fc"]
    model.requires_grad_(False)
    model.layer4.requires_grad_(True)
    model.fc.requires_grad_(True)
    frozen = model.layer3[0].conv1.weight.clone()
    groups = [
        {"params": model.layer4.parameters(), "lr": 0.01},
        {"params": model.fc.parameters(), "lr": 0.1},
    ]
    optimizer = torch.optim.SGD(groups)
    before = model.layer4[0].conv2.weight.clone()
    model(images(2, 3, 64, 64).float()).square().sum().backward()
    optimizer.step()
    assert torch.equal(model.layer3[0].conv1.weight, frozen)
    assert not torch.equal(model.layer4[0].conv2.weight, before)


# -- habits ---------------------------------------------------------------------------------------


def test_torch_hub() -> None:
    """`torch.hub.load` of a checkout, as torchvision's users know it."""
    entries: dict[str, Any] = {
        k: v for k, v in runpy.run_path(str(ROOT / "hubconf.py")).items() if callable(v)
    }
    assert {k for k in entries if k[0] != "_"} == {*resnext.variants(), "load", "load_backbone"}
    assert entries["resnext_nano"].__doc__.startswith("resnext_nano: ")
    model: Any = torch.hub.load(str(ROOT), "resnext_nano", source="local", num_classes=7)
    assert (model.num_classes, type(model).__name__) == (7, "ResNeXt")
    with pytest.raises(Exception, match="resnext50_32x4d has 19 public checkpoints; choose one"):
        torch.hub.load(str(ROOT), "resnext50_32x4d", source="local", pretrained=True)


def test_habits_of_the_hugging_face_hub() -> None:
    """transformers' and PyTorchModelHubMixin's methods are answered with the functions."""
    for kind in (ResNeXt, Backbone):
        with pytest.raises(
            ConfigError, match=rf"^{kind.__name__} has no from_pretrained\. Use .*$"
        ):
            kind.from_pretrained("owner/name")
    with pytest.raises(ConfigError, match=r"hub\.push\(model, 'owner/name'\)"):
        ResNeXt(tiny()).push_to_hub("owner/name")


CONFIG = four()
UNKNOWN: list[tuple[Any, str, str]] = [  # a call, what it was given, what it is told
    (resnext.create, "groups", "'cardinality'"),
    (resnext.create, "classes", "'num_classes'"),
    (resnext.create, "n_out", "'num_classes'"),
    (resnext.create, "n_in", "'in_channels'"),
    (resnext.create, "include_top", "num_classes=0"),
    (resnext.create, "classifier_activation", "softmax"),
    (resnext.create, "act_cls", "ReLU"),
    (resnext.create, "id2label", "Card"),
    (lucid.resnext_50_32x4d, "pretrained", "resnext.load"),
    (ResNeXt, "num_classes", r"config.replace\(num_classes=…\)"),
    (ResNeXt, "in_chans", r"config.replace\(in_channels=…\)"),
    (ResNeXt, "pretrained", "resnext.load"),
    (Backbone, "features_only", "Backbone"),
    (Backbone, "norm_layer", "norm, one of"),
    (Backbone, "with_cp", "'checkpointing'"),
    (Backbone, "output_strid", "'output_stride'"),
    (resnext.load, "map_location", "'device'"),
    (resnext.load, "in_chans", "'in_channels'"),
    (resnext.load, "pretrained", "resnext.load"),
    (resnext.load, "strict", "whole network"),
    (resnext.load_backbone, "return_layers", "'out_indices'"),
    (resnext.predict, "topk", "'top'"),
    (resnext.predict, "batch", "'batch_size'"),
    (resnext.evaluate, "num_workers", "'workers'"),
    (resnext.explain, "target", "'label'"),
    (resnext.convert, "target_lib", "It has "),
    (resnext.diagnose, "verbose", "It has path"),
    (resnext.optimize, "engin", "'engine'"),
    (resnext.catalog, "license", "'licence'"),
    (resnext.save, "filename", "It has model, path"),
    (mmcls.ResNeXt, "pretrained", "resnext.load"),
]


@pytest.mark.parametrize(
    ("call", "name", "told"), UNKNOWN, ids=[f"{call.__name__}-{name}" for call, name, _ in UNKNOWN]
)
def test_unknown_arguments(call: Any, name: str, told: str) -> None:
    """Other libraries' names are answered in one line, wherever they are given."""
    needed: list[Any] = [
        "resnext_nano" if call is resnext.create else CONFIG
        for p in inspect.signature(call).parameters.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    if call is mmcls.ResNeXt:
        needed = [50]
    with pytest.raises((ConfigTypeError, ConfigError), match=told) as caught:
        call(*needed, **{name: 1})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [np.int64, np.int32, np.array], ids=["i64", "i32", "0-d"])
def test_numbers_of_numpy(number: Any, tmp_path: Path) -> None:
    """Numbers that come out of arrays and tables, wherever an integer is expected."""
    strides: Any = np.array([1, 2, 2, 1])
    one, two, four_ = number(1), number(2), number(4)
    with torch.device("meta"):
        model = resnext.create("resnext_nano", num_classes=number(5), output_stride=number(16))
        assert (model.fc.out_features, model.config.stride) == (5, 16)
        backbone = Backbone(CONFIG, out_indices=[one, two], frozen_stages=one)
        assert (backbone.out_indices, backbone.frozen_stages) == ((1, 2), 1)
        theirs = mmcls.ResNeXt(
            number(50),
            groups=number(32),
            width_per_group=four_,
            strides=strides,
            dilations=(one, one, one, two),
            out_indices=(1, two),
            expansion=four_,
        )
        wanted = mmcls.ResNeXt(50, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
        assert theirs.config == wanted.config
        mmcls.SEResNeXt(number(50), se_ratio=number(16))
        block = mmcls.Bottleneck(
            number(256), number(256), groups=number(32), base_channels=number(64)
        )
        assert block.conv2.groups == 32
        assert lucid.resnext_50_32x4d(number(3), in_channels=one).config.in_channels == 1
    assert type(model.config.num_classes) is int
    assert summarize(CONFIG, (number(64), number(96))) == summarize(CONFIG, (64, 96))
    resnext.save(tiny_network(), tmp_path / "a.safetensors")
    loaded: Any = resnext.load(tmp_path / "a.safetensors", num_classes=number(7), in_channels=one)
    assert (loaded.num_classes, loaded.config.in_channels) == (7, 1)
    assert loaded.card.preprocessing.mean == pytest.approx((0.449,))
    preprocessing = resnext.Preprocessing(number(96), number(96), mean=np.full(3, 0.5))  # pyright: ignore
    assert preprocessing.to_dict()["mean"] == (0.5,) * 3
    labels: Any = np.array(["a", "b"])
    assert resnext.Card(labels, temperature=number(2)).to_dict()["labels"] == ("a", "b")
