"""Speed of inference: relative to other libraries, in int8, from files, and of a complete process.

Run alone on the machine: `python benchmarks/inference.py PART…`, by default all but `frontier`.
Parts:

    networks   four networks at batch sizes 1 and 16, and torchvision, timm, ONNX Runtime, OpenVINO
    int8       resnext50_32x4d in int8, relative to its fastest other precision; the weights are
               random, so accuracy is not measured
    folder     predict_files on 600 JPEGs of 500×375, relative to the engine alone and to a plain
               timm script
    start      seconds of `resnext predict FILE photo.jpg`, including the start of the process
    frontier   speed that `optimize --max-loss 0.5` gains for the model file MODEL, chosen by one
               half of the held-out images of DATA, and the accuracy it costs on the other half. If
               there is no MODEL, it is trained on DATA for EPOCHS, by default 10, with the small
               network that suits the images. The halves are kept, and measurements are cached
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnext.benchmark import Benchmark, bench
from resnext.benchmark.results import OURS
from resnext.system.cpu import core_count, cpu_name

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

WHO = multiprocessing.current_process().name.partition(",")[0]
if WHO in ("MainProcess", "torchvision", "timm") and sys.argv[1:3] != ["--once", "ours"]:
    # makes torchvision importable; processes that measure an engine's memory must not need torch
    from oracles import originals

    assert originals.torchvision

NETWORKS = ("resnext50_32x4d", "resnext101_32x8d", "seresnext50_32x4d", "resnext29_8x64d")
SECONDS = float(os.environ.get("SECONDS_EACH", "5"))
IMAGES = 600


def main(parts: list[str]) -> None:
    """Measure the given parts, or all of them."""
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"There is no part {', '.join(sorted(unknown))}, only {', '.join(PARTS)}.")
    names = ("torch", "torchvision", "timm", "onnxruntime", "openvino", "nncf")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    for part in parts or ("networks", "int8", "folder", "start"):
        print(f"\n== {part}\n{cpu_name()}, {core_count()} threads, {versions}", flush=True)
        print((PARTS[part].__doc__ or "").partition("\n")[0], flush=True)
        PARTS[part]()


def networks() -> None:
    """Targets: 0.98× the best peer; 1.03× OpenVINO in bf16; 8× torchvision at batch 16."""
    for name in NETWORKS:
        found = bench(name, seconds=SECONDS, progress=True)
        print(f"\n{found.table()}")
        for batch in sorted({row.batch for row in found.rows}):
            for precision in found.peaks:
                against(found, batch, "OpenVINO", precision)
            against(found, batch, "torchvision")
        sys.stdout.flush()


def against(found: Benchmark, batch: int, peer: str, precision: str | None = None) -> None:
    """Print our speed as a multiple of a peer's; without a precision, of each's fastest."""
    ours, theirs = (found.fastest(batch, precision, who) for who in (OURS, peer))
    if ours is None or theirs is None:
        print(f"Batch {batch}, {precision or 'auto'}: no ratio to {peer}")
        return
    times = ours.images_per_second / theirs.images_per_second
    whose = f"{peer} {theirs.precision}"
    print(f"Batch {batch}, {precision or f'auto ({ours.precision})'}: {times:.2f}× {whose}")


def int8() -> None:
    """Target: 1.5× the fastest of fp32 and bf16."""
    import torch

    from resnext.benchmark.timing import classifier_for
    from resnext.inference.engines import ENGINES, EngineConfig
    from resnext.inference.engines.builder import EngineBuilder
    from resnext.inference.optimize import optimize, patterns
    from resnext.inference.runner import Session

    network = classifier_for("resnext50_32x4d")
    builder = EngineBuilder(network, 224, torch.device("cpu"))
    openvino = ENGINES["openvino"]
    for batch in (1, 16):
        best = optimize(network, batch=batch, progress=True).plan.form
        x = patterns(batch, 3, 224)

        def run(way: Session, x: np.ndarray = x) -> object:
            return way(x)

        ways = {f"{best.engine} {best.precision}, {best}": builder.session(best)}
        for width in (0, 8, 16):
            openvino.quantize(builder, width, patterns(64, 3, 224))
            for piece, streams in openvino.divisions(batch):
                form = EngineConfig("openvino", "int8", piece, streams, width)
                ways[f"openvino int8, {form}"] = builder.session(form)
        speeds = in_turns({name: partial(run, way) for name, way in ways.items()}, batch)
        first, *eight = speeds.values()
        for name, speed in speeds.items():
            print(f"batch {batch}, {name}: {speed:,.1f} images/s, {speed / first:.2f}×", flush=True)
        print(f"batch {batch}: int8 at {max(eight) / first:.2f}× the fastest other form")


def in_turns(ways: dict[str, Callable[[], object]], images: int) -> dict[str, float]:
    """Images per second of each way in its fastest round, taking turns."""
    best = dict.fromkeys(ways, float("inf"))
    for round_ in range(6):
        for name, way in ways.items():
            way()
            began, calls = time.perf_counter(), 0
            while calls < 2 or time.perf_counter() - began < SECONDS / 6:
                way()
                calls += 1
            if round_:
                best[name] = min(best[name], (time.perf_counter() - began) / calls)
    return {name: images / seconds for name, seconds in best.items()}


def folder() -> None:
    """Relative to the engine alone on decoded batches, and to a plain timm script."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        photographs(folder / "photos", IMAGES)
        file = model(folder, 16)
        best = [once(who, folder, file) for who in ("ours", "timm", "engine")]
        for _ in range(2):  # in turns, because a machine's speed varies
            for i, who in enumerate(("ours", "timm", "engine")):
                again = once(who, folder, file)
                best[i] = max(best[i], again, key=lambda one: one["images_per_second"])
    (ours, ours_mb), (timm, timm_mb), (engine, _) = (
        (one["images_per_second"], one["peak"]) for one in best
    )
    print(f"predict_files: {ours:,.1f} images/s of {IMAGES} JPEGs, at most {ours_mb:,.0f} MiB")
    print(f"the engine alone: {engine:,.1f} images/s, predict_files is {ours / engine:.2f}× that")
    print(
        f"timm: {timm:,.1f} images/s, at most {timm_mb:,.0f} MiB; "
        f"predict_files is {ours / timm:.2f}× that"
    )


def photographs(folder: Path, count: int) -> None:
    """JPEGs of 500×375 at quality 90: different parts of scikit-learn's two photos."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    images = [Image.fromarray(photo) for photo in load_sample_images().images]
    for i in range(count):
        image = images[i % len(images)]
        width = int(rng.integers(250, image.width + 1))
        height = min(width * 3 // 4, image.height)
        left = int(rng.integers(0, image.width - width + 1))
        top = int(rng.integers(0, image.height - height + 1))
        part = image.resize((500, 375), box=(left, top, left + width, top + height))
        part.save(folder / f"{i:04}.jpg", quality=90)


def model(folder: Path, batch: int) -> Path:
    """A resnext50_32x4d with 1000 labels, with its plan next to it."""
    from resnext import Card, save
    from resnext.benchmark.timing import classifier_for
    from resnext.inference.optimize import optimize

    network = classifier_for("resnext50_32x4d")
    network.card = Card(tuple(f"class {i}" for i in range(1000)))
    file = folder / "model.safetensors"
    save(network, file)
    optimize(file, batch=batch, progress=True).save_plan(file)
    return file


def once(who: str, folder: Path, file: Path) -> dict[str, float]:
    """Images per second and peak memory, MiB, of a process that does only this."""
    command = [sys.executable, __file__, "--once", who, str(folder / "photos"), str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def alone(who: str, photos: Path, file: Path) -> None:
    """Runs in that process: measure, and print the result as JSON."""
    speed = {"ours": ours, "timm": plain_timm, "engine": engine}[who](photos, file)
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps({"images_per_second": speed, "peak": peak}))


def ours(photos: Path, file: Path) -> float:
    """A folder with `predict_files`, including decoding."""
    from resnext.inference.opener import open_runner
    from resnext.prediction.files import predict_files

    out = file.with_name("out.csv")
    return predict_files(open_runner(file), [photos], out, overwrite=True).images_per_second


def engine(photos: Path, file: Path) -> float:
    """The engine that `predict_files` uses, on a decoded batch."""
    from resnext.card import card_of
    from resnext.data.decoding import open_image, pixels, resize_and_crop
    from resnext.inference.opener import open_runner

    runner = open_runner(file)
    preprocessing, batch = card_of(runner).preprocessing, runner.batch
    files = sorted(photos.iterdir())[:batch]
    pictures = (open_image(path, preprocessing.colour) for path in files)
    x = np.stack(
        [pixels(resize_and_crop(image, preprocessing), preprocessing) for image in pictures]
    )
    runner.pixels(x)
    began, rounds = time.perf_counter(), -(-IMAGES // batch)
    for _ in range(rounds):
        runner.pixels(x)
    return rounds * len(x) / (time.perf_counter() - began)


def plain_timm(photos: Path, file: Path) -> float:
    """A typical script: the network in fp32, Pillow and timm's transform in the main loop."""
    from oracles import originals
    from timm.data.transforms_factory import create_transform

    torch, timm = originals.torch, originals.timm
    network = timm.create_model("resnext50_32x4d", pretrained=False).eval()
    prepare: Any = create_transform(224, is_training=False, crop_pct=224 / 256)
    files = sorted(photos.iterdir())
    began = time.perf_counter()
    answers = []
    with torch.inference_mode():
        for i in range(0, len(files), 16):
            part = [prepare(Image.open(path).convert("RGB")) for path in files[i : i + 16]]
            answers += network(torch.stack(part)).softmax(1).argmax(1).tolist()
    assert len(answers) == len(files)
    return len(files) / (time.perf_counter() - began)


def start() -> None:
    """Seconds of a complete process, with a plan next to the file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder, 1)
        file = model(folder, 1)
        command = [sys.executable, "-m", "resnext", "predict", str(file), str(folder / "0000.jpg")]
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - began)
    print(f"resnext predict FILE photo.jpg: {min(times):.2f} s, the least of five")


def frontier() -> None:
    """Target: 1.8× the fastest fp32 form at full size, for at most half a point of accuracy."""
    from resnext import optimize, train
    from resnext.calibration import loss_interval
    from resnext.evaluation import compare
    from resnext.weights.load import load_classifier

    file, data = os.environ["MODEL"], os.environ["DATA"]
    if not Path(file).exists():
        train(data, out=file, epochs=int(os.environ.get("EPOCHS", "10")), val_fraction=0.05)
    deciding, others = halves(file, data, Path(file).with_suffix(".halves"))
    fast = optimize(file, data=deciding, max_loss=0.5, progress=True)
    found = compare(load_classifier(file), fast, others)
    print(fast.explain())
    assert fast.plan.tradeoff is not None
    chosen, reference = fast.plan.tradeoff.chosen, fast.plan.tradeoff.reference
    loss = 100 * (found.a.accuracy - found.b.accuracy)
    low, high = (100 * end for end in loss_interval(found.a.right, found.b.right))
    print(
        f"{chosen.images_per_second / reference.images_per_second:.2f}× the fastest fp32 form at "
        f"full size; on {found.a.count:,} images that did not decide, accuracy "
        f"{found.b.accuracy:.2%} instead of {found.a.accuracy:.2%}: {loss:.2f} points less "
        f"({low:.2f} to {high:.2f})"
    )


def halves(file: str, data: str, folder: Path) -> tuple[Path, Path]:
    """Every other held-out image of each class in one folder, the rest in another."""
    both = folder / "half0", folder / "half1"
    if folder.exists():
        return both
    from resnext.card import card_of
    from resnext.data.open import open_for_evaluation
    from resnext.weights.load import load_classifier

    card = card_of(load_classifier(file))
    images = open_for_evaluation(data, card.labels, card.provenance)
    seen = [0] * len(card.labels)
    for i, target in enumerate(images.targets):
        half = folder / f"half{seen[target] % 2}" / card.labels[target]
        half.mkdir(parents=True, exist_ok=True)
        images.open(i, card.preprocessing.colour).save(half / f"{i}.png")
        seen[target] += 1
    return both


PARTS = {
    "networks": networks,
    "int8": int8,
    "folder": folder,
    "start": start,
    "frontier": frontier,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        alone(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main(sys.argv[1:])
