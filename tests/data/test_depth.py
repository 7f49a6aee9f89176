"""Grey images of more than 8 bits: the values in use decide what becomes black and white."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_cli
from PIL import Image
from sample_data import tar

from resnext import Preprocessing, load, predict
from resnext.data.decoding import convert, open_image
from resnext.data.depth import used_range
from resnext.data.open import open_splits
from resnext.data.scan import scan
from resnext.data.transforms import random_view
from resnext.errors import ConfigError, DataError, ResNeXtWarning
from resnext.prediction.contact_sheet import draw_sheet
from resnext.prediction.images import Prediction, to_pixels
from resnext.system.progress import SilentReporter

pytestmark = pytest.mark.usefixtures("one_thread")


def frames(
    root: Path, low: int, high: int, kind: Any = np.uint16, ending: str = ".tif", count: int = 6
) -> Path:
    """Two classes of noise whose values are from `low` to `high`, and reach both."""
    rng = np.random.default_rng(0)
    for label, scale in (("fine", 1), ("coarse", 8)):
        (root / label).mkdir(parents=True)
        for i in range(count):
            values = rng.integers(low, high + 1, (32 // scale, 32 // scale))
            values[0, :2] = low, high
            values = values.repeat(scale, 0).repeat(scale, 1).astype(kind)
            Image.fromarray(values).save(root / label / f"{i}{ending}")
    return root


@pytest.mark.parametrize(
    ("low", "high", "kind", "ending"),
    [
        (300, 499, np.uint16, ".tif"),  # 200 values: they became one
        (0, 1023, np.uint16, ".png"),
        (64, 4095, np.uint16, ".png"),
        (0, 16383, np.uint16, ".tif"),
        (40_000, 41_000, np.uint16, ".png"),
        (-1024, 3071, np.int32, ".tif"),  # was white where it is negative
        (-500, 500, np.int16, ".tif"),
        (100_000, 300_000, np.int32, ".tif"),
        (0, 200, np.int32, ".tif"),
    ],
)
def test_the_values_in_use(tmp_path: Path, low: int, high: int, kind: Any, ending: str) -> None:
    """A 12-bit camera writes 16-bit files, whose upper 8 bits hold next to nothing."""
    splits = open_splits(frames(tmp_path, low, high, kind, ending))
    assert splits.value_range == (low, high)
    found = scan(splits, SilentReporter(), cache=None)
    assert found.unreadable == ()
    [line] = found.lines()
    assert f"the values {low:,} to {high:,}" in line
    stored = np.asarray(Image.open(splits.train.images[0]), np.int64)  # pyright: ignore
    wanted = np.rint((stored - low) * 255 / (high - low))
    assert np.array_equal(np.asarray(splits.train.open(0, "L", splits.value_range)), wanted)
    preprocessing = Preprocessing(
        32, 32, mean=(0.5,), std=(0.5,), colour="L", value_range=(low, high)
    )
    file = splits.train.images[0]
    assert isinstance(file, Path)
    assert np.array_equal(to_pixels("", file, preprocessing)[..., 0], wanted)
    assert np.array_equal(to_pixels("", Image.open(file), preprocessing)[..., 0], wanted)
    rng = np.random.default_rng(0)
    view = random_view(file.read_bytes(), "x", preprocessing, rng, padding=1, flip=False)
    assert set(np.unique(view)) <= {0, *wanted.ravel()}


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_images_that_fill_16_bits_are_read_as_before(tmp_path: Path, ending: str) -> None:
    """Their upper 8 bits are what models of earlier versions saw."""
    splits = open_splits(frames(tmp_path, 100, 65_000, ending=ending))
    assert splits.value_range is None
    stored = np.asarray(Image.open(splits.train.images[0]))  # pyright: ignore
    assert np.array_equal(np.asarray(splits.train.open(0, "L")), stored >> 8)


@pytest.mark.parametrize("kind", [np.uint8, None])
def test_images_of_8_bits_have_no_range(tmp_path: Path, kind: Any) -> None:
    """Most images; nothing changes for them, in files neither."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(2):
            shape = (4, 4) if kind else (4, 4, 3)
            Image.fromarray(np.full(shape, 9, np.uint8)).save(tmp_path / label / f"{i}.png")
    assert open_splits(tmp_path).value_range is None
    assert "value_range" not in Preprocessing().to_dict()
    assert "value_range" not in repr(Preprocessing())
    assert "value_range=(3, 9)" in repr(Preprocessing(value_range=(3, 9)))


def test_broken_pixels_do_not_count(tmp_path: Path) -> None:
    """One pixel at 65,535 would make all others black again."""
    splits = open_splits(frames(tmp_path, 300, 499, count=20))
    file = splits.train.images[3]
    assert isinstance(file, Path)
    values = np.asarray(Image.open(file)).copy()
    values[5, 5] = 65_535
    Image.fromarray(values).save(file)
    assert used_range(splits.train) == (300, 499)
    assert np.asarray(splits.train.open(3, "L", (300, 499)))[5, 5] == 255


def test_shards_and_damaged_files(tmp_path: Path) -> None:
    """Members have no path, and a damaged file is for the scan to report."""
    root = frames(tmp_path / "a", 0, 1023)
    members: dict[str, bytes] = {}
    for i, path in enumerate(sorted(root.rglob("*.tif"))):
        members |= {f"{i}.tif": path.read_bytes(), f"{i}.cls": path.parent.name.encode()}
    assert open_splits(tar(tmp_path / "a.tar", members)).value_range == (0, 1023)
    (root / "fine" / "0.tif").write_bytes(b"no image")
    assert open_splits(root).value_range == (0, 1023)


def test_values_of_unknown_range_are_refused() -> None:
    """They were black or white, whatever they were."""
    for values in ([[-5, 10]], [[0, 70_000]]):
        with pytest.raises(DataError, match=r"Its values from .* are beyond 16 bits"):
            convert(Image.fromarray(np.array(values, np.int32)), "L")
    with pytest.raises(DataError, match="floating-point"):
        convert(Image.new("F", (2, 2), 0.5), "L", (0, 1))


@pytest.mark.parametrize("bad", [(3,), (3, 3), (9, 3), (0.5, 1), "ab", (1, 2, 3), 7])
def test_wrong_ranges(bad: Any) -> None:
    """A range that is none would divide by zero at the first image."""
    with pytest.raises(ConfigError, match="value_range must hold two whole numbers"):
        Preprocessing(value_range=bad)


def png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit colours, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_dark_colour_of_16_bits_is_refused(tmp_path: Path) -> None:
    """Pillow reads the upper 8 bits of colours, so 12-bit colours have 16 levels left."""
    rng = np.random.default_rng(0)
    for low, top in ((0, 256), (256, 4096), (256, 65536)):
        for label in "ab":
            (tmp_path / label).mkdir(exist_ok=True)
            for i in range(2):
                content = png(rng.integers(low, top, (4, 4, 3)))
                (tmp_path / label / f"{i}.png").write_bytes(content)
        if top < 65536:
            with pytest.raises(DataError, match=r"colour images of 16 bits use only values below"):
                open_splits(tmp_path)
    assert open_splits(tmp_path).value_range is None


def test_a_model_remembers_the_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training and prediction must scale alike, or a model is asked about other images."""
    monkeypatch.chdir(tmp_path)
    frames(tmp_path / "bits", 300, 499, count=10)
    options = ["--size=32", "--set", "flip=False", "--device=cpu", "--workers=0"]
    command = ["train", "bits", "--out", "m.safetensors", "--model", "resnext_nano"]
    command += ["--epochs=2", *options]
    code, _, err = run_cli(capsys, monkeypatch, *command)
    assert code == 0, err
    assert err.count("use the values 300 to 499: these become 0 and 255") == 1
    card = load("m.safetensors").card
    assert card is not None
    assert card.preprocessing.value_range == (300, 499)
    code, _, err = run_cli(capsys, monkeypatch, *command, "--resume")
    assert code == 0, err
    file = tmp_path / "bits" / "fine" / "0.tif"
    grey = open_image(file, "L", (300, 499))
    first, second = (predict("m.safetensors", x, device="cpu")[0] for x in (file, grey))
    assert first.probabilities == second.probabilities


def test_a_dark_image_is_said_once(tmp_path: Path) -> None:
    """A public model read 12 bits in 16 as black, without a word; 16 bits in full are usual."""
    grey = np.full((4, 4), 4095, np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "b.tif")
    (tmp_path / "c.png").write_bytes(png(np.full((4, 4, 3), 4095)))
    usual = Preprocessing(4, 4)
    for picture in (tmp_path / "a.png", tmp_path / "b.tif", tmp_path / "c.png", grey):
        name = str(picture) if isinstance(picture, Path) else "0"
        with pytest.warns(ResNeXtWarning, match="has only values below 16,384") as told:
            to_pixels(name, picture, usual)
        assert len(told) == 1
    to_pixels("0", grey * 16, usual)  # no warning, which would be an error
    ours = replace(usual, value_range=(0, 4095))
    assert (to_pixels("0", grey, ours) == 255).all()
    with pytest.warns(ResNeXtWarning, match="outside of the model's value_range"):
        to_pixels("0", grey * 16, ours)


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.int32])
def test_arrays_and_tensors_are_scaled_like_files(kind: Any) -> None:
    """Cameras and DICOM readers give arrays; they were refused, or would be black."""
    values = np.linspace(300, 499, 16).reshape(4, 4).astype(kind)
    preprocessing = Preprocessing(4, 4, value_range=(300, 499))
    wanted = np.rint((values.astype(float) - 300) * (255 / 199))
    for picture in (values, torch.from_numpy(values)[None], Image.fromarray(values.astype("i4"))):
        assert (to_pixels("0", picture, preprocessing) == wanted[..., None]).all()
    with pytest.raises(DataError, match=r"not ndarray of shape \(4, 4, 3\)"):
        to_pixels("0", np.stack([values] * 3, 2), preprocessing)


def test_sheets_are_not_black(tmp_path: Path) -> None:
    """The pictures in a sheet have the values that the model was given."""
    file = tmp_path / "a.png"
    Image.fromarray(np.full((8, 8), 499, np.uint16)).save(file)
    told = Prediction("a", ("x",), (1.0,))
    sheet = draw_sheet([file], [told], values=(300, 499))
    assert sheet.getpixel((60, 60)) == (255, 255, 255)
    with pytest.warns(ResNeXtWarning, match="almost black"):
        assert draw_sheet([file], [told]).getpixel((60, 60)) == (1, 1, 1)
