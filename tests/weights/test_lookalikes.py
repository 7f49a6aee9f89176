"""`choose_lookalike`: known networks whose names and shapes are equal."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_cli
from torch import nn

from resnext import ResNeXt, ResNeXtConfig, create, load, variant
from resnext.errors import AmbiguityWarning
from resnext.weights import lookalikes
from resnext.weights.catalog import CatalogEntry
from resnext.weights.diagnosis import diagnose
from resnext.weights.lookalikes import Choice, choose_lookalike

PLAIN = variant("seresnext101d_32x8d", num_classes=5)
BLURRED = variant("seresnextaa101d_32x8d", num_classes=5)


@pytest.fixture(autouse=True)
def no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that need not exist."""
    monkeypatch.setattr(lookalikes, "file_sha256", lambda path: "0" * 64)


def chosen(path: str, config: ResNeXtConfig = PLAIN, **metadata: Any) -> Choice:
    """The choice for a file of this name, with this beside its weights."""
    return choose_lookalike(config, Path(path), metadata)


@pytest.mark.parametrize(
    ("path", "metadata"),
    [
        ("seresnextaa101d_32x8d.pth", {}),
        ("seresnextaa101d_32x8d_ah-00000000.pth", {}),
        ("timm-SE-ResNeXtAA101d-32x8d.ah_in1k.safetensors", {}),
        ("my_seresnextaa101d.pt", {}),
        ("seresnextaa101d_32x8d.sw_in12k/pytorch_model.bin", {}),
        ("models--timm--seresnextaa101d_32x8d.ah_in1k/snapshots/00ff/model.safetensors", {}),
        ("last.pth.tar", {"arch": "seresnextaa101d_32x8d"}),
        ("last.pth.tar", {"args": {"model": "seresnextaa101d_32x8d", "lr": 0.1}}),
    ],
)
def test_what_names_a_network_decides(path: str, metadata: dict[str, Any]) -> None:
    """`seresnextaa101d_32x8d.pth` loaded as the network without anti-aliasing, 18 % off."""
    choice = chosen(path, **metadata)
    assert choice.config == BLURRED
    assert "seresnextaa101d_32x8d" in choice.reason
    assert not choice.open


@pytest.mark.parametrize(
    ("path", "metadata", "by", "against"),
    [
        ("seresnext101d_32x8d/seresnextaa101d_32x8d.pth", {}, "its name", "its folder"),
        ("seresnext101d.pth", {"arch": "seresnextaa101d_32x8d"}, "the file's 'arch'", "its name"),
    ],
)
def test_hints_that_contradict_each_other_are_named(
    path: str, metadata: dict[str, Any], by: str, against: str
) -> None:
    """The more reliable one decides, but one of both is wrong."""
    choice = chosen(path, **metadata)
    assert choice.config == BLURRED
    assert f"{by} says seresnextaa101d_32x8d, which was taken" in choice.open
    assert f"but {against} says seresnext101d_32x8d" in choice.open


def test_the_other_name_decides_too() -> None:
    """The plain one is not a mere default if it is named."""
    assert chosen("seresnext101d_32x8d.pth") == Choice(PLAIN, "its name says seresnext101d_32x8d")


def test_the_published_hash_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renamed download is still the published file."""
    row = CatalogEntry(
        "x",
        "seresnextaa101d_32x8d",
        "https://host/x.pth",
        "",
        None,
        None,
        published_sha256="ab" * 32,
    )
    monkeypatch.setattr(lookalikes, "catalog", lambda: (row,))
    assert chosen("weights.pth").open
    monkeypatch.setattr(lookalikes, "file_sha256", lambda path: "ab" * 32)
    assert chosen("weights.pth") == Choice(BLURRED, "its SHA-256 is that of x")


@pytest.mark.parametrize("path", ["a.pth", "seresnextaa101d-or-seresnext101d.pth", "aa.pth"])
def test_an_open_choice_names_both_and_the_argument(path: str) -> None:
    """Nothing decides, so the user must."""
    choice = chosen(path)
    assert choice.config == PLAIN
    for word in (
        "seresnext101d_32x8d and seresnextaa101d_32x8d",
        "differ in anti_alias",
        "config=resnext.variant('seresnextaa101d_32x8d', num_classes=5)",
    ):
        assert word in choice.open
    assert "\n" not in choice.open


@pytest.mark.parametrize(
    ("name", "usual", "argument"),
    [
        ("seresnextaa201d_32x8d", {"anti_alias": None}, "anti_alias=None"),
        ("resnext_nano_32px", {"strides": (1, 2, 2)}, "strides=(1, 2, 2)"),
    ],
)
def test_the_only_known_network_is_taken(name: str, usual: dict[str, Any], argument: str) -> None:
    """The usual values describe a network that nobody published."""
    choice = chosen("a.pth", variant(name, **usual))
    assert choice.config == variant(name)
    assert argument in choice.open
    assert not chosen(f"{name}.pth", variant(name, **usual)).open


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("x101_caffe.pth", "style='caffe'"),
        ("x101_caffe.pth", "BGR"),
        ("models/caffe/x101.pth", "'caffe' in its folder may mean style='caffe'"),
        ("Caffe-models/2017/x101.pth", "change the card's preprocessing"),
        ("deeplabv3_x101-d8.pth", "output_stride=8"),
        ("backbone_os16.pth", "output_stride=16"),
        ("deeplabv3plus_x50.pth", "output_stride=8 or 16"),
        ("resnextaa50_32x4d.pth", "anti_alias='avg'"),
        ("antialiased_x50.pth", "anti_alias='blur'"),
        ("x50_lpf4.pth", "anti_alias='blur'"),
    ],
)
def test_words_for_what_no_variant_has(path: str, field: str) -> None:
    """A name that hints at another stride or dilation is not passed over in silence."""
    config = variant("resnext50_32x4d")
    choice = chosen(path, config)
    assert choice.config == config
    assert field in choice.open


def test_an_output_stride_in_the_file_is_not_passed_over() -> None:
    """Lightning and other frameworks keep the arguments of the network beside the weights."""
    choice = chosen("a.ckpt", variant("resnext50_32x4d"), hyper_parameters={"output_stride": 16})
    assert "may mean output_stride=16" in choice.open
    assert not chosen("a.ckpt", variant("resnext50_32x4d"), output_stride=32).open


@pytest.mark.parametrize("metadata", [{"style": "caffe"}, {"hyper_parameters": {"style": "caffe"}}])
def test_a_style_in_the_file_is_used(metadata: dict[str, Any]) -> None:
    """It moves the stride to another convolution, which no name or shape shows."""
    choice = chosen("a.pth", variant("resnext50_32x4d"), **metadata)
    assert choice == Choice(
        variant("resnext50_32x4d", style="caffe"), "the file's 'style' says caffe"
    )
    assert not chosen("a.pth", variant("resnext50_32x4d"), style="pytorch").open


@pytest.mark.parametrize("path", ["a.pth", "caffeine/a.pth", "cafe.pth", "32x8d8.pth", "2d16.pth"])
def test_ordinary_files_have_nothing_to_decide(path: str) -> None:
    """No warning where there is no choice."""
    assert chosen(path, variant("resnext50_32x4d")) == Choice(variant("resnext50_32x4d"))


def saved(path: Path) -> nn.Module:
    """A network for 32×32 pixels, saved as its names and tensors only."""
    model = create("resnext_nano_32px").eval()
    torch.save(model.state_dict(), path)
    return model


def test_load_warns_once_and_gives_the_known_network(tmp_path: Path) -> None:
    """The whole way, against the network that was saved."""
    model = saved(tmp_path / "a.pth")
    x = torch.randn(1, 3, 32, 32)
    with pytest.warns(
        AmbiguityWarning, match=r"resnext_nano_32px.*config=resnext\.variant"
    ) as told:
        loaded = load(tmp_path / "a.pth")
    assert len(told) == 1
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    other = load(tmp_path / "a.pth", config=variant("resnext_nano_32px", strides=(1, 2, 2)))
    assert isinstance(other, ResNeXt)
    assert other.config.strides == (1, 2, 2)


def test_commands_show_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`predict` warns before it asks for labels; `doctor` has it among its notes."""
    file = tmp_path / "a.pth"
    saved(file)
    _, _, err = run_cli(capsys, monkeypatch, "predict", file, "digits", "--limit", 1)
    lines = [line for line in err.splitlines() if "have the same names and shapes" in line]
    assert len(lines) == 1
    assert lines[0].startswith("resnext: a.pth: resnext_nano_32px and ")
    with warnings.catch_warnings():  # its notes say it
        diagnosis = diagnose(file)
    assert diagnosis.config == variant("resnext_nano_32px")
    assert any("have the same names and shapes" in note for note in diagnosis.notes)
