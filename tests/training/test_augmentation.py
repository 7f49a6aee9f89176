"""Augmentation of batches against `transforms.normalize`, torchvision's operations and counts."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.originals import sklearn, torchvision
from PIL import Image
from torch import Tensor

from resnext.card import Preprocessing
from resnext.data.transforms import normalize
from resnext.errors import ConfigError, InputError
from resnext.training.augmentation import _OPERATIONS, Augment, Augmentation, _Policy, plain

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EVERYTHING = Augmentation("rand", erasing=0.5, mixup=0.2, cutmix=1.0, label_smoothing=0.1)
WAYS = [
    Augmentation(),
    Augmentation("rand"),
    Augmentation("trivial"),
    Augmentation(erasing=1.0),
    Augmentation(mixup=0.8),
    Augmentation(cutmix=1.0),
    EVERYTHING,
]
NAMES = {  # ours: torchvision's
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "colour": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(n: int, height: int = 16, width: int = 16, channels: int = 3) -> Tensor:
    """Pixels of which no two images share any pattern."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, height, width, channels), np.uint8)
    return torch.from_numpy(pixels)


def build(how: Augmentation, classes: int = 10, **changes: Any) -> Augment:
    return Augment(how, **{"num_classes": classes, "mean": MEAN, "std": STD} | changes)


def raw(how: Augmentation, classes: int = 10) -> Augment:
    """Without normalisation, so that results are readable as shares of 255."""
    return build(how, classes, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def flat(n: int, height: int, width: int) -> Tensor:
    """Image i is white in the share i/(n-1), so a mean tells where pixels come from."""
    grey = torch.linspace(0, 255, n).round().to(torch.uint8)
    return grey.view(n, 1, 1, 1).expand(n, height, width, 3)


# -- normalisation --------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["RGB", "BGR", "L"])
def test_plain_and_no_augmentation_are_normalize_to_the_last_bit(colour: Any) -> None:
    """Training on a fused form and predicting on another would be a silent difference."""
    c = 1 if colour == "L" else 3
    how = Preprocessing(resize=16, size=16, mean=MEAN[:c], std=STD[:c], colour=colour)
    images = noise(4, 256, 9, c)
    expected = torch.stack(
        [normalize(Image.fromarray(x.numpy().squeeze()), how) for x in images]  # (h, w) if grey
    )
    assert torch.equal(plain(images, MEAN[:c], STD[:c], colour), expected)
    augment = build(Augmentation(), mean=MEAN[:c], std=STD[:c], colour=colour)
    x, _ = augment(images, torch.arange(4), 0)
    assert torch.equal(x, expected)


def test_images_are_not_changed_in_place() -> None:
    """A loader may hand out a view of its cache."""
    images = noise(5)
    before = images.clone()
    build(EVERYTHING)(images, torch.arange(5), 1)
    assert torch.equal(images, before)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_targets_are_smoothed_one_hot(epsilon: float) -> None:
    """Sharing epsilon among the k-1 other classes, as some do, trains to another optimum."""
    _, soft = build(Augmentation(label_smoothing=epsilon))(noise(3), torch.tensor([2, 0, 9]), 0)
    one_hot = torch.nn.functional.one_hot(torch.tensor([2, 0, 9]), 10)
    assert torch.allclose(soft, (1 - epsilon) * one_hot + epsilon / 10, atol=1e-7)
    assert epsilon > 0 or torch.equal(soft, one_hot.float())


# -- chance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_the_seed_alone_decides(how: Augmentation) -> None:
    """A library that draws from the global generator makes runs depend on what ran before."""
    images, targets, augment = noise(9), torch.arange(9), build(how)
    torch.manual_seed(1)
    first = augment(images, targets, 7)
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]
    augment(images, targets, 8)
    again = build(how)(images, targets, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2]["key"], np.random.get_state(legacy=False)["state"]["key"])
    if how != Augmentation():
        assert not torch.equal(first[0], augment(images, targets, 8)[0])


def test_results_depend_on_no_setting_of_types() -> None:
    """float64 as default, autocast of a training loop, or int32 labels must not leak in."""
    images, targets, augment = noise(12, 20, 20), torch.arange(12) % 10, build(EVERYTHING)
    x, soft = augment(images, targets, 3)
    torch.set_default_dtype(torch.float64)
    try:
        double = build(EVERYTHING)(images, targets.int(), 3)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = augment(images, targets, 3)
    for a, b in (double, half):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, x)
        assert torch.equal(b, soft)


# -- policies -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """A part of china.jpg with a bright sky and dark eaves."""
    return Image.fromarray(sklearn.datasets.load_sample_images().images[0][60:156, 100:220])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("policy", ["rand", "trivial"])
@pytest.mark.parametrize(("m", "sign"), [(0, 1), (9, -1), (9, 1), (30, 1), (30, -1)])
def test_operations_are_torchvisions(
    photograph: Image.Image, policy: str, name: str, m: int, sign: int
) -> None:
    """kornia's own policies shear by 54° where the paper has 17°, and add brightness.

    Bytes differ by rounding; after a warp also at the border of what is black, by a line.
    """
    theirs: Any = torchvision.transforms.autoaugment
    maker = theirs.RandAugment() if policy == "rand" else theirs.TrivialAugmentWide()
    size = (photograph.height, photograph.width)
    space = (
        maker._augmentation_space(31, size) if policy == "rand" else maker._augmentation_space(31)
    )
    table, signed = space[NAMES[name]]
    value = float(table[m]) if table.ndim else 0.0
    bilinear = torchvision.transforms.InterpolationMode.BILINEAR
    value *= sign if signed else 1
    if name == "solarize":
        value *= 256 / 255  # theirs inverts white even at 0
    out = np.asarray(theirs._apply_op(photograph, NAMES[name], value, bilinear, None))
    expected = torch.tensor(out).permute(2, 0, 1).float()

    x = torch.tensor(np.asarray(photograph)).permute(2, 0, 1)[None].float() / 255
    ours = _run(_Policy(Augmentation(policy)), x, name, m / 30 * sign)
    difference = (ours[0] * 255 - expected).abs()
    if name.startswith(("shear", "rotate")):
        assert difference.mean() < 1.5
        assert (difference > 3).float().mean() < 0.03
    else:
        assert difference.max() < 2


def _run(policy: _Policy, x: Tensor, name: str, level: float) -> Tensor:
    """One operation on all images."""

    def drawn(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return np.full((1, n), _OPERATIONS.index(name)), np.full((1, n), level)

    policy.draw = drawn
    return policy(x.clone(), np.random.default_rng(0))


def test_images_of_a_batch_get_operations_of_their_own() -> None:
    """kornia's RandAugment draws once for the whole batch, which makes batches uniform."""
    one = noise(1, 24, 24).expand(64, -1, -1, -1)
    x, _ = build(Augmentation("rand"))(one, torch.zeros(64, dtype=torch.int64), 0)
    assert len(torch.unique(x.flatten(1), dim=0)) > 48
    choices, levels = _Policy(Augmentation("rand", operations=3)).draw(
        7000, np.random.default_rng(0)
    )
    assert choices.shape == levels.shape == (3, 7000)
    counts = np.bincount(choices.ravel(), minlength=len(_OPERATIONS))
    assert abs(counts - 1500).max() < 5 * 1500**0.5
    assert set(levels.ravel()) == {-0.3, 0.3}
    _, levels = _Policy(Augmentation("trivial")).draw(7000, np.random.default_rng(0))
    assert len(set(abs(levels).ravel())) == 31


def test_a_group_of_images_is_changed_like_each_alone(photograph: Image.Image) -> None:
    """Results must go back to the images they came from."""
    policy = _Policy(Augmentation("trivial"))
    pixels = torch.tensor(np.asarray(photograph)).permute(2, 0, 1).float() / 255
    x = torch.stack([pixels.roll(7 * k, 2) for k in range(40)])
    choices, levels = policy.draw(40, np.random.default_rng(5))
    together = policy(x.clone(), np.random.default_rng(5))
    for k, (choice, level) in enumerate(zip(choices[0], levels[0], strict=True)):
        alone = _run(_Policy(Augmentation("trivial")), x[k : k + 1], _OPERATIONS[choice], level)
        assert torch.allclose(together[k], alone[0], atol=1e-5), _OPERATIONS[choice]


def test_magnitude_zero_changes_only_by_operations_without_magnitude() -> None:
    """kornia refuses magnitude 0, and its contrast starts at 0.1 there."""
    images = noise(64, 12, 12)
    how = Augmentation("rand", operations=2, magnitude=0)
    x, _ = build(how)(images, torch.zeros(64, dtype=torch.int64), 4)
    choices, _ = _Policy(how).draw(64, np.random.default_rng(4))
    still: Any = (choices < _OPERATIONS.index("autocontrast")).all(0)
    assert 0.5 < still.mean() < 0.9
    assert torch.allclose(x[still], plain(images, MEAN, STD)[still], atol=1e-3)


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_values_stay_those_of_images(how: Augmentation, channels: int) -> None:
    """An overflow at strong magnitudes, or a colour operation on grey images, would show here."""
    mean, std = MEAN[:channels], STD[:channels]
    augment = build(how, mean=mean, std=std)
    for seed in range(3):
        x, soft = augment(noise(33, 14, 10, channels), torch.arange(33) % 10, seed)
        low = -torch.tensor(mean) / torch.tensor(std)
        high = (1 - torch.tensor(mean)) / torch.tensor(std)
        assert x.shape == (33, channels, 14, 10)
        assert torch.isfinite(x).all()
        assert (x.amin((0, 2, 3)) >= low - 1e-5).all()
        assert (x.amax((0, 2, 3)) <= high + 1e-5).all()
        assert torch.allclose(soft.sum(1), torch.ones(33), atol=1e-6)


def test_flat_images_survive_autocontrast() -> None:
    """kornia's normalisation makes a blank image black; Pillow leaves it."""
    x = torch.full((2, 3, 5, 5), 0.5)
    assert torch.equal(_run(_Policy(Augmentation("rand")), x, "autocontrast", 1.0), x)


@pytest.mark.parametrize("name", _OPERATIONS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (5, 2)])
def test_every_operation_takes_tiny_images(name: str, height: int, width: int) -> None:
    """A 3×3 filter, or a division by size - 1, fails only when chance picks it."""
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    out = _run(_Policy(Augmentation("trivial")), x, name, 0.5)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()


# -- erasing --------------------------------------------------------------------------------------


def test_erasing_has_the_rate_area_and_shape_of_the_paper() -> None:
    """Rectangles of 0 after normalisation, and nothing else, 2 to 33 % of an image."""
    images = torch.full((2000, 40, 60, 3), 255, dtype=torch.uint8)
    targets = torch.zeros(2000, dtype=torch.int64)
    x, _ = build(Augmentation(erasing=0.25))(images, targets, 0)
    gone = x == 0
    assert torch.equal(gone.any(1), gone.all(1))
    gone = gone[:, 0]
    hit = gone.flatten(1).any(1)
    assert abs(hit.float().mean() - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    area = gone[hit].sum((1, 2)).float()
    height, width = gone[hit].any(2).sum(1), gone[hit].any(1).sum(1)
    assert torch.equal(area, (height * width).float())
    share = area / 2400
    assert 0.015 < share.min() < 0.05
    assert 0.28 < share.max() < 0.35
    assert abs(share.mean() - 0.175) < 0.02
    ratio = height / width
    assert 0.25 < ratio.min() < 0.5
    assert 2 < ratio.max() < 4
    assert gone.any(0).any(0).all()
    assert gone.any(0).any(1).all()
    assert torch.equal(x[~hit], plain(images[~hit], MEAN, STD))


def test_images_too_narrow_for_a_rectangle_stay_whole() -> None:
    """Where none of ten rectangles fits, one that covers the whole image must not be taken."""
    x, _ = build(Augmentation(erasing=1.0))(noise(50, 1, 9), torch.zeros(50).long(), 0)
    assert torch.equal(x, plain(noise(50, 1, 9), MEAN, STD))


# -- mixup and cutmix -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", [Augmentation(mixup=0.8), Augmentation(cutmix=1.0)], ids=str)
@pytest.mark.parametrize(("n", "height", "width"), [(1, 8, 8), (2, 7, 9), (5, 13, 4), (8, 32, 32)])
def test_targets_are_shares_of_pixels(how: Augmentation, n: int, height: int, width: int) -> None:
    """Lambda from the beta distribution is not the area of a box that the border cut off."""
    augment = raw(how, n)
    images = flat(n, height, width)
    values = images[:, 0, 0, 0].double() / 255
    shares = []
    for seed in range(20):
        x, soft = augment(images, torch.arange(n), seed)
        assert torch.allclose(x.double().mean((1, 2, 3)), soft.double() @ values, atol=1e-6)
        assert torch.allclose(soft.sum(1), torch.ones(n), atol=1e-6)
        partner = torch.eye(n).flip(0) + torch.eye(n)
        assert (soft[partner == 0] == 0).all()
        if how.cutmix:
            assert all(value in images.float().div(255) for value in x.unique())
        shares.append(float(soft[0, 0]))
    assert (len(set(shares)) > 5) == (n > 1)


def test_switch_and_mix_probability() -> None:
    """Which way a batch is mixed, counted: black and white stay so under cutmix."""
    images, targets = flat(2, 16, 16), torch.arange(2)
    augment = raw(
        Augmentation(mixup=1.0, cutmix=1.0, mix_probability=0.6, switch_probability=0.25), 2
    )
    counts = {"none": 0, "mixup": 0, "cutmix": 0}
    for seed in range(400):
        x, soft = augment(images, targets, seed)
        if torch.equal(soft, torch.eye(2)):
            counts["none"] += 1
        else:
            counts["cutmix" if set(x.unique().tolist()) == {0.0, 1.0} else "mixup"] += 1
    assert abs(counts["none"] - 160) < 40
    assert abs(counts["mixup"] - 180) < 40
    assert abs(counts["cutmix"] - 60) < 30


def test_a_single_image_is_only_mixed_with_itself() -> None:
    """Rounding of lambda and 1 - lambda would change it."""
    for how in (Augmentation(mixup=1.0), Augmentation(cutmix=1.0)):
        x, soft = build(how)(noise(1), torch.tensor([3]), 0)
        assert torch.equal(x, plain(noise(1), MEAN, STD))
        assert torch.equal(soft, torch.nn.functional.one_hot(torch.tensor([3]), 10).float())


# -- shapes and refusals --------------------------------------------------------------------------


@given(
    n=st.integers(1, 5),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    channels=st.sampled_from([1, 3]),
    classes=st.integers(1, 6),
    how=st.sampled_from(WAYS),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=60)
def test_any_shape_works(
    n: int, height: int, width: int, channels: int, classes: int, how: Augmentation, seed: int
) -> None:
    """Sides of one pixel break divisions by size - 1, and 3×3 filters."""
    augment = build(how, classes, mean=MEAN[:channels], std=STD[:channels])
    x, soft = augment(noise(n, height, width, channels), torch.arange(n) % classes, seed)
    assert x.shape == (n, channels, height, width)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.dtype == soft.dtype == torch.float32
    assert torch.isfinite(x).all()
    assert soft.shape == (n, classes)
    assert (soft >= 0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "auto"},
        {"policy": None},
        {"operations": 0},
        {"operations": 2.0},
        {"operations": True},
        {"magnitude": 31},
        {"magnitude": -1},
        {"erasing": 1.5},
        {"erasing": "0.5"},
        {"mixup": -0.1},
        {"mixup": float("nan")},
        {"cutmix": float("inf")},
        {"mix_probability": -0.5},
        {"switch_probability": 2},
        {"label_smoothing": 1.1},
    ],
    ids=str,
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    """A value out of range must not wait for the first batch."""
    with pytest.raises(ConfigError, match=next(iter(wrong))) as error:
        Augmentation(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_classes": 0},
        {"std": (0.2, 0.2)},
        {"std": (0.2, 0.0, 0.2)},
        {"mean": (), "std": ()},
        {"colour": "rgb"},
        {"mean": (0.5,), "std": (0.5,), "colour": "BGR"},
        {"mean": (0.5,) * 4, "std": (0.5,) * 4},
    ],
    ids=str,
)
def test_statistics_that_fit_no_network_are_refused(wrong: dict[str, Any]) -> None:
    """They would broadcast silently."""
    with pytest.raises(ConfigError):
        build(Augmentation("rand"), **wrong)


@pytest.mark.parametrize(
    ("images", "targets", "seed"),
    [
        (noise(2).float(), torch.zeros(2).long(), 0),
        (noise(2)[0], torch.zeros(2).long(), 0),
        (noise(2).permute(0, 3, 1, 2), torch.zeros(2).long(), 0),
        (noise(2)[:0], torch.zeros(0).long(), 0),
        (noise(2), torch.zeros(3).long(), 0),
        (noise(2), torch.zeros(2), 0),
        (noise(2), torch.tensor([0, 10]), 0),
        (noise(2), torch.tensor([-1, 0]), 0),
        (noise(2), torch.zeros(2).long(), -1),
        (noise(2), torch.zeros(2).long(), None),
    ],
)
def test_batches_that_are_none_are_refused(images: Tensor, targets: Tensor, seed: Any) -> None:
    """Channels first, floats, and labels of another data set."""
    with pytest.raises(InputError) as error:
        build(EVERYTHING)(images, targets, seed)
    assert "\n" not in str(error.value)


def test_only_policies_need_kornia(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, all but the policies works, and the error says what to install."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "kornia"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "kornia", None)
    how = Augmentation(erasing=0.5, mixup=0.2, cutmix=1.0, label_smoothing=0.1)
    build(how)(noise(2), torch.arange(2), 0)
    with pytest.raises(ConfigError, match=r"resnext\[train\]"):
        build(Augmentation("trivial"))
