"""Networks as graphs of `torch.fx`: traced, cut, fused, quantized, and as TorchScript."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx
from network_cases import TINY, VARIANTS, filled, images, same, tiny
from oracles.originals import OnFirstUse, torchvision
from torch import nn

from resnext import Backbone, ResNeXt, mmcls
from resnext.errors import InputError
from resnext.mmcls.classifier import LinearClsHead

feature_extraction = OnFirstUse("torchvision.models.feature_extraction")

ONE_STAGE: dict[str, Any] = {"num_stages": 1, "strides": (2,), "dilations": (1,), "depth": 50}
MMCLS: dict[str, Callable[[], nn.Module]] = {
    "one stage": lambda: mmcls.ResNeXt(**ONE_STAGE, out_indices=(0,)),
    "deep, dropping": lambda: mmcls.ResNeXt(
        **ONE_STAGE, out_indices=(0,), deep_stem=True, avg_down=True, drop_path_rate=0.5
    ),
    "two maps, checkpointed": lambda: mmcls.ResNeXt(
        50, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1), with_cp=True
    ),
    "se": lambda: mmcls.SEResNeXt(**ONE_STAGE, out_indices=(0,), zero_init_residual=False),
    "gn, same padding": lambda: mmcls.ResNeXt(
        **ONE_STAGE,
        out_indices=(0,),
        conv_cfg={"type": "Conv2dAdaptivePadding"},
        norm_cfg={"type": "GN", "num_groups": 4},
    ),
    "classifier": lambda: mmcls.ImageClassifier(
        mmcls.ResNeXt(**ONE_STAGE, out_indices=(0,)), LinearClsHead(5, 256)
    ),
}


def classifier(name: str) -> Callable[[], nn.Module]:
    return lambda: ResNeXt(tiny(**VARIANTS[name]))


def backbone(**arguments: Any) -> Callable[[], nn.Module]:
    fields = {**VARIANTS["resnext-d of timm"], **VARIANTS["dropping"]}
    return lambda: Backbone(tiny(**fields), **arguments)


NETWORKS = {
    **{name: classifier(name) for name in VARIANTS},
    "backbone": backbone(),
    "one map": backbone(out_indices=(0,)),
    "frozen": backbone(frozen_stages=1),
    "checkpointed": backbone(checkpointing=True),
    **{f"mmcls, {name}": build for name, build in MMCLS.items()},
}


def seeded(run: nn.Module, x: torch.Tensor) -> Any:
    torch.manual_seed(0)
    return run(x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_traced_network_is_the_network(name: str, training: bool) -> None:
    """A graph that keeps the mode or the size of its trace answers wrongly in the other one."""
    plain = filled(NETWORKS[name]()).train(training)
    traced = torch.fx.symbolic_trace(copy.deepcopy(plain))
    assert traced.state_dict().keys() == plain.state_dict().keys()
    for x in (images(2, 3, 24, 40), images(3, 3, 33, 18)):
        same(seeded(traced, x), seeded(plain, x))
    same(dict(traced.state_dict()), dict(plain.state_dict()))
    if name != "frozen":  # a graph has no train() of its own
        plain.train(not training)
        traced.train(not training)
        same(seeded(traced, x), seeded(plain, x))


@pytest.mark.parametrize("name", ["blur", "backbone", "mmcls, deep, dropping"])
def test_a_traced_network_can_be_pickled(name: str) -> None:
    """Annotated shapes in the graph had no name that pickle could import."""
    traced = torch.fx.symbolic_trace(filled(NETWORKS[name]()).eval())
    again = pickle.loads(pickle.dumps(traced))
    same(again(images(1, 3, 24, 24)), traced(images(1, 3, 24, 24)))


@pytest.mark.parametrize("name", ["plain", "se", "eca", "blur", "dropping", "checkpointed"])
def test_feature_extractor_of_torchvision(name: str) -> None:
    """Detection takes the maps of stages and the inside of blocks in both modes."""
    plain = filled(NETWORKS[name]())
    nodes = {"layer1": "first", "layer2.0.conv2": "inner", "layer2": "last"}
    extract = feature_extraction.create_feature_extractor(copy.deepcopy(plain), nodes)
    x = images(2, 3, 24, 40)
    for training in (True, False):
        torch.manual_seed(0)
        first, last = plain.train(training).features(x)
        found = seeded(extract.train(training), x)
        same(found["first"], first)
        same(found["last"], last)
        assert list(found) == ["first", "inner", "last"]


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "untracked norm"])
def test_fused_network(name: str) -> None:
    """Torch folds norms into convolutions on the graph; the answers stay."""
    from torch.fx.experimental.optimization import fuse

    plain = filled(NETWORKS[name]()).eval()
    x = images(2, 3, 24, 40)
    same(fuse(copy.deepcopy(plain))(x), plain(x), 1e-8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("training", [False, True], ids=["after training", "aware"])
@pytest.mark.parametrize("name", ["plain", "se", "eca", "blur", "dropping", "mmcls, se"])
def test_quantized_network(name: str, training: bool) -> None:
    """`prepare_fx` records ranges; the network in 8 bits is near the one in float."""
    from torch.ao.quantization import (
        get_default_qat_qconfig_mapping,
        get_default_qconfig_mapping,
    )
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

    torch.manual_seed(0)
    plain = NETWORKS[name]().train(training)
    x = images(4, 3, 32, 32, dtype=torch.float32)
    if training:
        prepared = prepare_qat_fx(copy.deepcopy(plain), get_default_qat_qconfig_mapping(), (x,))
        seeded(prepared, x)
        seeded(plain, x)
    else:
        prepared = prepare_fx(copy.deepcopy(plain), get_default_qconfig_mapping(), (x,))
        prepared(x)
    quantized = convert_fx(prepared.eval())
    assert "quantized" in str(quantized)
    if name != "dropping":  # as services deploy it
        torch.jit.script(quantized)
    wanted, got = plain.eval()(x), quantized(x)
    assert (got - wanted).norm() < 0.2 * wanted.norm()


@pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning")
@pytest.mark.parametrize(
    "name", ["plain", "se", "eca", "deep stem", "avg", "blur", "mmcls, one stage"]
)
def test_script(name: str) -> None:
    """TorchScript compiles the graph, and keeps both modes."""
    plain = filled(NETWORKS[name]())
    scripted: Any = torch.jit.script(copy.deepcopy(plain))
    for training in (True, False):
        x = images(2, 3, 24, 40)
        same(scripted.train(training)(x), plain.train(training)(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning")
@pytest.mark.parametrize("name", ["plain", "se", "avg_down"])
def test_script_of_what_holds_the_stages(name: str) -> None:
    """torchvision's segmentation takes the stages out of the network, and is scripted."""
    plain, x = filled(NETWORKS[name]()).eval(), images(2, 3, 24, 40)
    getter: Any = torchvision.models._utils.IntermediateLayerGetter(plain, {"layer2": "out"})
    same(torch.jit.script(getter)(x)["out"], plain.features(x)[-1])


@pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["dropping", "same padding", "layer norm", "frozen"])
def test_script_is_refused_in_one_line(name: str) -> None:
    """Torch's own message is a page about its parser."""
    with pytest.raises(InputError, match=r"^torch\.jit\.script cannot .*Use torch\.jit\.trace.*$"):
        torch.jit.script(NETWORKS[name]())


def test_sizes_are_checked_outside_of_traces() -> None:
    """Only a graph is not checked: it has no images."""
    with pytest.raises(InputError, match="shape"):
        ResNeXt(tiny())(torch.zeros(1, TINY["stem_channels"], 24, 24))
