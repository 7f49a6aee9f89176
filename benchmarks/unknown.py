"""How well scores tell images of none of the classes from images of the classes.

    python benchmarks/unknown.py NETWORKS --cifar FOLDER --fashion FOLDER

NETWORKS holds `fashion.safetensors`, `cifar10.safetensors` and `without-CLASS.safetensors` for each
class of CIFAR-10: networks of Fashion-MNIST, CIFAR-10 and CIFAR-10 without a class. Those that are
missing are trained first, for `--epochs` each, or left out with `--epochs 0`; `--only` names some.
The same command continues after an interruption. Of the CIFAR-10 folder, `train` is trained on and
`test` measured on; Fashion-MNIST is the folder of its idx files.

The table has the AUROC of each score: the probability that an image of none of the classes gets a
higher one than a test image of the classes. The digits are scikit-learn's, resized.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata
from sklearn.datasets import load_digits

import resnext
from resnext.card import card_of
from resnext.data.dataset import ImageSet
from resnext.data.decoding import pixels, resize_and_crop
from resnext.data.open import find_source, open_splits
from resnext.inference import open_runner
from resnext.inference.runner import Classifier, Runner
from resnext.neighbours.unknown import UnknownScore, bank_rows
from resnext.system.cpu import cpu_name

COUNT = 1_000  # test images of each kind
BANK = 3_000  # training images


class Seen(NamedTuple):
    """What a network computes of images."""

    logits: np.ndarray
    embeddings: np.ndarray


Score = Callable[[Seen], np.ndarray]


def main() -> None:
    """Train what is missing, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", type=Path)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--fashion", type=Path, required=True)
    parser.add_argument("--model", default="resnext_nano_32px")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of networks, such as without-cat")
    given = parser.parse_args()
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    classes = sorted(path.name for path in (given.cifar / "train").iterdir())
    names = ["fashion", "cifar10", *(f"without-{name}" for name in classes)]
    names = given.only or names
    for name in names if given.epochs else ():
        train(name, given)
    tests = {name: folder_images(given.cifar / "test" / name) for name in classes}
    clothes = find_source(given.fashion).splits["test"](None).images
    garments = [Image.fromarray(np.asarray(clothes.images[i])) for i in spread(len(clothes), COUNT)]
    handwritten: Any = load_digits()
    digits = [Image.fromarray((x * 15.9).astype(np.uint8)) for x in handwritten.images]
    near: dict[str, list[float]] = {}
    for name in names:
        file = given.networks / f"{name}.safetensors"
        if not file.exists():
            continue
        runner = open_runner(file)
        hidden = name.removeprefix("without-")
        if name == "fashion":
            known, new, title = garments, digits, "Fashion-MNIST, digits"
        else:
            known = [x for label in classes if label != hidden for x in tests[label][::5]]
            new = garments if name == "cifar10" else tests[hidden]
            title = "CIFAR-10, Fashion-MNIST" if name == "cifar10" else f"CIFAR-10 but {hidden}"
        bank, targets, val = training_images(given, name)
        found = areas(runner, bank, targets, val, known, new)
        card = card_of(runner)
        print(f"{title} (accuracy {card.metrics['val_accuracy']:.1%})")
        for method, (area, micro) in found.items():
            print(f"    {method:<28} {area:.3f}  {micro:8.1f} µs an image")
            if name.startswith("without"):
                near.setdefault(method, []).append(area)
    if near:
        print("CIFAR-10 without one class, mean")
    for method, values in near.items():
        print(f"    {method:<28} {np.mean(values):.3f} of {len(values)}")


def train(name: str, given: argparse.Namespace) -> None:
    """One network, if it is missing or unfinished."""
    out = given.networks / f"{name}.safetensors"
    if out.exists() and not out.with_suffix(".run").exists():
        return  # trained elsewhere
    if (out.with_suffix(".run") / "report.html").exists():
        return
    given.networks.mkdir(parents=True, exist_ok=True)
    data = given.fashion if name == "fashion" else given.cifar / "train"
    if name.startswith("without"):
        data = given.networks / name
        data.mkdir(exist_ok=True)
        for folder in (given.cifar / "train").iterdir():
            link = data / folder.name
            if folder.name != name.removeprefix("without-") and not link.exists():
                link.symlink_to(folder.absolute())
    options: dict[str, Any] = {"size": 32, "epochs": given.epochs, "val_fraction": 0.1}
    options |= {"resume": True, "workers": 0, "index": False}
    resnext.train(data, given.model, out=out, recipe="quick", **options)


def training_images(
    given: argparse.Namespace, name: str
) -> tuple[list[Image.Image], np.ndarray, list[Image.Image]]:
    """Images that a network was trained on, with their classes, and validation images."""
    data = given.fashion if name == "fashion" else given.cifar / "train"
    splits = open_splits(data, val_fraction=0.1)
    labels = [x for x in splits.train.labels if x != name.removeprefix("without-")]

    def chosen(images: ImageSet, count: int) -> tuple[list[Image.Image], list[str]]:
        of = [images.labels[target] for target in images.targets]
        some = [i for i in spread(len(images), count) if of[i] in labels]
        return [images.open(i, "RGB").copy() for i in some], [of[i] for i in some]

    train, of = chosen(splits.train, BANK)
    val, _ = chosen(splits.val, COUNT)
    return train, np.array([labels.index(x) for x in of]), val


def spread(length: int, count: int) -> list[int]:
    """Positions spread over a sequence."""
    return [int(i) for i in np.linspace(0, length - 1, min(count, length)).astype(int)]


def folder_images(folder: Path) -> list[Image.Image]:
    """All images of a folder."""
    return [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]


def seen(runner: Runner, images: list[Image.Image]) -> Seen:
    """Logits and embeddings of images."""
    preprocessing = card_of(runner).preprocessing
    mode = "L" if preprocessing.colour == "L" else "RGB"
    x = [pixels(resize_and_crop(i.convert(mode), preprocessing), preprocessing) for i in images]
    parts = [runner.pixels(np.stack(x[i : i + 64])) for i in range(0, len(x), 64)]
    return Seen(*(np.concatenate(some) for some in zip(*parts, strict=True)))


def areas(
    runner: Any,
    bank: list[Image.Image],
    targets: np.ndarray,
    val: list[Image.Image],
    known: list[Image.Image],
    new: list[Image.Image],
) -> dict[str, tuple[float, float]]:
    """AUROC and microseconds an image of each score."""
    a, b = seen(runner, known), seen(runner, new)
    result: dict[str, tuple[float, float]] = {}
    for name, method in scores(
        seen(runner, bank), targets, seen(runner, val), runner.classifier
    ).items():
        began = time.perf_counter()
        x, y = method(a), method(b)
        micro = (time.perf_counter() - began) / (len(x) + len(y)) * 1e6
        ranks = rankdata(np.concatenate([x, y]))
        above = ranks[len(x) :].sum() - len(y) * (len(y) + 1) / 2
        result[name] = above / (len(x) * len(y)), micro
    return result


def scores(bank: Seen, targets: np.ndarray, val: Seen, classifier: Classifier) -> dict[str, Score]:
    """The scores that are compared; higher means that an image is of none of the classes."""
    units = unit(bank.embeddings)
    energies = -energy(bank)
    scaled = units * energies[:, None]
    weight, bias = classifier

    def class_distance(x: Seen, k: int) -> np.ndarray:
        similarity, predicted = unit(x.embeddings) @ units.T, x.logits.argmax(1)
        result = np.zeros(len(x.logits))
        for label in np.unique(predicted):
            rows = np.ix_(predicted == label, targets == label)
            result[rows[0][:, 0]] = 1 - kth(similarity[rows], k)
        return result

    def guided(x: Seen, k: int) -> np.ndarray:
        """NNGuide (arXiv:2309.14888)."""
        guidance = top(unit(x.embeddings) @ scaled.T, k).mean(1)
        return energy(x) * guidance

    origin = -np.linalg.pinv(weight) @ bias
    centred = bank.embeddings - origin
    _, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    residual = vectors[:, : -min(weight.shape[1] // 2, 512)]
    norms = np.linalg.norm(centred @ residual, axis=1)
    alpha = bank.logits.max(1).mean() / norms.mean()

    def vim(x: Seen) -> np.ndarray:
        """ViM (arXiv:2203.10807)."""
        extra = alpha * np.linalg.norm((x.embeddings - origin) @ residual, axis=1)
        return extra + energy(x)

    def standard(score: Score) -> Score:
        """A score with mean 0 and deviation 1 on the validation images."""
        values = score(val)
        return lambda x: (score(x) - values.mean()) / values.std()

    def distance(x: Seen, k: int) -> np.ndarray:
        return 1 - kth(unit(x.embeddings) @ units.T, k)

    near = standard(lambda x: distance(x, 5))
    own = standard(lambda x: class_distance(x, 1))
    weak = standard(energy)
    virtual = standard(vim)
    chosen = UnknownScore(units[bank_rows(*units.shape)]).fitted(val.logits, val.embeddings)
    assert chosen is not None
    cap = np.quantile(bank.embeddings, 0.9)
    usual = [softmax(bank.logits, axis=1)[bank.logits.argmax(1) == i] for i in range(len(bias))]

    def matching(x: Seen) -> np.ndarray:
        """KL-matching (arXiv:1911.11132)."""
        p = softmax(x.logits, axis=1)
        logs = [np.log(p + 1e-12) - np.log(some.mean(0) + 1e-12) for some in usual if len(some)]
        return np.min([(p * each).sum(1) for each in logs], axis=0)

    kinds = np.unique(targets)
    means = np.stack([bank.embeddings[targets == kind].mean(0) for kind in kinds])
    within = np.linalg.pinv(np.cov((bank.embeddings - means[np.searchsorted(kinds, targets)]).T))
    overall = np.linalg.pinv(np.cov(bank.embeddings.T))

    def relative(x: Seen) -> np.ndarray:
        """Relative Mahalanobis distance (arXiv:2106.09022)."""
        own = np.min([mahalanobis(x.embeddings - mean, within) for mean in means], axis=0)
        return own - mahalanobis(x.embeddings - bank.embeddings.mean(0), overall)

    far, unlike = standard(lambda x: distance(x, 50)), standard(relative)

    def rectified(x: Seen) -> np.ndarray:
        """ReAct (arXiv:2111.12797)."""
        logits = np.minimum(x.embeddings, cap) @ weight.T + bias
        return energy(Seen(logits, x.embeddings))

    return {
        "maximum softmax": lambda x: -softmax(x.logits, axis=1).max(1),
        "maximum logit": lambda x: -x.logits.max(1),
        "energy": energy,
        "kNN, k = 1": lambda x: distance(x, 1),
        "KL-matching": matching,
        "ReAct, energy": rectified,
        "deviation of the logits": lambda x: -x.logits.std(1),
        "kNN, k = 5": lambda x: distance(x, 5),
        "energy + kNN, k = 50 (ours)": lambda x: chosen(x.logits, x.embeddings),
        "kNN, k = 50": lambda x: distance(x, 50),
        "kNN of the class, k = 1": lambda x: class_distance(x, 1),
        "kNN of the class, k = 5": lambda x: class_distance(x, 5),
        "kNN of the class, k = 50": lambda x: class_distance(x, 50),
        "NNGuide, k = 10": lambda x: guided(x, 10),
        "NNGuide, k = 100": lambda x: guided(x, 100),
        "ViM": vim,
        "relative Mahalanobis": relative,
        "kNN, k = 50 + relative M.": lambda x: far(x) + unlike(x),
        "energy + kNN, k = 5": lambda x: weak(x) + near(x),
        "ViM + kNN, k = 5": lambda x: virtual(x) + near(x),
        "energy + kNN of the class": lambda x: weak(x) + own(x),
    }


def energy(x: Seen) -> np.ndarray:
    """The energy (arXiv:2010.03759)."""
    return -np.asarray(logsumexp(x.logits, axis=1))


def mahalanobis(x: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Squared distance of each row from 0, by the inverse of a covariance."""
    return ((x @ inverse) * x).sum(1)


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors of length 1."""
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)


def top(x: np.ndarray, k: int) -> np.ndarray:
    """The k largest values of each row."""
    return -np.partition(-x, min(k, x.shape[1]) - 1, axis=1)[:, : min(k, x.shape[1])]


def kth(x: np.ndarray, k: int) -> np.ndarray:
    """The k-th largest value of each row."""
    return top(x, k).min(1)


if __name__ == "__main__":
    main()
