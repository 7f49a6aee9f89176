"""`convert`: a checkpoint of any library as a file of another, with proof that it is the same."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from resnext.card import Preprocessing
from resnext.config import ResNeXtConfig
from resnext.data.decoding import convert as as_colour
from resnext.data.decoding import open_image
from resnext.data.transforms import prepare
from resnext.dialects import timm, torchvision
from resnext.errors import CheckpointError
from resnext.network import ResNeXt
from resnext.weights.formats.reading import read
from resnext.weights.formats.writing import write
from resnext.weights.load import network_of
from resnext.weights.recognise import DIALECTS
from resnext.weights.resolve import ResolvedCheckpoint, resolve
from resnext.weights.save import save

TARGETS = ("torchvision", "timm", "mmcls", "mmdet", "lucid", "resnext")
_ORIGINALS: dict[str, Callable[[ResNeXtConfig], nn.Module]] = {
    "torchvision": torchvision.original,
    "timm": timm.original,
}


class Parity(NamedTuple):
    """How far a converted file answers differently from the one it was made of."""

    difference: float
    """Largest difference of a logit, or of a map's value where there is no classifier."""
    largest: float
    """Largest value among them."""
    through: str
    """Who computed the converted file's answers."""
    images: int
    photographs: int
    """How many of the images were photographs; the others were random."""


class Conversion(NamedTuple):
    """What was converted."""

    path: Path
    source: str
    target: str
    config: ResNeXtConfig
    parity: Parity


def convert(
    source: str | Path,
    path: str | Path,
    *,
    to: str = "resnext",
    images: Sequence[str | Path] = (),
    labels: Sequence[str] | None = None,
    config: ResNeXtConfig | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Conversion:
    """Write a checkpoint as a file of another library, and compare the answers of both.

    Args:
        source: As for `load`.
        path: File to write. For torchvision and timm .pth, .safetensors or .npz; for mmcls and
            mmdet .pth; for Lucid .safetensors, .lcd or .npz; for us .safetensors.
        to: torchvision, timm, mmcls, mmdet, lucid (2) or resnext.
        images: Photographs to compare with; by default scikit-learn's two where it is installed.
        labels: Names of the classes, if the source has none or others.
        config: As for `load`.
        overwrite: Whether to replace the file if it exists.
        progress: Whether to show downloads on standard error.

    Raises:
        CheckpointError: The source cannot be loaded, the target has no such network, the answers
            differ, or the file cannot be written.
        DataError: A photograph cannot be read.
    """
    path = Path(path)
    if to not in TARGETS:
        raise CheckpointError(f"to must be {', '.join(TARGETS)}, not {to!r}.")
    if to == "resnext" and path.suffix != ".safetensors":
        raise CheckpointError(f"{path} must end in .safetensors for resnext.")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path.parent} is no folder. Make it first.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise CheckpointError(f"{path} exists. Choose another name, or pass overwrite.")
    found = resolve(source, config=config, progress=progress)
    if to not in ("mmcls", "mmdet") and not found.classifier:
        raise CheckpointError(
            f"{source} has no classifier, and files for {to} hold one. Convert it to mmdet, or "
            f"load it with num_classes=… and save that."
        )
    if labels is not None:
        if len(labels) != found.config.num_classes:
            raise CheckpointError(
                f"{len(labels)} labels are given for {found.config.num_classes} classes."
            )
        found = found._replace(card=replace(found.card, labels=tuple(labels)))
    network = network_of(found).eval()
    x, photographs = _images(found, [images] if isinstance(images, str | Path) else images)
    try:
        parity = _write(path, to, found, network, x, photographs)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}.") from error
    named = found.dialect.name if found.dialect else "resnext"
    return Conversion(path, named, to, found.config, parity)


def _write(
    path: Path, to: str, found: ResolvedCheckpoint, network: nn.Module, x: Tensor, photographs: int
) -> Parity:
    """Write beside the place, compare, then move it there."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".resnext-") as folder:
        draft = Path(folder) / path.name
        if to == "resnext":
            assert isinstance(network, ResNeXt)
            save(network, draft)
        else:
            write(draft, DIALECTS[to], found.state, found.config, found.card)
        other, through = _read_back(draft, to, found)
        with torch.inference_mode():
            mine, theirs = _answers(network.float(), x), _answers(other.float(), x)
        parity = Parity(
            float((mine - theirs).abs().max()),
            float(mine.abs().max()),
            through,
            len(x),
            photographs,
        )
        if not parity.difference <= 1e-4 * max(parity.largest, 1e-3):
            raise CheckpointError(
                f"The converted file answers differently: by up to {parity.difference:.2g} of "
                f"{parity.largest:.2g}. It was not kept; are there NaNs? See resnext doctor."
            )
        draft.replace(path)
    return parity


def _read_back(path: Path, to: str, found: ResolvedCheckpoint) -> tuple[nn.Module, str]:
    """The network in the converted file, as its own library builds it if that is installed."""
    if to in _ORIGINALS and found.classifier and _importable(to):
        model = _ORIGINALS[to](found.config)
        model.load_state_dict(read(path).state, strict=True)
        return model.eval(), f"{to} {importlib.import_module(to).__version__}"
    config = None if to in ("resnext", "mmcls") else found.config  # those files tell it
    return network_of(resolve(path, config=config)).eval(), "our own reading of it"


def _importable(library: str) -> bool:
    try:
        importlib.import_module(library)
    except Exception:  # a library built for another torch fails in its own ways
        return False
    return True


def _answers(network: nn.Module, x: Tensor) -> Tensor:
    y = network(x)
    return y[-1] if isinstance(y, tuple) else y


def _images(found: ResolvedCheckpoint, photographs: Sequence[str | Path]) -> tuple[Tensor, int]:
    """Two random images and the photographs, prepared for the network."""
    how, channels = found.card.preprocessing, found.config.in_channels
    size = max(min(how.size, 320), found.config.min_size)
    if found.config.norm == "instance":  # it needs more than one pixel in the last map
        size = max(size, found.config.stride + 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, size, size, generator=generator)
    if channels != (1 if how.colour == "L" else 3):
        return x, 0
    real = [open_image(Path(photograph), how.colour) for photograph in photographs]
    if not photographs:
        real = [as_colour(Image.fromarray(photo), how.colour) for photo in _samples()]
    how = Preprocessing(
        size, max(how.resize, size), how.interpolation, how.mean, how.std, colour=how.colour
    )
    return torch.cat([x, *(prepare(image, how)[None] for image in real)]), len(real)


def _samples() -> list[np.ndarray[Any, Any]]:
    """scikit-learn's photographs, if it is installed."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        return []
    return list(load_sample_images().images)
