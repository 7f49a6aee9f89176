"""Images of a set as batches that a network takes, without those that cannot be read."""

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
from resnext.errors import DataError

Classifier = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n k"]]


class EvalDataset(Dataset[tuple[Tensor, int, int] | None]):
    """Images as the network takes them, with target and index; None for what cannot be read.

    With more than one view, an image is `(views, c, s, s)`.
    """

    def __init__(
        self, images: ImageSet, how: Preprocessing, indices: Sequence[int], views: int = 1
    ) -> None:
        self.images, self.how, self.indices, self.views = images, how, indices, views

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int] | None:
        """One prepared image."""
        index = self.indices[position]
        try:
            image = self.images.open(index, self.how.colour)
            x = prepare(image, self.how)
        except DataError:
            return None
        if self.views > 1:
            x = tta_views(x, image, self.how, self.views)
        return x, int(self.images.targets[index]), index


class EvalLoader:
    """Prepared batches in order, to go over once, without the images that cannot be read."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.done: list[int] = []
        """Positions, in the set, of the images handed out so far."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and targets."""
        for x, targets, indices in self.loader:
            self.done += indices
            if indices:
                yield x, targets


def eval_loader(
    images: ImageSet,
    how: Preprocessing,
    *,
    batch_size: int,
    workers: int,
    views: int = 1,
    indices: Sequence[int] | None = None,
) -> EvalLoader:
    """Prepared batches in order.

    Args:
        images: The set.
        how: Preprocessing.
        batch_size: Images at a time; fewer where some cannot be read.
        workers: Processes that decode images.
        views: As for `evaluate`; with more than one, a batch is `(n, views, c, s, s)`.
        indices: Images to take, by position, such as `range(rank, len(images), world)` for one
            of several processes; by default all.
    """
    chosen = range(len(images)) if indices is None else indices
    dataset = EvalDataset(images, how, chosen, views)
    loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=_readable)
    return EvalLoader(loader)


def _readable(items: list[tuple[Tensor, int, int] | None]) -> tuple[Tensor, Tensor, list[int]]:
    some = [item for item in items if item is not None]
    x = torch.stack([item[0] for item in some]) if some else torch.zeros(0)
    return x, torch.tensor([item[1] for item in some]), [item[2] for item in some]


def tta_views(
    x: Float[Tensor, "c s s"], image: Image.Image, how: Preprocessing, views: int
) -> Float[Tensor, "v c s s"]:
    """The views of an image that test-time augmentation averages over.

    Args:
        x: The image as the network takes it.
        image: The image.
        how: Preprocessing.
        views: 2 or 10, as for `evaluate`.
    """
    if views == 2:
        return torch.stack([x, x.flip(2)])
    whole = resize(image, how)
    right, low, s = whole.width - how.size, whole.height - how.size, how.size
    crops = []
    for side in (whole, ImageOps.mirror(whole)):
        corners = [(left, top) for top in (0, low) for left in (0, right)]
        crops += [normalize(side.crop((a, b, a + s, b + s)), how) for a, b in corners]
        crops.append(prepare(side, how))
    return torch.stack(crops)


def average_views(classify: Classifier, temperature: float) -> Classifier:
    """A classifier of `(n, views, c, s, s)`: its softmax is the mean over views of the other's.

    That holds at the same temperature.
    """

    def classify_views(x: Float[Tensor, "n v c s s"]) -> Float[Tensor, "n k"]:
        n, views = x.shape[:2]
        log_p = (classify(x.flatten(0, 1)).float() / temperature).log_softmax(1)
        return (log_p.view(n, views, -1).logsumexp(1) - math.log(views)) * temperature

    return classify_views
