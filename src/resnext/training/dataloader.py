"""Batches of training images: their order, random views, and replacement of damaged ones.

Every random draw depends only on seed, epoch and position, so a run can resume anywhere without
replaying history, with any number of workers and processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from resnext.card import Preprocessing
from resnext.data.dataset import ImageSet, class_weights
from resnext.data.transforms import random_view
from resnext.data.workers import Loading, fitting, stacked, worker_loader
from resnext.errors import DataError
from resnext.training.distributed import ProcessGroup
from resnext.training.recipe import Recipe
from resnext.training.run_state import RunSettings

_ORDER, _VIEW, BATCH = 1, 2, 3  # purpose of a draw: part of its seed
_TRIES = 10  # images tried instead of one that cannot be read


class SampleKey(NamedTuple):
    """One view of one image. Epoch and place (position in the epoch) seed its random crop."""

    epoch: int
    place: int
    image: int
    side: int | None = None
    """Size of the view, pixels; None for that of the data set's preprocessing."""
    kept: bool = False
    """Whether the map of the view is kept, so that nothing is read."""


class Batch(NamedTuple):
    """A worker's batch: bytes `(n, s, s, c)`, classes `(n,)`, unreadable images and reasons.

    Images whose maps are kept are left out of the bytes, and have class 0.
    """

    images: Tensor
    targets: Tensor
    bad: list[tuple[int, str]]


class TrainSampler(Sampler[list[SampleKey]]):
    """Sample keys of the batches of one epoch, for one process.

    Args:
        images: The training images.
        recipe: Batch size, repeats and class balance.
        seed: Random seed for the order.
        group: Each process gets every `world`-th image of each batch.

    Attributes:
        epoch: The epoch, from 1.
        start: Its first step that is not done yet.
        stop: The step before which its batches end.
        side: Size of its views, pixels; None for that of the data set.
        kept: Which maps are kept, by view and image; None if none are.
    """

    def __init__(self, images: ImageSet, recipe: Recipe, seed: int, group: ProcessGroup) -> None:
        self.count, self.recipe, self.seed, self.group = len(images), recipe, seed, group
        self.epoch, self.start, self.stop = 1, 0, self.steps
        self.side: int | None = None
        self.kept: np.ndarray | None = None
        self.probabilities: np.ndarray | None = None
        if recipe.balance == "sampling":
            targets = np.asarray(images.targets)
            weights = class_weights(targets, len(images.labels))[targets]
            self.probabilities = weights / weights.sum()

    @property
    def steps(self) -> int:
        """Batches of an epoch; the incomplete last one is dropped."""
        return self.count // self.recipe.batch_size

    def __len__(self) -> int:
        return (self.stop - self.start) * self.recipe.accumulate

    def whole(self, epoch: int) -> np.ndarray:
        """Image indices of an epoch in order, for all processes."""
        rng = np.random.default_rng((_ORDER, self.seed, epoch))
        repeats, count = self.recipe.repeats, -(-self.count // self.recipe.repeats)
        if self.probabilities is not None:
            drawn = rng.choice(self.count, count, p=self.probabilities)
        else:
            drawn = rng.permutation(self.count)[:count]
        return np.repeat(drawn, repeats)[: self.count]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = self.whole(self.epoch)
        for step in range(self.start, self.stop):
            for part in range(self.recipe.accumulate):
                places = self.places(step, part)
                yield [self._key(place, int(order[place])) for place in places]

    def _key(self, place: int, image: int) -> SampleKey:
        """A new view, or one of a few that depend on the image only."""
        if not self.recipe.cached_views:
            return SampleKey(self.epoch, place, image, self.side)
        view = view_number(self.recipe, self.epoch)
        kept = self.kept is not None and self.epoch > len(self.kept) and self.kept[view, image]
        return SampleKey(view + 1, image, image, self.side, bool(kept))

    def places(self, step: int, part: int) -> range:
        """Positions in the epoch of this process's images in one part of a batch."""
        size = self.recipe.batch_size // self.recipe.accumulate
        first = step * self.recipe.batch_size + part * size
        return range(first + self.group.rank, first + size, self.group.world)


def view_number(recipe: Recipe, epoch: int) -> int:
    """Which of the cached views an epoch shows."""
    return (epoch - 1) % recipe.cached_views


class TrainDataset(Dataset[tuple[Tensor, int, list[tuple[int, str]]]]):
    """Random views of training images; an unreadable image is replaced by a random other one.

    Args:
        images: The training images.
        preprocessing: Size and interpolation of the views.
        recipe: Cropping, padding and flipping.
        seed: Random seed for the views.
        fast: Whether simplejpeg decodes JPEGs.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocessing: Preprocessing,
        recipe: Recipe,
        seed: int,
        *,
        fast: bool,
    ) -> None:
        self.images, self.preprocessing, self.recipe = images, preprocessing, recipe
        self.seed, self.fast = seed, fast

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, int, list[tuple[int, str]]]:
        """A view, its class, and the images that could not be read before it, with reasons.

        Raises:
            DataError: Ten images in a row cannot be read.
        """
        bad: list[tuple[int, str]] = []
        if key.kept:
            return torch.empty(0, dtype=torch.uint8), 0, bad
        index = key.image
        if key.side not in (None, self.preprocessing.size):
            self.preprocessing = replace(self.preprocessing, size=key.side)
        for attempt in range(_TRIES):
            rng = np.random.default_rng((_VIEW, self.seed, key.epoch, key.place, attempt))
            if attempt:
                index = int(rng.integers(len(self.images)))
            try:
                view = random_view(
                    self.images.read(index),
                    self.images.title(index),
                    self.preprocessing,
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


def collate(samples: list[tuple[Tensor, int, list[tuple[int, str]]]]) -> Batch:
    """Join samples into one batch."""
    views, targets, bad = zip(*samples, strict=True)
    read = [view for view in views if view.numel()]
    return Batch(
        stacked(read) if read else views[0],
        torch.tensor(targets),
        [x for each in bad for x in each],
    )


def run_loader(images: ImageSet, settings: RunSettings, sampler: TrainSampler) -> DataLoader[Any]:
    """Batches of a run's training images, in the sampler's order."""
    recipe, preprocessing = settings.recipe, settings.preprocessing
    views = TrainDataset(
        images,
        replace(preprocessing, size=settings.side()),
        recipe,
        settings.seed,
        fast=settings.execution.fast_jpeg,
    )
    loading = training_workers(settings, sampler.group)
    return training_loader(views, sampler, loading=loading, device=settings.device)


def training_workers(settings: RunSettings, group: ProcessGroup) -> Loading:
    """As many of the run's workers, and batches ahead, as shared memory allows."""
    recipe = settings.recipe
    images = recipe.batch_size // recipe.accumulate // group.world
    channels = 1 if settings.preprocessing.colour == "L" else 3
    batch_bytes = images * channels * settings.side() ** 2
    return fitting(settings.workers, 4, batch_bytes, held=2 * recipe.accumulate)


def training_loader(
    views: TrainDataset, sampler: TrainSampler, *, loading: Loading, device: torch.device
) -> DataLoader[Any]:
    """Batches in the sampler's order; worker processes live as long as the loader."""
    return worker_loader(
        views,
        loading,
        batch_sampler=sampler,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        persistent_workers=loading.workers > 0,
    )
