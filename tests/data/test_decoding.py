"""Image files: every kind is decoded upright, and what is damaged is refused."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sample_images import (
    BLUE,
    GREEN,
    KINDS,
    ORIENTATION,
    RED,
    STORED,
    WHOLE,
    encoded,
    png_that_claims,
)

from resnext.card import Preprocessing
from resnext.data.dataset import EXTENSIONS
from resnext.data.decoding import convert, open_image
from resnext.errors import DataError, ResNeXtWarning
from resnext.prediction.images import read_pixels

in_one_folder = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    """Phones store every photograph the same way round and say in EXIF how it was held."""
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16], upright[16:, :16], upright[:16, 32:] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"held{ending}"
    exact: dict[str, Any] = {"quality": 100, "subsampling": 0, "lossless": True}
    stored.save(path, exif=exif, **{k: v for k, v in exact.items() if ending != ".png"})
    image = open_image(path, "RGB")
    assert image.size == (48, 32)
    assert np.abs(np.asarray(image).astype(int) - upright).max() < 4
    assert image.getexif().get(ORIENTATION, 1) == 1  # or the next reader turns it once more


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", ["RGB", "BGR", "L"])
def test_every_kind_of_image_file(tmp_path: Path, kind: str, colour: str) -> None:
    """Folders from the web hold every kind; each has to end up as the colours one sees."""
    image, ending, wanted = KINDS[kind]
    path = tmp_path / f"image{ending}"
    options: dict[str, Any] = {"lossless": True} if ending == ".webp" else {}
    image.save(path, **options)
    got = open_image(path, colour)
    tolerance = 3 if ending == ".jpg" else 0
    wanted = np.asarray(wanted, dtype=float)
    if colour == "L":  # ITU-R 601-2
        wanted, tolerance = wanted @ (0.299, 0.587, 0.114), tolerance + 1
    assert got.mode == ("L" if colour == "L" else "RGB")
    assert np.asarray(got).shape == wanted.shape
    assert np.abs(np.asarray(got) - wanted).max() <= tolerance


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    """The last frame, or a mix of several, is not what a viewer shows as thumbnail."""
    frames = [Image.new("RGB", (6, 4), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    assert np.array_equal(
        np.asarray(open_image(tmp_path / "a.gif", "RGB")), np.full((4, 6, 3), RED)
    )


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        (Image.fromarray(np.full((1, 1), 0x4567, np.int32)), 0x45),
        (Image.frombytes("I;16B", (1, 1), b"\x81\x02"), 0x81),
        (Image.new("1", (1, 1), 1), 255),
        (Image.new("LA", (1, 1), (9, 0)), 9),
    ],
    ids=lambda x: x.mode if isinstance(x, Image.Image) else "",
)
def test_convert(image: Image.Image, wanted: int) -> None:
    """Pillow alone clips 16-bit grey at 255: almost every pixel becomes white."""
    assert convert(image, "L").getpixel((0, 0)) == wanted
    assert convert(image, "RGB").getpixel((0, 0)) == (wanted,) * 3


def refused(path: Path, problem: str) -> None:
    """Opening fails with one line that begins with the file's name."""
    with pytest.raises(DataError, match=problem) as caught:
        open_image(path, "RGB")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.jpg", b"", r"\(the file is empty\)"),
        ("pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("photo.jxl", b"\xff\x0a" + b"x" * 50, "JPEG XL"),
        ("text.jpg", b"Not an image, whatever its name says.\n" * 9, "not a readable image"),
        ("page.png", b"\n<!DOCTYPE html><title>404</title>", r"\(a web page\)"),
        ("half.jpg", encoded(".jpg")[:700], "truncated"),
        ("half.png", encoded(".png")[:700], "not a readable image"),
        ("bomb.png", png_that_claims(100_000, 100_000), "decompression bomb"),
        ("flat.png", png_that_claims(0, 5), "not a readable image"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    """One bad file among ten thousand must be named, in a line that can be read."""
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, problem)


def test_bombs_are_refused_even_if_pillow_allows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notebooks often set Pillow's bound to None; 30 GB must still not be allocated."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(100_000, 100_000))
    refused(path, "decompression bombs")


def test_what_is_no_file(tmp_path: Path) -> None:
    """Missing files and folders have messages of their own, unlike damaged files."""
    refused(tmp_path / "missing.jpg", "no such file")
    refused(tmp_path, "is a folder")
    (tmp_path / "a.jpg").write_bytes(encoded(".jpg"))
    refused(tmp_path / "a.jpg" / "b.jpg", "not a readable image")


def opened(path: Path) -> Image.Image | str:
    """The image, or why it was refused, in one line that begins with the file's name."""
    try:
        return open_image(path, "RGB")
    except DataError as error:
        reason = str(error)
    assert reason.startswith(f"{path}: ")
    assert "\n" not in reason
    return reason


@pytest.mark.parametrize("name", WHOLE)
@in_one_folder
@given(data=st.data())
def test_a_file_cut_anywhere_is_whole_or_refused(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    """A truncated download must not be used for training as an image whose lower half is grey."""
    content, path = WHOLE[name], tmp_path / f"cut.{name}"
    path.write_bytes(content)
    whole = np.asarray(open_image(path, "RGB"))
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    got = opened(path)
    assert isinstance(got, str) or np.array_equal(np.asarray(got), whole)


@pytest.mark.parametrize("name", WHOLE)
@in_one_folder
@given(data=st.data())
def test_a_damaged_file_fails_in_one_way_only(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    """Pillow raises SyntaxError, struct.error and more, at which a data set's check would stop."""
    content = bytearray(WHOLE[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(
            st.integers(0, 255)
        )
    path = tmp_path / f"damaged.{name}"
    path.write_bytes(content)
    got = opened(path)
    assert isinstance(got, str) or got.mode == "RGB"


# -- random_view ------------------------------------------------------------------------------


def test_dark_16_bit_images_stay_dark(tmp_path: Path) -> None:
    """An image whose values all fit 8 bits was read unshifted, and became bright."""
    Image.fromarray(np.full((2, 2), 255, np.uint16)).save(tmp_path / "dark.png")
    with pytest.warns(ResNeXtWarning, match="almost black"):
        assert np.asarray(open_image(tmp_path / "dark.png", "L")).max() == 0


def test_floating_point_images_are_refused() -> None:
    """Values from 0 to 1 became black without a word."""
    with pytest.raises(DataError, match="floating-point"):
        convert(Image.new("F", (2, 2), 0.5), "RGB")


def test_formats_that_run_other_programs_are_refused(tmp_path: Path) -> None:
    """Pillow hands EPS to Ghostscript, which runs what the file says."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="not a readable image"):
        open_image(tmp_path / "a.jpg", "RGB")


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    checksum = zlib.crc32(kind + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + kind + content + checksum


LONG = zlib.compress(bytes(3_000_000))
METADATA = {
    "compressed text": chunk(b"zTXt", b"parameters\0\0" + LONG),
    "international text": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "colour profile": chunk(b"iCCP", b"screen\0\0" + LONG),
    "many texts": 70 * chunk(b"tEXt", b"note\0" + b"x" * 1_000_000),
}


@pytest.mark.parametrize("kind", METADATA)
@pytest.mark.parametrize("behind", [False, True])
def test_long_metadata_in_png(tmp_path: Path, kind: str, behind: bool) -> None:
    """Generators of images write their whole workflow into them, which Pillow refuses to read."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = Image.new("RGB", (48, 32), BLUE)
    image.paste(RED, (0, 0, 24, 32))
    image.save(tmp_path / "turned.png", exif=exif)
    whole = (tmp_path / "turned.png").read_bytes()
    cut = len(whole) - 12 if behind else 33  # before the end, or behind the header
    (tmp_path / "long.png").write_bytes(whole[:cut] + METADATA[kind] + whole[cut:])
    with (
        pytest.raises(ValueError, match=r"text chunks|MAX_TEXT_CHUNK"),
        Image.open(tmp_path / "long.png") as refused_by_pillow,
    ):
        refused_by_pillow.load()
    wanted = open_image(tmp_path / "turned.png", "RGB")
    got = open_image(tmp_path / "long.png", "RGB")
    assert np.array_equal(np.asarray(got), np.asarray(wanted))
    shape = Preprocessing(16, 16)
    assert np.array_equal(
        read_pixels(tmp_path / "long.png", shape), read_pixels(tmp_path / "turned.png", shape)
    )


def test_a_damaged_png_with_long_texts_is_refused(tmp_path: Path) -> None:
    """What is left without the text may be no image."""
    whole = encoded(".png")
    path = tmp_path / "cut.png"
    path.write_bytes(whole[:33] + METADATA["compressed text"] + whole[33:60])
    refused(path, "not a readable image")


@pytest.mark.parametrize("ending", [".heic", ".heif", ".hif", ".HEIC"])
def test_heif(tmp_path: Path, ending: str) -> None:
    """Phones take HEIC; it is read upright where pillow-heif is installed, as in `resnext[dev]`."""
    assert ending.lower() in EXTENSIONS, "the tests need pillow-heif: pip install 'resnext[dev]'"
    stored = Image.new("RGB", (48, 32), BLUE)
    stored.paste(RED, (0, 0, 24, 32))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored.save(tmp_path / f"a{ending}", format="HEIF", quality=95, exif=exif.tobytes())
    image = open_image(tmp_path / f"a{ending}", "RGB")
    assert image.size == (32, 48)
    colours = np.array([image.getpixel((16, 4)), image.getpixel((16, 44))])
    assert np.abs(colours - [RED, BLUE]).max() < 12
    (tmp_path / "named.jpg").write_bytes((tmp_path / f"a{ending}").read_bytes())
    assert np.array_equal(np.asarray(open_image(tmp_path / "named.jpg", "RGB")), np.asarray(image))


def test_heif_without_pillow_heif(tmp_path: Path) -> None:
    """It is an optional package; an import that fails must not take all other images away."""
    stored = Image.new("RGB", (48, 32), BLUE)
    stored.save(tmp_path / "a.heic", format="HEIF")
    stored.save(tmp_path / "b.png")
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from pathlib import Path\n"
        "from resnext.data.dataset import EXTENSIONS\n"
        "from resnext.data.decoding import open_image\n"
        "assert '.heic' not in EXTENSIONS and '.avif' in EXTENSIONS\n"
        "open_image(Path('b.png'), 'RGB')\n"
        "open_image(Path('a.heic'), 'RGB')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    wanted = 'a.heic: not a readable image (HEIF; pip install "resnext[heif]").'
    assert done.stderr.splitlines()[-1].endswith(wanted)


def test_other_names_of_jpeg(tmp_path: Path) -> None:
    """Browsers and cameras save JPEG as .jfif, .jpe, .pjpeg and .JPG."""
    assert {".jfif", ".jpe", ".jif", ".pjpeg", ".jpg"} <= EXTENSIONS
    (tmp_path / "a.pjpeg").write_bytes(encoded(".jpg"))
    (tmp_path / "a.jpg").write_bytes(encoded(".jpg"))
    images = [np.asarray(open_image(tmp_path / name, "RGB")) for name in ("a.pjpeg", "a.jpg")]
    assert np.array_equal(images[0], images[1])


ORIENTED = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (b"garbage!" * 4, False),
        (b"", False),
        (ORIENTED + b"\6\0\0\0\0\0\0\0", True),
        (b"Exif\0\0" + ORIENTED + b"\6\0\0\0\0\0\0\0", True),  # the header twice
        (ORIENTED.replace(b"\1\0\x12", b"\5\0\x12") + b"\6\0\0\0\x1a\1", True),  # cut
        (ORIENTED + b"\x09\0\0\0\0\0\0\0", False),  # no such orientation
    ],
)
def test_damaged_exif(tmp_path: Path, exif: bytes, turned: bool) -> None:
    """It decides only which side is up; the pixels are there."""
    image = Image.new("RGB", (48, 32), RED)
    image.save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif)
    size = (32, 48) if turned else (48, 32)
    assert open_image(tmp_path / "a.jpg", "RGB").size == size
    assert read_pixels(tmp_path / "a.jpg", Preprocessing(16, 16)).shape == (16, 16, 3)


def test_whole_images_with_more_behind_them_are_read(tmp_path: Path) -> None:
    """Web servers append to files; the image is complete."""
    (tmp_path / "a.jpg").write_bytes(encoded(".jpg") + b"<html>" * 10)
    (tmp_path / "b.jpg").write_bytes(encoded(".jpg"))
    images = [np.asarray(open_image(tmp_path / name, "RGB")) for name in ("a.jpg", "b.jpg")]
    assert np.array_equal(images[0], images[1])
