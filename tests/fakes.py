"""A model for tests of folder prediction, and its images. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnext.card import Card, Preprocessing
from resnext.config import ResNeXtConfig
from resnext.data.decoding import open_image, pixels, resize_and_crop

LABELS = ("coal", 'a "grey", dark', "grey\nmiddle", "bright", "snow", "été")
CARD = Card(LABELS, Preprocessing(size=8, resize=9), temperature=2.0, threshold=0.5)
CONFIG = ResNeXtConfig((1, 1, 1, 1), 1, 64, len(LABELS), channels=(1, 1, 1, 1))
DIM = 4  # of an embedding: the last channels, times the expansion
KINDS = (".csv", ".jsonl", ".parquet")


class Fake:
    """A model that classifies by brightness; it fails at the batch `fail`."""

    def __init__(self, card: Card | None = CARD, batch: int = 4, fail: int = -1) -> None:
        self.card, self.config, self.batch, self.fail = card, CONFIG, batch, fail
        self.sizes: list[int] = []
        self.before: Callable[[], object] = lambda: None

    def pixels(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits fall with the distance from each class's level; embeddings are mean colours."""
        self.before()
        if len(self.sizes) == self.fail:
            raise RuntimeError("the engine broke")
        self.sizes.append(len(x))
        level = x.astype(np.float64).mean((1, 2, 3))[:, None]
        logits = -np.abs(level - 50 * np.arange(len(LABELS))) / 10
        extra = np.concatenate([x.astype(np.float64).mean((1, 2)), level / 255], 1)
        return logits.astype(np.float32), extra[:, :DIM].astype(np.float32)


def fill(folder: Path, count: int = 23) -> Path:
    """Images of rising brightness in folders, big and small in turn."""
    for i in range(count):
        path = folder / f"{'abc'[3 * i // count]}" / f"{i:03}.{'png' if i % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = 400 if i % 3 == 0 else 9
        Image.new("RGB", (side, side), (i * 11 % 256,) * 3).save(path)
    return folder


def naive(card: Card, names: list[Path], top: int) -> list[dict[str, Any]]:
    """The expected rows, from one image at a time and a softmax of our own."""
    rows = []
    for name in names:
        how = card.preprocessing
        x = pixels(resize_and_crop(open_image(name, how.colour), how), how)
        (logits,), _ = Fake(card).pixels(x[None])
        p = np.exp(logits.astype(float) / card.temperature)
        p /= p.sum()
        best = sorted(range(len(p)), key=lambda i: -p[i])[:top]
        row = {
            "path": str(name),
            "labels": [card.labels[i] for i in best],
            "probabilities": [float(f"{p[i]:.6g}") for i in best],
        }
        rows.append(row | ({"sure": bool(p[best[0]] >= card.threshold)} if card.threshold else {}))
    return rows


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def opens(model: str, plan: bool) -> Fake:
    """Open the model named "fake" on a cluster."""
    assert model == "fake"
    return Fake()
