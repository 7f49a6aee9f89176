"""Copies of pictures are found whatever was done to them, and pictures that are alike are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from resnext.errors import DataError
from resnext.review.copies import correlation, find_copies, in_groups, thumbnail
from resnext.system.progress import SilentReporter

Change = Callable[[Image.Image], Image.Image]

CHANGES: dict[str, Change] = {
    "smaller": lambda x: x.resize((x.width // 3, x.height // 3)),
    "cut": lambda x: x.crop((6, 5, 190, 138)),
    "cut at one side": lambda x: x.crop((0, 0, 182, 150)),
    "cut below": lambda x: x.crop((0, 0, 200, 136)),
    "brighter": lambda x: ImageEnhance.Brightness(x).enhance(1.2),
    "darker": lambda x: ImageEnhance.Brightness(x).enhance(0.6),
    "more contrast": lambda x: ImageEnhance.Contrast(x).enhance(1.3),
    "grey": lambda x: x.convert("L"),
    "mirrored": lambda x: x.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def picture(seed: int, detail: int = 6) -> Image.Image:
    """A picture of 200 × 150 pixels of smooth shapes."""
    values = np.random.default_rng(seed).integers(0, 256, (detail, detail, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((200, 150), Image.Resampling.BICUBIC)


def saved(image: Image.Image, folder: Path) -> Image.Image:
    """The picture as a JPEG file keeps it."""
    image.save(folder / "x.jpg", quality=60)
    with Image.open(folder / "x.jpg") as file:
        return file.copy()


def found(pictures: list[Image.Image], missing: int = -1) -> list[tuple[int, int]]:
    """The pairs among pictures; their own pixels stand for the embeddings of a network."""

    def opened(image: int) -> Image.Image:
        if image == missing:
            raise DataError("It is gone.")
        return pictures[image]

    grey = [x.convert("L").resize((9, 9), Image.Resampling.BOX) for x in pictures]
    looks = np.stack([np.asarray(x) for x in grey])
    both = [np.asarray(x, np.float32) + np.asarray(x, np.float32)[:, ::-1] for x in grey]
    embeddings = np.stack([x.ravel() - x.mean() for x in both])
    return sorted(find_copies(embeddings, looks, opened, SilentReporter()))


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_done_to_a_copy(change: str, tmp_path: Path) -> None:
    """Only encoding and scaling were found: a crop or another exposure hid a copy."""
    pictures = [picture(i) for i in range(12)]
    pictures += [saved(CHANGES[change](pictures[i]), tmp_path) for i in (3, 7)]
    assert found(pictures) == [(3, 12), (7, 13)]


@pytest.mark.parametrize("detail", [4, 8, 30])
def test_other_pictures_are_no_copies(detail: int) -> None:
    """Blurred backgrounds are alike in many photographs."""
    pictures = [picture(i, detail) for i in range(60)]
    flat = [Image.new("RGB", (200, 150), (i, i, i)) for i in (0, 1, 128, 255)]
    assert found(pictures + flat) == []
    assert found(pictures[:1]) == []


def test_a_large_cut_is_another_picture() -> None:
    """A detail of a photograph is a picture of its own."""
    whole = picture(0)
    same = correlation(thumbnail(whole), thumbnail(whole.crop((0, 0, 140, 105))))
    assert same < 0.9


def test_a_file_that_vanished_is_passed_over() -> None:
    """The review must open."""
    pictures = [picture(i) for i in range(6)]
    assert found([*pictures, pictures[1].copy()]) == [(1, 6)]
    assert found([*pictures, pictures[1].copy()], missing=6) == []


def test_a_group_is_shown_from_its_largest_picture() -> None:
    """Each further copy is decided about once, beside the one that is worth keeping."""
    size = np.array([1, 5, 9, 3, 7, 7])
    pairs = [(0, 1), (1, 2), (0, 2), (4, 5), (2, 3), (1, 3)]
    assert [*in_groups(pairs, size)] == [(2, 1), (2, 0), (2, 3), (4, 5)]
