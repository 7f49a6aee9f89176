"""Files that `export` wrote, as runners. Loads no torch unless the file is for torch."""

from __future__ import annotations

import json
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from resnext.card import Card
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, MissingFileError, ResNeXtError
from resnext.inference.engines.onnxruntime import OnnxSession
from resnext.inference.engines.openvino import OpenVinoSession, openvino_core
from resnext.inference.exported_classifier import exported_classifier
from resnext.inference.runner import Classifier, MapOutputs, Outputs
from resnext.system.cpu import core_count
from resnext.system.digest import file_sha256
from resnext.system.forks import change_after_fork, one_thread_after_fork

if TYPE_CHECKING:
    from torch import Tensor

METADATA_KEY = "resnext"
"""Name of our description in a file's metadata."""

SUFFIXES = (".onnx", ".xml", ".pt2")
"""Suffixes of the files that `export` writes."""

_EMBEDDING, _MAP = 1, 2  # positions of these outputs


class Exported:
    """A file that `export` wrote, in its own runtime; opened again in a forked process.

    Args:
        path: The file.

    Attributes:
        input: "images" or "pixels".
        output: "logits" or "probabilities".
        proof: What the file was compared on when it was written, and the differences.

    Raises:
        CheckpointError: The file does not exist, is damaged, or was not written by `export`.
        InputError: The runtime is not installed.
    """

    batch = 16

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingFileError(f"{path} does not exist.")
        self.path = path
        own, session = _open(path, _EMBEDDING)
        if own is None:
            raise CheckpointError(
                f"{path} was not written by resnext export: it has no description of its labels "
                f"and preprocessing."
            )
        described = json.loads(own)
        self.config = ResNeXtConfig.from_dict(described["config"])
        self.card: Card | None = Card.from_dict(described["card"])
        self.input, self.output = described["input"], described["output"]
        self.proof: dict[str, Any] = described["proof"]
        self._sessions = {_EMBEDDING: session}
        self._lock = threading.Lock()
        change_after_fork(self)

    def after_fork(self) -> None:
        """Forget what a forked process cannot use."""
        self._lock, self._sessions = threading.Lock(), {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the file again."""
        return type(self), (self.path,)

    @property
    def fingerprint(self) -> str:
        """Differs between files."""
        return file_sha256(self.path)

    def __call__(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of normalized images, which were pixels of 8 bits."""
        import torch

        assert self.card is not None
        rule = self.card.preprocessing
        images = x.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
        mean, std = (np.array(values, np.float32) for values in (rule.mean, rule.std))
        levels = np.rint((images * std + mean) * 255).clip(0, 255).astype(np.uint8)
        return torch.from_numpy(self.pixels(levels)[0]).to(x.device)

    def pixels(self, x: UInt8[np.ndarray, "n h w c"]) -> Outputs:
        """Logits and embeddings of pixels as `data.decoding.pixels` returns them."""
        first, embeddings = self._run(x, _EMBEDDING)
        if self.output == "probabilities":  # whose softmax over the temperature they are again
            assert self.card is not None
            first = np.log(np.maximum(first, np.finfo(np.float32).tiny)) * self.card.temperature
        return first, embeddings

    def maps(self, x: UInt8[np.ndarray, "n h w c"]) -> MapOutputs:
        """Logits and last feature maps of pixels.

        Raises:
            InputError: The package that reads the weights of the file is not installed.
        """
        first, maps = self._run(x, _MAP)
        if self.output == "probabilities":  # they do not tell the sum of a class map: no constant
            weight, bias = self.classifier
            first = self._run(x, _EMBEDDING)[1] @ weight.T + bias
        return first, maps

    @cached_property
    def classifier(self) -> Classifier:
        """The last layer of the network."""
        return exported_classifier(self.path)

    def _run(self, x: UInt8[np.ndarray, "n h w c"], other: int) -> tuple[Any, Any]:
        """The first output, and another one."""
        assert self.card is not None
        given: np.ndarray = x
        if self.input == "images":
            rule = self.card.preprocessing
            mean, std = (np.array(values, np.float32) for values in (rule.mean, rule.std))
            images = ((x.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
            given = np.ascontiguousarray(images)
        with self._lock:
            if other not in self._sessions:
                self._sessions[other] = _open(self.path, other)[1]
            session = self._sessions[other]
        return session(given)


def is_exported(source: object) -> bool:
    """Whether a model is a file with a suffix that `export` writes."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in SUFFIXES


def _open(path: Path, other: int) -> tuple[str | None, Any]:
    """A file's description, and a session of its first output and another one."""
    openers = {".onnx": _open_onnx, ".xml": _open_openvino, ".pt2": _open_torch}
    try:
        return openers[path.suffix.lower()](path, other)
    except ResNeXtError:
        raise
    except Exception as error:  # runtimes raise errors of many types
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} cannot be opened: {first}") from error


def _open_onnx(path: Path, other: int) -> tuple[str | None, Any]:
    session = OnnxSession(path, Exported.batch, 1, core_count(), other=other)
    return session.metadata.get(METADATA_KEY), session


def _open_openvino(path: Path, other: int) -> tuple[str | None, Any]:
    model = openvino_core().read_model(path)
    key = ["model_info", METADATA_KEY]
    own = model.get_rt_info(key).value if model.has_rt_info(key) else None
    threads = core_count()  # one image each
    return own, OpenVinoSession(model, 1, threads, threads, "f32", other=other)


def _open_torch(path: Path, other: int) -> tuple[str | None, Any]:
    import torch

    extra = {METADATA_KEY: ""}
    module = torch.export.load(path, extra_files=extra).module()

    def run(x: Shaped[np.ndarray, "n _ _ _"]) -> tuple[np.ndarray, np.ndarray]:
        one_thread_after_fork().begun = True
        with torch.inference_mode():
            outputs = [*module(torch.from_numpy(x)).values()]
        return outputs[0].numpy(), outputs[other].numpy()

    return extra[METADATA_KEY] or None, run
