"""The training loop: from a data set to one file that carries everything."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

import resnext
from resnext.card import Card, Preprocessing
from resnext.config import ResNeXtConfig
from resnext.data import ImageSet, Splits, open_splits, unreadable
from resnext.device import pick_device
from resnext.errors import CheckpointError, ConfigError, DataError, ResNeXtError
from resnext.evaluation import Evaluation, batches, measure, own_errors
from resnext.network import ResNeXt
from resnext.progress import Reporter, reporter
from resnext.training.recipe import RECIPES, Recipe
from resnext.transforms import augment
from resnext.weights.files import save
from resnext.weights.loading import load_classifier
from resnext.zoo import variant


def train(
    data: str | Path,
    model: str | ResNeXtConfig = "resnext50_32x4d",
    *,
    out: str | Path = "model.safetensors",
    recipe: str | Recipe | None = None,
    size: int | None = None,
    seed: int = 0,
    val_fraction: float = 0.2,
    workers: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
    **changes: Any,
) -> ResNeXt:
    """Train a classifier from scratch and keep its best epoch.

    The file at `out` is written after each epoch that is better on the validation images than
    all before, so it is usable whenever the run ends. A run interrupted by Ctrl-C keeps it; if
    that comes before the first epoch is over, the weights are saved as they are.

    Args:
        data: A folder of class folders, one with `train` and `val` inside, or "digits".
        model: Name of a variant, or a config. Classes and image channels follow the data, and the
            recipe says how the blocks of a named variant start.
        out: File to write: weights, config, labels, preprocessing, metrics and provenance.
        recipe: A name ("small", "digits") or a `Recipe`; by default "digits" for the digits and
            "small" for folders.
        size: Side of the images the network sees, pixels; by default 8 for the digits, else 32
            for small-image networks and 224 for all others.
        seed: Decides everything that is left to chance.
        val_fraction: Part of each class that is held out where the data has no `val`.
        workers: Processes that decode images; by default as many as fit the machine.
        device: "auto", or a torch device.
        overwrite: Whether an existing `out` may be replaced.
        progress: Whether to show what happens, on standard error.
        changes: Fields of the recipe to change, such as `epochs=10`.

    Returns:
        The best epoch's network in evaluation mode, as `load(out)` gives it.

    Raises:
        DataError: The data is missing, damaged or too small.
        ConfigError: Model, recipe or size make no sense.
        CheckpointError: `out` exists, or cannot be written.
        ResNeXtError: The loss is no longer a number.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise CheckpointError(f"{out} exists. Choose another name, or allow overwriting.")
    if not out.parent.is_dir() or out.is_dir():
        raise CheckpointError(f"{out} cannot be written: give a file in a folder that exists.")
    plan = chosen_recipe(recipe, data, changes)
    place = pick_device(device)
    splits = open_splits(data, seed=seed, val_fraction=val_fraction)
    grey = splits.colour == "L"
    named = {"zero_init_residual": plan.zero_init_residual}
    config = model if isinstance(model, ResNeXtConfig) else variant(model, **named)
    config = config.replace(num_classes=len(splits.train.labels), in_channels=1 if grey else 3)
    how = chosen_preprocessing(config, splits, data, size)
    plan = fitting_batches(plan, splits.train)
    if workers is None:
        workers = 0 if grey else min(torch.get_num_threads(), 8)

    report = reporter(progress)
    try:
        check_files(splits, report)
        torch.manual_seed(seed)
        network = ResNeXt(config).to(place, memory_format=torch.channels_last)  # pyright: ignore
        run = _Run(network, splits, how, plan, seed, workers, place, out, report)
        run.all_epochs()
    finally:
        report.stop()
    return load_classifier(out, device=place)


def chosen_recipe(recipe: str | Recipe | None, data: str | Path, changes: dict[str, Any]) -> Recipe:
    """The recipe of a name, with changes.

    Raises:
        ConfigError: There is no such recipe or field, or a value makes no sense.
    """
    if recipe is None:
        recipe = "digits" if str(data) == "digits" else "small"
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ConfigError(f"No recipe is called {recipe!r}. There are {', '.join(RECIPES)}.")
        recipe = RECIPES[recipe]()
    known = asdict(recipe)
    for name in changes:
        if name not in known:
            raise ConfigError(f"A recipe has no field {name!r}; it has {', '.join(known)}.")
    return replace(recipe, **changes)


def chosen_preprocessing(
    config: ResNeXtConfig, splits: Splits, data: str | Path, size: int | None
) -> Preprocessing:
    """How images become input: at the size asked for, or the usual one.

    Raises:
        ConfigError: The network's stride is larger than its images.
    """
    if size is None:
        size = 32 if config.small_stem else 224
        if str(data) == "digits":
            size = 8
    if type(size) is not int or size < max(config.stride, config.min_size):
        raise ConfigError(
            f"size must be at least {max(config.stride, config.min_size)} pixels for this network, "
            f"whose last map has one pixel for every {config.stride}, not {size!r}. Raise --size, "
            f"or take a network for small images such as resnext29_32x4d."
        )
    resize = size if size <= 64 else round(size * 256 / 224)
    if splits.colour == "L":
        return Preprocessing(size, resize, mean=(0.5,), std=(0.25,), colour="L")
    return Preprocessing(size, resize)


def fitting_batches(plan: Recipe, images: ImageSet) -> Recipe:
    """The recipe with batches no larger than the data.

    Raises:
        DataError: There are not even two images.
    """
    if len(images) < 2:
        raise DataError(f"{images.name} has {len(images)} training image; it takes at least 2.")
    return replace(plan, batch_size=min(plan.batch_size, len(images)))


def check_files(splits: Splits, report: Reporter) -> None:
    """Decode every file once, before any time is spent on training.

    Raises:
        DataError: Some cannot be read; the message names the first and counts the others.
    """
    for part in (splits.train, splits.val):
        if isinstance(part.images[0], np.ndarray):
            continue
        report.start("Checking images", len(part))
        bad: list[str] = []
        for _, problem in unreadable(part, splits.colour):
            report.advance(1)
            if problem:
                bad.append(problem)
        if bad:
            more = f" So are {len(bad) - 1} others." if len(bad) > 1 else ""
            raise DataError(
                f"{bad[0]}{more} Repair or remove what cannot be read, then start again."
            )


class _Run:
    """One training run."""

    def __init__(
        self,
        network: ResNeXt,
        splits: Splits,
        how: Preprocessing,
        recipe: Recipe,
        seed: int,
        workers: int,
        device: torch.device,
        out: Path,
        report: Reporter,
    ) -> None:
        self.network, self.splits, self.how, self.recipe = network, splits, how, recipe
        self.seed, self.device, self.out, self.report = seed, device, out, report
        self.order = _Order(len(splits.train), seed)
        self.workers = workers
        self.loader = DataLoader(
            _Augmented(splits.train, how, recipe, seed),
            batch_size=recipe.batch_size,
            sampler=self.order,
            num_workers=workers,
            drop_last=True,  # a last batch of one image would break batch norm
            persistent_workers=False,  # each epoch's order is sent to fresh workers
        )
        self.optimizer = torch.optim.SGD(
            parameter_groups(network, recipe.weight_decay),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
        )
        self.steps = recipe.epochs * len(self.loader)
        self.step = 0
        self.best: Evaluation | None = None
        self.best_epoch = 0

    def all_epochs(self) -> None:
        """Train, and save each epoch that is the best so far."""
        began = time.monotonic()
        epoch = 0
        try:
            for epoch in range(1, self.recipe.epochs + 1):
                loss, speed = self._learn(epoch)
                result = self._validate(epoch)
                better = self.best is None or _rank(result) > _rank(self.best)
                if better:
                    self.best, self.best_epoch = result, epoch
                    self._save(epoch, interrupted=False)
                self.report.note(f"accuracy {result.accuracy:.2%}")
                self.report.line(
                    f"epoch {epoch:>3}/{self.recipe.epochs}  loss {loss:.4f}  "
                    f"val accuracy {result.accuracy:.2%}  {speed:,.0f} images/s  "
                    f"{self._left(epoch, began)}{'  saved' if better else ''}"
                )
        except KeyboardInterrupt:
            if self.best is None:
                self._save(epoch, interrupted=True)
                kept = "holds the weights as they were, not measured"
            else:
                kept = f"holds epoch {self.best_epoch}, val accuracy {self.best.accuracy:.2%}"
            self.report.line(f"Interrupted in epoch {epoch}. {self.out} {kept}.")
            raise

    def _learn(self, epoch: int) -> tuple[float, float]:
        """One pass over the training images: mean loss and images per second."""
        self.network.train()
        self.order.epoch = epoch
        images = len(self.loader) * self.recipe.batch_size
        self.report.start(f"Epoch {epoch}/{self.recipe.epochs}", images)
        began, total = time.monotonic(), 0.0
        for x, targets in own_errors(self.loader):
            x = x.to(self.device, memory_format=torch.channels_last)
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * rate(
                    self.step, self.steps, self.recipe.warmup
                )
            loss = nn.functional.cross_entropy(
                self.network(x),
                targets.to(self.device),
                label_smoothing=self.recipe.label_smoothing,
            )
            value = loss.item()
            if not math.isfinite(value):
                kept = f"{self.out} holds epoch {self.best_epoch}." if self.best else ""
                raise ResNeXtError(
                    f"The loss became {value} in epoch {epoch}. Lower the learning rate, now "
                    f"{self.recipe.learning_rate:g}. {kept}".strip()
                )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            total += value
            self.report.advance(len(x))
        return total / len(self.loader), images / (time.monotonic() - began)

    def _validate(self, epoch: int) -> Evaluation:
        self.network.eval()
        val = self.splits.val
        self.report.start(f"Epoch {epoch}/{self.recipe.epochs}, validating", len(val))
        loader = batches(val, self.how, batch_size=2 * self.recipe.batch_size, workers=self.workers)
        return measure(self.network, loader, val, self.device, self.report.advance)

    def _save(self, epoch: int, *, interrupted: bool) -> None:
        splits = self.splits
        self.network.card = Card(
            labels=splits.train.labels,
            preprocessing=self.how,
            metrics=self.best.metrics("val") if self.best else {},
            provenance={
                "data": Path(splits.train.name).resolve().name,
                "fingerprint": splits.fingerprint,
                "val_fraction": splits.val_fraction,
                "seed": self.seed,
                "epoch": epoch,
                "complete_epoch": not interrupted,
                "recipe": asdict(self.recipe),
                "resnext": resnext.__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
        )
        save(self.network, self.out)

    def _left(self, epoch: int, began: float) -> str:
        seconds = (time.monotonic() - began) / epoch * (self.recipe.epochs - epoch)
        return f"{seconds / 60:.0f} min left" if seconds > 99 else f"{seconds:.0f} s left"


def _rank(result: Evaluation) -> tuple[float, float]:
    return result.accuracy, -result.nll


def rate(step: int, steps: int, warmup: float) -> float:
    """Learning rate over its highest: a linear rise, then half a cosine down to zero."""
    rise = max(round(steps * warmup), 1)
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(steps - rise, 1))


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for an optimizer: those of norms and biases without weight decay."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


class _Order(Sampler[tuple[int, int]]):
    """A new shuffle each epoch, decided by seed and epoch alone; yields (epoch, index)."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        return ((self.epoch, index) for index in rng.permutation(self.count).tolist())


class _Augmented(Dataset[tuple[Tensor, int]]):
    """Training images, each augmented by chance that seed, epoch and index decide."""

    def __init__(self, images: ImageSet, how: Preprocessing, recipe: Recipe, seed: int) -> None:
        self.images, self.how, self.recipe, self.seed = images, how, recipe, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        image = self.images.open(index, self.how.colour)
        x = augment(image, self.how, rng, min_area=self.recipe.min_area, flip=self.recipe.flip)
        return x, self.images.targets[index]
