"""Files that `export` wrote, as runners. Loads no torch unless the file is for torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from resnext.card import Card
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, MissingFileError, ResNeXtError
from resnext.inference.engines.base import load_package
from resnext.inference.runner import Outputs
from resnext.system.digest import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

METADATA_KEY = "resnext"
"""Name of our description in a file's metadata."""

SUFFIXES = (".onnx", ".xml", ".pt2")
"""Suffixes of the files that `export` writes."""

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class Exported:
    """A file that `export` wrote, in its own runtime.

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
        own, self._run = _open(path)
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
        assert self.card is not None
        if self.input == "pixels":
            found = self._run(x)
        else:
            rule = self.card.preprocessing
            mean, std = (np.array(values, np.float32) for values in (rule.mean, rule.std))
            images = ((x.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
            found = self._run(np.ascontiguousarray(images))
        logits = found[self.output]
        if self.output == "probabilities":  # whose softmax over the temperature they are again
            logits = np.log(np.maximum(logits, np.finfo(np.float32).tiny)) * self.card.temperature
        return logits, found["embedding"]


def is_exported(source: object) -> bool:
    """Whether a model is a file with a suffix that `export` writes."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in SUFFIXES


def _open(path: Path) -> tuple[str | None, Run]:
    """A file's description, and a function from a batch to its outputs by name."""
    openers = {".onnx": _open_onnx, ".xml": _open_openvino, ".pt2": _open_torch}
    try:
        return openers[path.suffix.lower()](path)
    except ResNeXtError:
        raise
    except Exception as error:  # runtimes raise errors of many types
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} cannot be opened: {first}") from error


def _open_onnx(path: Path) -> tuple[str | None, Run]:
    ort = load_package("onnxruntime", '"resnext[onnx]"')
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    wanted = [output.name for output in session.get_outputs()[:2]]
    own = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    return own, lambda x: dict(zip(wanted, session.run(wanted, {name: x}), strict=True))


def _open_openvino(path: Path) -> tuple[str | None, Run]:
    openvino = load_package("openvino", '"resnext[openvino]"')
    model = openvino.Core().read_model(path)
    key = ["model_info", METADATA_KEY]
    own = model.get_rt_info(key).value if model.has_rt_info(key) else None
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [output.get_any_name() for output in compiled.outputs]
    return own, lambda x: dict(zip(names, compiled(x).values(), strict=True))


def _open_torch(path: Path) -> tuple[str | None, Run]:
    import torch

    extra = {METADATA_KEY: ""}
    module = torch.export.load(path, extra_files=extra).module()

    def run(x: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {name: value.numpy() for name, value in module(torch.from_numpy(x)).items()}

    return extra[METADATA_KEY] or None, run
