"""The race: accuracy of the same images after the same minutes, ours and others'.

Run alone on the machine, from the root of the repository:

    python benchmarks/minutes.py DATA --minutes 3 8 20 --environments FOLDER [--who NAME…]
    python benchmarks/minutes.py --plot race.svg

DATA is a folder with `train` and `val`, with a folder per class each; by default scikit-learn's
digits as PNG. Everyone trains from random weights on `train` and is judged by the best accuracy on
`val`, as each library's own file states it. Runs are added to `--results` (race.json), from which
`--plot` draws; a run that is there already is not repeated. Each peer runs in an environment of its
own in FOLDER, which is made when it is missing, with the smallest networks and the settings that
its documentation suggests for small data:

    ultralytics   yolo11n-cls.yaml with the `time` budget
    timm          resnet18, its loader, optimizer and schedule; epochs from a timed first one
    torchvision   resnet18 in the loop of its reference script
    fastai        resnet18, fit_one_cycle at its usual rate; epochs from a timed first one
    keras         the network of TensorFlow's tutorial "Image classification", Adam

To make the folders: `python benchmarks/minutes.py --make KIND SOURCE FOLDER`, with cifar, fashion,
digits or photos as KIND. For photos, SOURCE holds photographs, each of which becomes a class.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

import resnext
from resnext.system.cpu import cpu_name

HERE = Path(__file__).parent
CONSTRAINTS = HERE.parent / "constraints.txt"
PEERS = {
    "ultralytics": ["torch", "torchvision", "ultralytics"],
    "timm": ["torch", "torchvision", "timm"],
    "torchvision": ["torch", "torchvision"],
    "fastai": ["torch", "torchvision", "fastai"],
    "keras": ["keras", "tensorflow-cpu"],
}


def main() -> None:
    """Run the race, or make the data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, nargs="+", default=[3, 8, 20])
    parser.add_argument("--environments", type=Path, default=Path("environments"))
    parser.add_argument("--who", nargs="+", default=["resnext", *PEERS])
    parser.add_argument("--results", type=Path, default=Path("race.json"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--make", nargs=3, metavar=("KIND", "SOURCE", "FOLDER"))
    given = parser.parse_args()
    if given.make:
        kind, source, folder = given.make
        MAKERS[kind](Path(source), Path(folder))
    elif given.plot:
        plot(json.loads(given.results.read_text()), given.plot)
    else:
        race(given)


def race(given: argparse.Namespace) -> None:
    """Run what is asked for and not there yet, one after another."""
    if given.data is None:
        given.data = Path(tempfile.mkdtemp()) / "digits"
        make_digits(given.data, given.data)
    machine = f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{machine}\nimages: {given.data.name}")
    print("library       budget (min)  took (min)  accuracy")
    rows = json.loads(given.results.read_text()) if given.results.exists() else []
    done = {(row["images"], row["minutes"], row["library"]) for row in rows}
    for minutes, who in itertools.product(given.minutes, given.who):
        if (given.data.name, minutes, who) in done:
            continue
        began = time.perf_counter()
        if who == "resnext":
            accuracy = ours(given.data, minutes)
        else:
            accuracy = theirs(who, given.data, minutes, given.environments)
        took = (time.perf_counter() - began) / 60
        print(f"{who:<12}  {minutes:12g}  {took:10.2f}  {accuracy:8.2%}", flush=True)
        row = {"images": given.data.name, "minutes": minutes, "library": who, "took": took}
        rows.append({**row, "accuracy": accuracy, "machine": machine})
        given.results.write_text(json.dumps(rows, indent=1))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over the minutes that a run took, a panel for each set with several budgets.

    The colours are readable on light and dark pages, which show through.
    """
    from matplotlib import pyplot as plt

    grey, ours = "#7f868e", "#2f81f7"
    plt.rc("axes", edgecolor=grey, labelcolor=grey)
    plt.rc("xtick", color=grey)
    plt.rc("ytick", color=grey)
    plt.rc("text", color=grey)
    plt.rc("svg", fonttype="none", hashsalt="race")
    budgets = dict.fromkeys((row["images"], row["minutes"]) for row in rows)
    names = [name for name, count in Counter(name for name, _ in budgets).items() if count > 1]
    figure, panels = plt.subplots(1, len(names), figsize=(4.4 * len(names), 3.6), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        last: dict[str, tuple[float, float]] = {}
        for who in ["resnext", *PEERS]:
            runs = [row for row in rows if (row["images"], row["library"]) == (name, who)]
            runs.sort(key=lambda row: row["took"])
            if not runs:
                continue
            x = [row["took"] for row in runs]
            y = [100 * row["accuracy"] for row in runs]
            last[who] = x[-1], y[-1]
            first = who == "resnext"
            colour, width = (ours, 2.5) if first else (grey, 1.2)
            panel.plot(x, y, marker="o", color=colour, linewidth=width)
        height = 0.0
        apart = 0.055 * (max(y for _, y in last.values()) - min(y for _, y in last.values()))
        for who, (x, y) in sorted(last.items(), key=lambda item: item[1][1]):
            height = max(y, height + apart)
            panel.annotate(
                f"{who} {y:.1f} %",
                (x, height),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=ours if who == "resnext" else grey,
                weight="bold" if who == "resnext" else "normal",
            )
        panel.set(title=name, xlabel="minutes", ylabel="accuracy, %")
        panel.margins(y=0.15)
        panel.set_xlim(0, 1.5 * max(row["took"] for row in rows if row["images"] == name))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else {})


def ours(data: Path, minutes: float) -> float:
    """The command that a user types, in a process of its own."""
    out = Path("race.safetensors")
    command = ["train", str(data), "--minutes", f"{minutes:g}", "--out", str(out), "--overwrite"]
    subprocess.run([sys.executable, "-m", "resnext", *command], check=True, capture_output=True)
    card = resnext.load(out).card
    assert card is not None
    out.unlink()
    shutil.rmtree(out.with_suffix(".run"))
    return card.metrics["val_accuracy"]


def theirs(who: str, data: Path, minutes: float, environments: Path) -> float:
    """A peer's script in its environment; its last line of output is the accuracy."""
    python = environments / who / "bin" / "python"
    if not python.exists():
        venv.create(environments / who, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS)]
        subprocess.run([*pip, *PEERS[who]], check=True)
    script = HERE / "peers" / f"{who}_peer.py"
    done = subprocess.run(
        [str(python), str(script), str(data.resolve()), f"{minutes:g}"],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(json.loads(done.stdout.strip().splitlines()[-1])["accuracy"])


# -- data -----------------------------------------------------------------------------------------


def make_cifar(source: Path, folder: Path) -> None:
    """500 training and 200 test images of each class, from a folder of CIFAR-10 JPEGs."""
    draw = random.Random(0)
    for part, target, count in (("train", "train", 500), ("test", "val", 200)):
        for label in sorted(path.name for path in (source / part).iterdir()):
            (folder / target / label).mkdir(parents=True)
            for path in draw.sample(sorted((source / part / label).iterdir()), count):
                shutil.copy(path, folder / target / label)


def make_fashion(source: Path, folder: Path) -> None:
    """The first 10,000 training images, and 2,000 test images, of the idx files."""
    for part, target, count in (("train", "train", 10_000), ("t10k", "val", 2_000)):
        pixels = _idx(source / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:count]
        labels = _idx(source / f"{part}-labels-idx1-ubyte.gz", 8)[:count]
        _write(folder / target, pixels, labels)


def make_digits(_: Path, folder: Path) -> None:
    """scikit-learn's digits at four times their size; every fifth is a validation image.

    Ultralytics refuses images below 10 pixels as corrupt.
    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = np.kron(digits["images"] * 255 / 16, np.ones((1, 4, 4))).astype(np.uint8)
    held = np.arange(len(pixels)) % 5 == 0
    _write(folder / "train", pixels[~held], digits["target"][~held])
    _write(folder / "val", pixels[held], digits["target"][held])


def make_photos(source: Path, folder: Path) -> None:
    """165 parts of each photograph in a folder, turned, lit and coloured differently.

    Every fifth is a validation image. Their sides have 90 to 200 pixels.
    """
    draw = random.Random(0)
    for path in sorted(source.iterdir()):
        with Image.open(path) as file:
            photograph = file.convert("RGB")
        for i in range(165):
            target = folder / ("train" if i % 5 else "val") / path.stem / f"{i:03}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            _part(photograph, draw).save(target, quality=draw.randint(50, 95))


def _part(photograph: Image.Image, draw: random.Random) -> Image.Image:
    height = draw.randint(60, min(260, *photograph.size))
    width = min(int(height * draw.uniform(0.8, 1.25)), photograph.width)
    left = draw.randint(0, photograph.width - width)
    top = draw.randint(0, photograph.height - height)
    part = photograph.crop((left, top, left + width, top + height))
    part = part.rotate(draw.uniform(-20, 20), Image.Resampling.BILINEAR)
    scale = draw.randint(90, 160) / min(part.size)
    part = part.resize((round(part.width * scale), round(part.height * scale)))
    part = ImageEnhance.Brightness(part).enhance(draw.uniform(0.6, 1.4))
    part = ImageEnhance.Color(part).enhance(draw.uniform(0.3, 1.5))
    return ImageOps.mirror(part) if draw.random() < 0.5 else part


def _idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def _write(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{i:05}.png")


MAKERS = {
    "cifar": make_cifar,
    "fashion": make_fashion,
    "digits": make_digits,
    "photos": make_photos,
}

if __name__ == "__main__":
    main()
