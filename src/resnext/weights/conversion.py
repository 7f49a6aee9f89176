"""`convert`: writes a checkpoint as another library's file, and compares the outputs of both."""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from resnext.checks import brief
from resnext.config import ResNeXtConfig
from resnext.data.decoding import convert as as_colour
from resnext.data.decoding import open_image
from resnext.data.transforms import prepare
from resnext.dialects.dialect import Dialect
from resnext.dialects.table import DIALECTS
from resnext.errors import AmbiguityWarning, CheckpointError
from resnext.foreign_names import answering_call
from resnext.network import ResNeXt
from resnext.system.atomic import check_writable, make_folder
from resnext.weights.formats.reading import read
from resnext.weights.formats.writing import write
from resnext.weights.load import network_of
from resnext.weights.recognise import choose_weights
from resnext.weights.resolve import ResolvedCheckpoint, resolve
from resnext.weights.save import save

_OWN = "resnext"  # our own files are not a dialect


class Parity(NamedTuple):
    """How much the outputs of a converted file differ from those of its source."""

    difference: float
    """Largest difference of a logit or, without a classifier, of a value in the feature maps."""
    largest: float
    """Largest output of the source."""
    through: str
    """Source of the converted file's outputs: the library, or our own reader."""
    images: int
    """Number of images compared."""
    photographs: int
    """Number of photos among them; the others were random."""


class Conversion(NamedTuple):
    """The result of a conversion."""

    path: Path
    source: str
    """Dialect of the source, or "resnext"."""
    target: str
    """Dialect of the file written, or "resnext"."""
    config: ResNeXtConfig
    parity: Parity


@answering_call
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
    """Write a checkpoint as another library's file, and verify that outputs are equal.

    Args:
        source: A file from any library, a catalog name or an address, as for `load`.
        path: File to write. For torchvision and timm .pth, .safetensors or .npz; for mmcls and
            mmdet .pth; for Lucid .safetensors, .lcd or .npz; for us .safetensors.
        to: torchvision, timm, mmcls, mmdet, lucid (2) or resnext; or the name of a dialect that
            was added to `resnext.dialects.table.DIALECTS`.
        images: Photos to compare outputs on, in addition to random images; by default
            scikit-learn's two if it is installed.
        labels: Class names that replace those of the source.
        config: The architecture, if the file does not state it; checked against the file.
        overwrite: Whether to replace the file if it exists.
        progress: Whether to show downloads on standard error.

    Warns:
        AmbiguityWarning: The file does not show what the other library needs to build the network.

    Raises:
        CheckpointError: The source cannot be loaded, the target cannot express the network, the
            outputs differ, or the file cannot be written.
        DataError: A photo cannot be read.
    """
    path = Path(path)
    target = find_target(to)
    if target is None and path.suffix != ".safetensors":
        raise CheckpointError(f"{path} must end in .safetensors for resnext.")
    check_writable(path)
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} exists. Choose another name, or pass overwrite.")
    checkpoint = resolve(source, config=config, progress=progress)
    if not checkpoint.classifier and not (target and target.backbones):
        able = " or ".join(dialect.name for dialect in DIALECTS.values() if dialect.backbones)
        raise CheckpointError(
            f"{source} has no classifier, and files for {to} hold one. Convert it to {able}, or "
            f"load it with num_classes=… and save that."
        )
    if labels is not None:
        if len(labels) != checkpoint.config.num_classes:
            raise CheckpointError(
                f"{len(labels)} labels are given for {checkpoint.config.num_classes} classes."
            )
        card = replace(checkpoint.card, labels=tuple(labels))
        checkpoint = checkpoint._replace(card=card)
    network = network_of(checkpoint).eval()
    x, photographs = _images(checkpoint, [images] if isinstance(images, str | Path) else images)
    try:
        parity = _write(path, target, checkpoint, network, x, photographs)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}.") from error
    if target and (hidden := _hidden(path, target, checkpoint.config)):
        warnings.warn(
            f"{path} does not show {' and '.join(hidden)}: in {target.title}, build the network "
            f"with {', '.join(f'{name}={value!r}' for name, value in hidden.items())}.",
            AmbiguityWarning,
            stacklevel=2,
        )
    dialect = checkpoint.dialect.name if checkpoint.dialect else _OWN
    return Conversion(path, dialect, to, checkpoint.config, parity)


def find_target(to: str) -> Dialect | None:
    """The dialect to write; None for our own files.

    Raises:
        CheckpointError: Files cannot be written for a library of that name.
    """
    written = {name: dialect for name, dialect in DIALECTS.items() if dialect.suffixes}
    if to not in (*written, _OWN):
        raise CheckpointError(f"to must be {', '.join((*written, _OWN))}, not {brief(to)}.")
    return written.get(to)


def _write(
    path: Path,
    target: Dialect | None,
    checkpoint: ResolvedCheckpoint,
    network: nn.Module,
    x: Tensor,
    photographs: int,
) -> Parity:
    """Write a draft in the same folder, compare its outputs, then move it to its path."""
    make_folder(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".resnext-") as folder:
        draft = Path(folder) / path.name
        if target is None:
            assert isinstance(network, ResNeXt)
            save(network, draft)
        else:
            write(draft, target, checkpoint.state, checkpoint.config, checkpoint.card)
        other, through = _read_back(draft, target, checkpoint)
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
                f"The converted file's outputs differ by up to {parity.difference:.2g} (largest "
                f"{parity.largest:.2g}), so it was not kept. resnext doctor checks for NaN."
            )
        draft.replace(path)
    return parity


def _read_back(
    path: Path, target: Dialect | None, checkpoint: ResolvedCheckpoint
) -> tuple[nn.Module, str]:
    """The network in the converted file, as its own library builds it if that is installed."""
    if target and target.original and checkpoint.classifier and _importable(target.name):
        model = target.original(checkpoint.config)
        model.load_state_dict(choose_weights(read(path)).state, strict=True)
        version = importlib.import_module(target.name).__version__
        return model.eval(), f"{target.name} {version}"
    config = checkpoint.config if target and not target.holds_config else None
    return network_of(resolve(path, config=config)).eval(), "our own reading of it"


def _hidden(path: Path, target: Dialect, config: ResNeXtConfig) -> dict[str, Any]:
    """Arguments of the other library's constructor that a written file does not show."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmbiguityWarning)
        shown = target.arguments(resolve(path).config)
    return {name: x for name, x in target.arguments(config).items() if x != shown.get(name)}


def _importable(library: str) -> bool:
    try:
        importlib.import_module(library)
    except Exception:  # a library built for another torch fails in its own ways
        return False
    return True


def _answers(network: nn.Module, x: Tensor) -> Tensor:
    y = network(x)
    return y[-1] if isinstance(y, tuple) else y


def _images(
    checkpoint: ResolvedCheckpoint, photographs: Sequence[str | Path]
) -> tuple[Tensor, int]:
    """Two random images and the photographs, prepared for the network, and their number."""
    preprocessing, channels = checkpoint.card.preprocessing, checkpoint.config.in_channels
    size = max(min(preprocessing.size, 320), checkpoint.config.min_size)
    if checkpoint.config.norm == "instance":  # it needs more than one pixel in the last map
        size = max(size, checkpoint.config.stride + 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, size, size, generator=generator)
    colour = preprocessing.colour
    if channels != (1 if colour == "L" else 3):
        return x, 0
    values = preprocessing.value_range
    images = [open_image(Path(photograph), colour, values) for photograph in photographs]
    if not photographs:
        images = [as_colour(Image.fromarray(photo), colour) for photo in _samples()]
    preprocessing = replace(preprocessing, size=size, resize=max(preprocessing.resize, size))
    return torch.cat([x, *(prepare(image, preprocessing)[None] for image in images)]), len(images)


def _samples() -> list[np.ndarray[Any, Any]]:
    """scikit-learn's photographs, if it is installed."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        return []
    return list(load_sample_images().images)
