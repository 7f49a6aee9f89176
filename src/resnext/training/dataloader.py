"""Batches of training images: in which order, cut out by which chance, what if one is damaged.

All chance follows from seed, epoch and place in the epoch, so a run can go on anywhere without
knowing what happened before, with any number of workers and processes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from resnext.card import Preprocessing
from resnext.data.dataset import ImageSet, class_weights
from resnext.data.transforms import random_view
from resnext.errors import DataError
from resnext.training.distributed import ProcessGroup
from resnext.training.recipe import Recipe

_ORDER, _VIEW, BATCH = 1, 2, 3  # what a seed is used for, so that no two draw the same numbers
_TRIES = 10  # for another image in place of one that cannot be read


class SampleKey(NamedTuple):
    """Which view of which image: decides all chance in it."""

    epoch: int
    place: int
    image: int


class Batch(NamedTuple):
    """What a worker sends: bytes `(n, s, s, c)`, classes `(n,)`, and what could not be read."""

    images: Tensor
    targets: Tensor
    bad: list[tuple[int, str]]


class TrainSampler(Sampler[list[SampleKey]]):
    """Keys of each batch of one epoch, for one process.

    Args:
        images: What is drawn from.
        recipe: How often and how balanced.
        seed: Decides the order.
        ranks: Each process gets every `world`-th image of each batch.
    """

    def __init__(self, images: ImageSet, recipe: Recipe, seed: int, ranks: ProcessGroup) -> None:
        self.count, self.recipe, self.seed, self.ranks = len(images), recipe, seed, ranks
        self.epoch, self.start = 1, 0
        self.chances: np.ndarray | None = None
        if recipe.balance == "sampling":
            targets = np.asarray(images.targets)
            weights = class_weights(targets, len(images.labels))[targets]
            self.chances = weights / weights.sum()

    @property
    def steps(self) -> int:
        """Batches of an epoch; what is left over takes part in another epoch."""
        return self.count // self.recipe.batch_size

    def __len__(self) -> int:
        return (self.steps - self.start) * self.recipe.accumulate

    def whole(self, epoch: int) -> np.ndarray:
        """Indices of an epoch in their order, for all processes."""
        rng = np.random.default_rng((_ORDER, self.seed, epoch))
        repeats, count = self.recipe.repeats, -(-self.count // self.recipe.repeats)
        if self.chances is not None:
            drawn = rng.choice(self.count, count, p=self.chances)
        else:
            drawn = rng.permutation(self.count)[:count]
        return np.repeat(drawn, repeats)[: self.count]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = self.whole(self.epoch)
        part = self.recipe.batch_size // self.recipe.accumulate
        for step in range(self.start, self.steps):
            for i in range(self.recipe.accumulate):
                first = step * self.recipe.batch_size + i * part
                places = range(first + self.ranks.rank, first + part, self.ranks.world)
                yield [SampleKey(self.epoch, place, int(order[place])) for place in places]


class TrainDataset(Dataset[tuple[Tensor, int, list[tuple[int, str]]]]):
    """Random views of training images; another image stands in for one that cannot be read."""

    def __init__(
        self, images: ImageSet, how: Preprocessing, recipe: Recipe, seed: int, *, fast: bool
    ) -> None:
        self.images, self.how, self.recipe, self.seed, self.fast = images, how, recipe, seed, fast

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, int, list[tuple[int, str]]]:
        """A view, its class, and what could not be read on the way to it.

        Raises:
            DataError: Nothing can be read any more.
        """
        bad: list[tuple[int, str]] = []
        index = key.image
        for attempt in range(_TRIES):
            rng = np.random.default_rng((_VIEW, self.seed, key.epoch, key.place, attempt))
            if attempt:
                index = int(rng.integers(len(self.images)))
            try:
                view = random_view(
                    self.images.read(index),
                    self.images.title(index),
                    self.how,
                    rng,
                    min_area=self.recipe.min_area,
                    flip=self.recipe.flip,
                    padding=self.recipe.padding,
                    fast=self.fast,
                )
            except DataError as error:
                bad.append((index, str(error)))
            else:
                return view, int(self.images.targets[index]), bad
        raise DataError(f"{_TRIES} images in a row cannot be read; the last one: {bad[-1][1]}")


def collate(parts: list[tuple[Tensor, int, list[tuple[int, str]]]]) -> Batch:
    """One batch of several views."""
    views, targets, bad = zip(*parts, strict=True)
    return Batch(torch.stack(views), torch.tensor(targets), [x for each in bad for x in each])


def training_loader(
    views: TrainDataset, order: TrainSampler, *, workers: int, device: torch.device
) -> DataLoader[Any]:
    """Batches in that order; workers live as long as the loader."""
    return DataLoader(
        views,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_undisturbed,
    )


def _undisturbed(_: int) -> None:
    """Leave Ctrl-C to the main process, which ends the workers when it is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def unwrap_worker_errors(loader: DataLoader[Any]) -> Iterator[Batch]:
    """A loader's batches; what a view fails with in a worker process is raised here as it was."""
    try:
        yield from loader
    except DataError as error:  # torch wraps the message of a worker's error in its traceback
        error.__traceback__ = None  # torch's frames hold it and the workers, until they time out
        raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None
