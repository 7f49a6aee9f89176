"""One optimizer step: augmentation, forward pass, loss, backward pass, update."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from resnext.data.dataset import ImageSet, class_weights
from resnext.data.workers import loaded_batches
from resnext.inference.fused import quick_classifier
from resnext.network import ResNeXt
from resnext.system.progress import Reporter
from resnext.training.augmentation import Augment
from resnext.training.checkpoint import Checkpoint, optimizer_state, restore_optimizer
from resnext.training.dataloader import BATCH, Batch, TrainSampler, view_number
from resnext.training.distributed import ProcessGroup
from resnext.training.dynamics import StepOutputs
from resnext.training.frozen import FrozenMaps, LearningPart, frozen_maps
from resnext.training.optim import EMA, freeze_norms, frozen_parts, loss, optimizer
from resnext.training.run_state import RunSettings, TrainState
from resnext.training.teacher import distillation_loss


def keeps_maps(settings: RunSettings, group: ProcessGroup) -> bool:
    """Whether maps of frozen stages are kept.

    They are not with several processes, of which each sees other images in every epoch, and not
    with a teacher, which needs the images.
    """
    return settings.recipe.cached_views > 0 and group.world == 1 and settings.teacher is None


class TrainStep:
    """Computes gradients and updates the weights and their average.

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
        self.average = EMA(network, self.recipe.ema) if self.recipe.ema else None

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

    def compute_maps_again(
        self,
        state: TrainState,
        sampler: TrainSampler,
        loader: DataLoader[Any],
        check_stop: Callable[[], None],
        progress: Reporter,
    ) -> None:
        """After a resume: compute the maps that were kept, each in the batch of its epoch.

        Args:
            state: How far the run is.
            sampler: Order of the images.
            loader: Their batches.
            check_stop: Called before each batch; raises to interrupt.
            progress: Shows the progress.
        """
        if self.maps is None or (state.epoch, state.step) == (1, 0):
            return
        epochs = range(1, min(state.epoch, self.maps.views) + 1)
        progress.start("Computing the frozen stages again", len(epochs))
        for epoch in epochs:
            sampler.epoch, sampler.start, sampler.side = epoch, 0, self.settings.side()
            sampler.stop = state.step if epoch == state.epoch else sampler.steps
            self.model(epoch)
            order, batches = sampler.whole(epoch), loaded_batches(loader)
            for step, part in product(range(sampler.stop), range(self.recipe.accumulate)):
                check_stop()
                images = order[[*sampler.places(step, part)]]
                self.known_or_new(self.maps, next(batches), images)
            progress.advance(1)

    def _autocast(self) -> torch.autocast:
        enabled = self.dtype is not torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def update(self, number: int) -> None:
        """Clip the gradients, update weights and average, clear the gradients.

        Args:
            number: Number of the step in the run.
        """
        if self.recipe.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.network, number)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values of weights, average, optimizer and scaler, for a checkpoint."""
        moments, values = optimizer_state(self.optimizer)
        tensors = {f"network.{k}": x for k, x in self.network.state_dict().items()}
        tensors |= {f"optimizer.{k}": x for k, x in moments.items()}
        if self.average:
            tensors |= {f"average.{k}": x for k, x in self.average.network.state_dict().items()}
        return tensors, {"optimizer": values, "scaler": self.scaler.state_dict()}

    def restore(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.network.load_state_dict(saved.part("network"))
        if self.average:
            self.average.network.load_state_dict(saved.part("average"))
        restore_optimizer(self.optimizer, saved.part("optimizer"), saved.about["optimizer"])
        self.scaler.load_state_dict(saved.about["scaler"])
