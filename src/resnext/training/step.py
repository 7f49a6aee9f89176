"""One optimizer step: augmentation, forward pass, loss, backward pass, update."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnext.data.dataset import ImageSet, class_weights
from resnext.inference.fused import quick_classifier
from resnext.network import ResNeXt
from resnext.training.augmentation import Augment
from resnext.training.dataloader import BATCH, Batch, view_number
from resnext.training.distributed import ProcessGroup
from resnext.training.dynamics import StepOutputs
from resnext.training.frozen import FrozenMaps, LearningPart, frozen_maps
from resnext.training.optim import freeze_norms, frozen_parts, loss, optimizer
from resnext.training.run_state import RunSettings
from resnext.training.teacher import distillation_loss


def keeps_maps(settings: RunSettings, group: ProcessGroup) -> bool:
    """Whether maps of frozen stages are kept.

    They are not with several processes, of which each sees other images in every epoch, and not
    with a teacher, which needs the images.
    """
    return settings.recipe.cached_views > 0 and group.world == 1 and settings.teacher is None


class TrainStep:
    """Computes gradients and updates the weights.

    Args:
        network: The network, on the device of the run.
        images: The training images, for classes and their weights.
        settings: Recipe, seed, preprocessing, execution and teacher.
        group: The processes that train together.
    """

    def __init__(
        self, network: ResNeXt, images: ImageSet, settings: RunSettings, group: ProcessGroup
    ) -> None:
        self.network, self.settings, self.group = network, settings, group
        self.recipe, self.device = settings.recipe, settings.device
        preprocessing, classes = settings.preprocessing, len(images.labels)
        self.augment = Augment(
            self.recipe.augmentation(),
            num_classes=classes,
            mean=preprocessing.mean,
            std=preprocessing.std,
            device=self.device,
            colour=preprocessing.colour,
        )
        self.class_weights: Tensor | None = None
        if self.recipe.balance == "weights":
            weights = class_weights(np.asarray(images.targets), classes)
            self.class_weights = torch.tensor(weights, dtype=torch.float32, device=self.device)
        self.optimizer = optimizer(network, self.recipe)
        self.maps: FrozenMaps | None = None
        if keeps_maps(settings, group):
            self.maps = FrozenMaps(self.recipe.cached_views, len(images))
        self.epoch = 1
        self.dtype = getattr(torch, settings.execution.dtype)
        self.ask: Callable[[Tensor], Tensor] | None = None
        if teacher := settings.teacher:
            classify = quick_classifier(teacher.network, self.device, self.dtype)
            self.ask = lambda x: teacher.logits(x, preprocessing, classify)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)

    def model(self, epoch: int) -> nn.Module:
        """The network as this epoch trains it: frozen parts, all processes, compiled."""
        self.epoch = epoch
        network = self.network.train().requires_grad_(True)
        if epoch <= self.recipe.head_epochs:
            network.eval().requires_grad_(False)
            network.fc.train().requires_grad_(True)
        elif self.recipe.frozen_norms:
            freeze_norms(network)
        for part in frozen_parts(network, self.recipe.frozen_stages):
            part.eval().requires_grad_(False)
        model: nn.Module = network
        if self.maps:
            model = LearningPart(network, self.recipe.frozen_stages)
        if self.group.world > 1:
            model = DistributedDataParallel(network)
        if self.settings.execution.compiled:
            model = torch.compile(model)  # pyright: ignore[reportAssignmentType]
        return model

    def set_rate(self, rate: float) -> None:
        """Set the learning rate; each parameter group scales it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]

    def backward(
        self,
        model: nn.Module,
        batch: Batch,
        number: int,
        part: int,
        images: Int[np.ndarray, " n"],
    ) -> StepOutputs:
        """Add the gradients of one part of a batch.

        Args:
            model: As `model` returned it.
            batch: The part's images.
            number: Number of the step in the run.
            part: Number of the part in the batch; processes exchange gradients in the last one.
            images: The images of the batch, for the maps that are kept.

        Returns:
            The part's share of the mean loss, with logits and targets.
        """
        seeds = np.random.SeedSequence(
            (BATCH, self.settings.seed, number, part, self.group.rank)
        ).generate_state(2)
        torch.manual_seed(int(seeds[1]))  # for dropout and stochastic depth
        if self.maps:
            x, targets = self.known_or_new(self.maps, batch, images)
        else:
            x, targets = self.augment(batch.images, batch.targets, int(seeds[0]))
        exchange = nullcontext()
        if isinstance(model, DistributedDataParallel) and part < self.recipe.accumulate - 1:
            exchange = model.no_sync()
        with exchange:
            with self._autocast():
                logits = model(x).float()
            answers = self.ask(x) if self.ask else None
            if answers is None:
                value = loss(self.recipe, logits, targets, self.class_weights)
            else:
                value = distillation_loss(logits, answers, self.recipe.distill_temperature)
            value = value / self.recipe.accumulate
            self.scaler.scale(value).backward()
        return StepOutputs(value.detach(), logits.detach(), targets)

    def known_or_new(
        self, maps: FrozenMaps, batch: Batch, images: Int[np.ndarray, " n"]
    ) -> tuple[Tensor, Tensor]:
        """The maps of a batch, and the probability of each class; the first epochs keep them."""
        view, new = view_number(self.recipe, self.epoch), None
        if len(batch.images):
            x, _ = self.augment(batch.images, torch.zeros(len(batch.images), dtype=torch.int64), 0)
            with self._autocast():
                new = frozen_maps(self.network, self.recipe.frozen_stages, x)
        if self.epoch > self.recipe.cached_views:
            x, targets = maps.join(view, images, new, batch.targets)
            return x.to(self.device), self.augment.soft(targets)
        assert new is not None, "the first epochs read all images"
        bad = [index for index, _ in batch.bad]
        maps.store(view, images, new, batch.targets, bad)
        return new, self.augment.soft(batch.targets)

    def _autocast(self) -> torch.autocast:
        enabled = self.dtype is not torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def update(self) -> None:
        """Clip the gradients, update the weights, clear the gradients."""
        if self.recipe.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
