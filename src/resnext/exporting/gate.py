"""The gate: a file counts as exported only if its own runtime answers as the network does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image

from resnext.card import Card
from resnext.data.decoding import open_image
from resnext.data.transforms import prepare
from resnext.errors import ResNeXtError
from resnext.exporting.graph import class_maps
from resnext.exporting.targets import Target
from resnext.inference.engines.base import InputKind
from resnext.inference.optimize import patterns
from resnext.network import ResNeXt

PICTURES = 64
_CLIENT = Path(__file__).with_name("client.py")
_OWN = {"resnext", "torch"}
"""Modules that a client must not have loaded, except the runtime itself."""


class Reference(NamedTuple):
    """Pictures, and what the network says about them."""

    folder: Path
    outputs: dict[str, Float32[np.ndarray, "n …"]]


def reference(network: ResNeXt, card: Card, outputs: list[str], folder: Path) -> Reference:
    """Write photograph-like pictures as JPEG files, and classify them with the network itself.

    Args:
        network: The unmodified network, in evaluation mode, on the CPU.
        card: Its card.
        outputs: Names of the outputs.
        folder: An empty folder for the pictures.
    """
    side = card.preprocessing.resize
    waves = patterns(PICTURES, 3, side + side // 2)
    for i, wave in enumerate(waves):
        height, width = side + i * side // 200, side + (i * 7 % PICTURES) * side // 200
        shades = np.clip(128 + 60 * wave[:, :height, :width].transpose(1, 2, 0), 0, 255)
        Image.fromarray(shades.astype(np.uint8)).save(folder / f"{i:02}.jpg", quality=90)
    found: list[list[torch.Tensor]] = []
    with torch.inference_mode():
        for path in sorted(folder.iterdir()):
            x = prepare(open_image(path, card.preprocessing.colour), card.preprocessing)[None]
            last = network.features(x)[-1]
            embedding = network.avgpool(last).flatten(1)
            logits = network.fc(embedding)
            known = {
                "logits": logits,
                "probabilities": (logits / card.temperature).softmax(1),
                "embedding": embedding,
                "map": last,
                "maps": class_maps(network, last),
            }
            found.append([known[name] for name in outputs])
    stacked = [torch.cat(part).numpy() for part in zip(*found, strict=True)]
    return Reference(folder, dict(zip(outputs, stacked, strict=True)))


def check(
    target: Target, path: Path, wanted: Reference, card: Card, kind: InputKind, tolerance: float
) -> dict[str, Any]:
    """Run a file in a process of its own.

    Returns:
        What was measured, for the file's metadata.

    Raises:
        ResNeXtError: The file does not run, or answers differently.
    """
    with TemporaryDirectory() as folder:
        result = Path(folder) / "result.npz"
        arguments = [target.name, str(path), str(wanted.folder), str(result)]
        done = subprocess.run(
            [sys.executable, "-I", str(_CLIENT), *arguments], capture_output=True, text=True
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ResNeXtError(f"{target.title} cannot run the file: {last}")
        with np.load(result) as file:
            found = {name: file[name] for name in file.files}
    described = json.loads(str(found.pop("described")))
    if foreign := _OWN.intersection(described["modules"]) - {target.name}:
        raise ResNeXtError(f"The client of {target.title} loaded {', '.join(sorted(foreign))}.")
    told = Card.from_dict(described["card"])
    if (told.labels, told.preprocessing, told.temperature, told.threshold) != (
        card.labels,
        card.preprocessing,
        card.temperature,
        card.threshold,
    ):
        raise ResNeXtError("Labels, preprocessing, temperature or threshold changed in the file.")
    largest = {name: _difference(found[name], value) for name, value in wanted.outputs.items()}
    for name, difference in largest.items():
        if not difference <= tolerance:  # also if it is NaN
            raise ResNeXtError(
                f"{target.title} answers differently: {name} by {difference:.2g} of its largest "
                f"value, {tolerance:g} is allowed."
            )
    first = next(iter(wanted.outputs))
    flipped = _flipped(found[first], wanted.outputs[first], tolerance)
    if flipped:
        raise ResNeXtError(f"{target.title} names another class on {flipped} of {PICTURES} images.")
    rounded = {name: float(f"{difference:.0e}") for name, difference in largest.items()}
    return {"images": PICTURES, "batches": target.batches, "difference": rounded}


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _flipped(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> int:
    """Images with another class, but for those whose two best classes differ by rounding only."""
    other = found.argmax(1) != wanted.argmax(1)
    best = np.take_along_axis(wanted, found.argmax(1)[:, None], 1)[:, 0]
    margin = wanted.max(1) - best
    return int((other & (margin > 2 * tolerance * np.abs(wanted).max())).sum())
