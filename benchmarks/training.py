"""Accuracy and speed of training: on real data, and of the step, the pipeline and the scan.

Run alone on the machine: `python benchmarks/training.py PART…`. Where other work is running, set
OMP_NUM_THREADS=1: steps are then timed by the processor time that they take. Parts:

    fashion    accuracy on Fashion-MNIST's 10,000 test images and minutes; FASHION names the folder
               of the idx files (Debian's package dataset-fashion-mnist has them)
    cifar      accuracy on the test images of a folder of CIFAR-10 JPEGs and minutes; CIFAR names
               the folder with train and test
    precision  accuracy on 359 unseen digits of three seeds, in fp32 and in bf16
    step       a training step of three networks, or of those that STEP names, relative to
               torchvision's usual loop and to timm's best setting; on a GPU resnext50_32x4d, batch
               128, channels-last and AMP for all
    profile    the operations of these training steps that take most of the time
    validation images per second in validation, relative to the network's own forward pass
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
from resnext.inference.fused import quick_classifier
from resnext.system.allocator import keep_freed_memory
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

STEPS = [("resnext11_8x16d", 64, 32), ("resnext26_32x4d", 96, 32), ("resnext50_32x4d", 224, 8)]
SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9}


def main(parts: list[str]) -> None:
    """Measure the requested parts, or all that need no folder."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = hardware(device) if device.type == "cuda" else cpu_name()
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    keep_freed_memory()
    for part in parts or ["step", "validation", "pipeline", "scan", "overhead"]:
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


def precision() -> None:
    """The target is that bf16 loses no accuracy: equal but for the chance of seeds."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("fp32", "bf16"):
            accuracies: list[float] = []
            began = time.perf_counter()
            for seed in range(3):
                out = Path(folder) / f"{kind}-{seed}.safetensors"
                config = resnext.variant("resnext_tiny_32px")
                options: dict[str, Any] = {"epochs": 15, "size": 16, "workers": 0}
                resnext.train(
                    "digits", config, out=out, seed=seed, precision=kind, progress=False, **options
                )
                accuracies.append(resnext.evaluate(out, "digits").accuracy)
            shown = " ".join(f"{accuracy:.2%}" for accuracy in accuracies)
            seconds = (time.perf_counter() - began) / len(accuracies)
            print(
                f"digits in {kind}: {shown}, mean {np.mean(accuracies):.2%}, {seconds:.1f} s each",
                flush=True,
            )


def step() -> None:
    """Targets on a CPU with bf16: 2, 1.6, 2.8 times torchvision; on a GPU 1.15 times timm."""
    from oracles import originals

    originals.timm.__version__  # noqa: B018 (its parts can be imported only after this)
    from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = pick_precision("auto", device)
    for name, size, batch in steps():
        x, y = torch.rand(batch, 3, size, size), torch.randint(10, (batch,))
        x, y = x.to(device), y.to(device)
        theirs, timms, ours = networks(name, originals)
        began = time.perf_counter()
        chosen = fastest_groups(ours, (batch, 3, size, size), device, dtype)
        seconds = time.perf_counter() - began
        merge_groups(ours, chosen)
        print(f"{name} at {size}, batch {batch}")
        print(f"  groups merged: {sorted(set(chosen.values()))} ({seconds:.1f} s to choose)")
        loops: dict[str, Callable[[], None]] = {
            "torchvision's usual loop, fp32, NCHW": one_step(
                theirs.to(device), x, y, torch.float32, torch.optim.SGD(theirs.parameters(), **SGD)
            ),
            "timm's, channels-last, AMP": one_step(
                timms.to(device, memory_format=torch.channels_last),
                x.contiguous(memory_format=torch.channels_last),
                y,
                dtype,
                create_optimizer_v2(timms, "sgd", **SGD),
            ),
            "resnext": our_step(ours.to(device, memory_format=torch.channels_last), x, y, dtype),
        }
        if cuda:
            whole: Any = torch.compile(ours)
            loops["resnext, compiled"] = our_step(whole, x, y, dtype)
        best = in_turns(loops, 8 if cuda else 4, 5 if cuda else 1)
        report(best, batch, "torchvision's usual loop, fp32, NCHW")


def validation() -> None:
    """The target is 1.5 times the network's own forward pass."""
    device, dtype = torch.device("cpu"), pick_precision("auto", torch.device("cpu"))
    for name, size, batch in steps():
        network: Any = resnext.create(name, num_classes=10)
        network = network.to(memory_format=torch.channels_last)
        x = torch.rand(2 * batch, 3, size, size).contiguous(memory_format=torch.channels_last)

        def own(network: nn.Module = network, x: torch.Tensor = x) -> object:
            with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
                return network(x)

        print(f"{name} at {size}, batches of {2 * batch}")
        network.train()
        times = {"training mode": in_turns({"": own}, 4, 1)[""]}
        network.eval()
        quick = quick_classifier(network, device, dtype)
        with torch.no_grad():
            times |= in_turns({"evaluation mode": own, "resnext": lambda: quick(x)}, 4, 1)  # noqa: B023
        report(times, 2 * batch, "evaluation mode")


def profile() -> None:
    """Where the time of a step goes, by operation."""
    dtype = pick_precision("auto", torch.device("cpu"))
    for name, size, batch in steps():
        network: Any = resnext.create(name, num_classes=10)
        network = network.to(memory_format=torch.channels_last)
        x, y = torch.rand(batch, 3, size, size), torch.randint(10, (batch,))
        for precision in dict.fromkeys((torch.float32, dtype)):
            run = our_step(network, x, y, precision)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
                run()
            rows = [row for row in found.key_averages() if row.self_cpu_time_total > 0]
            total = sum(row.self_cpu_time_total for row in rows)
            rows.sort(key=lambda row: -row.self_cpu_time_total)
            shares = (f"{row.key} {row.self_cpu_time_total / total:.0%}" for row in rows[:9])
            print(f"{name} at {size}, {precision}, {total / 1e3:.0f} ms: {', '.join(shares)}")


def steps() -> list[tuple[str, int, int]]:
    """Network, size and batch of the steps to time."""
    if torch.cuda.is_available():
        return [("resnext50_32x4d", 224, 128)]
    wanted = os.environ.get("STEP", " ".join(name for name, _, _ in STEPS)).split()
    least = 16 if torch.get_num_threads() == 1 else 1  # torch has a slow path for one thread
    return [(name, size, max(batch, least)) for name, size, batch in STEPS if name in wanted]


def networks(name: str, originals: Any) -> tuple[Any, Any, Any]:
    """A network as torchvision, timm and resnext build it; ours where they have no such network."""
    ours = resnext.create(name, num_classes=10)
    if ours.config.small_stem:
        return resnext.create(name, num_classes=10), resnext.create(name, num_classes=10), ours
    layers, groups, width = ours.config.layers, ours.config.cardinality, ours.config.base_width
    theirs, timms = originals.torchvision.models.resnet, originals.timm.models.resnet
    return (
        theirs.ResNet(
            theirs.Bottleneck, list(layers), num_classes=10, groups=groups, width_per_group=width
        ),
        timms.ResNet(
            timms.Bottleneck, layers, num_classes=10, cardinality=groups, base_width=width
        ),
        ours,
    )


def our_step(
    network: nn.Module, x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype
) -> Callable[[], None]:
    """Forward, backward and update, as `train` computes them."""
    x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), nesterov=True, fused=True, **SGD)
    return one_step(network, x, y, dtype, optimizer)


def in_turns(runs: dict[str, Callable[[], Any]], turns: int, times: int) -> dict[str, float]:
    """Shortest seconds of each call; they take turns, because machines vary."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run()
    for _ in range(turns):
        for name, run in runs.items():
            best[name] = min(best[name], seconds_of(run, times))
    return best


def report(best: dict[str, float], images: int, reference: str) -> None:
    """Print images per second, and the ratio to the reference."""
    for name, seconds in best.items():
        ratio = best[reference] / seconds
        print(f"  {name}: {images / seconds:,.1f} images/s, {ratio:.2f}×", flush=True)


def one_step(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    dtype: torch.dtype,
    optimizer: torch.optim.Optimizer,
) -> Callable[[], None]:
    """Forward, backward and update."""
    model.train()
    scaler = torch.amp.GradScaler(x.device.type, enabled=dtype is torch.float16)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, dtype, enabled=dtype is not torch.float32):
            logits = model(x)
        scaler.scale(nn.functional.cross_entropy(logits.float(), y)).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(2):
        run()
    return run


def seconds_of(run: Callable[[], object], times: int) -> float:
    """Mean seconds of a call; with one thread on a CPU, of processor time."""
    one_thread = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if one_thread else time.perf_counter
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = clock()
    for _ in range(times):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - began) / times


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
            "resnext50_32x4d",
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
    "precision": precision,
    "step": step,
    "profile": profile,
    "validation": validation,
    "pipeline": pipeline,
    "scan": scan,
    "overhead": overhead,
}

if __name__ == "__main__":
    main(sys.argv[1:])
