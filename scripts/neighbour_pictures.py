"""Makes the pictures of docs/new.md from real data; a minute of training on one core.

A small network learns to tell crops of two photographs apart, and is then shown others of them, a
portrait and a handwritten digit.

    python scripts/neighbour_pictures.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import matplotlib.cbook
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

import resnext
from resnext.neighbours import open_index
from resnext.prediction.contact_sheet import draw_neighbours, draw_sheet
from resnext.training import Recipe

DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    """Train, predict, draw, and print what the page says."""
    photos = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, photo in photos.items():
            (folder / "photos" / label).mkdir(parents=True)
            for i in range(150):
                crop(photo, rng).save(folder / "photos" / label / f"{i:03}.png")
        out = folder / "photos.safetensors"
        recipe = Recipe(epochs=8, batch_size=32, learning_rate=0.05, min_area=0.8, flip=False)
        resnext.train(
            folder / "photos", "resnext_nano_32px", out=out, size=96, recipe=recipe, progress=False
        )
        sample: Any = matplotlib.cbook.get_sample_data("grace_hopper.jpg")
        portrait, digits = Image.open(sample), cast("Any", load_digits())
        digit = Image.fromarray((digits.images[3] * 15.9).astype(np.uint8)).resize((96, 96))
        known = [crop(photo, rng) for photo in photos.values()]
        pictures = [*known, portrait.convert("RGB"), digit.convert("RGB")]
        found = resnext.predict(out, pictures, like=3)
        draw("new-like.png", draw_sheet(pictures, found, columns=4))
        for one in found:
            print(one.label, f"{one.probabilities[0]:.1%}", one.unknown_score, one.unknown)
        index = open_index(out)
        draw("new-similar.png", draw_neighbours(known[0], index.search(known[0], 4), columns=5))


def crop(photo: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A random square of a photograph, 96 pixels wide."""
    side = int(rng.integers(120, 320))
    top, left = (int(rng.integers(length - side)) for length in photo.shape[:2])
    return Image.fromarray(photo[top : top + side, left : left + side]).resize((96, 96))


def draw(name: str, picture: Image.Image) -> None:
    """Write a picture."""
    picture.save(DOCS / name, optimize=True)
    print(name, picture.size, (DOCS / name).stat().st_size)


if __name__ == "__main__":
    main()
