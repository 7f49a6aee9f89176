"""The contenders of `bench`, each at the best setting that its documentation names.

Nothing imports torch up here, so that the memory of engines without it is measured alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnext.errors import InputError
from resnext.inference.plan import read_plans, write_plans
from resnext.inference.runner import opened, openvino_core
from resnext.weights.header import read_header

if TYPE_CHECKING:
    from resnext.network import ResNeXt

Run = Callable[[], Any]
Opener = Callable[["Contender"], tuple[Run, str]]
OURS = "resnext"
NETWORK = "network.safetensors"
IMAGES = "images.npy"
_CALIBRATION = 256  # images to choose ranges of 8 bits with


@dataclass(frozen=True)
class Contender:
    """A contender with one precision, number of images and way of running.

    Args:
        folder: Where network and images are.
        who: Its name.
        precision: To compute in.
        batch: Images at a time.
        threads: To compute with.
        data: Images with known classes.
        way: Which of several ways to run.
    """

    folder: Path
    who: str
    precision: str
    batch: int
    threads: int
    data: str | None = None
    way: str = ""

    def __str__(self) -> str:
        """What it is, for people."""
        return ", ".join(filter(None, (self.who, self.precision, f"batch {self.batch}", self.way)))

    def images(self) -> np.ndarray:
        """What it is given."""
        return np.load(self.folder / IMAGES)[: self.batch]

    def network(self) -> ResNeXt:
        """The network, in evaluation mode."""
        from resnext.weights.load import load_classifier

        return load_classifier(self.folder / NETWORK)


def _library(name: str) -> Any:
    """A library that may be missing.

    Raises:
        InputError: It is, or it is broken.
    """
    try:
        return import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise InputError("not installed") from error
        raise InputError(f"cannot be imported: {str(error)[:80]}") from error


def _graph(entry: Contender) -> Path:
    """The network as it is, as an ONNX file."""
    path = entry.folder / "plain.onnx"
    if not path.exists():
        from resnext.inference.engines.onnx_export import export_graph

        path.write_bytes(export_graph(entry.network(), entry.images().shape[2]).SerializeToString())
    return path


def _in_8_bits(entry: Contender) -> Path:
    """The same in 8 bits, as NNCF does it by default."""
    path = entry.folder / "int8.xml"
    if not path.exists():
        ov = _library("openvino")
        _library("nncf")
        from resnext.inference.engines.quantization import quantize

        model = quantize(openvino_core().read_model(_graph(entry)), _calibration(entry))
        ov.save_model(model, path, compress_to_fp16=False)
    return path


def _calibration(entry: Contender) -> np.ndarray:
    from resnext.data.loader import EvalDataset
    from resnext.data.open import open_for_evaluation

    assert entry.data is not None
    card = read_header(entry.folder / NETWORK)[1]
    images = open_for_evaluation(entry.data, card.labels, card.provenance)
    count = min(len(images), _CALIBRATION)
    chosen = [i * len(images) // count for i in range(count)]
    prepared = EvalDataset(images, card.preprocessing, chosen)
    items = [prepared[i] for i in range(count)]
    return np.stack([item[0].numpy() for item in items if item is not None])


def _torch(entry: Contender) -> tuple[Run, str]:
    """torchvision and timm: eager or compiled, with the weights under their own names."""
    library = entry.who.partition(",")[0]
    _library(library)
    import torch
    from safetensors.torch import load_file, save_file

    from resnext.dialects import timm, torchvision
    from resnext.dialects.table import DIALECTS

    original = {"torchvision": torchvision.original, "timm": timm.original}[library]
    config, _ = read_header(entry.folder / NETWORK)
    DIALECTS[library].check(config)
    path = entry.folder / f"{library}.safetensors"
    if not path.exists():
        state = DIALECTS[library].write(entry.network().state_dict(), config)
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    torch.set_num_threads(entry.threads)
    model = original(config)
    model.load_state_dict(load_file(path), assign=True)
    plain = "," not in entry.who
    dtype = torch.bfloat16 if entry.precision == "bf16" else torch.float32
    layout = torch.contiguous_format if plain else torch.channels_last
    model = model.eval().requires_grad_(False).to(dtype)
    model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    x = torch.from_numpy(entry.images()).to(dtype).contiguous(memory_format=layout)
    compiled = entry.who.endswith("compiled")
    if compiled:
        model = torch.compile(model, dynamic=False, options={"freezing": True})
    mode = torch.no_grad if compiled else torch.inference_mode

    def run() -> np.ndarray:
        with mode():
            return model(x).float().numpy()

    return run, "NCHW" if plain else ""


def _onnxruntime(entry: Contender) -> tuple[Run, str]:
    """ONNX Runtime, which optimises the plain graph itself."""
    ort = _library("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = entry.threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(_graph(entry)), options, providers=["CPUExecutionProvider"])
    x = entry.images()
    return lambda: session.run(["logits"], {"images": x})[0], ""


def _openvino(entry: Contender) -> tuple[Run, str]:
    """OpenVINO with its hints: for latency, or for throughput with several requests."""
    ov = _library("openvino")
    eight = entry.precision == "int8"
    core, x = openvino_core(), entry.images()
    model = core.read_model(_in_8_bits(entry) if eight else _graph(entry))
    hint, _, division = entry.way.partition(", ")
    how: dict[str, Any] = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": entry.threads}
    if not eight:  # there it is for the few layers that stay
        how["INFERENCE_PRECISION_HINT"] = "bf16" if entry.precision == "bf16" else "f32"

    def made(piece: int) -> Any:
        model.reshape([piece, *x.shape[1:]])
        return core.compile_model(model, "CPU", how)

    piece = entry.batch if division == "whole" else 1
    compiled = made(piece)
    if hint == "LATENCY":
        return lambda: compiled(x)[0], f"{hint}, whole batch"
    requests = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    if division == "shared out":
        piece = -(-entry.batch // requests)
        compiled = made(piece)
    queue = ov.AsyncInferQueue(compiled)
    rest = np.zeros((-len(x) % piece, *x.shape[1:]), x.dtype)
    filled = np.concatenate([x, rest])
    parts = {start: filled[start : start + piece] for start in range(0, len(filled), piece)}
    logits = np.empty((len(filled), compiled.output(0).shape[1]), np.float32)

    def keep(request: Any, start: int) -> None:
        logits[start : start + piece] = request.get_output_tensor(0).data

    queue.set_callback(keep)

    def run() -> np.ndarray:
        for start, part in parts.items():
            queue.start_async({0: part}, start, share_inputs=True)
        queue.wait_all()
        return logits[: len(x)].copy()

    return run, f"{hint}, {len(queue)} requests of {piece} image{'s' if piece > 1 else ''}"


def _resnext(entry: Contender) -> tuple[Run, str]:
    """Ours: the engine that `optimize` chose, as prediction opens it."""
    path = entry.folder / f"{entry.precision}-{entry.batch}.plan.json"
    if not path.exists():
        from resnext.inference.optimize import optimize

        data = entry.data if entry.precision == "int8" else None
        kind: Any = entry.precision
        found = optimize(entry.folder / NETWORK, precision=kind, batch=entry.batch, data=data)
        write_plans(path, [found.plan])
    plan = read_plans(path)[0]
    x = entry.images()
    if plan.graph("images").exists() and plan.form.engine in ("onnxruntime", "openvino"):
        session = opened(plan.graph("images"), plan.form)
    else:
        import torch

        from resnext.inference.engines.builder import EngineBuilder

        torch.set_num_threads(entry.threads)
        workshop = EngineBuilder(entry.network(), x.shape[2], torch.device("cpu"))
        session = workshop.session(plan.form)
    return lambda: session(x)[0], f"{plan.form.engine}, {plan.form}"


WAYS = ("LATENCY, whole", "THROUGHPUT, whole", "THROUGHPUT, shared out", "THROUGHPUT, one by one")
_BOTH: tuple[str, ...] = ("fp32", "bf16")
CONTENDERS: dict[str, tuple[Sequence[str], Opener]] = {
    "torchvision": (("fp32",), _torch),
    "timm": (("fp32",), _torch),
    "timm, channels-last": (_BOTH, _torch),
    "timm, compiled": (_BOTH, _torch),
    "ONNX Runtime": (("fp32",), _onnxruntime),
    "OpenVINO": ((*_BOTH, "int8"), _openvino),
    OURS: ((*_BOTH, "int8"), _resnext),
}
"""What each computes in; and from an entry to what computes its batch, and the setting in words."""
