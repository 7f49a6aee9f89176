"""Preprocessing against torchvision's pipeline on Pillow images, decoding, augmentation."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles.originals import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from resnext.card import Preprocessing
from resnext.errors import DataError
from resnext.transforms import _random_box, augment, convert, open_image, prepare

T = torchvision.transforms
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
SIZES = [(256, 224), (224, 224), (235, 224), (33, 28), (20, 31), (17, 16), (8, 8), (1, 5)]
ORIENTATION = 0x112  # the EXIF tag
in_one_folder = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


pytestmark = pytest.mark.usefixtures("one_thread")


def theirs(image: Image.Image, how: Preprocessing) -> Tensor:
    """What torchvision makes of an image."""
    mode = T.InterpolationMode(how.interpolation)
    cut = T.Compose([T.Resize(how.resize, mode), T.CenterCrop(how.size), T.ToTensor()])
    x = cut(image)
    return T.Normalize(how.mean, how.std)(x.flip(0) if how.colour == "BGR" else x)


def noise(width: int, height: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Pixels in which no two rows or columns are alike."""
    shape = (height, width, 3) if channels == 3 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """china.jpg and flower.jpg."""
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


# -- prepare ----------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("resize", "size"), SIZES)
def test_photographs_are_prepared_as_torchvision_does(
    photographs: list[Image.Image], interpolation: Any, resize: int, size: int
) -> None:
    """Public weights lose accuracy silently if a filter, a crop or a rounding differs."""
    how = Preprocessing(size, resize, interpolation)
    for photograph in photographs:
        for image in (photograph, photograph.transpose(Image.Transpose.ROTATE_90)):
            assert torch.equal(prepare(image, how), theirs(image, how))


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    sizes=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    interpolation=st.sampled_from(FILTERS),
    colour=st.sampled_from(["RGB", "BGR", "L"]),
)
def test_any_size_is_prepared_as_torchvision_does(
    width: int, height: int, sizes: tuple[int, int], interpolation: Any, colour: Any
) -> None:
    """Odd sizes round a crop by half a pixel, and images smaller than it are padded."""
    numbers: Any = ((0.4,), (0.3,)) if colour == "L" else ((0.1, 0.4, 0.6), (0.2, 0.3, 0.5))
    how = Preprocessing(*sizes, interpolation, *numbers, colour)
    image = Image.fromarray(noise(width, height, channels=1 if colour == "L" else 3))
    assert torch.equal(prepare(image, how), theirs(image, how))


@pytest.mark.parametrize("size", [(2000, 3), (3, 2000), (1, 999), (777, 1), (1, 1)])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_very_long_images_are_prepared_as_torchvision_does(
    size: tuple[int, int], interpolation: Any
) -> None:
    """The longer side is cut off to an integer, not rounded: one pixel shifts the crop."""
    how = Preprocessing(24, 29, interpolation)
    image = Image.fromarray(noise(*size))
    assert torch.equal(prepare(image, how), theirs(image, how))


def test_preparing_leaves_the_image_and_the_card_alone() -> None:
    """Normalising in place would change the caller's pixels, and the second answer with them."""
    image = Image.fromarray(noise(16, 16))
    how, before = Preprocessing(16, 16), image.tobytes()
    first = prepare(image, how)
    first.zero_()
    assert image.tobytes() == before
    assert torch.equal(prepare(image, how), theirs(image, how))


def test_an_image_too_long_to_resize_is_refused() -> None:
    """3,000,000 × 1 pixels are 3 MB on disk and 600 GB once their shorter side is 256."""
    how = Preprocessing(224, 256, mean=(0.5,), std=(0.5,), colour="L")
    with pytest.raises(DataError, match="3000000×1"):
        prepare(Image.new("L", (3_000_000, 1)), how)


# -- open_image -------------------------------------------------------------------------------

STORED = {  # where the visual top left corner lies, by EXIF 2.32, table 6: upright → as stored
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[:, ::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[::-1].swapaxes(0, 1),
}


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
    exact = {"quality": 100, "subsampling": 0, "lossless": True}
    stored.save(path, exif=exif, **{k: v for k, v in exact.items() if ending != ".png"})
    image = open_image(path, "RGB")
    assert image.size == (48, 32)
    assert np.abs(np.asarray(image).astype(int) - upright).max() < 4
    assert image.getexif().get(ORIENTATION, 1) == 1  # or the next reader turns it once more


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def cmyk() -> tuple[Image.Image, str, Any]:
    """White, cyan, black and red fields of 16 pixels."""
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255), (0, 255, 255, 0)]
    pixels = np.repeat(np.repeat(np.array([inks], np.uint8), 16, 0), 16, 1)
    wanted = np.repeat(np.repeat(np.array([[WHITE, (0, 255, 255), BLACK, RED]]), 16, 0), 16, 1)
    return Image.frombytes("CMYK", (64, 16), pixels.tobytes()), ".jpg", wanted


def palette(transparency: Any) -> tuple[Image.Image, str, Any]:
    """Four colours, one of them transparent."""
    image = Image.frombytes("P", (2, 2), bytes([0, 1, 2, 3]))
    image.putpalette([*RED, *GREEN, *BLUE, *WHITE])
    image.info["transparency"] = transparency
    return image, ".png", [[RED, GREEN], [BLUE, WHITE]]


def sixteen_bits() -> tuple[Image.Image, str, Any]:
    """Grey from black to white in 16 bits."""
    values = np.array([[0, 255, 256, 0x7FFF], [0x8000, 0xABCD, 0xFF00, 0xFFFF]], np.uint16)
    wanted = np.array([[0, 0, 1, 0x7F], [0x80, 0xAB, 0xFF, 0xFF]])
    return Image.fromarray(values), ".png", np.repeat(wanted[..., None], 3, 2)


def with_alpha() -> tuple[Image.Image, str, Any]:
    """Colours under an alpha that hides some of them."""
    pixels = np.array([[(*RED, 0), (*GREEN, 128), (*BLUE, 255)]], np.uint8)
    return Image.fromarray(pixels), ".png", [[RED, GREEN, BLUE]]


def one_bit() -> tuple[Image.Image, str, Any]:
    """Black and white."""
    return Image.fromarray(np.array([[True, False, True]])), ".png", [[WHITE, BLACK, WHITE]]


def grey_alpha() -> tuple[Image.Image, str, Any]:
    """Grey with an alpha channel."""
    image = Image.frombytes("LA", (3, 1), bytes([7, 0, 99, 255, 201, 3]))
    return image, ".png", [[(7,) * 3, (99,) * 3, (201,) * 3]]


def lossless(ending: str) -> tuple[Image.Image, str, Any]:
    """Noise in a format that keeps it."""
    return Image.fromarray(noise(13, 7)), ending, noise(13, 7)


KINDS = {
    "cmyk.jpg": cmyk(),
    "palette, one transparent": palette(1),
    "palette, transparency in bytes": palette(bytes([255, 0, 128, 255])),
    "16 bits": sixteen_bits(),
    "RGBA": with_alpha(),
    "1 bit": one_bit(),
    "LA": grey_alpha(),
    **{ending: lossless(ending) for ending in (".webp", ".bmp", ".tif", ".ppm", ".png", ".tga")},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", ["RGB", "BGR", "L"])
def test_every_kind_of_image_file(tmp_path: Path, kind: str, colour: str) -> None:
    """Folders from the web hold every kind; each has to end up as the colours one sees."""
    image, ending, wanted = KINDS[kind]
    path = tmp_path / f"image{ending}"
    image.save(path, **({"lossless": True} if ending == ".webp" else {}))
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
    assert np.array_equal(open_image(tmp_path / "a.gif", "RGB"), np.full((4, 6, 3), RED))


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


def encoded(ending: str, **options: Any) -> bytes:
    """A small image file."""
    file = io.BytesIO()
    Image.fromarray(noise(24, 20)).save(file, Image.registered_extensions()[ending], **options)
    return file.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """The smallest PNG that says it has so many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def refused(path: Path, problem: str) -> None:
    """Opening fails with one line that begins with the file's name."""
    with pytest.raises(DataError, match=problem) as caught:
        open_image(path, "RGB")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.jpg", b"", "not a readable image"),
        ("text.jpg", b"Not an image, whatever its name says.\n" * 9, "not a readable image"),
        ("page.png", b"<!doctype html><title>404</title>", "not a readable image"),
        ("half.jpg", encoded(".jpg")[:700], "truncated"),
        ("half.png", encoded(".png")[:700], "not a readable image"),
        ("bomb.png", png_that_claims(100_000, 100_000), "not a readable image"),
        ("flat.png", png_that_claims(0, 5), "not a readable image"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    """One bad file among ten thousand must be named, in a line that can be read."""
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, problem)


def test_bombs_are_refused_even_where_pillow_is_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notebooks often set Pillow's bound to None; 30 GB must still not be allocated."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(100_000, 100_000))
    refused(path, "decompression bombs")


def test_what_is_no_file(tmp_path: Path) -> None:
    """Missing files and folders are told apart from damaged ones."""
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


WHOLE = {
    "jpg": encoded(".jpg"),
    "progressive.jpg": encoded(".jpg", progressive=True),
    "png": encoded(".png"),
    "gif": encoded(".gif"),
    "webp": encoded(".webp", lossless=True),
    "bmp": encoded(".bmp"),
    "tif": encoded(".tif"),
}


@pytest.mark.parametrize("name", WHOLE)
@in_one_folder
@given(data=st.data())
def test_a_file_cut_anywhere_is_whole_or_refused(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    """A broken download must not be learnt from as an image whose lower half is grey."""
    content, path = WHOLE[name], tmp_path / f"cut.{name}"
    path.write_bytes(content)
    whole = np.asarray(open_image(path, "RGB"))
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    got = opened(path)
    assert isinstance(got, str) or np.array_equal(got, whole)


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


# -- augment ----------------------------------------------------------------------------------


def chance(seed: int) -> np.random.Generator:
    """Where chance comes from."""
    return np.random.default_rng(seed)


PLAIN = Preprocessing(128, 128, "nearest", (0.0,) * 3, (1 / 255,) * 3)  # tensor = pixel values


def coordinates(width: int, height: int) -> Image.Image:
    """An image whose red is x and whose green is y, up to 128, so that none is lost."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8))


def box(x: Tensor) -> tuple[int, int, int, int]:
    """Which part of `coordinates` an augmented image shows: left, top, right, bottom."""
    red, green = x[0].round().int(), x[1].round().int()
    return int(red.min()), int(green.min()), int(red.max()) + 1, int(green.max()) + 1


def test_augmentation_is_decided_by_its_seed() -> None:
    """A run that cannot be repeated cannot be debugged; two alike draws augment nothing."""
    image, how = Image.fromarray(noise(40, 30)), Preprocessing(16, 18)
    draws = [augment(image, how, chance(seed)) for seed in range(20)]
    for seed, draw in enumerate(draws):
        assert torch.equal(draw, augment(image, how, chance(seed)))
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 20


@settings(max_examples=100, deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.integers(1, 40),
    interpolation=st.sampled_from(FILTERS),
    colour=st.sampled_from(["RGB", "BGR", "L"]),
    seed=st.integers(0, 2**32),
)
def test_augmented_images_are_what_the_network_takes(
    width: int, height: int, size: int, interpolation: Any, colour: Any, seed: int
) -> None:
    """Bicubic and Lanczos overshoot: without clipping, values no image has reach the network."""
    grey = colour == "L"
    numbers: Any = ((0.4,), (0.3,)) if grey else ((0.1, 0.4, 0.6), (0.2, 0.3, 0.5))
    how = Preprocessing(size, size, interpolation, *numbers, colour)
    image = Image.fromarray(noise(width, height, channels=1 if grey else 3))
    x = augment(image, how, chance(seed))
    assert x.shape == (1 if grey else 3, size, size)
    assert x.dtype == torch.float32
    for values, mean, std in zip(x, how.mean, how.std, strict=True):
        pixels = (values.double() * std + mean) * 255
        assert pixels.min() > -1e-3
        assert pixels.max() < 255 + 1e-3
        assert (pixels - pixels.round()).abs().max() < 1e-3


def test_bgr_is_rgb_the_other_way_round() -> None:
    """Weights from Caffe's time take blue first; swapping a second time would undo it."""
    image = Image.fromarray(noise(30, 30))
    how = Preprocessing(16, 16, mean=(0.0,) * 3, std=(1.0,) * 3)
    other = replace(how, colour="BGR")
    assert torch.equal(prepare(image, other), prepare(image, how).flip(0))
    mine, flipped = augment(image, how, chance(3)), augment(image, other, chance(3))
    assert torch.equal(flipped, mine.flip(0))


@settings(max_examples=60, deadline=None)
@given(st.integers(30, 128), st.floats(0.01, 1.0), st.integers(0, 2**32))
def test_smallest_part(side: int, min_area: float, seed: int) -> None:
    """A `min_area` that is ignored leaves parts in which nothing can be recognised."""
    x = augment(coordinates(side, side), PLAIN, chance(seed), min_area=min_area, flip=False)
    left, top, right, bottom = box(x)
    width, height = right - left, bottom - top
    rounding = 0.5 * (width + height) + 1
    assert width * height >= min_area * side * side - rounding
    assert 3 / 4 - 0.1 < width / height < 4 / 3 + 0.1


def test_parts_are_spread_over_area_and_place() -> None:
    """Parts that are always large, or always in a corner, teach less than they could."""
    boxes = np.array(
        [
            box(augment(coordinates(100, 100), PLAIN, chance(seed), min_area=0.1, flip=False))
            for seed in range(200)
        ]
    )
    left, top, right, bottom = boxes.T
    area = (right - left) * (bottom - top) / 100**2
    assert 0.1 - 0.02 < area.min() < 0.2
    assert 0.8 < area.max() <= 1
    for low, high in ((left, right), (top, bottom)):
        small = high - low < 80
        middle = (low / (100 - (high - low)).clip(1))[small]
        assert 0.4 < middle.mean() < 0.6
        assert middle.min() < 0.1
        assert middle.max() > 0.9


def test_mirrored_only_if_asked() -> None:
    """Mirrored letters and digits are other letters and digits, or none."""

    def mirrored(seed: int, *, flip: bool) -> bool:
        x = augment(coordinates(60, 60), PLAIN, chance(seed), flip=flip)
        assert (x[1].diff(dim=0) >= 0).all()  # never upside down
        rising = bool((x[0].diff(dim=1) >= 0).all())
        assert rising != bool((x[0].diff(dim=1) <= 0).all())
        return not rising

    assert not any(mirrored(seed, flip=False) for seed in range(60))
    assert 35 < sum(mirrored(seed, flip=True) for seed in range(100)) < 65


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 100_000),
    st.integers(1, 100_000),
    st.floats(1e-6, 1.0),
    st.integers(0, 2**32),
)
def test_parts_lie_inside_the_image(width: int, height: int, min_area: float, seed: int) -> None:
    """Pillow refuses a box that is empty or reaches over the edge, hours into a training."""
    left, top, right, bottom = _random_box(width, height, chance(seed), min_area)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize("size", [(900, 2), (2, 900), (1, 1), (5, 1)])
def test_very_long_images_give_their_middle(size: tuple[int, int]) -> None:
    """No part of a usual shape fits into them; stretching the whole image would be no image."""
    shape = Preprocessing(8, 8)
    assert augment(Image.fromarray(noise(*size)), shape, chance(0)).shape == (3, 8, 8)
    left, top, right, bottom = _random_box(*size, chance(0), 0.9)
    assert (right - left, bottom - top) == (min(size),) * 2
    assert abs(left + right - size[0]) <= 1
    assert abs(top + bottom - size[1]) <= 1


def test_dark_16_bit_images_stay_dark(tmp_path: Path) -> None:
    """An image whose values all fit 8 bits was read unshifted, and became bright."""
    Image.fromarray(np.full((2, 2), 255, np.uint16)).save(tmp_path / "dark.png")
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
