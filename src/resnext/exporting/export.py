"""`export`: a model as a file of another runtime, proven there before it is kept."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeVar

from torch import nn

from resnext.backbone import Backbone
from resnext.card import Card, card_of
from resnext.checks import brief, one_of
from resnext.errors import CheckpointError, InputError, ResNeXtWarning
from resnext.exporting.client import batch_sizes
from resnext.exporting.eight_bits import EightBits, check_outputs_in_8_bits
from resnext.exporting.gate import PICTURES, ROUNDING, ROUNDING_IN_8_BITS, check, reference
from resnext.exporting.graph import ExportedModule, FileInput, Network, check_outputs
from resnext.exporting.metadata import own_metadata
from resnext.exporting.page_index import index_of_page
from resnext.exporting.picture import check_picture
from resnext.exporting.targets import TARGETS, Target
from resnext.network import ResNeXt
from resnext.system.atomic import check_writable, make_folder, write_bytes_atomically
from resnext.weights.load import load

T = TypeVar("T", bound=str)

MAX_BATCH = 16
"""The largest batch of files that have one, if it is not chosen."""

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-2}
"""Largest difference of an output, relative to the largest value of that output."""


def export(
    model: Network | str | Path,
    path: str | Path | None = None,
    *,
    to: str | None = None,
    input: FileInput | None = None,
    outputs: str | Sequence[str] | None = None,
    sizes: Literal["fixed", "dynamic"] | None = None,
    precision: Literal["fp32", "fp16", "int8"] | None = None,
    max_batch: int | None = None,
    index: str | Path | Literal["auto"] | None = "auto",
    overwrite: bool = False,
) -> Path:
    """Write a network as a file of another runtime, and prove it there.

    The file is run in a fresh process that loads only that runtime, NumPy and Pillow, on 64
    pictures, from JPEG file to label, in batches of 1, 2, 17 and 44, or up to `max_batch`. If an
    output or a class differs from the network's own, nothing is written. The same model gives the
    same bytes.

    Args:
        model: A classifier or backbone with a card, or a model file or name as for `resnext.load`.
        path: File to write: `.onnx`, `.xml` (OpenVINO, with a `.bin` file beside it), `.pt2`,
            `.pte` or `.html`; or for a page a name without suffix, a folder for a web server. By
            default, the name of the model file in the current folder; a page above 64 MB becomes a
            folder.
        to: "onnx", "openvino", "torch", "executorch" or "page"; by default it follows from the
            suffix. A page is one HTML file that classifies pictures in the browser, without a
            network.
        input: "images" (default): normalized `(n, c, h, w)` floats; "pixels": `(n, h, w, c)` of 8
            bits, which the file normalizes itself; "picture": the same of any size, which the file
            also resizes and crops. Not for a page.
        outputs: Names of the outputs, in order: "logits", "probabilities" (with the card's
            temperature), "embedding", "map" (the last feature map, for exact class maps), "c2" to
            "c5" (the maps of the stages), "c1" (the stem's). Default: "logits" and "embedding"; of
            a backbone, its maps. Not for a page.
        sizes: "fixed" (default); "dynamic" to accept images of other heights and widths, for
            `input="images"`.
        precision: "fp32"; "fp16" to store weights in half the space, while all is computed in fp32;
            "int8", only for OpenVINO, to compute as the plan next to a model file does, made by
            `resnext optimize FILE --precision int8 --data …`. Such a file is compared with the
            plan's graph. Default: "fp16" for a page, otherwise "fp32".
        max_batch: For ExecuTorch, the largest batch, for which the file reserves memory; 16 by
            default. Others take any.
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
    kind: FileInput = _chosen("input", input, target.inputs, to)
    size_kind = _chosen("sizes", sizes, target.sizes, to)
    if precision == "int8" and "int8" not in target.precisions:
        raise InputError(
            f"The 8 bits of a plan are a graph of OpenVINO. Take --to openvino, or another "
            f"precision for {target.name}."
        )
    stored = _chosen("precision", precision, target.precisions, to)
    if size_kind == "dynamic" and kind != "images":
        raise InputError(
            f"sizes can be dynamic for the input images, not for {kind}. A picture has any size."
        )
    if size_kind == "dynamic" and stored == "int8":
        raise InputError("8 bits are calibrated for one size of images. Leave out --sizes.")
    if index not in ("auto", None) and not target.takes_index:
        raise InputError(f"Only a page holds an index, not --to {target.name}. Leave out --index.")
    if max_batch is not None and not target.bounded:
        raise InputError(
            f"Files for {target.name} take batches of any size. Leave out --max-batch."
        )
    largest = MAX_BATCH if max_batch is None else max_batch
    if type(largest) is not int or not 1 <= largest <= 256:
        raise InputError(f"max_batch must be from 1 to 256 images, not {brief(largest)}.")
    if path is None and isinstance(model, Network):
        raise InputError("A network in memory has no name. Give the path of the file to write.")
    if path is not None:
        _check_free(target, Path(path), overwrite)
    target.check_packages()
    eight_bits = EightBits(model) if stored == "int8" else None
    network, card = _network(model)
    if eight_bits is not None:
        card = eight_bits.plan.card(card) or card
    if kind == "picture":
        check_picture(card.preprocessing)
    if target.outputs is None:
        names = check_outputs(network, outputs)
    elif outputs is not None:
        raise InputError(f"The outputs of a {target.title} cannot be chosen.")
    elif isinstance(network, ResNeXt):
        names = target.outputs
    else:
        raise InputError(f"A {target.title} needs a classifier; the model is a backbone.")
    module = ExportedModule(network, card, kind, names, half=stored == "fp16").eval()
    module.max_batch = largest
    if eight_bits is not None:
        check_outputs_in_8_bits(names)
        module.eight_bits = eight_bits
    note = ""
    if target.takes_index and isinstance(network, ResNeXt):
        source = model if isinstance(model, str | Path) else network
        module.index, note = index_of_page(source, network, card, index)
    if path is None:
        path = target.default(Path(str(model)).stem, module)
        _check_free(target, path, overwrite)
    if note:
        warnings.warn(note, ResNeXtWarning, stacklevel=2)
    path = Path(path)
    with TemporaryDirectory() as temporary:
        pictures = Path(temporary) / "pictures"
        pictures.mkdir()
        built = target.build(module, size_kind)
        batches = batch_sizes(largest, PICTURES) if target.bounded else list(target.batches)
        asked = {"input": kind, "sizes": size_kind, "batches": batches}
        wanted = reference(eight_bits or network, card, names, asked, pictures)
        trial = Path(temporary) / path.name
        bound = largest if target.bounded else 0
        shown = network.config, card, kind, names, size_kind, stored, bound
        described = partial(own_metadata, *shown)
        target.write(built, trial, described({}), module)
        rounding = ROUNDING if eight_bits is None else ROUNDING_IN_8_BITS
        proof = check(target, trial, wanted, card, TOLERANCES[stored], rounding)
        if eight_bits is not None:
            proof["accuracy"] = eight_bits.accuracy
        target.write(built, trial, described(proof), module)  # the same but for the proof
        make_folder(target.files(path)[0])
        for made, file in zip(target.files(trial), target.files(path), strict=True):
            write_bytes_atomically(file, made.read_bytes())
    return path


def _network(model: Network | str | Path) -> tuple[Network, Card]:
    """A copy of the network in single precision, and its card; a classifier must have labels.

    Raises:
        InputError: The model has no card, or no labels.
        CheckpointError: The model cannot be loaded.
    """
    source = model if isinstance(model, ResNeXt | Backbone) else load(model)
    network = copy.deepcopy(source).cpu().float().eval()
    if isinstance(network, ResNeXt) and isinstance(network.fc, nn.Linear):
        return network, card_of(network)
    if network.card is None:
        raise InputError(
            "The backbone has no card, so its preprocessing is unknown. Set backbone.card = "
            "resnext.Card(preprocessing=…)."
        )
    return network, network.card.without_classes()


def _chosen(name: str, given: T | None, known: tuple[T, ...], to: str | None) -> T:
    """A choice, by default the first.

    Raises:
        ConfigError: There is no such choice.
    """
    value = known[0] if given is None else given
    one_of(name if to is None else f"{name} of --to {to}", value, known)
    return value


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
