"""The table of public checkpoints, against the tables of torchvision and timm."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from oracles.originals import sklearn, timm, torchvision
from PIL import Image

from resnext.architectures import variants
from resnext.cli.plots import plot_catalog
from resnext.data.transforms import prepare
from resnext.errors import CheckpointError, ConfigError, InputError, UnknownNameError
from resnext.weights.catalog import (
    CatalogEntry,
    catalog,
    find,
    from_file_name,
    from_repository,
    frontier,
    is_address,
    is_path,
    labels,
    read_labels,
)

ROWS = catalog()
TORCHVISION = [row.name for row in ROWS if "_Weights." in row.name]
TIMM = [row.name for row in ROWS if row.dialect == "timm"]


@cache
def photographs() -> list[Image.Image]:
    """china.jpg and flower.jpg."""
    return [Image.fromarray(photo) for photo in sklearn.datasets.load_sample_images().images]


def torchvisions() -> dict[str, Any]:
    """torchvision's weights of ResNeXt networks, by their names."""
    return {
        f"{weights.__name__}.{entry.name}": entry
        for weights in (
            torchvision.models.ResNeXt50_32X4D_Weights,
            torchvision.models.ResNeXt101_32X8D_Weights,
            torchvision.models.ResNeXt101_64X4D_Weights,
        )
        for entry in weights
    }


def test_no_public_checkpoint_is_missing() -> None:
    """A checkpoint that its library adds must be added here."""
    names = {row.name for row in ROWS}
    timms = {name for name in timm.list_pretrained() if name.split(".")[0] in variants()}
    assert set(TORCHVISION) == set(torchvisions())
    assert names >= timms
    assert len([name for name in names if name.startswith("open-mmlab://")]) == 8
    assert len([name for name in names if name.endswith("_8xb32_in1k")]) == 4
    assert len([name for name in names if name.startswith("lucid/")]) == 6
    assert len([name for name in names if name.startswith("fb/")]) == 3
    assert "resnext101_32x48d_wsl" in names
    assert len(names) == len(ROWS)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_entries(name: str) -> None:
    """Address, accuracy and preprocessing are torchvision's own."""
    row, entry = find(name), torchvisions()[name]
    assert row.location == entry.url
    published = entry.meta["_metrics"]["ImageNet-1K"]
    assert (row.top1, row.top5) == (published["acc@1"], published["acc@5"])
    assert row.labels == tuple(entry.meta["categories"])
    check_preprocessing(row, entry.transforms())


@pytest.mark.parametrize("name", TIMM)
def test_timms_entries(name: str) -> None:
    """Address, licence and preprocessing are timm's own, at its size for testing."""
    row, published = find(name), timm.models.get_pretrained_cfg(name)
    assert published is not None
    about: Any = published
    url = (about.url or f"hf://{about.hf_hub_id}").replace(
        "rwightman/pytorch-im", "huggingface/pytorch-im"
    )
    assert row.location == url
    assert (row.licence, row.variant) == (about.license, name.split(".")[0])
    assert len(row.labels) == about.num_classes
    size = (about.test_input_size or about.input_size)[-1]
    part = about.test_crop_pct or about.crop_pct
    if name.endswith("in12k_ft_in1k_288"):
        assert (size, part) == (320, 1.0)
    assert (row.size, row.resize) == (size, math.floor(size / part))
    theirs = timm.data.create_transform(
        (3, size, size),
        crop_pct=part,
        interpolation=about.interpolation,
        mean=about.mean,
        std=about.std,
    )
    check_preprocessing(row, theirs)


def check_preprocessing(row: CatalogEntry, theirs: Any) -> None:
    """The same bits, of photographs lying and standing."""
    for photo in photographs():
        for image in (photo, photo.rotate(90, expand=True), photo.resize((211, 307))):
            assert torch.equal(prepare(image, row.preprocessing), theirs(image))


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.dialect not in ("torchvision", "timm")], ids=lambda r: r.name
)
def test_the_others_preprocessing(row: CatalogEntry) -> None:
    """OpenMMLab's and Lucid's, against torchvision's pipeline; BGR is flipped before."""
    steps = torchvision.transforms
    kind = steps.InterpolationMode(row.interpolation)
    theirs = steps.Compose(
        [
            steps.Resize(row.resize, kind),
            steps.CenterCrop(row.size),
            steps.ToTensor(),
            steps.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    for photo in photographs():
        wanted: Any = theirs(photo)
        wanted = wanted.flip(0) if row.colour == "BGR" else wanted
        assert torch.equal(prepare(photo, row.preprocessing), wanted)


def test_hashes_come_from_names_or_publishers() -> None:
    """Eight digits in the name of a file are the start of its SHA-256."""
    assert find("resnext50_32x4d.tv2_in1k").sha256 == "1a0047aa"
    assert len(find("lucid/resnext_50_32x4d.IMAGENET1K_V2").sha256) == 64
    without = [row.name for row in ROWS if not row.sha256]
    assert all("in12k" in x or x.endswith(".in1k") or x[:3] == "fb/" for x in without)


def test_filters() -> None:
    """Each bound holds, and nothing else is left out."""
    commercial = catalog(licence="commercial")
    assert {row.licence for row in commercial} == {"apache-2.0", "bsd-3-clause"}
    assert all(row.licence == "cc-by-nc-4.0" for row in catalog(licence="cc-by-nc-4.0"))
    good = catalog(min_top1=82.0, max_gmacs=9.0)
    assert {row.name for row in good} == {
        row.name for row in ROWS if (row.top1 or 0) >= 82 and row.gmacs <= 9
    }
    assert good
    assert {row.variant for row in catalog(variant="resnext_50_32x4d")} == {"resnext50_32x4d"}
    accuracies = [row.top1 or 0 for row in ROWS]
    assert accuracies == sorted(accuracies, reverse=True)


@pytest.mark.parametrize(
    "wrong", [{"licence": "gpl"}, {"min_top1": -1}, {"max_gmacs": float("nan")}], ids=str
)
def test_bounds_that_are_not_valid(wrong: dict[str, Any]) -> None:
    """A misspelt licence would list nothing, as if there were none."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        catalog(**wrong)


def test_frontier_by_a_naive_loop() -> None:
    """What nothing beats: no other is at least as good and cheaper, or better at the same cost."""
    best = frontier(ROWS)
    for row in best:
        for other in ROWS:
            beats = (other.top1 or 0) >= (row.top1 or 0) and other.gmacs <= row.gmacs
            equal = other.top1 == row.top1 and other.gmacs == row.gmacs
            assert not beats or equal, (row.name, other.name)
    for row in ROWS:
        if row.top1 is not None and row not in best:
            assert any(b.gmacs <= row.gmacs and (b.top1 or 0) >= row.top1 for b in best)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("RESNEXT50_32X4D.A1_IN1K", "resnext50_32x4d.a1_in1k"),
        ("mmcls://resnext152_32x4d", "resnext152-32x4d_8xb32_in1k"),
    ],
)
def test_names(name: str, wanted: str) -> None:
    """Case does not matter, and mmcls's form of a name is accepted."""
    assert find(name).name == wanted


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnext50_32x4d", "19 public checkpoints; choose one"),
        ("resnext50_32x4d.a1_in2k", "Did you mean resnext50_32x4d.a1_in1k"),
        ("quite something else", "resnext catalog"),
    ],
)
def test_names_that_are_not_exact(name: str, said: str) -> None:
    """They are never taken for another's."""
    with pytest.raises(UnknownNameError, match=said):
        find(name)


def test_names_of_files() -> None:
    """A local copy is known by its name, if that holds the hash."""
    row = from_file_name("seresnextaa101d_32x8d_ah-83c8ae12.pth")
    assert row is not None
    assert row.name == "seresnextaa101d_32x8d.ah_in1k"
    assert from_file_name("model.safetensors") is None
    assert from_file_name("seresnextaa101d_32x8d_ah-83c8ae13.pth") is None


def test_repositories_of_timm() -> None:
    """They have the names of its checkpoints; the same name of another owner is other weights."""
    assert from_repository("timm", "resnext50_32x4d.a1_in1k") == find("resnext50_32x4d.a1_in1k")
    assert from_repository("someone", "resnext50_32x4d.a1_in1k") is None
    assert from_repository("timm", "resnext50_32x4d") is None


@pytest.mark.parametrize(
    ("text", "address", "path"),
    [
        ("resnext50_32x4d.a1_in1k", False, False),
        ("open-mmlab://resnext50_32x4d", False, False),
        ("mmcls://resnext50_32x4d", False, False),
        ("lucid/resnext_50_32x4d.in1k", False, False),
        ("fb/resnext_50_32x4d", False, False),
        ("hf://owner/repo", True, False),
        ("https://example.org/a", True, False),
        ("https://example.org/a.pth", True, True),
        ("a.safetensors", False, True),
        ("a.PTH", False, True),
        ("folder/a", False, True),
        ("https", False, False),
    ],
)
def test_names_addresses_and_paths(text: str, address: bool, path: bool) -> None:
    """Two of the catalog's forms of names look like addresses, two like paths."""
    assert is_address(text) == address
    assert is_path(text) == path


def test_labels(tmp_path: Any) -> None:
    """One different name for each class, in the order of the logits."""
    assert len(set(labels("imagenet-1k"))) == 1000
    assert labels("imagenet-1k")[281] == "tabby"
    info = timm.data.ImageNetInfo("imagenet-12k")
    twelve = labels("imagenet-12k")
    assert len(set(twelve)) == len(twelve) == info.num_classes()
    for i in np.linspace(0, len(twelve) - 1, 200).astype(int):
        name = info.index_to_description(int(i))
        assert twelve[i] in (name, f"{name} ({info.index_to_label_name(int(i))})")
    assert read_labels("imagenet-1k") == labels("imagenet-1k")
    (tmp_path / "a.txt").write_text("cat\n\n dog \n", encoding="utf-8")
    assert read_labels(tmp_path / "a.txt") == ("cat", "dog")
    with pytest.raises(CheckpointError, match="imagenet-1k or imagenet-12k or a text file"):
        read_labels(tmp_path / "b.txt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_plot(tmp_path: Any) -> None:
    """A picture with something in it; mistakes end in one line."""
    plot_catalog(ROWS, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 500
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        plot_catalog(ROWS, tmp_path / "a.txt")
    with pytest.raises(InputError, match="No checkpoint"):
        plot_catalog([], tmp_path / "a.png")
    plot_catalog(ROWS, tmp_path / "new" / "a.png")
    with pytest.raises(InputError, match=r"a\.png.*cannot be"):
        plot_catalog(ROWS, tmp_path / "a.png" / "b.png")
