"""Distillation: a trained teacher gives the targets, instead of the labels (arXiv:2106.05237)."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resnext.card import Card, Preprocessing, card_of
from resnext.config import ResNeXtConfig
from resnext.data.dataset import ImageSet
from resnext.data.labels import as_spelled
from resnext.errors import ConfigError, InputError
from resnext.inference.fold import fold
from resnext.network import ResNeXt
from resnext.summary import summarize
from resnext.training.recipe import Recipe
from resnext.weights.load import load_classifier

_LUMA = (0.299, 0.587, 0.114)  # red, green and blue in grey, as in Pillow (ITU-R 601-2)


@dataclass(frozen=True)
class Teacher:
    """A trained classifier, ready to answer.

    Args:
        network: The classifier, folded, in single precision, its logits in the order of the data's
            classes.
        preprocessing: How images become its input.
        name: Its file or name.
        digest: Hash of everything that its answers depend on.
    """

    network: ResNeXt
    preprocessing: Preprocessing
    name: str
    digest: str

    @torch.no_grad()
    def logits(
        self,
        x: Float[Tensor, "n c h w"],
        preprocessing: Preprocessing,
        classify: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "n k"]:
        """Answers to the student's images, at the size at which the student sees them.

        Args:
            x: Images, normalized for the student.
            preprocessing: The student's preprocessing.
            classify: What computes the network.
        """
        return classify(converted(x, preprocessing, self.preprocessing)).float()

    def default_preprocessing(self, colour: str) -> Preprocessing:
        """Preprocessing of a student: the teacher's, with the usual statistics for other channels.

        Args:
            colour: "L" if the data is grey by nature, else "RGB".
        """
        own, usual = self.preprocessing, Preprocessing()
        if own.colour != "L" or colour == "L":
            return own
        return replace(own, mean=usual.mean, std=usual.std, colour="RGB")

    def describe(self) -> dict[str, Any]:
        """Name, hash and cost, for the student's card."""
        cost = summarize(self.network.config, self.preprocessing.size)
        return {
            "name": self.name,
            "digest": self.digest,
            "parameters": cost.parameters,
            "macs": cost.macs,
        }


def open_teacher(model: str | Path | ResNeXt, data: ImageSet, *, progress: bool) -> Teacher:
    """Load a teacher, and bring its classes into the order of the data.

    Args:
        model: A network with a card, or a file, name or address as for `resnext.load`.
        data: The training images.
        progress: Whether to show downloads on standard error.

    Raises:
        CheckpointError: The file cannot be loaded, or has no classifier.
        InputError: The teacher has no classifier or labels, or other classes than the data.
    """
    if isinstance(model, str | Path):
        network, name = load_classifier(model, progress=progress), Path(model).name
    elif isinstance(model, ResNeXt):
        network, name = model, "ResNeXt"
    else:
        raise InputError(
            f"A teacher must be a ResNeXt with a classifier, a file or a name, not "
            f"{type(model).__name__}."
        )
    try:
        card = card_of(network)
    except InputError as error:
        raise InputError(f"{name} cannot be a teacher. {error}") from error
    order = torch.tensor(_class_order(name, card.labels, data), device=network.fc.weight.device)
    folded = fold(copy.deepcopy(network).float())
    folded.fc.weight = nn.Parameter(folded.fc.weight[order], requires_grad=False)
    folded.fc.bias = nn.Parameter(folded.fc.bias[order], requires_grad=False)
    return Teacher(folded, card.preprocessing, name, _digest(network, card))


def _class_order(name: str, labels: Sequence[str], data: ImageSet) -> list[int]:
    """Position of each of the data's classes among the teacher's."""
    wanted = as_spelled(data.labels, labels)
    unknown = [label for label in wanted if label not in labels]
    more = [label for label in labels if label not in wanted]
    if unknown or more:
        difference = (
            f"it does not know {unknown[0]!r}"
            if unknown
            else f"it also knows {more[0]!r}, which {data.name} lacks"
        )
        raise InputError(
            f"{name} cannot teach the classes of {data.name}: {difference}. Give a teacher that "
            f"was trained on the same classes."
        )
    return [labels.index(label) for label in wanted]


def _digest(network: ResNeXt, card: Card) -> str:
    """The first 16 hexadecimal digits of a hash of architecture, weights and card."""
    digest = hashlib.sha256(repr((network.config, card.preprocessing, card.labels)).encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def check_distillation(recipe: Recipe, teacher: Teacher, size: int) -> None:
    """Check that recipe and image size suit a teacher.

    Raises:
        ConfigError: The recipe depends on labels.
        InputError: The images are too small for the teacher.
    """
    for field, usual in (("loss", "cross_entropy"), ("balance", "none"), ("probe", False)):
        value = getattr(recipe, field)
        if value != usual:
            raise ConfigError(
                f"{field} must be {usual!r} with a teacher, which replaces the labels, not "
                f"{value!r}. Set {field}={usual}, or choose the recipe 'distill'."
            )
    config, seen = teacher.network.config, recipe.train_size or size
    smallest = max(config.stride, config.min_size)
    if seen < smallest:
        raise InputError(
            f"{teacher.name} needs images of at least {smallest} pixels, and the student is to see "
            f"{seen}. Raise --size, or give a teacher for small images."
        )


def distillation_loss(
    student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], temperature: float
) -> Float[Tensor, ""]:
    """Kullback-Leibler divergence of the student's classes from the teacher's, mean of a batch.

    It is multiplied by the square of the temperature, so that gradients keep their scale
    (arXiv:1503.02531, section 2).

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher.
        temperature: Divisor of both before softmax.
    """
    answers, targets = ((x / temperature).log_softmax(1) for x in (student, teacher))
    return temperature**2 * nn.functional.kl_div(
        answers, targets, reduction="batchmean", log_target=True
    )


def converted(
    x: Float[Tensor, "n c h w"], source: Preprocessing, target: Preprocessing
) -> Float[Tensor, "n c2 h w"]:
    """Images normalized for one network, as another network expects them, at the same size.

    Args:
        x: Images, normalized for the one.
        source: Preprocessing of the one; only mean, standard deviation and colour matter.
        target: Preprocessing of the other.
    """
    if (source.mean, source.std, source.colour) == (target.mean, target.std, target.colour):
        return x

    def channels(values: Sequence[float]) -> Tensor:
        return x.new_tensor(values).view(-1, 1, 1)

    x = x * channels(source.std) + channels(source.mean)
    if source.colour == "BGR":
        x = x.flip(1)
    if source.colour != "L" and target.colour == "L":
        x = (x * channels(_LUMA)).sum(1, keepdim=True)
    elif source.colour == "L" and target.colour != "L":
        x = x.expand(-1, 3, -1, -1)
    if target.colour == "BGR":
        x = x.flip(1)
    x = (x - channels(target.mean)) / channels(target.std)
    return x.contiguous(memory_format=torch.channels_last)


def comparison(card: Card, config: ResNeXtConfig) -> str:
    """A student beside its teacher, as one line.

    Args:
        card: The student's card, at the end of its training.
        config: The student's architecture.
    """
    teacher, cost = card.provenance["teacher"], summarize(config, card.preprocessing.size)
    accuracy = teacher["val_accuracy"]
    share = f"{card.metrics['val_accuracy'] / accuracy:.1%} of" if accuracy else "not comparable to"
    return (
        f"{share} the teacher's validation accuracy ({teacher['name']}, {accuracy:.2%}) with "
        f"{cost.macs / teacher['macs']:.1%} of its operations ({cost.macs / 1e9:.3g} of "
        f"{teacher['macs'] / 1e9:.3g} GMACs) and "
        f"{cost.parameters / teacher['parameters']:.1%} of its parameters"
    )
