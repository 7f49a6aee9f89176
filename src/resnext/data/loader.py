"""Batches of images for evaluation; unreadable images are skipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnext.card import Preprocessing
from resnext.data.dataset import ImageSet
from resnext.data.decoding import resize
from resnext.data.transforms import normalize, prepare
from resnext.data.workers import fitting, loaded_batches, stacked, worker_loader
from resnext.errors import DataError

Classifier = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n k"]]


class EvalDataset(Dataset[tuple[Tensor, int, int] | None]):
    """The network's inputs `(c, s, s)` with target and index; None for an unreadable image.

    Args:
        images: The set.
        preprocessing: How images become the network's input.
        indices: Images to take, by position in the set.
        views: Views of each image; with more than one, an input is `(views, c, s, s)`.
    """

    def __init__(
        self, images: ImageSet, preprocessing: Preprocessing, indices: Sequence[int], views: int = 1
    ) -> None:
        self.images, self.preprocessing, self.indices, self.views = (
            images,
            preprocessing,
            indices,
            views,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int] | None:
        """Input, target and index of one image."""
        index = self.indices[position]
        try:
            image = self.images.open(
                index, self.preprocessing.colour, self.preprocessing.value_range
            )
            x = prepare(image, self.preprocessing)
        except DataError:
            return None
        if self.views > 1:
            x = tta_views(x, image, self.preprocessing, self.views)
        return x, int(self.images.targets[index]), index


class EvalLoader:
    """Batches in order, without unreadable images; can be iterated once.

    Args:
        loader: The batches, each with the indices of its images.
        check_stop: Called before each batch, with its number; raises to interrupt.
    """

    def __init__(
        self, loader: DataLoader[Any], check_stop: Callable[[int], object] | None = None
    ) -> None:
        self.loader, self.check_stop = loader, check_stop
        self.done: list[int] = []
        """Positions, in the set, of the images returned so far."""

    @property
    def workers(self) -> int:
        """Number of processes that decode images."""
        return self.loader.num_workers

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of inputs `(n, c, s, s)` and targets `(n,)`."""
        for number, (x, targets, indices) in enumerate(loaded_batches(self.loader)):
            if self.check_stop:
                self.check_stop(number)
            self.done += indices
            if indices:
                yield x, targets


def eval_loader(
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int,
    views: int = 1,
    indices: Sequence[int] | None = None,
    check_stop: Callable[[int], object] | None = None,
) -> EvalLoader:
    """Batches of the network's inputs and targets, in order.

    Args:
        images: The set.
        preprocessing: How images become the network's input.
        batch_size: Images per batch; fewer if some cannot be read.
        workers: Number of processes that decode images; fewer if shared memory is too small.
        views: Views of each image, 1, 2 or 10; with more than one, a batch is
            `(n, views, c, s, s)`.
        indices: Images to take, by position, for example `range(rank, len(images), world)` for
            one of several processes; None for all.
        check_stop: Called before each batch, with its number; raises to interrupt.
    """
    chosen = range(len(images)) if indices is None else indices
    dataset = EvalDataset(images, preprocessing, chosen, views)
    channels = 1 if preprocessing.colour == "L" else 3
    floats = min(batch_size, len(chosen)) * views * channels * preprocessing.size**2
    loading = fitting(workers, 2, max(4 * floats, 1))
    loader = worker_loader(dataset, loading, batch_size=batch_size, collate_fn=_readable)
    return EvalLoader(loader, check_stop)


def _readable(items: list[tuple[Tensor, int, int] | None]) -> tuple[Tensor, Tensor, list[int]]:
    """One batch of the items that could be read: inputs, targets and indices."""
    readable = [item for item in items if item is not None]
    x = stacked([item[0] for item in readable]) if readable else torch.zeros(0)
    return x, torch.tensor([item[1] for item in readable]), [item[2] for item in readable]


def tta_views(
    x: Float[Tensor, "c s s"], image: Image.Image, preprocessing: Preprocessing, views: int
) -> Float[Tensor, "v c s s"]:
    """The views of an image that test-time augmentation averages over.

    Args:
        x: The image as the network's input.
        image: The decoded image.
        preprocessing: How it becomes the network's input.
        views: 2 for the image and its mirror image; 10 for centre and corners of both.
    """
    if views == 2:
        return torch.stack([x, x.flip(2)])
    resized, size = resize(image, preprocessing), preprocessing.size
    right, bottom = resized.width - size, resized.height - size
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)]
    crops = []
    for version in (resized, ImageOps.mirror(resized)):
        boxes = [(left, top, left + size, top + size) for left, top in corners]
        crops += [normalize(version.crop(box), preprocessing) for box in boxes]
        crops.append(prepare(version, preprocessing))
    return torch.stack(crops)


def average_views(classify: Classifier, temperature: float) -> Classifier:
    """A classifier of `(n, views, c, s, s)` whose softmax is the mean of `classify`'s over views.

    Args:
        classify: Images `(n, c, s, s)` to logits.
        temperature: Divisor of the logits at which the softmaxes are taken.
    """

    def classify_views(x: Float[Tensor, "n v c s s"]) -> Float[Tensor, "n k"]:
        n, views = x.shape[:2]
        log_p = (classify(x.flatten(0, 1)).float() / temperature).log_softmax(1)
        return (log_p.view(n, views, -1).logsumexp(1) - math.log(views)) * temperature

    return classify_views
