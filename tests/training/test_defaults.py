"""Network and size that follow from the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import photo_folder
from PIL import Image

import resnext
from resnext.architectures import variant
from resnext.data import open_splits
from resnext.summary import summarize
from resnext.training.defaults import choices, default_choice, largest_size, typical_side


@pytest.mark.parametrize(
    ("side", "size"),
    [
        (8, 32),
        (28, 32),
        (32, 32),
        (40, 32),
        (48, 64),
        (64, 64),
        (100, 128),
        (160, 160),
        (3000, 224),
    ],
)
def test_images_are_hardly_enlarged(side: int, size: int) -> None:
    """A network for large images costs much and gains nothing on small ones."""
    assert largest_size(side) == size


def test_the_typical_image_decides(tmp_path: Path) -> None:
    """Neither an outlier nor a damaged file changes the network."""
    photos = photo_folder(tmp_path / "photos", count=6, size=100)
    photo_folder(tmp_path / "large", count=1, size=900)
    (photos / "cat" / "000.jpg").write_bytes(b"damaged")
    (tmp_path / "large" / "dog" / "000.jpg").rename(photos / "dog" / "large.jpg")
    splits = open_splits(photos)
    assert typical_side(splits.train) == 100
    assert default_choice(splits, "cpu").size == 128
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"damaged")
    assert typical_side(splits.train) == 224


@pytest.mark.filterwarnings("error")
def test_the_size_of_an_image_is_in_its_header(tmp_path: Path) -> None:
    """Grey of 16 bits was decoded, and said to be all black or white."""
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(2):
            values = np.full((60, 80), 1000 + i, np.uint16)
            Image.fromarray(values).save(tmp_path / "photos" / label / f"{i}.tif")
    assert typical_side(open_splits(tmp_path / "photos").train) == 60


@pytest.mark.parametrize(("pixels", "device"), [(28, "cpu"), (100, "cpu"), (300, "cpu")])
def test_a_processor_is_done_in_minutes(tmp_path: Path, pixels: int, device: str) -> None:
    """resnext50_32x4d at 224 pixels, 4.2 GMACs, was the default for a folder of thumbnails."""
    splits = open_splits(photo_folder(tmp_path / "photos", count=2, size=pixels))
    network, size = default_choice(splits, device)
    assert summarize(variant(network), size).macs < 350e6
    assert default_choice(splits, "cuda").network == (
        network if pixels == 28 else "resnext50_32x4d"
    )


def test_the_digits_have_their_own() -> None:
    """The data set decides before its images do; a given size stays."""
    splits = open_splits("digits")
    assert default_choice(splits, "cpu") == ("resnext11_8x16d", 8)
    assert default_choice(splits, "cpu", 16) == ("resnext11_8x16d", 16)


@pytest.mark.parametrize("side", [20, 64, 100, 500])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("size", [None, 96])
def test_choices_are_sorted_by_cost(side: int, device: str, size: int | None) -> None:
    """The choice for a time budget stops at the first that is too slow."""
    ladder = choices(side, device, size)
    costs = [summarize(variant(network), pixels).macs for network, pixels in ladder]
    assert costs == sorted(costs)
    assert len(set(ladder)) == len(ladder) >= 2
    if size is not None:
        assert {pixels for _, pixels in ladder} == {96}


def test_the_choice_is_shown_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names network and size; a resumed run does not choose again."""
    photos, out = photo_folder(tmp_path / "photos", count=4), tmp_path / "a.safetensors"
    given = {"out": out, "epochs": 1, "batch_size": 4, "workers": 0}
    model = resnext.train(photos, **given)
    line = "resnext_tiny_32px at 32 pixels suits these images; --model, --size and --minutes"
    assert line in capsys.readouterr().err
    monkeypatch.setattr(resnext.training.launch, "default_choice", None)
    again = resnext.train(photos, **given, resume=True)
    assert again.config == model.config
