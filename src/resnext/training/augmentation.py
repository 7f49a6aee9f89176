"""Augmentation of whole batches on the device: policies, erasing, mixup, cutmix, soft targets.

Order of a call: policy on values from 0 to 1, normalization, erasing, then mixup or cutmix.
All random values are drawn on the CPU by a NumPy generator seeded by the call, and passed to
kornia's functions. So no global generator is read or changed, and all devices use the same values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from resnext.checks import between, one_of, positive
from resnext.errors import ConfigError, InputError

POLICIES = ("none", "rand", "trivial")

Floats = np.ndarray[Any, np.dtype[np.float64]]
Whole = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Augmentation:
    """How batches are augmented in training. The defaults only normalize.

    Args:
        policy: "none"; "rand", RandAugment (arXiv:1909.13719); or "trivial", TrivialAugment with
            its wide ranges (arXiv:2103.10158). Both have torchvision's 14 operations.
        operations: How many operations "rand" applies to an image, drawn with replacement.
        magnitude: Strength of "rand", 0 to 30, where 30 is the far end of each range: shear 0.3,
            shift 150/331 of the side, rotation 30°, colour, contrast, brightness and sharpness
            1 ± 0.9, 4 of 8 bits, all solarized. This is torchvision's scale and kornia's. timm
            divides by 10 instead, so its `rand-m9` is as strong as 27 here.
        erasing: Probability that a rectangle of an image is erased (arXiv:1708.04896): 2 to 33 %
            of its area, aspect ratio 0.3 to 3.3. It is filled with 0 after normalization, the
            mean colour.
        mixup: Both parameters of mixup's beta distribution (arXiv:1710.09412); 0 is off.
        cutmix: Both parameters of cutmix's beta distribution (arXiv:1905.04899); 0 is off.
        mix_probability: Fraction of the batches that are mixed.
        switch_probability: Fraction of the mixed batches that use cutmix, if both are on.
        label_smoothing: Probability spread evenly over all classes (arXiv:1512.00567).

    Raises:
        ConfigError: A value is out of range.
    """

    policy: str = "none"
    operations: int = 2
    magnitude: int = 9
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    switch_probability: float = 0.5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Validate every field."""
        one_of("policy", self.policy, POLICIES)
        for field in fields(self)[1:]:
            low, high = _RANGES.get(field.name, (0, 1))
            whole = field.name in ("operations", "magnitude")
            between(field.name, getattr(self, field.name), low, high, whole=whole)


_RANGES = {"operations": (1, 16), "magnitude": (0, 30), "mixup": (0, 100), "cutmix": (0, 100)}


class Augment:
    """Turns batches of images and classes into network input and soft targets.

    Args:
        augmentation: Which operations, how strong and how often.
        num_classes: Columns of the targets.
        mean: Mean of each channel, for values from 0 to 1, in the network's channel order.
        std: Standard deviation of each channel, for values from 0 to 1, in that order.
        device: Where batches are augmented and returned.
        colour: The network's channel order: "RGB", "BGR" or "L". Input is always RGB or grey.

    Raises:
        ConfigError: Mean, std and colour do not match, the policy does not support the number of
            channels, or kornia is needed and not installed.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        colour: str = "RGB",
    ) -> None:
        positive("num_classes", num_classes)
        _check_statistics(mean, std, colour)
        if augmentation.policy != "none" and len(mean) not in (1, 3):
            raise ConfigError(
                f"policy {augmentation.policy!r} is for 1 or 3 channels, not {len(mean)}; use "
                '"none".'
            )
        self.augmentation = augmentation
        self.num_classes = num_classes
        self.device = torch.device(device)
        self._colour = colour
        self._mean, self._std = _per_channel(mean, self.device), _per_channel(std, self.device)
        self._policy = None if augmentation.policy == "none" else _Policy(augmentation)

    @torch.no_grad()
    def __call__(
        self, images: UInt8[Tensor, "n h w c"], targets: Integer[Tensor, " n"], seed: int
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k"]]:
        """Augment one batch. The result depends only on the arguments.

        Args:
            images: Pixels, RGB or grey.
            targets: Classes from 0.
            seed: Random seed, at least 0.

        Returns:
            Normalized images in channels-last memory, and the probability of each class.

        Raises:
            InputError: Shapes, types, classes or the seed are wrong.
        """
        self._check(images, targets, seed)
        rng = np.random.default_rng(seed)
        images = images.to(self.device, non_blocking=True)
        soft = self.soft(targets)
        with torch.autocast(self.device.type, enabled=False):
            x = _unit(images)
            if self._policy is not None:
                x = self._policy(x, rng)
            x = _standardize(x, self._mean, self._std, self._colour)
            if self.augmentation.erasing:
                _erase_(x, self.augmentation.erasing, rng)
            return self._mix(x, soft, rng)

    def _check(self, images: Tensor, targets: Tensor, seed: int) -> None:
        _check_images(images, self._mean.numel())
        if targets.shape != images.shape[:1]:
            raise InputError(
                f"targets must be one class for each of {len(images)} images, not "
                f"{tuple(targets.shape)}."
            )
        if targets.is_floating_point() or targets.is_complex() or targets.dtype is torch.bool:
            raise InputError(f"targets must be whole numbers, not {targets.dtype}.")
        if targets.device.type == "cpu":  # elsewhere the check would wait for the device
            low, high = int(targets.min()), int(targets.max())
            if low < 0 or high >= self.num_classes:
                raise InputError(
                    f"targets must be from 0 to {self.num_classes - 1}, not {low} to {high}."
                )
        if not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed must be a whole number from 0 upward, not {seed!r}.")

    def soft(self, targets: Integer[Tensor, " n"]) -> Float[Tensor, "n k"]:
        """Smoothed one-hot rows."""
        targets = targets.to(self.device, torch.int64, non_blocking=True)
        smoothing = self.augmentation.label_smoothing
        off = smoothing / self.num_classes
        shape = (len(targets), self.num_classes)
        soft = torch.full(shape, off, dtype=torch.float32, device=self.device)
        return soft.scatter_(1, targets[:, None], 1 - smoothing + off)

    def _mix(self, x: Tensor, soft: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Mix image `i` with image `n - 1 - i`, by one method and share for the batch."""
        options = self.augmentation
        if not (options.mixup or options.cutmix) or rng.random() >= options.mix_probability:
            return x, soft
        if options.cutmix and (not options.mixup or rng.random() < options.switch_probability):
            height, width = x.shape[-2:]
            top, bottom, left, right = _cutmix_box(
                height, width, rng.beta(options.cutmix, options.cutmix), rng
            )
            x[:, :, top:bottom, left:right] = x[:, :, top:bottom, left:right].flip(0)
            share = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            share = rng.beta(options.mixup, options.mixup)
            x = torch.lerp(x.flip(0), x, share)  # exact where an image is mixed with itself
        return x, torch.lerp(soft.flip(0), soft, share)


def plain(
    images: UInt8[Tensor, "n h w c"],
    mean: Sequence[float],
    std: Sequence[float],
    colour: str = "RGB",
) -> Float[Tensor, "n c h w"]:
    """Normalize a batch on its device, with the operations of `transforms.normalize`.

    Args:
        images: Pixels, RGB or grey.
        mean: Mean of each channel, for values from 0 to 1, in the network's channel order.
        std: Standard deviation of each channel, for values from 0 to 1, in that order.
        colour: The network's channel order: "RGB", "BGR" or "L".

    Returns:
        Normalized images in channels-last memory.

    Raises:
        InputError: The images are not bytes, or have another number of channels than `mean`.
        ConfigError: `mean`, `std` and `colour` do not match.
    """
    _check_statistics(mean, std, colour)
    _check_images(images, len(mean))
    device = images.device
    return _standardize(
        _unit(images), _per_channel(mean, device), _per_channel(std, device), colour
    )


def _check_images(images: Tensor, channels: int) -> None:
    if images.dtype is not torch.uint8:
        raise InputError(f"images must be bytes (torch.uint8), not {images.dtype}.")
    if images.ndim != 4 or images.shape[-1] != channels or not images.numel():
        raise InputError(
            f"images must be (n, height, width, {channels}) and not empty, not "
            f"{tuple(images.shape)}."
        )


def _check_statistics(mean: Sequence[float], std: Sequence[float], colour: str) -> None:
    if len(mean) != len(std) or not mean or not all(0 < x < math.inf for x in std):
        raise ConfigError(f"mean and std need a number per channel, not {mean} and {std}.")
    if colour not in ("RGB", "BGR", "L") or (colour == "BGR" and len(mean) != 3):
        raise ConfigError(f"colour {colour!r} does not match {len(mean)} channels.")


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


def _unit(images: Tensor) -> Tensor:
    """Bytes (n, h, w, c) as a new tensor (n, c, h, w) from 0 to 1, channels last in memory."""
    x = images.contiguous().permute(0, 3, 1, 2).float()
    return x.div_(x.new_full((), 255))  # with a Python number, CUDA multiplies by 1/255


def _standardize(x: Tensor, mean: Tensor, std: Tensor, colour: str) -> Tensor:
    """Normalize, in place unless the channel order changes, as `transforms.normalize` does."""
    if colour == "BGR":
        x = x.flip(1)
    return x.contiguous(memory_format=torch.channels_last).sub_(mean).div_(std)


# -- erasing and cutmix ---------------------------------------------------------------------------


def _erase_(x: Tensor, probability: float, rng: np.random.Generator) -> None:
    """Set a rectangle to zero in some images; ten tries to fit one, as in torchvision."""
    n, _, height, width = x.shape
    hit = rng.random(n) < probability
    area = rng.uniform(0.02, 0.33, (n, 10)) * height * width
    ratio = np.exp(rng.uniform(math.log(0.3), math.log(3.3), (n, 10)))
    position = rng.random((2, n))
    h, w = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (h < height) & (w < width)
    first = np.arange(n), fits.argmax(1)
    h, w = (np.where(hit & fits[first], side[first], 0) for side in (h, w))
    top, left = np.floor(position[0] * (height - h + 1)), np.floor(position[1] * (width - w + 1))
    box = torch.from_numpy(np.stack([top, top + h, left, left + w])).to(x.device, torch.int64)
    rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
    top, bottom, left, right = box[:, :, None]
    inside_rows = (rows >= top) & (rows < bottom)
    inside_columns = (columns >= left) & (columns < right)
    x.masked_fill_((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0)


def _cutmix_box(
    height: int, width: int, share: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box around a random pixel, clipped at the borders."""
    scale = math.sqrt(1 - share)
    h, w = int(height * scale), int(width * scale)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, left = y - h // 2, x - w // 2
    return max(top, 0), min(top + h, height), max(left, 0), min(left + w, width)


# -- policies -------------------------------------------------------------------------------------


_GEOMETRY = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_TONES = ("brightness", "colour", "contrast", "sharpness")
_VALUES = (*_TONES, "posterize", "solarize", "autocontrast", "equalize")
_OPERATIONS = ("identity", *_GEOMETRY, *_VALUES)  # equally likely, as in torchvision


@dataclass(frozen=True)
class _Limits:
    """Largest strength of each operation."""

    shear: float
    shift: float  # fraction of the side, or pixels if above 1
    degrees: float
    blend: float
    bits: int  # how many of 8 are dropped


_RAND = _Limits(shear=0.3, shift=150 / 331, degrees=30, blend=0.9, bits=4)
_TRIVIAL = _Limits(shear=0.99, shift=32, degrees=135, blend=0.99, bits=6)


class _Policy:
    """Random operations, drawn separately for each image.

    kornia's RandAugment and TrivialAugment apply the same operations to the whole batch, with
    other ranges than the papers. Here, images that drew the same operation are changed together
    by kornia's function for it. All geometric operations share one bilinear warp that fills with
    black.
    """

    def __init__(self, augmentation: Augmentation) -> None:
        try:
            import kornia.enhance as enhance
            from kornia.geometry.transform import warp_affine
        except ImportError as error:
            raise ConfigError(
                f"policy {augmentation.policy!r} needs kornia: pip install 'resnext[train]'."
            ) from error
        self._enhance, self._warp = enhance, warp_affine
        rand = augmentation.policy == "rand"
        self._limits = _RAND if rand else _TRIVIAL
        self._rounds = augmentation.operations if rand else 1
        self._magnitude = augmentation.magnitude if rand else None

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Change images (n, c, h, w) of values from 0 to 1 in place."""
        choices, levels = self.draw(len(x), rng)
        for choice, level in zip(choices, levels, strict=True):
            moved = np.flatnonzero(np.isin(choice, range(1, 1 + len(_GEOMETRY))))
            if moved.size:
                where = torch.from_numpy(moved).to(x.device)
                x.index_copy_(0, where, self._move(x[where], choice[moved], level[moved]))
            for index, name in enumerate(_VALUES, 1 + len(_GEOMETRY)):
                chosen = np.flatnonzero(choice == index)
                if chosen.size:
                    where = torch.from_numpy(chosen).to(x.device)
                    x.index_copy_(0, where, self._change(x[where], name, level[chosen]))
        return x.clamp_(0, 1)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Whole, Floats]:
        """Operations and levels from -1 to 1; one row per round, one column per image."""
        shape = (self._rounds, n)
        choices = rng.integers(len(_OPERATIONS), size=shape)
        sizes = rng.integers(31, size=shape) if self._magnitude is None else self._magnitude
        return choices, sizes / 30 * rng.choice([-1.0, 1.0], shape)

    def _move(self, x: Tensor, choice: Whole, level: Floats) -> Tensor:
        height, width = x.shape[-2:]
        matrices = [
            _matrix(_OPERATIONS[index], value, self._limits, height, width)
            for index, value in zip(choice, level.tolist(), strict=True)
        ]
        matrix = torch.tensor(matrices, dtype=torch.float32).to(x.device)
        return self._warp(x, matrix, (height, width), align_corners=False)

    def _change(self, x: Tensor, name: str, level: Floats) -> Tensor:
        def to_device(values: Floats) -> Tensor:
            return torch.from_numpy(values).to(x.device, torch.float32)

        enhance, factor = self._enhance, to_device(1 + self._limits.blend * level)
        match name:
            case "brightness":
                return enhance.adjust_brightness_accumulative(x, factor)
            case "colour":  # leaves grey images unchanged
                return enhance.adjust_saturation_with_gray_subtraction(x, factor)
            case "contrast":
                return enhance.adjust_contrast_with_mean_subtraction(x, factor)
            case "sharpness":  # its filter is 3×3
                return x if min(x.shape[-2:]) < 3 else enhance.sharpness(x, factor)
            case "posterize":
                bits = to_device(8 - np.rint(self._limits.bits * np.abs(level)))
                return enhance.posterize(x, bits.to(torch.int64))
            case "solarize":  # from 256/255, so that level 0 does not invert white
                return enhance.solarize(x, to_device((1 - np.abs(level)) * 256 / 255))
            case "autocontrast":  # kornia makes flat channels black, Pillow leaves them
                flat = x.amax((2, 3), keepdim=True) == x.amin((2, 3), keepdim=True)
                return torch.where(flat, x, enhance.normalize_min_max(x))
            case _:
                return enhance.equalize(x)


def _matrix(name: str, level: float, limits: _Limits, height: int, width: int) -> list[list[float]]:
    """Matrix on pixel indices: shears fix the upper left corner, rotations the centre."""
    shear = -limits.shear * level  # torchvision's sign
    match name:
        case "shear_x":
            return [[1, shear, shear / 2], [0, 1, 0]]
        case "shear_y":
            return [[1, 0, 0], [shear, 1, shear / 2]]
        case "translate_x":
            return [[1, 0, _shift(level, limits, width)], [0, 1, 0]]
        case "translate_y":
            return [[1, 0, 0], [0, 1, _shift(level, limits, height)]]
    angle = math.radians(limits.degrees * level)
    sin, cos, x, y = math.sin(angle), math.cos(angle), (width - 1) / 2, (height - 1) / 2
    return [[cos, sin, x - cos * x - sin * y], [-sin, cos, y + sin * x - cos * y]]


def _shift(level: float, limits: _Limits, side: int) -> int:
    """Shift in whole pixels, which does not blur."""
    return int(level * limits.shift * (side if limits.shift <= 1 else 1))
