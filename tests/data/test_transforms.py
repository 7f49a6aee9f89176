"""Preprocessing against torchvision's pipeline on Pillow images, and random views."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.originals import sklearn, torchvision
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngInfo
from sample_images import (
    KINDS,
    ORIENTATION,
    STORED,
    WHOLE,
    encoded,
    noise,
    png_that_claims,
)
from torch import Tensor

from resnext.card import Preprocessing
from resnext.data.transforms import _random_box, prepare, random_view
from resnext.errors import DataError

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
SIZES = [(256, 224), (224, 224), (235, 224), (33, 28), (20, 31), (17, 16), (8, 8), (1, 5)]
pytestmark = pytest.mark.usefixtures("one_thread")


def theirs(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """What torchvision makes of an image."""
    steps = torchvision.transforms
    cut = steps.Compose(
        [
            steps.Resize(
                preprocessing.resize, steps.InterpolationMode(preprocessing.interpolation)
            ),
            steps.CenterCrop(preprocessing.size),
            steps.ToTensor(),
        ]
    )
    x: Any = cut(image)
    return steps.Normalize(preprocessing.mean, preprocessing.std)(
        x.flip(0) if preprocessing.colour == "BGR" else x
    )


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """china.jpg and flower.jpg."""
    return [Image.fromarray(pixels) for pixels in sklearn.datasets.load_sample_images().images]


# -- prepare ----------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("resize", "size"), SIZES)
def test_photographs_are_prepared_as_torchvision_does(
    photographs: list[Image.Image], interpolation: Any, resize: int, size: int
) -> None:
    """Public weights lose accuracy silently if a filter, a crop or a rounding differs."""
    preprocessing = Preprocessing(size, resize, interpolation)
    for photograph in photographs:
        for image in (photograph, photograph.transpose(Image.Transpose.ROTATE_90)):
            assert torch.equal(prepare(image, preprocessing), theirs(image, preprocessing))


@settings(max_examples=150)
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
    preprocessing = Preprocessing(*sizes, interpolation, numbers[0], numbers[1], colour)
    image = Image.fromarray(noise(width, height, channels=1 if colour == "L" else 3))
    assert torch.equal(prepare(image, preprocessing), theirs(image, preprocessing))


@pytest.mark.parametrize("size", [(2000, 3), (3, 2000), (1, 999), (777, 1), (1, 1)])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_very_long_images_are_prepared_as_torchvision_does(
    size: tuple[int, int], interpolation: Any
) -> None:
    """The longer side is cut off to an integer, not rounded: one pixel shifts the crop."""
    preprocessing = Preprocessing(24, 29, interpolation)
    image = Image.fromarray(noise(*size))
    assert torch.equal(prepare(image, preprocessing), theirs(image, preprocessing))


def test_preparing_leaves_the_image_and_the_card_alone() -> None:
    """Normalizing in place would change the caller's pixels, and the second answer with them."""
    image = Image.fromarray(noise(16, 16))
    preprocessing, before = Preprocessing(16, 16), image.tobytes()
    first = prepare(image, preprocessing)
    first.zero_()
    assert image.tobytes() == before
    assert torch.equal(prepare(image, preprocessing), theirs(image, preprocessing))


def test_an_image_too_long_to_resize_is_refused() -> None:
    """3,000,000 × 1 pixels are 3 MB on disk and 600 GB once their shorter side is 256."""
    preprocessing = Preprocessing(224, 256, mean=(0.5,), std=(0.5,), colour="L")
    with pytest.raises(DataError, match="3000000×1"):
        prepare(Image.new("L", (3_000_000, 1)), preprocessing)


# -- random_view ------------------------------------------------------------------------------


def generator(seed: int) -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(seed)


PLAIN = Preprocessing(128, 128, "nearest")


def view(
    image: Image.Image | np.ndarray, preprocessing: Preprocessing, seed: int, **options: Any
) -> Tensor:
    """A random view of pixels."""
    return random_view(np.asarray(image), "an image", preprocessing, generator(seed), **options)


def by_pillow(
    image: Image.Image, preprocessing: Preprocessing, seed: int, **options: Any
) -> np.ndarray:
    """The same part of it as Pillow cuts, resizes and mirrors it."""
    rng, min_area = generator(seed), options.pop("min_area", 0.08)
    part = image.crop(_random_box(*image.size, rng, min_area))
    x = part.resize(
        (preprocessing.size, preprocessing.size),
        Image.Resampling[preprocessing.interpolation.upper()],
    )
    mirrored = options.pop("flip", True) and rng.random() < 0.5
    pixels = np.array(x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else x)
    return pixels.reshape(preprocessing.size, preprocessing.size, -1)


def coordinates(width: int, height: int) -> Image.Image:
    """An image whose red is x and whose green is y, up to 128, so that none is lost."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8))


def box(x: Tensor) -> tuple[int, int, int, int]:
    """Which part of `coordinates` a view shows: left, top, right, bottom."""
    red, green = x[..., 0], x[..., 1]
    return int(red.min()), int(green.min()), int(red.max()) + 1, int(green.max()) + 1


def jpeg(image: Image.Image, **options: Any) -> bytes:
    """An image as a JPEG file of high quality."""
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 97, "subsampling": 0} | options)
    return file.getvalue()


def apart(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> np.ndarray:
    """How far the pixels of two images of the same shape are from each other."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b.astype(int))


def test_views_are_decided_by_their_seed() -> None:
    """A run that cannot be repeated cannot be debugged; two alike draws augment nothing."""
    image, preprocessing = noise(40, 30), Preprocessing(16, 18)
    for padding in (0, 4):
        draws = [view(image, preprocessing, seed, padding=padding) for seed in range(20)]
        for seed, draw in enumerate(draws):
            assert torch.equal(draw, view(image, preprocessing, seed, padding=padding))
        assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 20


@settings(max_examples=100)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.integers(1, 40),
    interpolation=st.sampled_from(FILTERS),
    colour=st.sampled_from(["RGB", "BGR", "L"]),
    seed=st.integers(0, 2**32),
)
def test_views_are_those_of_pillow(
    width: int, height: int, size: int, interpolation: Any, colour: Any, seed: int
) -> None:
    """What a network learns from is filtered as what it is measured with, and never overshoots."""
    grey = colour == "L"
    numbers: Any = ((0.4,), (0.3,)) if grey else ((0.1, 0.4, 0.6), (0.2, 0.3, 0.5))
    preprocessing = Preprocessing(size, size, interpolation, numbers[0], numbers[1], colour)
    image = Image.fromarray(noise(width, height, channels=1 if grey else 3))
    x = view(image, preprocessing, seed)
    assert x.dtype == torch.uint8
    wanted = by_pillow(
        image, preprocessing, seed
    )  # RGB also for BGR: the device turns whole batches
    difference = apart(x, wanted)
    # what a bicubic filter overshoots is cut off between its passes, here and there otherwise
    most = {"nearest": 0, "lanczos": 0, "bilinear": 3, "bicubic": 40}[interpolation]
    assert difference.max() <= most
    assert size < 8 or np.median(difference) <= 1


def test_a_view_does_not_share_memory_with_the_data_set() -> None:
    """Augmenting it in place would change the images that are held in memory."""
    for preprocessing in (Preprocessing(8, 8), Preprocessing(8, 8, "nearest")):
        for padding in (0, 1):
            pixels = noise(8, 8)
            before = pixels.copy()
            view(pixels, preprocessing, 0, min_area=1.0, padding=padding).zero_()
            assert np.array_equal(pixels, before)


@settings(max_examples=60)
@given(st.integers(30, 128), st.floats(0.01, 1.0), st.integers(0, 2**32))
def test_smallest_part(side: int, min_area: float, seed: int) -> None:
    """A `min_area` that is ignored leaves parts in which nothing can be recognised."""
    x = view(coordinates(side, side), PLAIN, seed, min_area=min_area, flip=False)
    left, top, right, bottom = box(x)
    width, height = right - left, bottom - top
    rounding = 0.5 * (width + height) + 1
    assert width * height >= min_area * side * side - rounding
    assert 3 / 4 - 0.1 < width / height < 4 / 3 + 0.1


def test_parts_are_spread_over_area_and_place() -> None:
    """Parts that are always large, or always in a corner, teach less than they could."""
    image = coordinates(100, 100)
    boxes = np.array(
        [box(view(image, PLAIN, seed, min_area=0.1, flip=False)) for seed in range(200)]
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


@pytest.mark.parametrize("padding", [0, 3])
def test_mirrored_only_if_asked(padding: int) -> None:
    """Mirrored letters and digits are other letters and digits, or none."""

    def mirrored(seed: int, *, flip: bool) -> bool:
        preprocessing = PLAIN if padding == 0 else replace(PLAIN, size=60)
        x = view(coordinates(60, 60), preprocessing, seed, flip=flip, padding=padding).int()
        x = x[padding : len(x) - padding, padding : len(x) - padding]  # without the rim
        inside = x[2 * padding :, 2 * padding :] if padding else x
        assert (inside[..., 1].diff(dim=0) >= 0).all()  # never upside down
        rising = bool((inside[..., 0].diff(dim=1) >= 0).all())
        assert rising != bool((inside[..., 0].diff(dim=1) <= 0).all())
        return not rising

    assert not any(mirrored(seed, flip=False) for seed in range(60))
    assert 35 < sum(mirrored(seed, flip=True) for seed in range(100)) < 65


@pytest.mark.parametrize("colour", ["RGB", "L"])
def test_padding_only_shifts(colour: Any) -> None:
    """CIFAR's recipe shifts by up to four pixels; a crop besides would be another recipe."""
    channels = 1 if colour == "L" else 3
    pixels = noise(9, 9, channels=channels) | 1  # so that only the rim is black
    numbers: Any = ((0.5,), (0.5,)) if colour == "L" else ((0.5,) * 3, (0.5,) * 3)
    preprocessing = Preprocessing(9, 9, "bilinear", numbers[0], numbers[1], colour)
    whole = torch.from_numpy(pixels).reshape(9, 9, channels)
    shifted: dict[tuple[int, int], Tensor] = {}
    for down in range(-2, 3):
        for right in range(-2, 3):
            moved = torch.zeros_like(whole)
            for i in range(9):
                for j in range(9):
                    if 0 <= i - down < 9 and 0 <= j - right < 9:
                        moved[i, j] = whole[i - down, j - right]
            shifted[down, right] = moved
    seen = set()
    for seed in range(250):
        x = view(pixels, preprocessing, seed, padding=2, flip=False, min_area=0.01)
        found = [shift for shift, wanted in shifted.items() if torch.equal(x, wanted)]
        assert len(found) == 1
        seen.add(found[0])
    assert seen == set(shifted)


def test_padding_shows_the_whole_image_at_the_size_of_the_network(
    photographs: list[Image.Image],
) -> None:
    """A photograph that is not resized first would be a corner of itself."""
    preprocessing = Preprocessing(32, 32)
    small = np.asarray(photographs[0].resize((32, 32), Image.Resampling.BILINEAR))
    rim = np.pad(small, ((1, 1), (1, 1), (0, 0)))
    crops = [rim[i : i + 32, j : j + 32] for i in range(3) for j in range(3)]
    x = random_view(
        png(photographs[0]), "china", preprocessing, generator(5), padding=1, flip=False
    )
    assert any(np.array_equal(x, crop) for crop in crops)


def png(image: Image.Image, **options: Any) -> bytes:
    """An image as a file that loses nothing."""
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_photographs_are_seen_as_pillow_shows_them(
    photographs: list[Image.Image], fast: bool, subsampling: int
) -> None:
    """Decoding at a reduced size must not move, blur or tint training images."""
    preprocessing, grown = Preprocessing(64, 64), (1024, 640)
    for photograph in photographs:
        data = jpeg(photograph.resize(grown, Image.Resampling.BICUBIC), subsampling=subsampling)
        whole = Image.open(io.BytesIO(data))
        for seed in range(6):
            x = random_view(data, "photograph", preprocessing, generator(seed), fast=fast)
            wanted = by_pillow(whole, preprocessing, seed)
            moved = {
                shift: apart(np.roll(x, shift, (0, 1)), wanted)[1:-1, 1:-1].mean()
                for shift in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
            }
            assert min(moved, key=lambda shift: moved[shift]) == (0, 0)
            assert moved[0, 0] < 8  # the box is rounded to pixels of the reduced image
            assert apart(x.float().mean((0, 1)), wanted.mean((0, 1))).max() <= 3


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("size", [(1024, 640), (1021, 643), (643, 1021)])
def test_parts_of_reduced_images_lie_where_they_should(size: tuple[int, int], fast: bool) -> None:
    """A box scaled by the wrong factor shows another part, and nothing else would reveal it."""
    y, x = np.mgrid[: size[1], : size[0]]
    ramps = np.stack([x / size[0], y / size[1], 0 * x], 2) * 255
    image = Image.fromarray(ramps.astype(np.uint8))
    data, preprocessing = jpeg(image), Preprocessing(40, 40)
    for seed in range(15):
        got = random_view(data, "ramps", preprocessing, generator(seed), fast=fast, min_area=0.02)
        # half a pixel of an image reduced to an eighth is four pixels, of 2.5 to a level
        assert apart(got, by_pillow(image, preprocessing, seed, min_area=0.02)).max() <= 5


def test_an_array_a_png_and_a_jpeg_of_full_size_are_the_same_view(
    photographs: list[Image.Image],
) -> None:
    """Where an image is kept must not change which part of it is seen."""
    preprocessing, image = Preprocessing(224, 224), photographs[1].resize((300, 260))
    file = jpeg(image)
    decoded = Image.open(io.BytesIO(file)).convert("RGB")
    for seed in range(4):
        wanted = view(decoded, preprocessing, seed)
        assert torch.equal(random_view(png(decoded), "png", preprocessing, generator(seed)), wanted)
        assert torch.equal(random_view(file, "jpeg", preprocessing, generator(seed)), wanted)


@pytest.mark.parametrize("size", [32, 100, 224])
def test_no_more_is_decoded_than_the_part_needs_and_no_less(
    photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Too little blurs training images; too much dominates the time of a run."""
    image = photographs[0].resize((1600, 1280))
    data, preprocessing = jpeg(image), Preprocessing(size, size)
    decoded: list[tuple[int, int]] = []
    original = JpegImageFile.draft

    def draft(self: JpegImageFile, *arguments: Any) -> Any:
        result = original(self, *arguments)
        decoded.append(self.size)
        return result

    monkeypatch.setattr(JpegImageFile, "draft", draft)
    factors = set()
    for seed in range(25):
        random_view(data, "photograph", preprocessing, generator(seed), min_area=0.02)
        left, top, right, bottom = _random_box(1600, 1280, generator(seed), 0.02)
        factor = 1600 // decoded[-1][0]
        assert decoded[-1] == (1600 // factor, 1280 // factor)
        side = min(right - left, bottom - top)
        assert factor == 1 or side / factor >= size
        assert factor == 8 or side / (2 * factor) < size
        factors.add(factor)
    assert len(decoded) == 25
    assert factors == {32: {8}, 100: {4, 8}, 224: {1, 2, 4}}[size]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("orientation", STORED)
def test_views_are_upright(orientation: int, fast: bool) -> None:
    """Phones store every photograph the same way round; a quick decoder ignores EXIF."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    upright = np.asarray(smooth.resize((96, 64), Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    preprocessing = Preprocessing(16, 16)
    for seed in range(5):
        x = random_view(jpeg(stored, exif=exif), "held", preprocessing, generator(seed), fast=fast)
        reduced = 25 if orientation == 1 else 12  # what lies upright may be decoded at a half
        assert apart(x, view(upright, preprocessing, seed)).max() < reduced


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", ["RGB", "BGR", "L"])
def test_every_kind_of_file_has_views(kind: str, colour: Any, fast: bool) -> None:
    """A palette's indices, inks or 16 bits taken for colours teach nonsense without a word."""
    image, ending, wanted = KINDS[kind]
    file = io.BytesIO()
    options = {"lossless": True} if ending == ".webp" else {}
    image.save(file, Image.registered_extensions()[ending], **options)
    colours = np.broadcast_to(np.asarray(wanted, dtype=np.uint8), (*np.shape(wanted)[:2], 3))
    grey = colour == "L"
    numbers: Any = ((0.5,), (0.5,)) if grey else ((0.5,) * 3, (0.5,) * 3)
    preprocessing = Preprocessing(6, 6, "nearest", numbers[0], numbers[1], colour)
    for seed in range(3):
        x = random_view(file.getvalue(), kind, preprocessing, generator(seed), fast=fast)
        whole = Image.fromarray(colours).convert("L") if grey else Image.fromarray(colours)
        assert apart(x, by_pillow(whole, preprocessing, seed)).max() <= (
            4 if ending == ".jpg" else 1
        )


@pytest.mark.parametrize("fast", [False, True])
def test_grey_and_colour_meet(fast: bool) -> None:
    """A grey JPEG among colour ones, or colour ones for a grey network, gave another shape."""
    rng = np.random.default_rng(1)
    smooth = Image.fromarray(rng.integers(0, 256, (3, 3), dtype=np.uint8)).resize((40, 40))
    colour, grey = Preprocessing(12, 12), Preprocessing(12, 12, "bilinear", (0.5,), (0.5,), "L")
    x = random_view(jpeg(smooth, subsampling=-1), "grey", colour, generator(0), fast=fast)
    wanted = view(smooth.convert("RGB"), colour, 0)
    assert apart(x, wanted).max() < 6
    x = random_view(jpeg(smooth.convert("RGB")), "colour", grey, generator(0), fast=fast)
    assert apart(x, view(smooth, grey, 0)).max() < 6


@pytest.mark.parametrize("fast", [False, True])
def test_fast_is_close_to_exact(photographs: list[Image.Image], fast: bool) -> None:
    """A run that was started on another machine would otherwise see other images."""
    preprocessing = Preprocessing(48, 48)
    for size, close in (((640, 424), 1), ((1000, 1600), 1), ((333, 501), 8)):
        data = jpeg(photographs[1].resize(size, Image.Resampling.BICUBIC))
        for seed in range(5):
            exact = random_view(data, "flower", preprocessing, generator(seed), fast=False)
            x = random_view(data, "flower", preprocessing, generator(seed), fast=fast)
            assert apart(x, exact).mean() <= (close if fast else 0)


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a readable image"),
        (b"<!doctype html><title>404</title>", "not a readable image"),
        (encoded(".jpg")[:700], "not a readable image"),
        (encoded(".jpg", progressive=True)[:700], "not a readable image"),
        (encoded(".png")[:700], "not a readable image"),
        (png_that_claims(100_000, 100_000), "decompression bomb"),
        (png_that_claims(0, 5), "not a readable image"),
    ],
    ids=["empty", "text", "jpeg", "progressive", "png", "bomb", "flat"],
)
def test_files_without_views(content: bytes, problem: str, fast: bool, padding: int) -> None:
    """A file damaged during a run must be reported by name, or the run ends with a riddle."""
    with pytest.raises(DataError, match=problem) as caught:
        random_view(
            content, "a/b.jpg", Preprocessing(4, 4), generator(0), fast=fast, padding=padding
        )
    assert str(caught.value).startswith("a/b.jpg: ")
    assert "\n" not in str(caught.value)


def test_bombs_have_no_views_even_if_pillow_allows_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Workers that decode 30 GB are killed, and no message names the image."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DataError, match="decompression bombs"):
        random_view(png_that_claims(100_000, 100_000), "b", Preprocessing(4, 4), generator(0))


@pytest.mark.parametrize("fast", [False, True])
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_jpeg_has_a_view_or_is_refused(fast: bool, data: st.DataObject) -> None:
    """Decoders raise almost anything; anything but a DataError ends the run."""
    content = bytearray(WHOLE["jpg"])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    try:
        x = random_view(bytes(content), "c.jpg", Preprocessing(5, 5), generator(0), fast=fast)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017 (a view is as good)
    else:
        assert x.shape == (5, 5, 3)


@settings(max_examples=300)
@given(
    st.integers(1, 100_000),
    st.integers(1, 100_000),
    st.floats(1e-6, 1.0),
    st.integers(0, 2**32),
)
def test_parts_lie_inside_the_image(width: int, height: int, min_area: float, seed: int) -> None:
    """Pillow refuses a box that is empty or reaches over the edge, hours into a training."""
    left, top, right, bottom = _random_box(width, height, generator(seed), min_area)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize("size", [(900, 2), (2, 900), (1, 1), (5, 1)])
def test_very_long_images_give_their_middle(size: tuple[int, int]) -> None:
    """No part of a usual shape fits into them; stretching the whole image would be no image."""
    preprocessing, image = Preprocessing(8, 8), Image.fromarray(noise(*size))
    assert (
        apart(
            view(image, preprocessing, 0, min_area=0.9),
            by_pillow(image, preprocessing, 0, min_area=0.9),
        ).max()
        < 3
    )
    left, top, right, bottom = _random_box(*size, generator(0), 0.9)
    assert (right - left, bottom - top) == (min(size),) * 2
    assert abs(left + right - size[0]) <= 1
    assert abs(top + bottom - size[1]) <= 1


@pytest.mark.parametrize("padding", [0, 2])
def test_a_png_with_long_texts_has_the_view_of_one_without(padding: int) -> None:
    """The scan reads it, so training must, with the same random numbers."""
    plain, long, info = io.BytesIO(), io.BytesIO(), PngInfo()
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    image.save(plain, "PNG")
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    image.save(long, "PNG", pnginfo=info)
    preprocessing = Preprocessing(16, 16)
    views = [
        random_view(file.getvalue(), "a", preprocessing, generator(3), padding=padding)
        for file in (plain, long)
    ]
    assert torch.equal(views[0], views[1])
