"""Other libraries' and older versions' names of checkpoints mean the catalog's rows."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from helpers import run_cli
from oracles.originals import timm, torchvision

from resnext import create, load
from resnext.architectures import split_name
from resnext.errors import CheckpointError, UnknownNameError, UntrainedWarning
from resnext.weights.aliases import canonical
from resnext.weights.catalog import catalog, exact, find, is_address, is_path

SWSL50, WSL = "resnext50_32x4d.fb_swsl_ig1b_ft_in1k", "resnext101_32x8d.fb_wsl_ig1b_ft_in1k"
A1, V1, V2 = "resnext50_32x4d.a1_in1k", "IMAGENET1K_V1", "IMAGENET1K_V2"
TV50, TV101 = "ResNeXt50_32X4D_Weights", "ResNeXt101_32X8D_Weights"
NAMES = {
    SWSL50: [
        "swsl_resnext50_32x4d",  # timm 0.4
        "SWSL-ResNeXt50-32x4d",
        "resnext50_32x4d_swsl",  # the hub
        "facebookresearch/semi-supervised-ImageNet1K-models:resnext50_32x4d_swsl",
        "huggingface/pytorch-image-models:swsl_resnext50_32x4d",
    ],
    WSL: [
        "ig_resnext101_32x8d",
        "ig_resnext101_32x8",
        "resnext101_32x8d_wsl",
        "facebookresearch/WSL-Images:resnext101_32x8d_wsl",
        "facebookresearch/WSL-Images:main/resnext101_32x8d_wsl",
        "facebookresearch/WSL-Images/resnext101_32x8d_wsl",
        "resnext101-32x8d.fb-wsl-ig1b-ft-in1k",
    ],
    "resnext101_32x16d.fb_wsl_ig1b_ft_in1k": ["ig_resnext101_32x16d", "resnext101_32x16d_wsl"],
    "resnext101_32x48d_wsl": ["ig_resnext101_32x48d", "resnext101_32x48d.fb_wsl_ig1b_ft_in1k"],
    "resnext101_32x16d.fb_ssl_yfcc100m_ft_in1k": ["ssl_resnext101_32x16d"],
    "seresnext101_64x4d.gluon_in1k": ["gluon_seresnext101_64x4d"],
    "resnext50_32x4d.tv_in1k": ["tv_resnext50_32x4d", "timm/resnext50_32x4d.tv_in1k"],
    "seresnext26t_32x4d.bt_in1k": ["seresnext26tn_32x4d", "timm/seresnext26t_32x4d"],
    A1: [
        "timm/" + A1,
        "hf-hub:timm/" + A1,
        "hf_hub:timm/" + A1,
        "https://huggingface.co/timm/" + A1,
        "resnext_50_32x4d.a1_in1k",
        " ResNeXt50_32x4d.A1_in1k ",
    ],
    f"{TV50}.{V1}": [
        "torchvision://resnext50_32x4d",  # mmcv
        "modelzoo://resnext50_32x4d",
        "pytorch/vision:v0.10.0/resnext50_32x4d",
        "torchvision/resnext50_32x4d",
        f"torchvision.models.{TV50}.{V1}",
    ],
    f"{TV50}.{V2}": [f"{TV50}.DEFAULT", "resnext50_32x4d.IMAGENET1K_V2"],
    f"ResNeXt101_64X4D_Weights.{V1}": ["ResNeXt101_64X4D_Weights.DEFAULT"],
    f"{TV101}.{V2}": [f"torchvision.models.resnet.{TV101}.DEFAULT"],
    "resnext50-32x4d_8xb32_in1k": [
        "mmcls://resnext50_32x4d",
        "mmcls://resnext50-32x4d",
        "resnext50_32x4d_b32x8_imagenet",
        "resnext50_32x4d_8xb32_in1k",
        "mmpretrain/resnext50-32x4d_8xb32_in1k",
    ],
    "open-mmlab://jhu/resnext50_32x4d_gn_ws": [
        "open-mmlab://resnext50_32x4d_gn_ws",
        "jhu/resnext50_32x4d_gn_ws",
        "openmmlab://jhu/resnext50_32x4d_gn_ws",
    ],
    "open-mmlab://detectron2/resnext101_32x8d": ["detectron2/resnext101_32x8d"],
    "lucid/resnext_50_32x4d.in1k": [
        "ResNeXt_50_32X4D_Weights.IMAGENET1K",
        "ResNeXt_50_32X4D_Weights.DEFAULT",
    ],
}


def test_each_row_has_one_spelling() -> None:
    """Two rows with the same canonical name would make one of them unreachable."""
    rows = catalog()
    assert len({canonical(row.name) for row in rows}) == len(rows)
    assert all(find(row.name) is row for row in rows)


@pytest.mark.parametrize(("row", "names"), NAMES.items())
def test_names_mean_rows(row: str, names: list[str]) -> None:
    """A paper's or a config's name must give its weights, not "does not exist"."""
    for name in names:
        assert find(name).name == row, name
        assert not is_path(name), name
        assert not is_address(name), name


def test_timms_own_table_of_old_names() -> None:
    """Every old name of timm is known; timm gives ig_…_32x16d the weights of 32x8d, we do not."""
    timm.create_model  # noqa: B018  (imports the package that fills the table)
    table = import_module("timm.models._registry")._deprecated_models
    old = {name: current for name, current in table.items() if "resnext" in name and current}
    assert len(old) > 15
    for name, current in old.items():
        row = find(name)
        assert row.variant == split_name(name)[0], name
        if "." in current and not name.startswith("ig_"):
            assert row is exact(current), name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnext50_32x4d", "19 public checkpoints; choose one"),
        ("timm/resnext50_32x4d", "19 public checkpoints; choose one"),
        ("legacy_seresnext50_32x4d", "No public checkpoint"),  # other weights than timm's own
        ("swsl_resnext101_64x4d", "No public checkpoint"),
        ("ig_resnext50_32x4d", "No public checkpoint"),
        ("resnext50_32x4d.a9_in1k", "Did you mean resnext50_32x4d"),
    ],
)
def test_other_names_are_refused(name: str, said: str) -> None:
    """A name that is nearly one of the table must not give other weights."""
    with pytest.raises(UnknownNameError, match=said):
        load(name)


@pytest.mark.parametrize("path", ["photos/" + A1, "./" + A1, "resnext50_32x4d/a1_in1k", "a/b.pth"])
def test_paths_stay_paths(path: str) -> None:
    """A missing file is missing, whatever the catalog has."""
    assert is_path(path)
    assert exact(path) is None


def test_members_of_torchvisions_enumerations(
    monkeypatch: pytest.MonkeyPatch, fresh_cache: Path
) -> None:
    """`weights=ResNeXt50_32X4D_Weights.DEFAULT` is how torchvision's users name weights."""
    monkeypatch.setenv("RESNEXT_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"resnext50_32x4d-1a0047aa\.pth is not in"):
        load(torchvision.models.ResNeXt50_32X4D_Weights.DEFAULT)


# -- untrained networks by such names --------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["swsl_resnext50_32x4d", A1, "resnext50-32x4d_8xb32_in1k", f"{TV50}.{V2}"]
)
def test_create_says_that_it_is_untrained(name: str) -> None:
    """`create("swsl_…")` gave random weights without a word."""
    small: dict[str, Any] = {"layers": (1,) * 4, "channels": (8,) * 4, "base_width": 64}
    with pytest.warns(UntrainedWarning, match=r"untrained.*resnext\.load"):
        create(name, **small, cardinality=2)


def test_create_of_an_architecture_is_silent() -> None:
    """Only names of weights are worth a warning; timm calls networks without weights untrained."""
    small: dict[str, Any] = {"layers": (1,) * 4, "channels": (8,) * 4, "base_width": 64}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("resnext50_32x4d", "resnext_50_32x4d", "resnext50_32x4d.untrained"):
            create(name, **small, cardinality=2)


def test_train_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of training from random weights, where the name promised trained ones."""
    monkeypatch.chdir(tmp_path)
    command = ("train", "digits", "--model", "swsl_resnext50_32x4d", "--dry-run")
    _, _, errors = run_cli(capsys, monkeypatch, *command)
    lines = [line for line in errors.splitlines() if "untrained" in line]
    assert len(lines) == 1
    assert lines[0].startswith("resnext: 'swsl_resnext50_32x4d' is a name of trained weights")
