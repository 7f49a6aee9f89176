"""The search for the small networks: accuracy after the same epochs, and cost on a processor.

`python benchmarks/family.py train RESULTS --data FOLDER [--size 64] [--names NAME…]` trains
candidates for the same epochs and judges them on the test images. FOLDER has `train`, and `test` or
`val`, with a folder per class each; `benchmarks/minutes.py --make` writes such folders. Every
candidate changes one property of a base: depth, channels, cardinality, width, expansion, stem or
attention. Nothing is timed, so other work may run. RESULTS is a JSON file, written after each
candidate: the same command continues where it was stopped, within a candidate too.

`python benchmarks/family.py peers RESULTS --data FOLDER --environments FOLDER` trains the smallest
networks of other libraries on the same images in the same way, in the environments that
`benchmarks/minutes.py` makes.

`python benchmarks/family.py cost RESULTS` measures milliseconds, alone on the machine: a training
step and a forward pass of 1 and of 32 images, in PyTorch and in the fastest of the engines.

`python benchmarks/family.py table RESULTS` prints both. `*` marks a cost that no candidate
undercuts without losing accuracy.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch

import resnext
from resnext.calibration import interval
from resnext.config import ResNeXtConfig
from resnext.inference.engines import EngineConfig
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.engines.openvino import OpenVinoSession
from resnext.summary import summarize
from resnext.system.atomic import write_bytes_atomically
from resnext.system.cpu import core_count, cpu_name
from resnext.system.device import has_bf16

# resnext_tiny, for images from 64 pixels: four stages, a deep stem with pooling.
BASE: dict[str, Any] = {
    "layers": (1, 1, 2, 1),
    "cardinality": 4,
    "base_width": 16,
    "channels": (32, 64, 128, 256),
    "stem_type": "deep",
    "stem_width": 16,
}
# resnext_tiny_32px, for about 32 pixels: three stages, and a stem without stride.
BASE_32: dict[str, Any] = {
    "layers": (1, 1, 2),
    "cardinality": 4,
    "base_width": 16,
    "channels": (32, 64, 128),
    "num_stages": 3,
    "strides": (2, 2, 2),
    "small_stem": True,
    "stem_channels": 32,
}
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "depth 1,1,1,1": {"layers": (1, 1, 1, 1)},
    "depth 1,2,3,1": {"layers": (1, 2, 3, 1)},
    "depth 2,2,2,2": {"layers": (2, 2, 2, 2)},
    "channels x 0.5": {"channels": (16, 32, 64, 128), "stem_width": 8},
    "channels x 0.75": {"channels": (24, 48, 96, 192)},
    "channels x 1.5": {"channels": (48, 96, 192, 384), "stem_width": 24},
    "cardinality 2x32d": {"cardinality": 2, "base_width": 32},
    "cardinality 8x8d": {"cardinality": 8, "base_width": 8},
    "cardinality 16x4d": {"cardinality": 16, "base_width": 4},
    "width 4x32d": {"base_width": 32},
    "width 4x8d": {"base_width": 8},
    "expansion 2": {"expansion": 2, "base_width": 32},
    "expansion 1": {"expansion": 1, "base_width": 64},
    "stem classic": {"stem_type": None, "stem_channels": 32},
    "attention se": {"attention": "se"},
    "attention eca": {"attention": "eca"},
}
CHANGES_32: dict[str, dict[str, Any]] = {
    "base": {},
    "expansion 2": {"expansion": 2, "base_width": 32},
    "expansion 1": {"expansion": 1, "base_width": 64},
    "channels x 0.5": {"channels": (16, 32, 64), "stem_channels": 16},
    "cardinality 2x32d": {"cardinality": 2, "base_width": 32},
    "cardinality 16x4d": {"cardinality": 16, "base_width": 4},
    "width 4x8d": {"base_width": 8},
    "width 4x32d": {"base_width": 32},
    "depth 1,1,1": {"layers": (1, 1, 1)},
    "depth 2,2,2": {"layers": (2, 2, 2)},
    "stem 16": {"stem_channels": 16},
    "attention se": {"attention": "se"},
    "attention eca": {"attention": "eca"},
    "channels x 1.5": {"channels": (48, 96, 192), "stem_channels": 48},
    "cardinality 8x8d": {"cardinality": 8, "base_width": 8},
}
PEERS = {
    "yolo11n-cls": "ultralytics",
    "lcnet_050": "timm",
    "mobilenetv3_small_050": "timm",
    "shufflenet_v2_x0_5": "torchvision",
    "mobilenet_v3_small": "torchvision",
}
NAMED = {64: ("nano", "small", "medium"), 32: ("nano_32px", "small_32px")}
COSTS = ("step 1", "step 32", "forward 1", "engine 1", "forward 32", "engine 32")


def main() -> None:
    """Train, measure or print candidates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("train", "peers", "cost", "table"))
    parser.add_argument("results", type=Path)
    parser.add_argument("--names", nargs="+", help="candidates; all by default")
    parser.add_argument("--data", type=Path, help="folder with train, and test or val")
    parser.add_argument("--size", type=int, choices=(32, 64), default=32)
    parser.add_argument("--images", type=int, default=500, help="training images per class")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--environments", type=Path, default=Path("environments"))
    given = parser.parse_args()
    if given.part == "table":
        print_table(json.loads(given.results.read_text()))
        return
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if given.part == "cost":
        measure_costs(given)
    else:
        train_all(given)


def candidates(size: int) -> dict[str, ResNeXtConfig]:
    """All candidates for an image size, and the other named variants, by name."""
    base, changes = (BASE_32, CHANGES_32) if size == 32 else (BASE, CHANGES)
    configs = {
        name: ResNeXtConfig(num_classes=10, **{**base, **change})
        for name, change in changes.items()
    }
    for name in NAMED[size]:
        configs[f"resnext_{name}"] = resnext.variant(f"resnext_{name}", num_classes=10)
    return configs


def train_all(given: argparse.Namespace) -> None:
    """Train the candidates that have no accuracy yet."""
    asked = {
        "data": given.data.name,
        "size": given.size,
        "images": given.images,
        "epochs": given.epochs,
        "candidates": {},
    }
    results = json.loads(given.results.read_text()) if given.results.exists() else asked
    if any(results[key] != asked[key] for key in asked if key != "candidates"):
        raise SystemExit(f"{given.results} is about other data, epochs or sizes. Name a new file.")
    configs = candidates(given.size)
    known = configs if given.part == "train" else PEERS
    data = draw(given.data, given.results.with_suffix(".data"), given.images)
    for name in given.names or known:
        if name in results["candidates"]:
            continue
        out = given.results.with_suffix(".models") / f"{name}.safetensors"
        out.parent.mkdir(exist_ok=True)
        if given.part == "train":
            row = trained(data, configs[name], out, given)
        else:
            rest = ("train", data.resolve(), given.epochs, out.with_suffix(".pt").resolve())
            row = peer(name, given.environments, given.size, *rest)
            right = np.arange(row["count"]) < round(row["accuracy"] * row["count"])
            row["interval"] = interval(right)
        results["candidates"][name] = row
        write_results(given.results, results)
        print(f"{name:<21}  {row['accuracy']:.2%}", flush=True)


def trained(
    data: Path, config: ResNeXtConfig, out: Path, given: argparse.Namespace
) -> dict[str, Any]:
    """Accuracy and size of one of our networks."""
    model = resnext.train(
        data,
        config,
        out=out,
        size=given.size,
        recipe="quick",
        epochs=given.epochs,
        val_fraction=0.05,
        workers=0,
        resume=True,
        progress=False,
    )
    found, summary = resnext.evaluate(model, data), summarize(config, given.size)
    return {
        "config": config.to_dict(),
        "accuracy": found.accuracy,
        "interval": found.interval(),
        "macs": summary.macs,
        "parameters": summary.parameters,
    }


def peer(name: str, environments: Path, size: int, *rest: object) -> dict[str, Any]:
    """What a peer's script prints about a network, in the environment of its library."""
    python = environments / PEERS[name] / "bin" / "python"
    script = Path(__file__).parent / "peers" / "network_peer.py"
    command = [python, script, PEERS[name], name, size, *rest]
    done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def draw(data: Path, folder: Path, count: int) -> Path:
    """A folder with some images of each training class, and all test images."""
    if not (folder / "test").exists():
        for label in sorted((data / "train").iterdir()):
            (folder / "train" / label.name).mkdir(parents=True, exist_ok=True)
            files = sorted(label.iterdir())
            for path in random.Random(0).sample(files, min(count, len(files))):
                shutil.copy(path, folder / "train" / label.name)
        judges = data / "test" if (data / "test").is_dir() else data / "val"
        (folder / "test").symlink_to(judges.resolve())
    return folder


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write the results, completely or not at all."""
    write_bytes_atomically(path, json.dumps(results, indent=1).encode())


def measure_costs(given: argparse.Namespace) -> None:
    """Measure those that were trained and have no costs yet."""
    results = json.loads(given.results.read_text())
    size, models = results["size"], given.results.with_suffix(".models")
    results["machine"] = f"{cpu_name()}, {core_count()} threads, torch {torch.__version__}"
    for name, row in results["candidates"].items():
        if name in (given.names or results["candidates"]) and "cost" not in row:
            if name in PEERS:
                steps = peer(name, given.environments, size, "step")
                row["cost"] = steps | peer_forward(models / f"{name}.pt", size)
            else:
                row["cost"] = cost(ResNeXtConfig.from_dict(row["config"]), size)
            write_results(given.results, results)
            print(f"{name:<21}  {row['cost']}", flush=True)


def cost(config: ResNeXtConfig, size: int) -> dict[str, float]:
    """Milliseconds of each task of one of our networks."""
    network = resnext.ResNeXt(config)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(network.parameters(), foreach=True)
    x = torch.rand(32, config.in_channels, size, size).to(memory_format=torch.channels_last)

    def step(count: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            loss = network(x[:count]).float().logsumexp(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    times = {f"step {n}": milliseconds(lambda n=n: step(n)) for n in (1, 32)}
    builder = EngineBuilder(network.eval(), size, torch.device("cpu"))
    for n in (1, 32):
        plain, *engines = [builder.session(form) for form in forms(n)]
        times |= forward(n, plain, engines, x[:n].numpy())
    return times


def peer_forward(file: Path, size: int) -> dict[str, float]:
    """Milliseconds of a peer's traced network, folded in PyTorch, and in OpenVINO."""
    module: Any = torch.jit.load(file)
    folded = torch.jit.optimize_for_inference(torch.jit.freeze(module.eval()))
    times: dict[str, float] = {}
    for n in (1, 32):
        x = torch.rand(n, 3, size, size).to(memory_format=torch.channels_last)

        def plain(x: np.ndarray) -> object:
            with torch.inference_mode():
                return folded(torch.from_numpy(x))

        engines = []
        for precision in ("f32", *(["bf16"] if has_bf16() else [])):
            model = openvino.convert_model(module, input=[n, 3, size, size])
            engines.append(OpenVinoSession(model, n, 1, core_count(), precision))
        times |= forward(n, plain, engines, x.numpy())
    return times


def forward(
    count: int, plain: Callable[..., object], engines: Sequence[Callable[..., object]], x: Any
) -> dict[str, float]:
    """Milliseconds of a batch in PyTorch, and in the fastest engine."""
    plain_ms, *times = [milliseconds(partial(session, x)) for session in (plain, *engines)]
    return {f"forward {count}": plain_ms, f"engine {count}": min(times)}


def forms(batch: int) -> list[EngineConfig]:
    """PyTorch, and the engines' ways to compute a batch."""
    half = [EngineConfig("openvino", "bf16", batch)] if has_bf16() else []
    engines = [EngineConfig(name, "fp32", batch) for name in ("onnxruntime", "openvino")]
    return [EngineConfig("torch", "fp32", batch), *engines, *half]


def milliseconds(run: Callable[[], object]) -> float:
    """Shortest of twenty times, after a warm-up."""
    times: list[float] = []
    for _ in range(21):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return round(1e3 * min(times[1:]), 3)


def print_table(results: dict[str, Any]) -> None:
    """A row for each candidate, the most accurate first."""
    rows = sorted(results["candidates"].items(), key=lambda item: -item[1]["accuracy"])
    print(results.get("machine", "costs not measured"))
    print(
        f"{results['data']}: {results['images']} images per class, {results['size']} pixels, "
        f"{results['epochs']} epochs"
    )
    costs = "".join(f"{key:>12}" for key in COSTS)
    print(f"{'candidate':<21}  MMACs  Mparam  accuracy  95 %           {costs}")
    best = dict.fromkeys(COSTS, float("inf"))
    for name, row in rows:
        low, high = row["interval"]
        line = f"{name:<21}  {row['macs'] / 1e6:5.1f}  {row['parameters'] / 1e6:6.2f}  "
        line += f"{row['accuracy']:8.2%}  {100 * low:.2f} to {100 * high:.2f}"
        for key in COSTS if "cost" in row else ():
            value = row["cost"][key]
            undercuts = value < best[key]
            best[key] = min(best[key], value)
            line += f"{value:11.2f}{'*' if undercuts else ' '}"
        print(line)


if __name__ == "__main__":
    main()
