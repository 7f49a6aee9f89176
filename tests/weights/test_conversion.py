"""`convert`: both ways, lossless or refused, and a parity report that can fail."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.originals import randomize, torchvision
from oracles.recorded import file_bytes, files, images
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from resnext import ResNeXt, ResNeXtConfig, convert, load, save
from resnext.architectures import variant
from resnext.card import Card, Preprocessing
from resnext.dialects.table import DIALECTS
from resnext.dilation import with_output_stride
from resnext.errors import AmbiguityWarning, CheckpointError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ResNeXtConfig(
    (3, 4, 6, 3), 4, 8, num_classes=3, channels=(16, 32, 64, 128), stem_width=16, stem_channels=16
)
CLASSIC = ResNeXtConfig((1, 1, 1, 1), 4, 8, num_classes=3)
CARD = Card(("a", "b", "c"), Preprocessing(32, 40), licence="mit")


def own_file(path: Path, config: ResNeXtConfig, card: Card = CARD) -> ResNeXt:
    """One of our files."""
    model = ResNeXt(config)
    randomize(model)
    for name, value in model.named_buffers():
        if "weight_" in name:  # of standardized filters: larger ones overflow
            value.fill_(0.1 if "gamma" in name else 0.01)
    model.card = card
    save(model, path)
    return model.eval()


def answers(path: Path, **options: Any) -> torch.Tensor:
    """What a file answers."""
    model = load(path, **options)
    with torch.no_grad():
        return model(torch.ones(1, model.config.in_channels, 64, 64))


CASES = [
    ("torchvision", CLASSIC, ".pth"),
    ("torchvision", CLASSIC, ".safetensors"),
    ("timm", CLASSIC.replace(stem_type="deep", stem_width=32, avg_down=True), ".pth"),
    ("timm", CLASSIC.replace(attention="se", channels=(16, 32, 64, 128)), ".npz"),
    ("timm", CLASSIC.replace(anti_alias="avg"), ".safetensors"),
    ("timm", CLASSIC.replace(anti_alias="blur", attention="eca", in_channels=1), ".pth"),
    ("mmcls", SMALL, ".pth"),
    ("mmcls", SMALL.replace(style="caffe", strides=(1, 2, 1, 2), dilations=(1, 1, 2, 2)), ".pth"),
    ("mmcls", SMALL.replace(norm="group", norm_groups=8, conv="weight_standardized"), ".pth"),
    ("mmcls", SMALL.replace(attention="se", se_rounding="mmcls"), ".pth"),
    ("mmcls", SMALL.replace(stem_type="deep", stem_channels=(8, 8, 16), avg_down=True), ".pth"),
    ("mmcls", SMALL.replace(norm="layer", norm_eps=1e-6, padding_mode="reflect"), ".pth"),
    ("mmcls", SMALL.replace(conv="affine_weight_standardized"), ".pth"),
    ("mmdet", SMALL.replace(stem_type="deep", stem_channels=(8, 8, 16), avg_down=True), ".pth"),
    ("lucid", CLASSIC.replace(channels=(8, 16, 32, 64)), ".lcd"),
    ("lucid", CLASSIC.replace(attention="se"), ".safetensors"),
    ("lucid", CLASSIC, ".npz"),
    ("resnext", SMALL.replace(norm="instance"), ".safetensors"),
]


@pytest.mark.filterwarnings("ignore::resnext.errors.AmbiguityWarning")
@pytest.mark.parametrize(("to", "config", "suffix"), CASES, ids=lambda x: str(x)[:60])
def test_there_and_back(tmp_path: Path, to: str, config: ResNeXtConfig, suffix: str) -> None:
    """Weights come back bit for bit, and so does the network if the format states it."""
    model = own_file(tmp_path / "a.safetensors", config)
    done = convert(tmp_path / "a.safetensors", tmp_path / f"b{suffix}", to=to)
    assert done.parity.difference <= 1e-4 * done.parity.largest
    assert done.parity.images >= 2
    known = None if to in ("mmcls", "resnext") else config
    back = convert(tmp_path / f"b{suffix}", tmp_path / "c.safetensors", config=known)
    assert back.source in (to, "torchvision")  # timm's and mmdet's names may be torchvision's
    state = load_file(tmp_path / "c.safetensors")
    counters = to == "lucid"
    for name, value in model.state_dict().items():
        if not (counters and "num_batches" in name):
            assert torch.equal(state[name], value), name
    assert torch.equal(answers(tmp_path / "c.safetensors"), answers(tmp_path / "a.safetensors"))


def test_the_original_library_is_asked(tmp_path: Path) -> None:
    """Where torchvision can be imported, its own network gives the other answers."""
    own_file(tmp_path / "a.safetensors", CLASSIC)
    done = convert(tmp_path / "a.safetensors", tmp_path / "b.pth", to="torchvision")
    assert done.parity.through == f"torchvision {torchvision.__version__}"
    assert done.parity.photographs == 2
    assert done.parity.largest > 0
    done = convert(tmp_path / "a.safetensors", tmp_path / "b.lcd", to="lucid")
    assert done.parity.through == "our own reading of it"


def test_parity_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that cannot fail proves nothing; nothing is left behind."""

    def other(config: ResNeXtConfig) -> nn.Module:
        network: Any = torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck,
            list(config.layers),
            num_classes=3,
            groups=4,
            width_per_group=8,
        )
        network.bn1.eps = 0.1
        return network

    own_file(tmp_path / "a.safetensors", CLASSIC)
    dialect = replace(DIALECTS["torchvision"], original=other)
    monkeypatch.setitem(DIALECTS, "torchvision", dialect)
    with pytest.raises(CheckpointError, match="outputs differ by up to"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.pth", to="torchvision")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


DEEP = CLASSIC.replace(stem_type="deep", stem_width=32, avg_down=True, attention="se")
HIDDEN = [
    ("torchvision", with_output_stride(CLASSIC, 8), "=[False, True, True]"),
    ("torchvision", with_output_stride(CLASSIC, 16, "mmseg"), "=[False, False, True]"),
    ("timm", with_output_stride(CLASSIC, 16), "build the network with output_stride=16."),
    ("timm", with_output_stride(DEEP, 8), "build the network with output_stride=8."),
    ("timm", DEEP.replace(anti_alias="avg"), "build the network with aa_layer='avg'."),
    ("mmdet", SMALL.replace(style="caffe"), "build the network with style='caffe'."),
    ("mmdet", SMALL.replace(norm_eps=1e-3), "'eps': 0.001"),
    (
        "mmdet",
        with_output_stride(SMALL, 8, "smp"),
        "with strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4).",
    ),
]


@pytest.mark.parametrize(("to", "config", "said"), HIDDEN, ids=lambda x: str(x)[:50])
def test_what_a_file_does_not_show_is_said(
    tmp_path: Path, to: str, config: ResNeXtConfig, said: str
) -> None:
    """A dilated network's file looks like any other's, and gave other answers without a word.

    Where the other library can be imported, its own network gives the answers that are compared.
    """
    own_file(tmp_path / "a.safetensors", config)
    with pytest.warns(AmbiguityWarning, match=re.escape(said)) as told:
        done = convert(tmp_path / "a.safetensors", tmp_path / "b.pth", to=to)
    assert len(told) == 1
    assert done.parity.through.startswith(to if to != "mmdet" else "our own")
    assert done.parity.difference <= 1e-4 * done.parity.largest
    convert(tmp_path / "a.safetensors", tmp_path / "c.safetensors")  # our file says it


def test_a_config_that_is_written_is_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong stride in mmcls's config has no weights: only the answers show it."""
    mmcls, own = DIALECTS["mmcls"], tmp_path / "a.safetensors"
    own_file(own, SMALL)

    def content(state: Any, config: ResNeXtConfig, card: Card) -> dict[str, Any]:
        return mmcls.content(state, config.replace(strides=(1, 1, 2, 2)), card)

    monkeypatch.setitem(DIALECTS, "mmcls", replace(mmcls, content=content))
    with pytest.raises(CheckpointError, match="outputs differ by up to"):
        convert(own, tmp_path / "b.pth", to="mmcls")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("to", "changes", "said"),
    [
        ("torchvision", {"stem_type": "deep"}, "does not support this network's stem"),
        ("torchvision", {"attention": "se"}, "does not support this network's attention"),
        ("torchvision", {"in_channels": 1}, "does not support this network's in_channels"),
        (
            "torchvision",
            {"channels": (8, 16, 32, 64)},
            "does not support this network's .*channels",
        ),
        ("torchvision", {"num_stages": 3, "layers": (1, 1, 1), "channels": (64, 128, 256)}, "four"),
        ("timm", {"norm": "group"}, "does not support this network's norm"),
        ("timm", {"style": "caffe"}, "does not support this network's style"),
        ("timm", {"small_stem": True}, "does not support this network's stem"),
        ("mmcls", {}, "does not support this network's layers"),
        (
            "mmcls",
            {"layers": (3, 4, 6, 3), "attention": "eca"},
            "does not support this network's attention",
        ),
        (
            "mmcls",
            {"layers": (3, 4, 6, 3), "anti_alias": "avg"},
            "does not support this network's anti_alias",
        ),
        ("mmdet", {"layers": (3, 4, 6, 3), "attention": "se"}, "SE attention"),
        ("torchvision", {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)}, "dilations"),
        ("timm", {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)}, "dilations"),
        ("timm", {"dilations": (1, 1, 1, (2,))}, "dilations"),
        ("lucid", {"stem_type": "deep"}, "deep stem differently"),
        ("lucid", {"avg_down": True}, "avg_down differently"),
        ("lucid", {"norm_eps": 1e-3}, "does not support this network's norm"),
    ],
    ids=str,
)
def test_what_a_library_has_not_is_refused(
    tmp_path: Path, to: str, changes: dict[str, Any], said: str
) -> None:
    """A file that loads in the other library and answers differently is worse than an error."""
    own_file(tmp_path / "a.safetensors", CLASSIC.replace(**changes))
    suffix = ".pth" if to != "lucid" else ".lcd"
    with pytest.raises(CheckpointError, match=said):
        convert(tmp_path / "a.safetensors", tmp_path / f"b{suffix}", to=to)
    assert not (tmp_path / f"b{suffix}").exists()


def test_recorded_files_convert(tmp_path: Path) -> None:
    """mmcls's file becomes ours, with its labels, and keeps the logits that mmcls gave."""
    (tmp_path / "epoch_1.pth").write_bytes(file_bytes("epoch_1.pth"))
    convert(tmp_path / "epoch_1.pth", tmp_path / "own.safetensors")
    model, expected = load(tmp_path / "own.safetensors"), files()["expected"]["mmcls"]
    assert isinstance(model, ResNeXt)
    with torch.no_grad():
        got = model(images(expected["input"]))
    assert torch.allclose(got, torch.tensor(expected["logits"]), atol=2e-6)
    assert model.card is not None
    assert model.card.labels == ("cat", "dog", "fish")


def test_labels_and_photographs_can_be_given(tmp_path: Path) -> None:
    """A file without labels becomes one that can be used."""
    own_file(tmp_path / "a.safetensors", CLASSIC, Card())
    Image.new("RGB", (70, 50), "red").save(tmp_path / "red.png")
    done = convert(
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        labels="xyz",
        images=[tmp_path / "red.png"],
    )
    assert done.parity.photographs == 1
    model = load(tmp_path / "b.safetensors")
    assert isinstance(model, ResNeXt)
    assert model.card is not None
    assert model.card.labels == ("x", "y", "z")
    with pytest.raises(CheckpointError, match="2 labels are given for 3 classes"):
        convert(tmp_path / "a.safetensors", tmp_path / "c.safetensors", labels=("x", "y"))
    with pytest.raises(DataError, match="no such file"):
        convert(tmp_path / "a.safetensors", tmp_path / "c.safetensors", images=["nothing.png"])


def test_mistakes(tmp_path: Path) -> None:
    """Each ends before anything is written."""
    source = tmp_path / "a.safetensors"
    own_file(source, CLASSIC)
    before = source.read_bytes()
    (tmp_path / "d.safetensors").mkdir()
    for path, to, said in (
        (source, "resnext", "exists"),
        (tmp_path / "d.safetensors", "resnext", "is a folder"),
        (source / "b.pth", "timm", "cannot be written: .*Not a directory"),
        (tmp_path / "b.pth", "lucid", r"must end in \.safetensors or \.lcd or \.npz"),
        (tmp_path / "b.safetensors", "mmcls", r"must end in \.pth or \.pt"),
        (tmp_path / "b.pth", "keras", "to must be"),
        (tmp_path / "b.pth", "resnext", r"must end in \.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=said):
            convert(source, path, to=to)
    assert source.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "d.safetensors"}
    convert(source, source, overwrite=True)
    assert load(source).config == CLASSIC
    convert(source, tmp_path / "new" / "b.safetensors")
    assert load(tmp_path / "new" / "b.safetensors").config == CLASSIC


def test_backbones(tmp_path: Path) -> None:
    """A detector's backbone converts too, except to files that hold classifiers."""
    model = own_file(tmp_path / "a.safetensors", SMALL)
    state = {f"backbone.{n}": x for n, x in model.state_dict().items() if not n.startswith("fc.")}
    torch.save({"state_dict": state}, tmp_path / "d.pth")
    done = convert(tmp_path / "d.pth", tmp_path / "e.pth", to="mmdet")
    assert done.parity.difference == 0
    with pytest.raises(CheckpointError, match="has no classifier"):
        convert(tmp_path / "d.pth", tmp_path / "e.safetensors")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::resnext.errors.AmbiguityWarning")
@pytest.mark.parametrize(
    ("name", "to"),
    [
        (name, to)
        for name in (
            "resnext50_32x4d",
            "resnext101_32x8d",
            "resnext101_64x4d",
            "resnext50d_32x4d",
            "seresnext50_32x4d",
            "seresnextaa101d_32x8d",
            "resnext152_32x4d",
        )
        for to in ("torchvision", "timm", "mmcls", "mmdet", "lucid")
        if not DIALECTS[to].problem(variant(name))
    ],
)
def test_whole_networks(tmp_path: Path, name: str, to: str) -> None:
    """The full matrix: every kind of network to every library that has it, and back."""
    model = own_file(tmp_path / "a.safetensors", variant(name, num_classes=3))
    path = tmp_path / ("b.safetensors" if to == "lucid" else "b.pth")
    done = convert(tmp_path / "a.safetensors", path, to=to)
    assert done.parity.difference <= 1e-4 * done.parity.largest
    convert(path, tmp_path / "c.safetensors", config=model.config)
    assert torch.equal(answers(tmp_path / "c.safetensors"), answers(tmp_path / "a.safetensors"))
