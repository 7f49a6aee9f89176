"""`export`: a model as a file of another runtime, proven there before it is kept."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from resnext.card import card_of
from resnext.checks import brief, one_of
from resnext.errors import CheckpointError, InputError
from resnext.exporting.gate import check, reference
from resnext.exporting.graph import ExportedModule, OutputKind
from resnext.exporting.metadata import own_metadata
from resnext.exporting.page_index import index_of_page
from resnext.exporting.targets import TARGETS, Target
from resnext.inference.engines.base import InputKind
from resnext.network import ResNeXt
from resnext.system.atomic import check_writable, make_folder, write_bytes_atomically
from resnext.weights.load import load_classifier

Precision = Literal["fp32", "fp16"]
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
"""Largest difference of an output, relative to the largest value of that output."""


def export(
    model: ResNeXt | str | Path,
    path: str | Path | None = None,
    *,
    to: str | None = None,
    input: InputKind | None = None,
    output: OutputKind | None = None,
    precision: Precision | None = None,
    index: str | Path | Literal["auto"] | None = "auto",
    overwrite: bool = False,
) -> Path:
    """Write a classifier as a file of another runtime, and prove it there.

    The file is run in a fresh process that loads only that runtime, NumPy and Pillow, on 64
    pictures, from JPEG file to label, in batches of 1, 2, 17 and 44. If an output or a class
    differs from the network's own, nothing is written. The same model gives the same bytes.

    Outputs have the names "logits" (or "probabilities"), "embedding" and "map"; any number of
    images of the model's size is accepted.

    Args:
        model: A network with a card, or a model file or name as for `resnext.load`.
        path: File to write: `.onnx`, `.xml` (OpenVINO, with a `.bin` file beside it), `.pt2` or
            `.html`; or for a page a name without suffix, a folder for a web server. By default, the
            name of the model file in the current folder; a page above 64 MB becomes a folder.
        to: "onnx", "openvino", "torch" or "page"; by default it follows from the suffix. A page is
            one HTML file that classifies pictures in the browser, without a network.
        input: "images" (default): normalized `(n, c, h, w)` floats; "pixels": `(n, h, w, c)` of 8
            bits, which the file normalizes itself. Not for a page.
        output: "logits" (default), or "probabilities", with the card's temperature. Not for a page.
        precision: "fp32", or "fp16" to store weights in half the space; all is computed in fp32.
            Default: "fp16" for a page, otherwise "fp32".
        index: For a page, the index of images that it shows as similar, and by which it says "none
            of these"; "auto" for the one next to a model file, None for none. The page holds small
            copies of these images.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The path.

    Raises:
        InputError: An argument is wrong, the model has no labels, or a package is missing.
        CheckpointError: The model cannot be loaded, or the file exists or cannot be written.
        ResNeXtError: The file does not answer as the network does.

    Warns:
        ResNeXtWarning: The index next to the model file is used for a page, or cannot be used.
    """
    target = _target(to, path)
    given = {"input": input, "output": output, "precision": precision}
    chosen: dict[str, Any] = {}
    for name, choices in target.settings.items():
        chosen[name] = choices[0] if given[name] is None else given[name]
        one_of(name if to is None else f"{name} of --to {to}", chosen[name], choices)
    kind, first, stored = chosen.values()
    if index not in ("auto", None) and not target.takes_index:
        raise InputError(f"Only a page holds an index, not --to {target.name}. Leave out --index.")
    if path is None and isinstance(model, ResNeXt):
        raise InputError("A network in memory has no name. Give the path of the file to write.")
    if path is not None:
        _check_free(target, Path(path), overwrite)
    target.check_packages()
    source = model if isinstance(model, ResNeXt) else load_classifier(model)
    network = copy.deepcopy(source).cpu().float().eval()
    card, config = card_of(network), network.config
    half = stored == "fp16"
    module = ExportedModule(network, card, kind, first, target.extras, half=half).eval()
    if target.takes_index:
        module.index = index_of_page(model, network, card, index)
    if path is None:
        path = target.default(Path(str(model)).stem, module)
        _check_free(target, path, overwrite)
    path = Path(path)
    side = card.preprocessing.size
    shape = (2, side, side, config.in_channels)
    example = torch.zeros(shape, dtype=torch.uint8)
    if kind == "images":
        example = torch.zeros(2, config.in_channels, side, side)
    names = [first, *target.extras]
    with TemporaryDirectory() as temporary:
        pictures = Path(temporary) / "pictures"
        pictures.mkdir()
        built = target.build(module, example, names)
        wanted = reference(network, card, names, pictures)
        trial = Path(temporary) / path.name
        proof: dict[str, object] = {}
        for _ in range(2):  # the second time with the proof in it
            own = own_metadata(config, card, kind, first, proof)
            target.write(built, trial, own, module)
            proof = check(target, trial, wanted, card, kind, TOLERANCES[stored])
        make_folder(target.files(path)[0])
        for made, file in zip(target.files(trial), target.files(path), strict=True):
            write_bytes_atomically(file, made.read_bytes())
    return path


def _check_free(target: Target, path: Path, overwrite: bool) -> None:
    """Refuse a path that cannot be written, or must not be.

    Raises:
        CheckpointError: A file exists or cannot be written.
    """
    for file in target.files(path):
        check_writable(file)
        if file.exists() and not overwrite:
            raise CheckpointError(f"{file} exists. Give another name, or overwrite (--overwrite).")


def _target(name: str | None, path: str | Path | None) -> Target:
    """The target of a name, or of a file's suffix.

    Raises:
        InputError: There is none.
    """
    if name is not None and name not in TARGETS:
        raise InputError(f"to must be {', '.join(TARGETS)}, not {brief(name)}.")
    if path is None:
        return TARGETS[name or "onnx"]
    suffix = Path(path).suffix.lower()
    if name == "page" and not suffix:
        return TARGETS[name]
    suffixes = {target.suffix: target for target in TARGETS.values()}
    target = suffixes.get(suffix) if name is None else TARGETS[name]
    if target is None or suffix != target.suffix:
        known = ", ".join(f"{t.suffix} for {t.name}" for t in TARGETS.values())
        raise InputError(
            f"{path}: the suffix must be one of {known}; a page may also be a folder, without a "
            f"suffix (--to page)."
        )
    return target
