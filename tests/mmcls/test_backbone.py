"""`resnext.mmcls` against outputs recorded from mmcls 0.25.

The slow half of the cases runs with `make test-all`.
"""

from __future__ import annotations

import builtins
import inspect
import re
from typing import Any

import pytest
import torch
from oracles.recorded import (
    fill,
    images,
    manifest,
    probe,
    relative_error,
    samples,
    thin,
)
from torch import Tensor, nn

from resnext import ResNeXtError, mmcls
from resnext.errors import CheckpointError
from resnext.mmcls import init_cfg

ONE_STAGE: dict[str, Any] = {"strides": (1,), "dilations": (1,), "out_indices": (0,)}

GOLDEN = manifest("mmcls")
CASES: dict[str, dict[str, Any]] = GOLDEN["cases"]
FAST = {
    "r50_32x4",
    "s1211_d3123_caffe_ad",
    "out_3_1",
    "out_3_3",
    "stages2_out0",
    "gn_eps",
    "in1",
    "ln2d",
    "convws_bn_train",
    "convadaptive",
    "frozen0_ds1",
    "frozen1_ds0",
    "normeval",
    "withcp",
    "bn_notrack",
    "conv2d_reflect",
    "base96_stem24",
    "stem256_no_layer1_downsample",
    "initcfg_xavier",
    "se50_deep_ad",
    "cls50",
}


def cases(check: str) -> list[Any]:
    """Cases in which mmcls was asked for `check`."""
    slow = pytest.mark.slow
    return [
        pytest.param(name, marks=() if name in FAST else slow)
        for name, case in CASES.items()
        if check in case["checks"]
    ]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def built(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A case's network with the recorded weights."""
    network = mmcls.build(CASES[name]["cfg"]).to(dtype)
    fill(network)
    return network


def maps(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """mmcls always gave a tuple; its documentation promises one tensor for one stage."""
    return out if isinstance(out, tuple) else (out,)


def agree(name: str, kind: str, outputs: tuple[Tensor, ...], *, tolerance: float) -> None:
    """Compare maps with the recorded ones."""
    recorded = CASES[name][kind]
    assert len(outputs) == len(recorded)
    for i, (output, about) in enumerate(zip(outputs, recorded, strict=True)):
        wanted = samples("mmcls")[f"{name}/{kind}.{i}"]
        assert list(output.shape) == about["shape"]
        got = thin(output, about["stride"], count=len(wanted))
        assert relative_error(got, wanted) < tolerance
        assert output.double().mean().item() == pytest.approx(about["mean"], rel=tolerance)


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_keys_and_modules_are_mmcls_own(name: str) -> None:
    """A renamed, missing or reordered key makes strict loading fail or optimizer states shift."""
    case = CASES[name]
    network = mmcls.build(case["cfg"])
    keys = [[key, list(value.shape)] for key, value in network.state_dict().items()]
    assert keys == GOLDEN["keys"][case["keys"]]
    if "n_modules" in case:
        assert sum(p.numel() for p in network.parameters()) == case["n_params"]
        assert len(list(network.modules())) == case["n_modules"]
        frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
        assert frozen == case["requires_grad_false"]
        assert in_eval(network) == case["eval_modules_after_ctor"]
        assert in_eval(network.eval().train()) == case["eval_modules_after_train"]


def in_eval(network: nn.Module) -> list[str]:
    """Names of the modules in evaluation mode."""
    return [name for name, module in network.named_modules() if not module.training]


@pytest.mark.parametrize("name", cases("eval"))
def test_eval_outputs(name: str) -> None:
    """Any difference of layout, stride, padding or norm shows in float64 at 1e-9."""
    x = images(CASES[name]["input"])
    with torch.no_grad():
        agree(name, "eval64", maps(built(name).eval()(x.double())), tolerance=1e-9)
        single = built(name, torch.float32).eval()
        agree(name, "eval32", maps(single(x)), tolerance=1e-3)


@pytest.mark.parametrize("name", cases("train"))
def test_training_outputs_and_statistics(name: str) -> None:
    """Batch norms must see each batch once, and frozen ones never."""
    case, network = CASES[name], built(name)
    network.train()
    x = images(case["train_input"], torch.float64).requires_grad_()
    outputs = maps(network(x))
    agree(name, "train64", outputs, tolerance=1e-9)
    torch.stack(
        [output.sum() for output in outputs]
    ).sum().backward()  # recomputes what with_cp left out
    state = network.state_dict()
    for key, (mean, absolute) in case["train_running_stats_mean_absmean"].items():
        assert state[key].mean().item() == pytest.approx(mean, rel=1e-7, abs=1e-12), key
        assert state[key].abs().mean().item() == pytest.approx(absolute, rel=1e-7), key
    counters = {k: v for k, v in state.items() if k.endswith("num_batches_tracked")}
    assert [k for k, v in counters.items() if v == 0] == case["train_nbt_zero"]
    assert all(v <= 1 for v in counters.values())


@pytest.mark.parametrize("name", cases("grad"))
def test_gradients(name: str) -> None:
    """Detached branches, in-place damage or frozen parts that learn all show in gradients."""
    case, network = CASES[name], built(name).train()
    shape = case.get("train_input", [2, *case["input"][1:]])
    x = images(shape, torch.float64).requires_grad_()
    outputs = maps(network(x))
    losses = [(o * probe(f"out{i}", o)).sum() / o.numel() ** 0.5 for i, o in enumerate(outputs)]
    loss = torch.stack(losses).sum()
    assert loss.item() == pytest.approx(case["grad_loss"], rel=1e-9)
    loss.backward()
    tensors = {**dict(network.named_parameters()), "<input>": x}
    for key, wanted in case["grad_norm_and_probe_dot"].items():
        grad = tensors[key].grad
        if wanted is None:
            assert grad is None, key
        else:
            assert grad.norm().item() == pytest.approx(wanted[0], rel=1e-7), key
            dot = (grad * probe(key, grad)).sum().item()
            assert dot == pytest.approx(wanted[1], rel=1e-6, abs=1e-7 * wanted[0]), key


@pytest.mark.parametrize("name", cases("init"))
def test_initial_weights(name: str) -> None:
    """With mmcls's seed, `init_weights` draws mmcls's numbers in mmcls's order."""
    case = CASES[name]
    network: Any = mmcls.build(case["cfg"])
    torch.manual_seed(0)
    network.init_weights()
    exact = case["cfg"].get("init_cfg", "default") is not None  # else torch's, of unknown seed
    state = network.state_dict()
    for key, (mean, std) in case["init"]["stats"].items():
        values = state[key].double()
        noise = 0 if exact else 6 * max(std, 1e-12) / values.numel() ** 0.5
        assert values.mean().item() == pytest.approx(mean, abs=1e-7 + noise), key
        assert values.std(unbiased=False).item() == pytest.approx(std, abs=1e-6 + noise), key


def test_classifier() -> None:
    """The classifier's logits, probabilities, features and loss are mmcls's."""
    case, network = CASES["cls50"], built("cls50").eval()
    assert isinstance(network, mmcls.ImageClassifier)
    x = images(case["input"], torch.float64)
    wanted = {k.partition("/")[2]: v for k, v in samples("mmcls").items() if "cls50/" in k}
    with torch.no_grad():
        logits = network(x)
        for name, got in {
            "logits64": logits,
            "softmax64": torch.stack([torch.from_numpy(p) for p in network.simple_test(x)]),
        }.items():
            assert relative_error(thin(got), wanted[name]) < 1e-9
        for name, stage in (("backbone64.0", "backbone"), ("neck64.0", "neck")):
            got = network.extract_feat(x, stage)
            stride = max(got.numel() // 1024, 1)
            assert relative_error(thin(got, stride), wanted[name]) < 1e-9
        loss = network(x, torch.tensor(case["labels"]), return_loss=True)
    assert loss["loss"].item() == pytest.approx(case["losses_eval_mode"]["loss"], rel=1e-9)


CONTRACT_DECIDES = {  # the originals' answer → what the contract says instead
    "frozen_stages': 5": "ValueError",
    "frozen_stages': 3": "ValueError",
    "drop_path_rate": "ValueError",
    "base_channels": "ValueError",
    "width_per_group": "ValueError",
    "in_channels": "ValueError",
    "dilations": "ValueError",
    "'type': 'LN'": "KeyError",
    "'type': 'BN3d'": "KeyError",
    "'type': 'deconv'": "KeyError",
    "'type': 'Conv1d'": "KeyError",
}


@pytest.mark.parametrize("case", GOLDEN["errors"], ids=lambda case: str(case["cfg"]))
def test_errors(case: dict[str, Any]) -> None:
    """Wrong arguments raise what mmcls raised, or what the contract says, with a reason."""
    cfg, wanted = case["cfg"], case["result"].partition(":")[0]
    for part, decided in CONTRACT_DECIDES.items():
        wanted = decided if part in str(cfg) else wanted
    if "Pretrained" in str(cfg):
        network = mmcls.ResNeXt(**cfg)
        with pytest.raises(FileNotFoundError, match=re.escape("/nonexistent.pth")):
            network.init_weights()
    elif wanted == "ok":
        mmcls.ResNeXt(**cfg)
    else:
        with pytest.raises(getattr(builtins, wanted)) as caught:
            mmcls.ResNeXt(**cfg)
        assert len(str(caught.value)) > 10
        known = inspect.signature(mmcls.ResNeXt).parameters
        if "depth" in cfg and set(cfg) <= set(known):  # else it is Python's own TypeError
            assert isinstance(caught.value, ResNeXtError)


@pytest.mark.parametrize("out_indices", [(), (-1,), (4,), (0, 4), "3", 3, (1.0,)])
def test_out_indices_must_exist(out_indices: Any) -> None:
    """mmcls takes -1 and then returns nothing at all."""
    with pytest.raises(ValueError, match="out_indices must"):
        mmcls.ResNeXt(50, out_indices=out_indices)


def test_one_stage_gives_a_tensor_and_several_a_tuple() -> None:
    """mmcls's documentation promises that; its code always returned a tuple."""
    x = torch.rand(1, 3, 32, 32)
    assert isinstance(mmcls.ResNeXt(50, groups=1).eval()(x), Tensor)
    assert len(mmcls.ResNeXt(50, groups=1, out_indices=(0, 3)).eval()(x)) == 2


def test_unused_stages_are_not_computed() -> None:
    """mmcls computed all four stages whatever was asked for."""
    network: Any = mmcls.ResNeXt(50, groups=1, out_indices=(0,)).eval()
    network.layer2 = nn.Identity()
    network.layer3 = None
    network(torch.rand(1, 3, 32, 32))


def test_train_and_eval_return_self() -> None:
    """mmcls's returned None, so that `model.eval()(x)` failed."""
    network = mmcls.ResNeXt(50, groups=1)
    assert network.train() is network
    assert network.eval() is network


def test_se_ratio_and_drop_path_are_honoured() -> None:
    """mmcls ignored both in SE blocks."""
    narrow: Any = mmcls.SEResNeXt(50, groups=1, se_ratio=32)
    assert narrow.layer1[0].se_layer.conv1.conv.out_channels == 8
    dropping: Any = mmcls.SEResNeXt(50, groups=1, drop_path_rate=0.2)
    assert dropping.layer1[0].drop_path.rate == dropping.layer4[2].drop_path.rate == 0.2


def test_frozen_norms_have_no_gradients() -> None:
    """`requires_grad` of `norm_cfg` freezes every norm and nothing else."""
    network = mmcls.ResNeXt(50, groups=1, norm_cfg={"type": "BN", "requires_grad": False})
    frozen = {n.rsplit(".", 2)[-2] for n, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"bn1", "bn2", "bn3", "1"}
    assert network.conv1.weight.requires_grad


def test_affine_standardised_convolutions_take_plain_checkpoints() -> None:
    """Without its own scale and shift, ConvAWS must compute what the plain convolution did."""
    plain = mmcls.ResNeXt(
        50, groups=1, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)
    )
    cfg = {"type": "ConvAWS"}
    other = mmcls.ResNeXt(
        50, groups=1, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,), conv_cfg=cfg
    )
    other.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(other.eval()(x), plain.eval()(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("groups", [1, 32])
@pytest.mark.parametrize("style", ["pytorch", "caffe"])
def test_block_alone(groups: int, style: str) -> None:
    """A block built by itself is the block inside a network."""
    network: Any = mmcls.ResNeXt(50, groups=groups, style=style).eval()
    inside = network.layer2[0]
    block = mmcls.Bottleneck(
        256, 512, groups=groups, stride=2, style=style, downsample=inside.downsample
    ).eval()
    block.load_state_dict(inside.state_dict())
    x = torch.rand(1, 256, 9, 9)
    torch.testing.assert_close(block(x), inside(x), rtol=0, atol=0)


def test_block_refuses_wrong_arguments() -> None:
    """Each wrong argument names itself."""
    with pytest.raises(AssertionError, match="style must be"):
        mmcls.Bottleneck(64, 256, style="tensorflow")
    with pytest.raises(ValueError, match="expansion must divide"):
        mmcls.Bottleneck(64, 250, expansion=4)
    with pytest.raises(KeyError, match="act_cfg must be one of"):
        mmcls.Bottleneck(64, 256, act_cfg={"type": "Mish2"})


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"type": "ResNet", "depth": 50}, "'ResNet' are not built here"),
        ({"depth": 50}, "must have a 'type'"),
        ("ResNeXt", "must be a dictionary"),
        ({"type": "ResNeXt", "depth": 50, "plugins": []}, "no argument 'plugins'"),
        ({"type": "ImageClassifier", "backbone": {"type": "ResNeXt", "depth": 50}}, "The neck"),
    ],
)
def test_build_refuses_what_it_does_not_know(cfg: Any, message: str) -> None:
    """An unknown part must not be left out silently."""
    with pytest.raises(ResNeXtError, match=message):
        mmcls.build(cfg)


def test_build_refuses_a_head_that_does_not_fit() -> None:
    """A wrong in_channels failed only at the first batch."""
    cfg = {
        **CASES["cls50"]["cfg"],
        "head": {"type": "LinearClsHead", "num_classes": 3, "in_channels": 9},
    }
    with pytest.raises(ResNeXtError, match="must be 2048"):
        mmcls.build(cfg)


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("prefix", ["backbone", "backbone."])
def test_pretrained_init_cfg_loads_a_local_file(tmp_path: Any, prefix: str, wrapper: str) -> None:
    """The backbone's part of a classifier's checkpoint ends up in the backbone.

    OpenMMLab's configs write the prefix with and without a dot; with one it failed as `backbone..`.
    """
    source = mmcls.ResNeXt(50, groups=1, num_stages=1, **ONE_STAGE)
    state = {f"{wrapper}backbone.{k}": v for k, v in source.state_dict().items()}
    torch.save({"state_dict": {**state, "head.fc.bias": torch.ones(3)}}, tmp_path / "a.pth")
    cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "a.pth"), "prefix": prefix}
    target = mmcls.ResNeXt(50, groups=1, num_stages=1, **ONE_STAGE, init_cfg=cfg)
    target.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("names", "prefix", "said"),
    [
        ("backbone.{}", None, "has no key of the ResNeXt: it starts with 'backbone.conv1.weight'"),
        ("encoder.{}", "backbone.", "no keys that start with 'backbone.'"),
        (
            "backbone.trunk.{}",
            "backbone",
            "it starts with 'trunk.conv1.weight', not 'conv1.weight'",
        ),
    ],
)
def test_a_pretrained_file_that_matches_no_key_is_refused(
    tmp_path: Any, names: str, prefix: str | None, said: str
) -> None:
    """It loaded nothing without a word, and the network stayed random."""
    source = mmcls.ResNeXt(50, groups=1, num_stages=1, **ONE_STAGE)
    torch.save({names.format(k): v for k, v in source.state_dict().items()}, tmp_path / "a.pth")
    cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "a.pth"), "prefix": prefix}
    with pytest.raises(CheckpointError, match=re.escape(said)):
        mmcls.ResNeXt(50, groups=1, num_stages=1, **ONE_STAGE, init_cfg=cfg).init_weights()


def test_a_pretrained_file_of_another_width_is_refused(tmp_path: Any) -> None:
    """One line instead of torch's list of shapes."""
    source = mmcls.ResNeXt(50, groups=2, num_stages=1, **ONE_STAGE)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "a.pth")}
    with pytest.raises(CheckpointError, match=r"does not fit: .*size mismatch"):
        mmcls.ResNeXt(50, groups=1, num_stages=1, **ONE_STAGE, init_cfg=cfg).init_weights()


def test_pretrained_addresses(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs are fetched; other addresses are refused by the name that was given."""
    source = mmcls.ResNeXt(50, groups=1, num_stages=1, **ONE_STAGE)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    monkeypatch.setattr(init_cfg, "fetch", {"https://host/a.pth": tmp_path / "a.pth"}.__getitem__)
    cfg = {"type": "Pretrained", "checkpoint": "https://host/a.pth"}
    target = mmcls.ResNeXt(50, groups=1, num_stages=1, **ONE_STAGE, init_cfg=cfg)
    target.init_weights()
    assert torch.equal(target.state_dict()["conv1.weight"], source.state_dict()["conv1.weight"])
    for name in ("open-mmlab://resnext50_32x4d", "torchvision://resnext50_32x4d"):
        target.init_cfg = {"type": "Pretrained", "checkpoint": name}
        with pytest.raises(CheckpointError, match=re.escape(f"not {name}. Give")):
            target.init_weights()


def with_loss(loss: dict[str, Any] | None) -> nn.Module:
    """A small classifier with this loss in its config."""
    backbone = {"type": "ResNeXt", "depth": 50, "groups": 1, "num_stages": 1, **ONE_STAGE}
    head = {"type": "LinearClsHead", "num_classes": 3, "in_channels": 256}
    head |= {"loss": loss} if loss else {}
    neck = {"type": "GlobalAveragePooling"}
    return mmcls.build(
        {"type": "ImageClassifier", "backbone": backbone, "neck": neck, "head": head}
    )


@pytest.mark.parametrize(
    ("loss", "factor"),
    [
        (None, 1.0),
        ({"type": "CrossEntropyLoss", "loss_weight": 1.0}, 1.0),
        ({"type": "CrossEntropyLoss", "loss_weight": 0.5, "use_soft": False}, 0.5),
    ],
)
def test_cross_entropy_is_computed(loss: dict[str, Any] | None, factor: float) -> None:
    """The negative log of the right class's probability, times the weight."""
    model, labels = with_loss(loss).eval(), torch.tensor([0, 2])
    x = torch.rand(2, 3, 32, 32)
    p = model(x).softmax(1)
    wanted = -factor * (p[0, 0].log() + p[1, 2].log()) / 2
    assert torch.allclose(model(x, labels, return_loss=True)["loss"], wanted)


@pytest.mark.parametrize(
    "loss",
    [
        {"type": "LabelSmoothLoss", "label_smooth_val": 0.1, "mode": "original"},
        {"type": "FocalLoss", "gamma": 2.0},
        {"type": "AsymmetricLoss"},
        {"type": "CrossEntropyLoss", "use_sigmoid": True},
        {"type": "CrossEntropyLoss", "use_soft": True},
        {"type": "CrossEntropyLoss", "class_weight": [1.0, 2.0, 3.0]},
        {"type": "CrossEntropyLoss", "reduction": "sum"},
    ],
)
def test_another_loss_is_refused(loss: dict[str, Any]) -> None:
    """`LabelSmoothLoss` trained on plain cross-entropy without a word; inference still works."""
    model = with_loss(loss).eval()
    x = torch.rand(1, 3, 32, 32)
    assert model(x).shape == (1, 3)
    with pytest.raises(ResNeXtError, match="mean CrossEntropyLoss only"):
        model(x, torch.tensor([0]), return_loss=True)
