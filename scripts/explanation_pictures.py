"""Makes the pictures of docs/why.md from real data; a minute of training on one core.

The networks are small stand-ins, trained here: one on crops of two photographs, one on handwritten
digits whose class is given away by a coloured corner.

    python scripts/explanation_pictures.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

import resnext
from resnext.explanation import Explanation
from resnext.explanation.explanation import METHODS
from resnext.explanation.images import check_sanity
from resnext.explanation.sheet import draw_explanations
from resnext.training import Recipe

DOCS = Path(__file__).parent.parent / "docs"
CORNERS = {"0 to 2": (230, 60, 40), "3 to 5": (60, 190, 70), "6 to 9": (60, 110, 240)}


def main() -> None:
    """Train both networks, explain, draw, and print the numbers of the page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder)
        shortcut(folder)


def photographs(folder: Path) -> None:
    """Two photographs side by side: why flower, and why temple."""
    photos = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
    rng = np.random.default_rng(0)
    for label, photo in photos.items():
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(150):
            side = int(rng.integers(120, 320))
            top, left = (int(rng.integers(length - side)) for length in photo.shape[:2])
            crop = Image.fromarray(photo[top : top + side, left : left + side])
            crop.resize((96, 96)).save(folder / "photos" / label / f"{i:03}.png")
    model = train(folder / "photos", folder / "photos.safetensors", 96)
    both = np.concatenate([photos["temple"][:, 90:360], photos["flower"][:, 170:440]], axis=1)
    picture = Image.fromarray(both)
    found = [
        resnext.explain(model, picture, label=label, against=False, fine=True, check=True)
        for label in ("flower", "temple")
    ]
    draw("why-photo.jpg", found)
    print(check_sanity(model, picture, found[0], fine=True))
    methods = ("map", "occlusion", "layercam", "ig")
    several = [
        resnext.explain(model, picture, label="flower", against=False, how=how, check=True)
        for how in methods
    ]
    draw("why-methods.jpg", [replace(x, label=METHODS[x.how]) for x in several])


def shortcut(folder: Path) -> None:
    """Digits with a coloured corner that gives the class away."""
    digits: Any = load_digits()
    for i, (grey, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        label = tuple(CORNERS)[min(digit // 3, 2)]
        values = (grey * 15.9).astype(np.uint8)[..., None].repeat(3, 2)
        image = Image.fromarray(values).resize((32, 32), Image.Resampling.BICUBIC)
        image.paste(CORNERS[label], (0, 0, 7, 7))
        (folder / "digits" / label).mkdir(parents=True, exist_ok=True)
        image.save(folder / "digits" / label / f"{i:04}.png")
    model = train(folder / "digits", folder / "digits.safetensors", 32)
    print(resnext.evaluate(model, folder / "digits").accuracy)
    honest = Image.open(folder / "digits" / "0 to 2" / "0010.png")  # a zero
    swapped = honest.copy()
    swapped.paste(CORNERS["6 to 9"], (0, 0, 7, 7))
    found = [resnext.explain(model, x, check=True) for x in (honest, swapped)]
    draw("why-corner.png", found)


def train(data: Path, out: Path, size: int) -> Path:
    """A small network, in about twenty seconds."""
    recipe = Recipe(epochs=8, batch_size=32, learning_rate=0.05, min_area=0.8, flip=False)
    resnext.train(data, "resnext_nano_32px", out=out, size=size, recipe=recipe, progress=False)
    return out


def draw(name: str, found: Sequence[Explanation]) -> None:
    """Write a picture."""
    draw_explanations(found).save(DOCS / name, optimize=True, quality=80)
    print(name, (DOCS / name).stat().st_size, *found, sep="\n  ")


if __name__ == "__main__":
    main()
