"""The contenders of `bench`, each at the best settings that its documentation recommends.

torch is imported only by functions that need it, so that the memory of other engines is measured
without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resnext.benchmark.results import OURS
from resnext.errors import InputError
from resnext.inference.engines.openvino import openvino_core
from resnext.inference.optimized import Optimized
from resnext.inference.plan import read_plans, write_plans
from resnext.weights.header import read_header

if TYPE_CHECKING:
    from resnext.network import ResNeXt

Run = Callable[[], Any]
NETWORK = "network.safetensors"
IMAGES = "images.npy"
_CALIBRATION = 256  # images to calibrate int8 with


@dataclass(frozen=True)
class Contender:
    """A contender with one precision, batch size and mode.

    Args:
        folder: Folder with the network and the images.
        who: Its name.
        precision: Compute precision.
        batch: Batch size.
        threads: Threads to compute with.
        data: Labelled images, to calibrate int8 with.
        way: Index of the mode to run in.
    """

    folder: Path
    who: str
    precision: str
    batch: int
    threads: int
    data: str | None = None
    way: str = ""

    def __str__(self) -> str:
        """Name, precision, batch size and way, for progress."""
        return ", ".join(filter(None, (self.who, self.precision, f"batch {self.batch}", self.way)))

    def images(self) -> np.ndarray:
        """The batch of images to compute."""
        return np.load(self.folder / IMAGES)[: self.batch]

    def network(self) -> ResNeXt:
        """The network, in evaluation mode."""
        from resnext.weights.load import load_classifier

        return load_classifier(self.folder / NETWORK)


class KnownContender(NamedTuple):
    """A library that `bench` times.

    Args:
        precisions: Supported precisions.
        open: Turns a contender into a call that computes its batch, and its settings as text.
        ways: Number of modes, the best of which counts; batch size 1 has only the first.
        slow: Whether opening it takes minutes, so that it only runs on request.
    """

    precisions: tuple[str, ...]
    open: Callable[[Contender], tuple[Run, str]]
    ways: tuple[str, ...] = ("",)
    slow: bool = False


def _library(name: str) -> Any:
    """Import a library that may be missing.

    Raises:
        InputError: The library is missing, or cannot be imported.
    """
    try:
        return import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise InputError("not installed") from error
        raise InputError(f"cannot be imported: {str(error)[:80]}") from error


def _onnx_file(contender: Contender) -> Path:
    """The unmodified network as an ONNX file."""
    path = contender.folder / "plain.onnx"
    if not path.exists():
        from resnext.inference.engines.onnx_export import export_graph

        path.write_bytes(
            export_graph(contender.network(), contender.images().shape[2]).SerializeToString()
        )
    return path


def _int8_model(contender: Contender) -> Path:
    """The unmodified network in 8 bits, quantized with NNCF's defaults, as an OpenVINO file."""
    path = contender.folder / "int8.xml"
    if not path.exists():
        ov = _library("openvino")
        _library("nncf")
        from resnext.inference.engines.quantization import quantize

        model = quantize(openvino_core().read_model(_onnx_file(contender)), _calibration(contender))
        ov.save_model(model, path, compress_to_fp16=False)
    return path


def _calibration(contender: Contender) -> np.ndarray:
    """Evenly spaced images of the data set, normalized."""
    from resnext.data.loader import EvalDataset
    from resnext.data.open import open_for_evaluation

    assert contender.data is not None
    card = read_header(contender.folder / NETWORK)[1]
    images = open_for_evaluation(contender.data, card.labels, card.provenance)
    count = min(len(images), _CALIBRATION)
    chosen = [i * len(images) // count for i in range(count)]
    prepared = EvalDataset(images, card.preprocessing, chosen)
    items = [prepared[i] for i in range(count)]
    return np.stack([item[0].numpy() for item in items if item is not None])


def _torch(contender: Contender) -> tuple[Run, str]:
    """torchvision and timm: eager or compiled, with the weights under their own keys."""
    library = contender.who.partition(",")[0]
    _library(library)
    import torch
    from safetensors.torch import load_file, save_file

    from resnext.dialects import timm, torchvision
    from resnext.dialects.table import DIALECTS

    original = {"torchvision": torchvision.original, "timm": timm.original}[library]
    config, _ = read_header(contender.folder / NETWORK)
    DIALECTS[library].check(config)
    path = contender.folder / f"{library}.safetensors"
    if not path.exists():
        state = DIALECTS[library].write(contender.network().state_dict(), config)
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    torch.set_num_threads(contender.threads)
    model = original(config)
    model.load_state_dict(load_file(path), assign=True)
    plain = "," not in contender.who
    dtype = torch.bfloat16 if contender.precision == "bf16" else torch.float32
    layout = torch.contiguous_format if plain else torch.channels_last
    model = model.eval().requires_grad_(False).to(dtype)
    model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    x = torch.from_numpy(contender.images()).to(dtype).contiguous(memory_format=layout)
    compiled = contender.who.endswith("compiled")
    if compiled:
        model = torch.compile(model, dynamic=False, options={"freezing": True})
    mode = torch.no_grad if compiled else torch.inference_mode

    def run() -> np.ndarray:
        with mode():
            return model(x).float().numpy()

    return run, "NCHW" if plain else ""


def _onnxruntime(contender: Contender) -> tuple[Run, str]:
    """ONNX Runtime, which optimizes the plain graph itself."""
    ort = _library("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = contender.threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(
        str(_onnx_file(contender)), options, providers=["CPUExecutionProvider"]
    )
    x = contender.images()
    return lambda: session.run(["logits"], {"images": x})[0], ""


def _openvino(contender: Contender) -> tuple[Run, str]:
    """OpenVINO with its hints: for latency, or for throughput with several requests."""
    ov = _library("openvino")
    int8 = contender.precision == "int8"
    core, x = openvino_core(), contender.images()
    model = core.read_model(_int8_model(contender) if int8 else _onnx_file(contender))
    hint, _, division = contender.way.partition(", ")
    options: dict[str, Any] = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": contender.threads}
    if not int8:  # with int8, it would only apply to the few layers in floating point
        options["INFERENCE_PRECISION_HINT"] = "bf16" if contender.precision == "bf16" else "f32"

    def compile_for(piece: int) -> Any:
        model.reshape([piece, *x.shape[1:]])
        return core.compile_model(model, "CPU", options)

    piece = contender.batch if division == "whole" else 1
    compiled = compile_for(piece)
    if hint == "LATENCY":
        return lambda: compiled(x)[0], f"{hint}, whole batch"
    requests = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    if division == "shared out":
        piece = -(-contender.batch // requests)
        compiled = compile_for(piece)
    queue = ov.AsyncInferQueue(compiled)
    padding = np.zeros((-len(x) % piece, *x.shape[1:]), x.dtype)
    padded = np.concatenate([x, padding])
    pieces = {start: padded[start : start + piece] for start in range(0, len(padded), piece)}
    logits = np.empty((len(padded), compiled.output(0).shape[1]), np.float32)

    def keep(request: Any, start: int) -> None:
        logits[start : start + piece] = request.get_output_tensor(0).data

    queue.set_callback(keep)

    def run() -> np.ndarray:
        for start, images in pieces.items():
            queue.start_async({0: images}, start, share_inputs=True)
        queue.wait_all()
        return logits[: len(x)].copy()

    return run, f"{hint}, {len(queue)} requests of {piece} image{'s' if piece > 1 else ''}"


def _resnext(contender: Contender) -> tuple[Run, str]:
    """This library: the engine that `optimize` chose, as prediction opens it."""
    path = contender.folder / f"{contender.precision}-{contender.batch}.plan.json"
    file = contender.folder / NETWORK
    if not path.exists():
        from resnext.inference.optimize import optimize

        data = contender.data if contender.precision == "int8" else None
        precision: Any = contender.precision
        write_plans(
            path, [optimize(file, precision=precision, batch=contender.batch, data=data).plan]
        )
    (plan,) = read_plans(path)
    config, card = read_header(file)
    x = contender.images()
    session = Optimized(plan, card, config, contender.network).session("images", len(x))
    return lambda: session(x)[0], f"{plan.form.engine}, {plan.form}"


_FLOATS = ("fp32", "bf16")
CONTENDERS: dict[str, KnownContender] = {
    "torchvision": KnownContender(("fp32",), _torch),
    "timm": KnownContender(("fp32",), _torch),
    "timm, channels-last": KnownContender(_FLOATS, _torch),
    "timm, compiled": KnownContender(_FLOATS, _torch, slow=True),
    "ONNX Runtime": KnownContender(("fp32",), _onnxruntime),
    "OpenVINO": KnownContender(
        (*_FLOATS, "int8"),
        _openvino,
        ("LATENCY, whole", "THROUGHPUT, whole", "THROUGHPUT, shared out", "THROUGHPUT, one by one"),
    ),
    OURS: KnownContender((*_FLOATS, "int8"), _resnext),
}
"""All contenders by name, in the order of their rows."""
