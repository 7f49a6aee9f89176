"""Layouts of other projects' files: what is loaded gives what the original network gives."""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import agree
from oracles.originals import randomize, timm, torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from resnext import Backbone, ResNeXt, convert, diagnose, load, load_backbone, variant
from resnext.errors import CheckpointError

State = dict[str, Tensor]
Rules = Iterable[tuple[str, str]]

CADENE = {
    "conv1": "0.0.0.0",
    "bn1": "0.0.0.1",
    "conv2": "0.0.0.3",
    "bn2": "0.0.0.4",
    "conv3": "0.0.1",
    "bn3": "0.0.2",
    "downsample.0": "0.1.0",
    "downsample.1": "0.1.1",
}
SEQUENTIAL = [("conv1", "0"), ("bn1", "1"), *((f"layer{i}", str(i + 3)) for i in (1, 2, 3, 4))]


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """torchvision's own class, small, in float64."""
    torch.manual_seed(0)
    block = torchvision.models.resnet.Bottleneck
    net = torchvision.models.resnet.ResNet(
        block, [2, 1, 3, 1], num_classes=7, groups=8, width_per_group=4
    )
    randomize(net)
    return net.double().eval()


def images(size: int = 48) -> Tensor:
    """Two random images."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, size, size, generator=generator, dtype=torch.float64)


def renamed(state: State, rules: Rules) -> State:
    """A state dict with the first rule applied that matches the start of a name."""
    patterns = [(re.compile(old), new) for old, new in rules]
    changed: State = {}
    for name, x in state.items():
        for old, new in patterns:
            if old.match(name):
                name = old.sub(new, name, count=1)
                break
        changed[name] = x
    return changed


def sequential(prefix: str) -> Rules:
    """`Sequential(*children)` under a prefix."""
    return [(rf"{old}\.", f"{prefix}{new}.") for old, new in SEQUENTIAL]


def cadene(state: State) -> State:
    """Cadene's ResNeXt-101, which came from Torch7."""
    changed: State = {}
    for name, x in renamed(state, [*sequential("features."), ("fc", "last_linear")]).items():
        if block := re.match(r"(features\.[4-7]\.\d)\.(.*)\.(\w+)$", name):
            name = f"{block[1]}.{CADENE[block[2]]}.{block[3]}"
        changed[name] = x
    return changed


def midas(state: State) -> State:
    """Stem and first stage in one Sequential, without a classifier."""
    rules = [("conv1", "pretrained.layer1.0"), ("bn1", "pretrained.layer1.1")]
    rules += [(r"layer1\.", "pretrained.layer1.4."), (r"layer", "pretrained.layer")]
    state = {name: x for name, x in state.items() if not name.startswith("fc.")}
    return {**renamed(state, rules), "scratch.layer1_rn.weight": torch.ones(8, 256, 3, 3)}


LAYOUTS: dict[str, Callable[[State], State]] = {
    "radimagenet": lambda s: renamed(s, sequential("backbone.")),
    "lightning": lambda s: renamed(s, [*sequential("feature_extractor."), ("fc", "classifier")]),
    "fastai": lambda s: renamed(s, [*sequential("0."), ("fc", "1.8")]),
    "deep prefix": lambda s: renamed(s, [*sequential("a.b.c.features."), ("fc", "a.head")]),
    "layer0": lambda s: renamed(s, [("conv1", "layer0.0"), ("bn1", "layer0.1")]),
    "layer0 by name": lambda s: renamed(s, [("conv1", "layer0.conv1"), ("bn1", "layer0.bn1")]),
    "layers.N.M": lambda s: renamed(
        s, [("conv1", "stem.conv"), ("bn1", "stem.norm"), (r"layer(\d)\.", r"layers.\1.")]
    ),
    "kuangliu": lambda s: {
        n.replace("downsample", "shortcut").replace("fc.", "linear."): x for n, x in s.items()
    },
    "encoder": lambda s: renamed(
        s, [("conv1", "conv1.0"), ("bn1", "conv1.1"), (r"layer(\d)", r"encoder\1")]
    ),
    "midas": midas,
    "cadene": cadene,
}


def same_as(net: nn.Module, path: Path, classifier: bool | None = None) -> ResNeXt | Backbone:
    """Load a file and compare its features, and its logits if it has a classifier."""
    x, model = images(), load(path)
    model = model.double()
    with torch.no_grad():
        if isinstance(model, ResNeXt):
            agree(model(x), net(x), 1e-10)
        y = net.maxpool(net.relu(net.bn1(net.conv1(x))))  # pyright: ignore[reportCallIssue]
        for i, got in enumerate(model.features(x), 1):
            y = getattr(net, f"layer{i}")(y)
            agree(got, y, 1e-10)
    assert classifier in (None, isinstance(model, ResNeXt))
    return model


def as_float32(state: State) -> State:
    return {name: x.float() if x.is_floating_point() else x for name, x in state.items()}


@pytest.fixture(autouse=True)
def exact(original: nn.Module) -> None:
    """The original's values fit into the float32 of files."""
    for x in original.state_dict().values():
        if x.is_floating_point():
            x.copy_(x.float())


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path: Path, original: nn.Module, name: str) -> None:
    """Every one is read by its structure."""
    state = LAYOUTS[name](as_float32(original.state_dict()))
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    model = same_as(original, tmp_path / "a.pth", classifier=name != "midas")
    assert model.card is not None
    assert model.card.provenance["dialect"] == "structure"
    assert any("by the structure" in note for note in model.card.provenance["notes"])  # type: ignore
    assert not diagnose(tmp_path / "a.pth").problems


def test_paddle(tmp_path: Path, original: nn.Module) -> None:
    """A pickle of arrays with `_mean`, `_variance`, and linear layers that are transposed."""
    words = {"running_mean": "_mean", "running_var": "_variance"}
    arrays: dict[str, Any] = {}
    for name, x in as_float32(original.state_dict()).items():
        layer, _, end = name.rpartition(".")
        if end != "num_batches_tracked":
            layer = re.sub(r"^layer(\d)\.", lambda m: f"bb_{int(m[1]) - 1}_", layer)
            layer = re.sub(r"downsample\.(\d)", r"short.\1", layer)
            layer = re.sub(r"conv(\d)$", r"conv\1._conv", layer).replace("fc", "out")
            layer = re.sub(r"bn(\d)$", r"conv\1._batch_norm", layer)
            x = x.T if layer == "out" and x.ndim == 2 else x
            arrays[f"{layer}.{words.get(end, end)}"] = np.ascontiguousarray(x.numpy())
    arrays["StructuredToParameterName@@"] = {name: f"p{i}" for i, name in enumerate(arrays)}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(arrays, protocol=2))
    same_as(original, tmp_path / "a.pdparams", classifier=True)


def test_caffe2(tmp_path: Path, original: nn.Module) -> None:
    """Detectron's pickles: flat names, no statistics, momenta beside the weights."""
    original = deepcopy(original)
    for module in original.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()  # type: ignore[union-attr]
            module.running_var.fill_(1)  # type: ignore[union-attr]
            module.eps = 0.0
    blobs: dict[str, Any] = {}
    letters = {"1": "a", "2": "b", "3": "c"}
    for name, x in as_float32(original.state_dict()).items():
        layer, _, end = name.rpartition(".")
        if end in ("weight", "bias"):
            layer = re.sub(r"^layer(\d)\.(\d)\.", lambda m: f"res{int(m[1]) + 1}_{m[2]}_", layer)
            layer = re.sub(r"_conv(\d)", lambda m: f"_branch2{letters[m[1]]}", layer)
            layer = re.sub(r"_bn(\d)", lambda m: f"_branch2{letters[m[1]]}_bn", layer)
            layer = layer.replace("downsample.0", "branch1").replace("downsample.1", "branch1_bn")
            layer = {"bn1": "res_conv1_bn", "fc": "pred"}.get(layer, layer)
            short = {"weight": "s", "bias": "b"} if layer.endswith("_bn") else {"weight": "w"}
            blobs[f"{layer}_{short.get(end, 'b')}"] = x.numpy()
            blobs[f"{layer}_{short.get(end, 'b')}_momentum"] = np.zeros_like(x.numpy())
    keys = sorted(blobs, key=lambda name: hash((len(name), name[::-1])))  # no order at all
    content = {"blobs": {name: blobs[name] for name in keys}, "cfg": "MODEL: x"}
    (tmp_path / "X-101.pkl").write_bytes(pickle.dumps(content, protocol=2))
    model = same_as(original, tmp_path / "X-101.pkl", classifier=True)
    assert model.config.norm_eps == 2.0**-17
    assert model.card
    assert model.card.preprocessing.colour == "BGR"
    assert model.card.preprocessing.mean == (0.406, 0.456, 0.485)


def mxnet_bytes(arrays: dict[str, np.ndarray[Any, Any]], version: int = 0xF993FAC9) -> bytes:
    """A file as MXNet writes it."""
    content = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for x in arrays.values():
        content += struct.pack("<I", version)
        content += struct.pack("<i", 0) if version > 0xF993FAC8 else b""
        content += struct.pack(f"<i{x.ndim}q", x.ndim, *x.shape)
        content += struct.pack("<iii", 1, 0, 0) + x.astype("<f4").tobytes()
    content += struct.pack("<Q", len(arrays))
    for name in arrays:
        content += struct.pack("<Q", len(name)) + name.encode()
    return content


def gluon_arrays(net: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """The original under Gluon's names."""
    body = {"conv1": "0", "bn1": "1", "conv2": "3", "bn2": "4", "conv3": "6", "bn3": "7"}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    state = renamed(as_float32(net.state_dict()), [*sequential("features."), ("fc", "output")])
    for name, x in state.items():
        layer, _, end = name.rpartition(".")
        if end != "num_batches_tracked":
            if found := re.fullmatch(r"(features\.[4-7]\.\d)\.(\w+)", layer):
                layer = f"{found[1]}.body.{body[found[2]]}"
            if x.ndim == 1 and layer != "output":
                end = {"weight": "gamma", "bias": "beta"}.get(end, end)
            arrays[f"{layer}.{end}"] = x.numpy()
    return arrays


@pytest.mark.parametrize("version", [0xF993FAC8, 0xF993FAC9, 0xF993FACA])
def test_gluon(tmp_path: Path, original: nn.Module, version: int) -> None:
    """MXNet's own format, with gamma and beta."""
    (tmp_path / "a.params").write_bytes(mxnet_bytes(gluon_arrays(original), version))
    same_as(original, tmp_path / "a.params", classifier=True)
    assert diagnose(tmp_path / "a.params").format == "MXNet"


def test_damaged_mxnet(tmp_path: Path) -> None:
    """Cut off anywhere, or with sizes that the file cannot hold, it is refused in one line."""
    whole = mxnet_bytes({"a.weight": np.ones((2, 3), np.float32)})
    huge = whole.replace(struct.pack("<q", 3), struct.pack("<q", 1 << 40))
    for content in (*(whole[:i] for i in range(8, len(whole))), huge, whole[:16] + b"\xff" * 8):
        (tmp_path / "a.params").write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            load(tmp_path / "a.params")
        assert "\n" not in str(error.value)


class Small(nn.Module):
    """prlz77's network for 32×32 images, in its own words."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1_3x3 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn_1 = nn.BatchNorm2d(64)
        self.stage_1 = self._stage("stage_1", 64, 256, 1)
        self.stage_2 = self._stage("stage_2", 256, 512, 2)
        self.stage_3 = self._stage("stage_3", 512, 1024, 2)
        self.classifier = nn.Linear(1024, 10)

    def _stage(self, name: str, entry: int, out: int, stride: int) -> nn.Sequential:
        stage = nn.Sequential()
        for i in range(2):
            block = SmallBlock(out if i else entry, out, 1 if i else stride)
            stage.add_module(f"{name}_bottleneck_{i}", block)
        return stage

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu(self.bn_1(self.conv_1_3x3(x)))
        x = self.stage_3(self.stage_2(self.stage_1(x)))
        return self.classifier(x.mean((2, 3)))


class SmallBlock(nn.Module):
    """Its block."""

    def __init__(self, entry: int, out: int, stride: int) -> None:
        super().__init__()
        width = out // 4 // 64 * 16 * 4
        self.conv_reduce = nn.Conv2d(entry, width, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(width)
        self.conv_conv = nn.Conv2d(width, width, 3, stride, 1, groups=4, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.conv_expand = nn.Conv2d(width, out, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if entry != out:
            self.shortcut.add_module("shortcut_conv", nn.Conv2d(entry, out, 1, stride, bias=False))
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Branch and shortcut."""
        y = F.relu(self.bn_reduce(self.conv_reduce(x)))
        y = F.relu(self.bn(self.conv_conv(y)))
        return F.relu(self.bn_expand(self.conv_expand(y)) + self.shortcut(x))


@pytest.mark.parametrize("stem", [3, 1])
def test_networks_for_small_images(tmp_path: Path, stem: int) -> None:
    """prlz77's has a 3×3 stem; kuangliu's has 1×1, which equals a 3×3 with zeros around."""
    torch.manual_seed(0)
    net = Small()
    net.conv_1_3x3 = nn.Conv2d(3, 64, stem, 1, stem // 2, bias=False)
    randomize(net)
    net.eval()
    torch.save({"module." + n: x for n, x in net.state_dict().items()}, tmp_path / "a.pth")
    model = load(tmp_path / "a.pth")
    assert isinstance(model, ResNeXt)
    assert model.config.small_stem
    with torch.no_grad():
        agree(model.double()(images(32)), net.double()(images(32)), 1e-10)


@pytest.fixture(scope="module")
def squeezed() -> nn.Module:
    """timm's copy of Cadene's SE-ResNeXt-26."""
    net = timm.create_model("legacy_seresnext26_32x4d", num_classes=5)
    randomize(net)
    return net.eval()


@pytest.mark.parametrize(
    "rules",
    [
        [],
        [("", "module.encoder.")],
        [(r"layer(\d)", r"features.\1"), ("last_linear", "fc")],
        [(r"layer0\.conv1", "layer0.0"), (r"layer0\.bn1", "layer0.1")],
    ],
    ids=["timm", "prefix", "sequential", "stem by number"],
)
def test_cadene_se(tmp_path: Path, squeezed: nn.Module, rules: Rules) -> None:
    """Its max pooling rounds up without padding, which moves every pixel of every map."""
    torch.save(renamed(squeezed.state_dict(), rules), tmp_path / "a.pth")
    model = load(tmp_path / "a.pth").eval()
    assert model.config.ceil_pooling
    with torch.no_grad():
        for size in (64, 75):  # maps of 32 and 38 pixels before the pooling, of 19 after it
            x = images(size).float()
            assert torch.equal(model(x), squeezed(x))


@pytest.mark.parametrize(
    "rules",
    [
        [(r"(layer\d\.\d\.)se_module", r"\1gate")],
        [(r"(layer\d\.\d\.)se_module", r"\1se")],
        [(r"layer0\.", "")],
    ],
)
def test_pooling_that_names_do_not_show(tmp_path: Path, squeezed: nn.Module, rules: Rules) -> None:
    """Half of Cadene's names is no proof; the message says which field decides."""
    torch.save(renamed(squeezed.state_dict(), rules), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"ambiguous.*ceil_pooling=True"):
        load(tmp_path / "a.pth")
    config = variant("seresnext50_32x4d", layers=(2, 2, 2, 2), num_classes=5, ceil_pooling=True)
    model = load(tmp_path / "a.pth", config=config).eval()
    x = images(75).float()
    with torch.no_grad():
        assert torch.equal(model(x), squeezed(x))


def test_cadene_se_without_groups(tmp_path: Path) -> None:
    """SE-ResNets have the stride in their first convolution, other than SE-ResNeXts."""
    net = timm.create_model("legacy_seresnet50", num_classes=5).eval()
    torch.save(net.state_dict(), tmp_path / "a.pth")
    x = images(75).float()
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "a.pth").eval()(x), net(x))


def test_timms_folder_of_cadene_se(tmp_path: Path, squeezed: nn.Module) -> None:
    """`config.json` names the architecture."""
    torch.save(squeezed.state_dict(), tmp_path / "pytorch_model.bin")
    document = {"architecture": "legacy_seresnext50_32x4d", "num_classes": 5}
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"it should be .*its weights are those of"):
        load(tmp_path)
    squeezed_50 = timm.create_model("legacy_seresnext50_32x4d", num_classes=5)
    torch.save(squeezed_50.state_dict(), tmp_path / "pytorch_model.bin")
    assert load(tmp_path).config == variant("seresnext50_32x4d", num_classes=5, ceil_pooling=True)


def test_no_library_writes_its_pooling(tmp_path: Path, squeezed: nn.Module) -> None:
    """timm's ResNet pads; our own files keep the field."""
    torch.save(squeezed.state_dict(), tmp_path / "a.pth")
    for to in ("torchvision", "timm", "mmcls"):
        with pytest.raises(CheckpointError, match="ceil_pooling"):
            convert(tmp_path / "a.pth", tmp_path / "b.pth", to=to)
    done = convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert done.parity.difference == 0
    assert load(tmp_path / "b.safetensors").config.ceil_pooling


# -- layers beside the trunk -----------------------------------------------------------------------

LINEAR = {"weight": torch.ones(5, 2048), "bias": torch.arange(5.0)}
NORM = {name: torch.ones(2048) for name in ("weight", "bias", "running_mean", "running_var")}


def beside(**layers: State) -> State:
    """Layers at the trunk's own level; two underscores stand for a point."""
    return {
        f"{layer.replace('__', '.')}.{name}": x
        for layer, tensors in layers.items()
        for name, x in tensors.items()
    }


HEADS: dict[str, tuple[State, bool, str]] = {
    "fc512": (
        beside(
            fc__0={"weight": torch.ones(512, 2048), "bias": torch.ones(512)},
            fc__1={name: x[:512] for name, x in NORM.items()},
            classifier={"weight": torch.ones(5, 512), "bias": torch.ones(5)},
        ),
        False,
        r"fc\.0",
    ),
    "bnneck": (
        beside(bottleneck=NORM, classifier={"weight": LINEAR["weight"]}),
        False,
        "bottleneck",
    ),
    "norm before": (beside(bottleneck=NORM, classifier=LINEAR), False, "bottleneck"),
    "no bias": (beside(classifier={"weight": LINEAR["weight"]}), True, "no bias; it is zero"),
    "other name": (beside(linear=LINEAR), True, "structure|usual"),
    "projection": (beside(projection_head__0=LINEAR), False, "projection_head"),
    "prototypes": (beside(prototypes={"weight": LINEAR["weight"]}), False, "prototypes"),
    "gem": (beside(pool={"p": torch.ones(1)}, fc=LINEAR), False, "pool"),
    "arcface": (beside(arcface={"weight": LINEAR["weight"]}), False, "arcface"),
    "unusual name": (beside(zebra=LINEAR), True, "usual values"),
    "unusual embedding": (beside(feat=LINEAR), False, "feat"),
    "cosine": (
        beside(fc={"weight": LINEAR["weight"], "sigma": torch.ones(1)}),
        False,
        r"fc\.sigma scales it",
    ),
    "cosine, scale beside": (
        {**beside(fc={"weight": LINEAR["weight"]}), "logit_scale": torch.tensor(20.0)},
        False,
        "logit_scale scales it",
    ),
    "temperature": ({**beside(fc=LINEAR), "temperature": torch.ones(1)}, True, "temperature"),
    "attention pooling": (
        beside(attnpool__c_proj={"weight": torch.ones(64, 2048)}, fc=LINEAR),
        False,
        "attnpool",
    ),
    "layer before": (
        beside(neck={"weight": torch.ones(2048, 2048), "bias": torch.ones(2048)}, fc=LINEAR),
        False,
        "neck",
    ),
    "on an embedding": (
        beside(
            compress={"weight": torch.ones(64, 2048), "bias": torch.ones(64)},
            fc={"weight": torch.ones(5, 64), "bias": torch.ones(5)},
        ),
        False,
        r"left out: fc\.weight|compress",
    ),
    "normalizer": (
        {
            **beside(fc=LINEAR),
            "mean": torch.full((1, 3, 1, 1), 0.4),
            "std": torch.full((1, 3, 1, 1), 0.3),
        },
        True,
        "mean and deviation are those in mean",
    ),
    "second head": (beside(fc=LINEAR, rotation={"weight": torch.ones(4, 2048)}), True, "rotation"),
    "1×1 convolution": (
        beside(fc={"weight": LINEAR["weight"][..., None, None], "bias": LINEAR["bias"]}),
        True,
        "usual values",
    ),
    "1×1 convolution, other name": (
        beside(logits={"weight": LINEAR["weight"][..., None, None], "bias": LINEAR["bias"]}),
        True,
        "usual values",
    ),
    "1×1 convolution that is no classifier": (
        beside(reduce={"weight": LINEAR["weight"][..., None, None], "bias": LINEAR["bias"]}),
        False,
        "reduce",
    ),
    "3×3 convolution": (
        beside(fc={"weight": LINEAR["weight"][..., None, None].expand(-1, -1, 3, 3).clone()}),
        False,
        r"fc\b",
    ),
    "decoder": (beside(up={"weight": torch.ones(8, 2048, 1, 1)}, fc=LINEAR), False, "up"),
}


@pytest.mark.parametrize("layout", ["", "base.", "sequential"])
@pytest.mark.parametrize("name", HEADS)
def test_layers_beside_the_trunk(
    tmp_path: Path, original: nn.Module, name: str, layout: str
) -> None:
    """A complete trunk is taken, and a classifier only if it takes pooled features."""
    more, classifier, said = HEADS[name]
    state = {n: x for n, x in as_float32(original.state_dict()).items() if n[:3] != "fc."}
    if layout == "sequential":
        state = renamed(state, sequential("base."))
    else:
        state = {layout + n: x for n, x in state.items()}
    if name == "decoder" and layout:
        classifier = True  # it is not at the trunk's own level
    torch.save({**state, **more}, tmp_path / "a.pth")
    with torch.no_grad():
        trunk = nn.Sequential(*list(original.children())[:-2])
        wanted = nn.functional.adaptive_avg_pool2d(trunk(images()), 1).flatten(1)
        if classifier:
            model = load(tmp_path / "a.pth")
            assert isinstance(model, ResNeXt)
            bias = LINEAR["bias"] if name != "no bias" else torch.zeros(5)
            logits = F.linear(wanted, LINEAR["weight"].double(), bias.double())
            agree(model.double()(images()), logits, 1e-10)
        else:
            model = load(tmp_path / "a.pth")
            assert isinstance(model, Backbone)
        backbone = load_backbone(tmp_path / "a.pth").double()
        agree(backbone(images())[-1].mean((2, 3)), wanted, 1e-10)
        assert isinstance(load(tmp_path / "a.pth", config=model.config), type(model))
    assert model.card is not None
    assert re.search(said, " | ".join(map(str, model.card.provenance["notes"])))  # type: ignore


# -- causes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {n.replace("bn1.w", "bn1.IN.w"): x for n, x in s.items()}, "IBN-Net"),
        (lambda s: {**s, "layer1.0.ca.fc.0.weight": torch.ones(16, 256, 1, 1)}, "CBAM"),
        (lambda s: {**s, "layer1.1.IN.weight": torch.ones(256)}, "IBN-Net"),
        (lambda s: {**s, "bam1.fc.weight": torch.ones(16, 256)}, r"between its stages.*bam1\.fc"),
        (lambda s: {**s, "ca.fc1.weight": torch.ones(4, 64, 1, 1)}, "between its stages"),
        (lambda s: {n.replace("0.conv1.", "0.conv1.net."): x for n, x in s.items()}, "TSM"),
        (lambda s: {**s, "layer2.0.conv2_offset.weight": torch.ones(18, 8, 3, 3)}, "DCN"),
        (lambda s: {**s, "layer2.0.conv2.bn0.weight": torch.ones(64)}, "ResNeSt"),
        (lambda s: {**s, "layer2.0.conv2.paths.0.weight": torch.ones(8, 8, 3, 3)}, "SKNet"),
        (lambda s: {n: x[..., 0] if x.ndim == 4 else x for n, x in s.items()}, "1-D"),
        (lambda s: {n: x for n, x in s.items() if x.ndim != 1}, "folded into its convolutions"),
        (lambda s: {**s, "layer1.0.convs.0.weight": torch.ones(8, 8, 3, 3)}, "Res2NeXt"),
        (lambda s: {n: x[..., None] if x.ndim == 4 else x for n, x in s.items()}, "3-D"),
        (
            lambda s: {
                **s,
                "layer0.conv3.weight": torch.ones(128, 64, 3, 3),
                "layer1.0.conv1.weight": torch.ones(16, 64, 1, 1),
            },
            "SENet-154",
        ),
        (lambda s: {**s, "layer1.0.se.fc.0.weight": torch.ones(16, 256)}, r"called se\.fc\.0"),
    ],
)
def test_causes_are_named(tmp_path: Path, original: nn.Module, change: Any, said: str) -> None:
    """`load` and `doctor` say what the network is."""
    torch.save(change(as_float32(original.state_dict())), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=said) as error:
        load(tmp_path / "a.pth")
    assert "\n" not in str(error.value)
    assert any(re.search(said, problem) for problem in diagnose(tmp_path / "a.pth").problems)


def test_two_networks_of_dino(tmp_path: Path, original: nn.Module) -> None:
    """The message says which one to save."""
    state = as_float32(original.state_dict())
    torch.save({"student": state, "teacher": state | {"x": torch.ones(1)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="DINO's student and teacher"):
        load(tmp_path / "a.pth")
