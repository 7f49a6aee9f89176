"""The gate: a file counts as exported only if its own runtime answers as the network does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain, cycle, islice, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image

from resnext.card import Card
from resnext.data.decoding import open_image, resize
from resnext.data.transforms import normalize, prepare
from resnext.errors import ResNeXtError
from resnext.exporting.client import BATCHES, UNCROPPED
from resnext.exporting.eight_bits import EightBits
from resnext.exporting.graph import Network, class_maps
from resnext.exporting.targets import Target
from resnext.inference.optimize import patterns
from resnext.network import ResNeXt

PICTURES = 64
ROUNDING = 1e-2
"""Largest difference for a picture that the file resizes: it may round pixels otherwise."""

ROUNDING_IN_8_BITS = 5e-2
"""The same in 8 bits: values between two levels of a layer then become the other one."""

_CLIENT = Path(__file__).with_name("client.py")
_OWN = {"resnext", "torch"}
"""Modules that a client must not have loaded, except the runtime itself."""

Outputs = dict[str, Float32[np.ndarray, "n …"]]


class Reference(NamedTuple):
    """Pictures, and what the network says about them."""

    folder: Path
    outputs: list[Outputs]
    """By name, of each batch as the client makes them."""
    resized: list[bool]
    """Whether the file has to resize the picture of a batch."""
    batches: list[int]
    """Sizes of the batches, for the file's metadata."""


def reference(
    network: Network | EightBits,
    card: Card,
    outputs: Sequence[str],
    described: dict[str, Any],
    folder: Path,
) -> Reference:
    """Write photograph-like pictures as JPEG files, and give them to the network itself.

    Args:
        network: The unmodified network, in evaluation mode, on the CPU; or a plan's 8 bits.
        card: Its card.
        outputs: Names of the outputs.
        described: What the file says about itself.
        folder: An empty folder for the pictures.
    """
    own_sizes = described["input"] == "picture"
    _write_pictures(card.preprocessing.resize, folder, own_sizes)
    rule, paths = card.preprocessing, sorted(folder.iterdir())
    with torch.inference_mode():
        rows = [
            _answers(network, card, prepare(_opened(path, card), rule), outputs) for path in paths
        ]
        if own_sizes:
            counts = chain(BATCHES, repeat(1))
            wanted = [
                {name: np.repeat(x, count, 0) for name, x in row.items()}
                for row, count in zip(rows, counts, strict=False)
            ]
            resized = [min(_opened(path, card).size) != rule.resize for path in paths]
            return Reference(folder, wanted, resized, described["batches"])
        sizes, again = described["batches"], cycle(rows)
        if sizes == [1]:  # a page is asked for one picture after another
            sizes = [PICTURES]
        several = [[*islice(again, size)] for size in sizes]
        wanted = [
            {name: np.concatenate([row[name] for row in batch]) for name in outputs}
            for batch in several
        ]
        if described["sizes"] == "dynamic":
            for path in paths[:UNCROPPED]:
                whole = normalize(resize(_opened(path, card), rule), rule)
                wanted.append(_answers(network, card, whole, outputs))
    return Reference(folder, wanted, [False] * len(wanted), described["batches"])


def _write_pictures(side: int, folder: Path, own_sizes: bool) -> None:
    """Photograph-like pictures, wide and tall.

    Args:
        side: Length of the shorter side, pixels.
        folder: Where to write them.
        own_sizes: Whether every second one is up to four times as large or small as that.
    """
    waves = patterns(PICTURES // 4, 3, side + side // 2)
    for i in range(PICTURES):
        wave = np.rot90(waves[i // 4], i % 4, (1, 2))  # to make noise takes long
        height, width = side + i * side // 200, side + (i * 7 % PICTURES) * side // 200
        if own_sizes and i % 2 == 0:
            height = side  # not resized, so compared more strictly
        shades = np.clip(128 + 60 * wave[:, :height, :width].transpose(1, 2, 0), 0, 255)
        picture = Image.fromarray(shades.astype(np.uint8))
        if own_sizes and i % 2:
            factor = 4 ** (2 * i / PICTURES - 1)
            width, height = max(int(factor * width), 1), max(int(factor * height), 1)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        if own_sizes and i % 4 > 1:
            picture = picture.transpose(Image.Transpose.TRANSPOSE)
        picture.save(folder / f"{i:02}.jpg", quality=90)


def _opened(path: Path, card: Card) -> Image.Image:
    return open_image(path, card.preprocessing.colour)


def _answers(
    network: Network | EightBits, card: Card, x: torch.Tensor, outputs: Sequence[str]
) -> dict[str, Float32[np.ndarray, "1 …"]]:
    """What a network says about one image, by the names that are asked for."""
    images = x[None]
    if isinstance(network, EightBits):
        found = network.answers(images, card.temperature)
        return {name: found[name].numpy() for name in outputs}
    maps = network.features(images)
    found = {f"c{i + 2}": each for i, each in enumerate(maps)}
    found |= {"map": maps[-1], "embedding": maps[-1].mean((2, 3))}
    if "c1" in outputs:
        found["c1"] = network.stem_map(images)
    if isinstance(network, ResNeXt) and isinstance(network.fc, torch.nn.Linear):
        logits = network.fc(network.avgpool(maps[-1]).flatten(1))
        found |= {"logits": logits, "probabilities": (logits / card.temperature).softmax(1)}
        if "maps" in outputs:
            found["maps"] = class_maps(network, maps[-1])
    return {name: found[name].numpy() for name in outputs}


def check(
    target: Target,
    path: Path,
    wanted: Reference,
    card: Card,
    tolerance: float,
    rounding: float = ROUNDING,
) -> dict[str, Any]:
    """Run a file in a process of its own.

    Args:
        target: Its format.
        path: The file.
        wanted: What the network says.
        card: The network's card.
        tolerance: Largest difference of an output, relative to the largest value of that output.
        rounding: The same for pictures that the file resizes.

    Returns:
        What was measured, for the file's metadata.

    Raises:
        ResNeXtError: The file does not run, or answers differently.
    """
    described, found = _run(target, path, wanted.folder)
    if foreign := _OWN.intersection(described["modules"]) - {*target.brings}:
        raise ResNeXtError(f"The client of {target.title} loaded {', '.join(sorted(foreign))}.")
    stated = Card.from_dict(described["card"])
    if (stated.labels, stated.preprocessing, stated.temperature, stated.threshold) != (
        card.labels,
        card.preprocessing,
        card.temperature,
        card.threshold,
    ):
        raise ResNeXtError("Labels, preprocessing, temperature or threshold changed in the file.")
    proof: dict[str, Any] = {"images": PICTURES, "batches": wanted.batches}
    for rounded in sorted(set(wanted.resized)):
        pairs = [
            (mine, theirs)
            for mine, theirs, resized in zip(found, wanted.outputs, wanted.resized, strict=True)
            if resized == rounded
        ]
        allowed = max(tolerance, rounding) if rounded else tolerance
        measured = _compare(target.title, pairs, allowed)
        proof["resized" if rounded else "difference"] = measured
    return proof


def _run(target: Target, path: Path, pictures: Path) -> tuple[dict[str, Any], list[Outputs]]:
    """What a file says about itself, and its outputs for each batch.

    Raises:
        ResNeXtError: The file does not run.
    """
    with TemporaryDirectory() as folder:
        result = Path(folder) / "result.npz"
        arguments = [target.name, str(path), str(pictures), str(result)]
        done = subprocess.run(
            [sys.executable, "-I", str(_CLIENT), *arguments], capture_output=True, text=True
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ResNeXtError(f"{target.title} cannot run the file: {last}")
        found: list[Outputs] = []
        with np.load(result) as file:
            described = json.loads(str(file["described"]))
            for key in file.files:
                number, _, name = key.partition(" ")
                if name:
                    found += [{} for _ in range(len(found), int(number) + 1)]
                    found[int(number)][name] = file[key]
    return described, found


def _compare(
    title: str, pairs: Sequence[tuple[Outputs, Outputs]], tolerance: float
) -> dict[str, float]:
    """The largest relative differences, by output.

    Raises:
        ResNeXtError: One is too large, or a picture gets another class.
    """
    measured: dict[str, float] = {}
    nothing = np.empty(0)
    for name in pairs[0][1]:
        both = [(mine.get(name, nothing), wanted[name]) for mine, wanted in pairs]
        largest = max(np.abs(wanted).max() for _, wanted in both)
        difference = max(
            np.inf if mine.shape != wanted.shape else np.abs(mine - wanted).max()
            for mine, wanted in both
        ) / max(largest, 1e-30)
        if not difference <= tolerance:  # also if it is NaN
            raise ResNeXtError(
                f"{title} answers differently: {name} by {difference:.2g} of its largest "
                f"value, {tolerance:g} is allowed."
            )
        measured[name] = float(f"{difference:.0e}")
        if name in ("logits", "probabilities"):
            flipped = sum(_flipped(mine, wanted, tolerance * largest) for mine, wanted in both)
            if flipped:
                count = sum(len(wanted) for _, wanted in both)
                raise ResNeXtError(f"{title} names another class on {flipped} of {count} images.")
    return measured


def _flipped(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> int:
    """Images with another class, but for those whose two best classes differ by rounding only."""
    other = found.argmax(1) != wanted.argmax(1)
    best = np.take_along_axis(wanted, found.argmax(1)[:, None], 1)[:, 0]
    return int((other & (wanted.max(1) - best > 2 * tolerance)).sum())
