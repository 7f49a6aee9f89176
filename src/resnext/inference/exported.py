"""Files of other runtimes, as runners: those of `export`, and foreign classifiers.

Loads no torch unless the file is for torch.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from resnext.card import Card, Preprocessing
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, InputError, MissingFileError, ResNeXtError
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import EngineConfig, load_package, silenced
from resnext.inference.engines.onnxruntime import OnnxSession
from resnext.inference.engines.openvino import OpenVinoSession, openvino_core
from resnext.inference.foreign import MODEL_INFO, ForeignConfig, Given, Port, describe_foreign
from resnext.inference.last_layer import read_last_layer
from resnext.inference.runner import Classifier, MapOutputs, Outputs, Session
from resnext.system.cpu import core_count
from resnext.system.digest import file_sha256
from resnext.system.forks import change_after_fork, one_thread_after_fork, refuse_after_fork

if TYPE_CHECKING:
    from torch import Tensor

METADATA_KEY = "resnext"
"""Name of our description in a file's metadata."""

SUFFIXES = (".onnx", ".xml", ".pt2", ".pte")
"""Suffixes of the files that are read."""

READERS = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",)}
"""Engines that can run a file, by its suffix."""


class Exported:
    """A file for another runtime, run in that runtime; opened again in a forked process.

    Args:
        path: A file of `export`, or another ONNX or OpenVINO file with a classifier.
        given: Labels and preprocessing of a foreign file, where its metadata do not state them.
        form: How to compute it, as a plan says; None for the runtime's usual way.
        batch: The batch size that the form is for.

    Attributes:
        input: "images", "pixels" or "picture".
        outputs: Names of the outputs.
        foreign: Whether the file was not written by `export`.
        precision: How weights are stored; "" if foreign.
        proof: What the file was compared on when it was written, and the differences.
        notes: What was found out about a foreign file.

    Raises:
        CheckpointError: The file does not exist, is damaged, or is not a classifier.
        InputError: The runtime is not installed, or a foreign file needs labels or preprocessing.
    """

    def __init__(
        self,
        path: Path,
        given: Given | None = None,
        form: EngineConfig | None = None,
        batch: int = 16,
    ) -> None:
        if not path.is_file():
            raise MissingFileError(f"{path} does not exist.")
        self.path, self._given, self._form, self.batch = path, given, form, batch
        opened = _open(path)
        own = opened.metadata.get(METADATA_KEY)
        self.foreign = own is None
        self.notes: tuple[str, ...] = ()
        self.config: ResNeXtConfig | ForeignConfig
        if own is None:
            ports = opened.inputs, opened.outputs
            found = describe_foreign(path, opened.metadata, *ports, given or Given())
            self.config, self.card, self.notes = found.config, found.card, found.notes
            self.input, self._channels_last = found.input, found.channels_last
            self.outputs, self._first = found.outputs, found.first
            self.precision, self.proof = "", dict[str, Any]()
        else:
            if given is not None:
                raise InputError(f"{path} has its own labels and preprocessing. Give none.")
            described = json.loads(own)
            self.config = ResNeXtConfig.from_dict(described["config"])
            self.card: Card | None = Card.from_dict(described["card"])
            self.input, self.outputs = described["input"], tuple(described["outputs"])
            self.precision, self.proof = described["precision"], described["proof"]
            self._channels_last = self.input != "images"
            named = [name for name in ("logits", "probabilities") if name in self.outputs]
            self._first = self.outputs.index(named[0]) if named else -1
        self._lock = threading.Lock()
        self._opened: _Opened | None = opened
        self._sessions: dict[tuple[int, EngineConfig | None], Session] = {}
        self._are_probabilities = self._first >= 0 and self.outputs[self._first] == "probabilities"
        if self.foreign and self._found_probabilities():
            self._are_probabilities = True
            self.notes = (*self.notes, "Softmax is inside: the file returns probabilities.")
        change_after_fork(self)

    def after_fork(self) -> None:
        """Forget what a forked process cannot use."""
        self._lock, self._opened, self._sessions = threading.Lock(), None, {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the file again."""
        return type(self), (self.path, self._given, self._form, self.batch)

    def computed_as(self, form: EngineConfig, batch: int) -> Exported:
        """The same file, computed in another way."""
        return Exported(self.path, self._given, form, batch)

    @property
    def fingerprint(self) -> str:
        """Differs between files."""
        return file_sha256(self.path)

    def __call__(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of normalized images, which were pixels of 8 bits."""
        import torch

        images = x.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
        mean, std = self._normalization
        levels = np.rint((images * std + mean) * 255).clip(0, 255).astype(np.uint8)
        return torch.from_numpy(self.pixels(levels)[0]).to(x.device)

    def pixels(self, x: UInt8[np.ndarray, "n h w c"]) -> Outputs:
        """Logits and embeddings of pixels as `data.decoding.pixels` returns them.

        Without an output "embedding", embeddings have no values.
        """
        if "embedding" not in self.outputs:
            logits, _ = self._run(x, self._first)
            return logits, np.zeros((len(x), 0), np.float32)
        return self._run(x, self.outputs.index("embedding"))

    def maps(self, x: UInt8[np.ndarray, "n h w c"]) -> MapOutputs:
        """Logits and last feature maps of pixels.

        Raises:
            InputError: The file has no output "map".
        """
        self._check_map()
        logits, maps = self._run(x, self.outputs.index("map"))
        if self._are_probabilities:  # their logits lack a constant
            weight, bias = self.classifier
            logits = maps.mean((2, 3)) @ weight.T + bias
        return logits, maps

    @cached_property
    def classifier(self) -> Classifier:
        """The last layer of the network.

        Raises:
            InputError: The file has no output "map", or it cannot be read.
        """
        self._check_map()
        return read_last_layer(self.path, self._first)

    def _check_map(self) -> None:
        if "map" not in self.outputs:
            packed = self.foreign or self.path.suffix == ".pte"  # its last layer cannot be read
            again = "" if packed else ", or export it again with --outputs logits embedding map"
            raise InputError(
                f"{self.path} has no output map, so no exact class map. Use the method occlusion "
                f"(--how occlusion){again}."
            )

    def _run(self, x: UInt8[np.ndarray, "n h w c"], other: int) -> tuple[Any, Any]:
        """Logits, and the output at another position."""
        if self._first < 0:
            raise InputError(
                f"{self.path} predicts no classes: it has only the outputs "
                f"{', '.join(self.outputs)}. Export it with --outputs logits."
            )
        form = self._form and ENGINES[self._form.engine].form_for(self._form, len(x))
        with self._lock:
            session = self._sessions.get((other, form))
            if session is None:
                opened = self._opened = self._opened or _open(self.path)
                first = opened.inputs[0]
                shape = tuple(n if isinstance(n, int) else 0 for n in first.shape[1:])
                given = self._given_to_file(x[:1]).shape[1:]
                shape = tuple(n or own for n, own in zip(shape, given, strict=True))
                session = opened.session(self._first, other, shape, form)
                self._sessions[other, form] = session
                if form is not None:  # which has a session of its own
                    self._opened = None
        results = session(self._given_to_file(x))
        logits, others = results[0].reshape(len(x), -1), results[1]
        if self._are_probabilities:  # whose softmax over the temperature they are again
            assert self.card is not None
            tiny = np.finfo(np.float32).tiny
            logits = np.log(np.maximum(logits, tiny)) * np.float32(self.card.temperature)
        return logits, others

    def _given_to_file(self, x: UInt8[np.ndarray, "n h w c"]) -> Shaped[np.ndarray, "n _ _ _"]:
        """Pixels in the form that the file takes."""
        assert self.card is not None
        given: np.ndarray = x
        if self.input == "picture":  # around it, what the file will crop again
            side = self.card.preprocessing.resize
            start = round((side - x.shape[1]) / 2)
            given = np.zeros((len(x), side, side, x.shape[3]), np.uint8)
            given[:, start : start + x.shape[1], start : start + x.shape[2]] = x
        elif self.input == "images":
            mean, std = self._normalization
            given = (x.astype(np.float32) / 255 - mean) / std
        if not self._channels_last:
            given = given.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(given)

    @cached_property
    def _normalization(self) -> tuple[Float32[np.ndarray, " c"], Float32[np.ndarray, " c"]]:
        assert self.card is not None
        rule: Preprocessing = self.card.preprocessing
        return np.array(rule.mean, np.float32), np.array(rule.std, np.float32)

    def _found_probabilities(self) -> bool:
        """Whether the rows of a foreign file's output are probabilities, tried with noise."""
        assert self.card is not None
        size, channels = self.card.preprocessing.size, self.config.in_channels
        noise = np.random.default_rng(0).integers(0, 256, (2, size, size, channels), np.uint8)
        rows = self._run(noise, self._first)[0]
        return bool(rows.min() >= 0 and np.allclose(rows.sum(1), 1, atol=1e-3))


def usual_form(path: Path) -> EngineConfig:
    """How an ONNX or OpenVINO file is computed without a plan."""
    if path.suffix.lower() == ".onnx":
        return EngineConfig("onnxruntime", piece=16)
    return EngineConfig("openvino", streams=core_count())  # one image each


def is_exported(source: object) -> bool:
    """Whether a model is a file with a suffix that is read here."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in SUFFIXES


def check_processor(path: str | Path, device: str) -> None:
    """Refuse another device than the processor for a file of another runtime.

    Args:
        path: The file.
        device: "auto", or a torch device.

    Raises:
        InputError: It is another device.
    """
    if device.partition(":")[0] not in ("auto", "cpu"):
        raise InputError(
            f"{path} runs on the processor only, not on {device!r}. Leave out the device, or use "
            f"the model file that it was made from."
        )


class _Opened:
    """A file in its runtime: what it says about itself, and sessions of it.

    Attributes:
        metadata: Texts by name.
        inputs: Its inputs.
        outputs: Its outputs.
    """

    metadata: dict[str, str]
    inputs: list[Port]
    outputs: list[Port]

    def session(
        self, first: int, other: int, shape: tuple[int, ...], form: EngineConfig | None
    ) -> Session:
        """A session that returns two outputs.

        Args:
            first: Position of the first one.
            other: Position of the other one.
            shape: Shape of an input without its batch.
            form: Engine, pieces and streams; None for the usual ones.
        """
        raise NotImplementedError


class _OpenedOnnx(_Opened):
    def __init__(self, path: Path) -> None:
        self._path = path
        self._session = OnnxSession(path, usual_form(path).piece, 1, core_count())
        self.metadata = self._session.metadata
        self.inputs, self.outputs = self._session.ports()

    def session(
        self, first: int, other: int, shape: tuple[int, ...], form: EngineConfig | None
    ) -> Session:
        if form is None:
            return self._session.returning(first, other)
        if form.engine == "openvino":
            model, fixed = openvino_core().read_model(self._path), self.inputs[0].shape[0]
            return _in_openvino(model, fixed, form, (first, other), shape)
        session = OnnxSession(self._path, form.piece, form.streams, core_count())
        return session.returning(first, other)


class _OpenedOpenVino(_Opened):
    def __init__(self, path: Path) -> None:
        self._model = openvino_core().read_model(path)
        keys = [["model_info", key] for key in (METADATA_KEY, *MODEL_INFO)]
        self.metadata = {
            key[1]: str(self._model.get_rt_info(key).value)
            for key in keys
            if self._model.has_rt_info(key)
        }
        self.inputs, self.outputs = (
            [
                Port(
                    next(iter(port.names), ""),
                    port.get_element_type().get_type_name(),
                    tuple(n.get_length() if n.is_static else str(n) for n in port.partial_shape),
                )
                for port in ports
            ]
            for ports in (self._model.inputs, self._model.outputs)
        )

    def session(
        self, first: int, other: int, shape: tuple[int, ...], form: EngineConfig | None
    ) -> Session:
        model, fixed = self._model.clone(), self.inputs[0].shape[0]
        return _in_openvino(model, fixed, form or usual_form(Path(".xml")), (first, other), shape)


def _in_openvino(
    model: Any, fixed: int | str, form: EngineConfig, wanted: tuple[int, int], shape: Sequence[int]
) -> Session:
    """A session of a model that may take only one number of images."""
    piece = fixed if isinstance(fixed, int) else form.piece
    return OpenVinoSession(model, piece, form.streams, core_count(), "f32", wanted, shape)


class _OpenedTorch(_Opened):
    def __init__(self, path: Path) -> None:
        import torch

        extra = {METADATA_KEY: ""}
        self._module = torch.export.load(path, extra_files=extra).module()
        if not extra[METADATA_KEY]:
            raise _not_ours(path)
        self.metadata, self.outputs = dict(extra), []
        self.inputs = [Port("", "", ("n", "", "", ""))]

    def session(
        self, first: int, other: int, shape: tuple[int, ...], form: EngineConfig | None
    ) -> Session:
        import torch

        def run(x: Shaped[np.ndarray, "n _ _ _"]) -> Outputs:
            one_thread_after_fork().begun = True
            with torch.inference_mode():
                found = [*self._module(torch.from_numpy(x)).values()]
            return found[first].numpy(), found[other].numpy()

        return run


class _OpenedExecuTorch(_Opened):
    def __init__(self, path: Path) -> None:
        runtime, self._process = _executorch()
        program = runtime.load_program(path)
        if METADATA_KEY not in program.method_names:
            raise _not_ours(path)
        own = program.load_method(METADATA_KEY).execute([])[0]
        self._forward = program.load_method("forward")
        self._largest = json.loads(own)["max_batch"]
        self.metadata, self.outputs = {METADATA_KEY: own}, []
        self.inputs = [Port("", "", ("n", "", "", ""))]
        self._lock = threading.Lock()

    def session(
        self, first: int, other: int, shape: tuple[int, ...], form: EngineConfig | None
    ) -> Session:
        import torch

        def run(x: Shaped[np.ndarray, "n _ _ _"]) -> Outputs:
            refuse_after_fork(self._process, "ExecuTorch")
            found: list[tuple[np.ndarray, np.ndarray]] = []
            with self._lock:  # the next call writes into the same memory
                for piece in torch.from_numpy(x).split(self._largest):
                    outputs = self._forward.execute([piece])
                    found.append((outputs[first].numpy().copy(), outputs[other].numpy().copy()))
            logits, others = (np.concatenate(some) for some in zip(*found, strict=True))
            return logits, others

        return run


@cache
def _executorch() -> tuple[Any, int]:
    """ExecuTorch's `Runtime` and its process: a forked one lacks its threads.

    Raises:
        InputError: ExecuTorch is not installed.
    """
    with silenced("torchao"), silenced("torch"):  # torchao's remarks about GPUs
        load_package("executorch", '"resnext[executorch]"')
        from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]
    return Runtime.get(), os.getpid()


def _not_ours(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} was not written by resnext export: it has no description of its labels and "
        f"preprocessing."
    )


def _open(path: Path) -> _Opened:
    """A file in its runtime."""
    openers = {
        ".onnx": _OpenedOnnx,
        ".xml": _OpenedOpenVino,
        ".pt2": _OpenedTorch,
        ".pte": _OpenedExecuTorch,
    }
    try:
        return openers[path.suffix.lower()](path)
    except ResNeXtError:
        raise
    except Exception as error:  # runtimes raise errors of many types
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} cannot be opened: {first}") from error
