"""Accuracy and speed of training: on real data, and of the step, the pipeline and the scan.

Run alone on the machine: `python benchmarks/training.py PART…`. Parts:

    fashion    accuracy on Fashion-MNIST's 10,000 test images and minutes; FASHION names the folder
               of the idx files (Debian's package dataset-fashion-mnist has them)
    cifar      accuracy on the test images of a folder of CIFAR-10 JPEGs and minutes; CIFAR names
               the folder with train and test
    step       a training step of resnext50_32x4d at 224, batch 8, relative to torchvision's model
               in the usual loop and to timm's; on a GPU batch 128, channels-last and AMP for all
    pipeline   images per second and core: our views relative to torchvision's usual transforms
    scan       memory and time of scanning 100,000 files
    overhead   share of a run that checkpoints take
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import resnext
from resnext.card import Preprocessing
from resnext.config import ResNeXtConfig
from resnext.data.transforms import random_view
from resnext.grouped_conv import fastest_groups, merge_groups
from resnext.system.cpu import cpu_name
from resnext.system.device import hardware, pick_precision

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

NETWORK = ResNeXtConfig(
    (2, 2, 2),
    4,
    16,
    channels=(32, 64, 128),
    num_stages=3,
    strides=(2, 2, 2),
    small_stem=True,
    stem_channels=48,
)


SHORT: dict[str, Any] = {  # the paper's recipe for small images, made for a few epochs
    "recipe": "cifar",
    "val_fraction": 0.05,
    "schedule": "cosine",
    "milestones": (),
    "warmup": 0.1,
    "label_smoothing": 0.05,
    "weight_decay": 3e-4,
    "batch_size": 64,
    "learning_rate": 0.05,
    "ema": 0.999,
}


def main(parts: list[str]) -> None:
    """Measure the requested parts, or all that need no folder."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = hardware(device) if device.type == "cuda" else cpu_name()
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    for part in parts or ["step", "pipeline", "scan", "overhead"]:
        PARTS[part]()


def trained(name: str, data: str, config: Any, **options: Any) -> Path:
    """Train, print the accuracy on test images, and return the model file."""
    out = Path(tempfile.mkdtemp()) / f"{name}.safetensors"
    began = time.perf_counter()
    model = resnext.train(data, config, out=out, **options)
    minutes = (time.perf_counter() - began) / 60
    for views in (1, 2):
        result = resnext.evaluate(model, data, views=views)
        low, high = result.interval()
        print(
            f"{name}, {views} views: {result.accuracy:.2%} of {result.count:,} test images "
            f"({low:.2%} to {high:.2%}), {minutes:.1f} minutes",
            flush=True,
        )
    return out


def fashion() -> None:
    """The target is 92.5 % in 30 minutes on two cores."""
    trained("fashion", os.environ["FASHION"], NETWORK, size=28, padding=1, epochs=7, **SHORT)


def cifar() -> None:
    """The target is 85 % in 60 minutes on two cores."""
    network = NETWORK.replace(
        num_classes=10, cardinality=2, base_width=32, channels=(64, 128, 256), expansion=1
    )
    often = {**SHORT, "batch_size": 32}  # smaller batches learn more from as many images
    trained("cifar", os.environ["CIFAR"], network, size=32, padding=3, epochs=12, **often)


def step() -> None:
    """The target is 2.8 times torchvision's usual loop on a CPU, 1.15 times timm's on a GPU."""
    from oracles import originals

    torchvision, timm = originals.torchvision, originals.timm
    cuda = torch.cuda.is_available()
    device, batch = torch.device("cuda" if cuda else "cpu"), 128 if cuda else 8
    dtype = pick_precision("auto", device)
    x, y = torch.rand(batch, 3, 224, 224), torch.randint(1000, (batch,))
    ways = {
        "torchvision, fp32, NCHW": (torchvision.models.resnext50_32x4d(), torch.float32, False),
        "timm, channels-last, AMP": (timm.create_model("resnext50_32x4d"), dtype, True),
        "resnext": (resnext.create("resnext50_32x4d"), dtype, True),
    }
    loops: dict[str, Callable[[], None]] = {}
    for name, (model, kind, last) in ways.items():
        model = model.to(device).train()
        if last:
            model = model.to(memory_format=torch.channels_last)
        if name == "resnext":
            began = time.perf_counter()
            chosen = fastest_groups(model, (batch, 3, 224, 224), device, dtype)
            seconds = time.perf_counter() - began
            merge_groups(model, chosen)
            print(f"groups merged: {sorted(set(chosen.values()))} ({seconds:.1f} s to choose)")
        loops[name] = one_step(model, x.to(device), y.to(device), kind, last, name == "resnext")
    if cuda:
        for name in ("timm, channels-last, AMP", "resnext"):
            model, kind, last = ways[name]
            whole: Any = torch.compile(model)
            images, targets = x.to(device), y.to(device)
            loops[f"{name}, compiled"] = one_step(whole, images, targets, kind, last, "res" in name)
    best = dict.fromkeys(loops, float("inf"))
    for _ in range(8 if cuda else 5):  # taking turns, because machines are not always equally fast
        for name, run in loops.items():
            best[name] = min(best[name], seconds_of(run, 5 if cuda else 1))
    first = best["torchvision, fp32, NCHW"]
    for name, seconds in best.items():
        print(f"{name}: {batch / seconds:,.1f} images/s, {first / seconds:.2f}×", flush=True)


def one_step(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype, last: bool, fused: bool
) -> Callable[[], None]:
    """Forward, backward and update."""
    options: dict[str, Any] = {"fused": True} if fused else {}
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True, **options)
    scaler = torch.amp.GradScaler(x.device.type, enabled=dtype is torch.float16)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, dtype, enabled=dtype is not torch.float32):
            logits = model(x)
        scaler.scale(nn.functional.cross_entropy(logits.float(), y)).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(3):
        run()
    return run


def seconds_of(run: Callable[[], object], times: int) -> float:
    """Mean seconds of a call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def pipeline() -> None:
    """The target is twice torchvision's images per second and core, for 500×375 JPEGs."""
    from oracles import originals
    from sklearn.datasets import load_sample_images

    originals.torchvision  # noqa: B018 (it can be imported only after this)
    from torchvision import transforms
    from torchvision.transforms.functional import pil_to_tensor  # noqa: F401

    torch.set_num_threads(1)
    usual = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    how, rng = Preprocessing(), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        files = jpegs(Path(folder), load_sample_images().images)

        def theirs() -> object:
            views: list[Any] = [usual(Image.open(f).convert("RGB")) for f in files]
            return torch.stack(views)

        def ours() -> object:
            views = [random_view(f.read_bytes(), f.name, how, rng, fast=True) for f in files]
            return torch.stack(views)

        def pillow() -> object:
            views = [random_view(f.read_bytes(), f.name, how, rng) for f in files]
            return torch.stack(views)

        ways = {"torchvision on Pillow": theirs, "ours": ours, "ours without simplejpeg": pillow}
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(7):
            for name, way in ways.items():
                best[name] = min(best[name], seconds_of(way, 3) / len(files))
    first = best["torchvision on Pillow"]
    for name, seconds in best.items():
        print(f"{name}: {1 / seconds:,.0f} images/s on one core, {first / seconds:.2f}×")


def jpegs(folder: Path, photographs: list[np.ndarray]) -> list[Path]:
    """64 different parts of two photos, 500×375."""
    rng = np.random.default_rng(0)
    for i in range(64):
        photograph = photographs[i % len(photographs)]
        top, left = rng.integers(0, photograph.shape[0] - 375), rng.integers(0, 140)
        part = photograph[top : top + 375, left : left + 500]
        Image.fromarray(part).save(folder / f"{i}.jpg", quality=90)
    return sorted(folder.glob("*.jpg"))


def scan() -> None:
    """The target is 300 MB for 100,000 files, torch included."""
    with tempfile.TemporaryDirectory() as folder:
        content = io.BytesIO()
        rng = np.random.default_rng(0)
        for i in range(100_000):
            path = Path(folder) / "photos" / f"class{i % 100:02}" / f"{i:06}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            content.seek(0)
            content.truncate()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(content, "PNG")
            path.write_bytes(content.getvalue())
        program = (
            "import sys, time\n"
            "from resnext.data import open_splits\n"
            "from resnext.data.scan import scan\n"
            "from resnext.system.progress import SilentReporter\n"
            "began = time.perf_counter()\n"
            "scan(open_splits(sys.argv[1]), SilentReporter())\n"
            "peak = open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]\n"
            "print(f'{time.perf_counter() - began:.1f} s, at most {int(peak) / 1024:.0f} MB')\n"
        )
        home = {**os.environ, "RESNEXT_HOME": str(Path(folder) / "home")}
        for name in ("scan of 100,000 files", "the same again, remembered"):
            command = [sys.executable, "-c", program, str(Path(folder) / "photos")]
            told = subprocess.run(command, env=home, capture_output=True, text=True, check=True)
            print(f"{name}: {told.stdout.strip()}", flush=True)


def overhead() -> None:
    """The target is less than 2 % of a run with a checkpoint every 30 s, ten times the default."""
    from sklearn.datasets import load_sample_images

    from resnext.training.trainer import Trainer

    shares: list[float] = []
    original = Trainer.close

    def close(self: Trainer) -> None:
        seconds = self.clock.seconds
        shares.append(seconds["checkpoints"] / sum(seconds.values()))
        original(self)

    Trainer.close = close
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "all").mkdir()
        for i, file in enumerate(jpegs(folder / "all", load_sample_images().images)):
            target = folder / "photos" / f"class{i % 2}" / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
        resnext.train(
            folder / "photos",
            out=folder / "m.safetensors",
            epochs=3,
            batch_size=8,
            size=224,
            checkpoint_minutes=0.5,
            progress=False,
        )
    Trainer.close = original
    print(
        f"checkpoints of resnext50_32x4d every 30 s and each epoch: {shares[0]:.2%} of the run",
        flush=True,
    )


PARTS = {
    "fashion": fashion,
    "cifar": cifar,
    "step": step,
    "pipeline": pipeline,
    "scan": scan,
    "overhead": overhead,
}

if __name__ == "__main__":
    main(sys.argv[1:])
