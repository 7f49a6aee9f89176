"""The recipes of docs/export.md for other runtimes: how far answers are from ONNX Runtime's.

    python benchmarks/runtimes.py --model resnext_nano --size 160

Runs those whose packages are installed: pnnx and ncnn, MNN, coremltools (which only converts on
Linux), litert-torch. The weights are random; the statistics of the norms are those of the images.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import resnext
from resnext import Card, Preprocessing
from resnext.inference.optimize import patterns

IMAGES = 8
Answers = Callable[[np.ndarray], np.ndarray] | None
"""From one image `(1, c, h, w)` to its logits; None if the runtime is not to be had here."""


def ncnn(network: torch.nn.Module, x: torch.Tensor, *options: str) -> Answers:
    """By pnnx, from TorchScript. NCNN takes one image without the dimension of the batch."""
    runtime, _ = (importlib.import_module(name) for name in ("ncnn", "pnnx"))
    traced: Any = torch.jit.trace(network, x)
    traced.save("net.pt")
    tool = Path(sys.executable).with_name("pnnx")
    shape = str(list(x.shape)).replace(" ", "")
    command = [str(tool), "net.pt", f"inputshape={shape}", *options]
    subprocess.run(command, check=True, capture_output=True)
    net = runtime.Net()
    net.load_param("net.ncnn.param")
    net.load_model("net.ncnn.bin")

    def run(image: np.ndarray) -> np.ndarray:
        with net.create_extractor() as extractor:
            extractor.input("in0", runtime.Mat(image[0]).clone())
            return np.array(extractor.extract("out0")[1])[None]

    return run


def mnn(network: torch.nn.Module, x: torch.Tensor) -> Answers:
    """From the ONNX file. The command of the Python package would call home first."""
    importlib.import_module("MNN")
    expressions, modules = (importlib.import_module(f"MNN.{name}") for name in ("expr", "nn"))
    tool = "import sys, MNN, _tools; _tools.mnnconvert(['MNNConvert', *sys.argv[1:]])"
    options = ["-f", "ONNX", "--modelFile", "net.onnx", "--MNNModel", "net.mnn"]
    command = [sys.executable, "-c", tool, *options, "--bizCode", "resnext"]
    subprocess.run(command, check=True, capture_output=True)
    net = modules.load_module_from_file("net.mnn", ["images"], ["logits"])
    layout = expressions.data_format.NCHW

    def run(image: np.ndarray) -> np.ndarray:
        given = expressions.const(image.ravel().tolist(), list(image.shape), layout)
        (found,) = net.forward([given])
        return np.array(expressions.convert(found, layout).read()).reshape(1, -1)

    return run


def core_ml(network: torch.nn.Module, x: torch.Tensor) -> Answers:
    """Converted and saved; only a Mac runs it."""
    tools = importlib.import_module("coremltools")
    program = torch.export.export(network, (x,)).run_decompositions({})
    tools.convert(program).save("net.mlpackage")
    return None


def litert(network: torch.nn.Module, x: torch.Tensor) -> Answers:
    """From torch.export, in the interpreter of LiteRT."""
    tool = importlib.import_module("litert_torch")
    tool.convert(network, (x,)).export("net.tflite")
    runtime = importlib.import_module("ai_edge_litert.interpreter")
    net = runtime.Interpreter("net.tflite")
    net.allocate_tensors()
    (given,), (found,) = net.get_input_details(), net.get_output_details()

    def run(image: np.ndarray) -> np.ndarray:
        net.set_tensor(given["index"], image)
        net.invoke()
        return net.get_tensor(found["index"]).copy()

    return run


def main() -> None:
    """Convert one network by each recipe, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnext_nano")
    parser.add_argument("--size", type=int, default=160)
    given = parser.parse_args()
    images = patterns(IMAGES, 3, given.size)
    network = resnext.create(given.model, num_classes=10)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.from_numpy(images))
    network.eval().card = Card(tuple("0123456789"), Preprocessing(given.size, given.size))
    recipes: dict[str, Callable[[torch.nn.Module, torch.Tensor], Answers]] = {
        "NCNN": ncnn,
        "NCNN, fp16=0": lambda network, x: ncnn(network, x, "fp16=0"),
        "MNN": mnn,
        "Core ML": core_ml,
        "LiteRT": litert,
    }
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        resnext.export(network, "net.onnx", outputs="logits")
        session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
        wanted = np.asarray(session.run(None, {"images": images})[0])
        for name, recipe in recipes.items():
            try:
                run = recipe(network, torch.from_numpy(images[:1]))
            except ModuleNotFoundError as error:
                print(f"{name}: not tried, {error.name} is not installed")
                continue
            if run is None:
                print(f"{name}: converted, not run")
                continue
            found = np.concatenate([run(image[None]) for image in images])
            apart = np.abs(found - wanted).max() / np.abs(wanted).max()
            same = int((found.argmax(1) == wanted.argmax(1)).sum())
            print(f"{name}: logits differ by {apart:.1g}, {same} of {IMAGES} classes are equal")


if __name__ == "__main__":
    main()
