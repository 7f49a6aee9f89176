"""The training loop: from the first step to the last, across interruptions."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnext.card import Card, Preprocessing
from resnext.data.dataset import Splits, class_weights
from resnext.data.loader import eval_loader
from resnext.data.scan import too_many
from resnext.errors import CheckpointError, DataError, ResNeXtError
from resnext.evaluation.classification import (
    EvalOutputs,
    Evaluation,
    collect_outputs,
    merge_outputs,
    score,
)
from resnext.grouped_conv import merge_groups
from resnext.network import ResNeXt
from resnext.system.progress import Reporter
from resnext.training.augmentation import Augment
from resnext.training.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    latest_checkpoint,
    optimizer_state,
    restore_optimizer,
    snapshot,
    write_checkpoint,
)
from resnext.training.dataloader import (
    BATCH,
    Batch,
    TrainDataset,
    TrainSampler,
    training_loader,
    unwrap_worker_errors,
)
from resnext.training.distributed import ProcessGroup, synchronize_norms
from resnext.training.metrics_log import MetricsLog
from resnext.training.optim import EMA, freeze_norms, loss, lr_schedule, optimizer
from resnext.training.recipe import Recipe
from resnext.weights.save import save

_EXPLODED = 20  # steps whose mean loss is judged
_TOO_LARGE = 1000  # times the loss of guessing: no step may have it


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


class _Diverged(Exception):
    """The loss is no longer a number, or far above where it began."""


@dataclass(frozen=True)
class ExecutionConfig:
    """How the network is computed: what is chosen by measuring, once for a run.

    Args:
        dtype: "float32", "bfloat16" or "float16": what is multiplied in.
        merged: How many groups of a grouped convolution are computed as one, by its name.
        fast_jpeg: Whether simplejpeg decodes.
        compiled: Whether the network is compiled.
    """

    dtype: str
    merged: dict[str, int]
    fast_jpeg: bool
    compiled: bool


@dataclass(frozen=True)
class RunSettings:
    """What a run is, besides its network and images.

    Args:
        title: What to call the network.
        out: The model file.
        folder: Of the run: checkpoints, figures, report.
        recipe: How to train.
        how: How images become input.
        seed: Decides all chance.
        workers: Processes that decode images.
        device: Where the network runs.
        forms: How it is computed.
        provenance: What the model's card says of its origin.
        identity: What must be the same for a run to go on from a checkpoint.
        retries: How often to go on with half the rate when the loss diverges.
        every: Seconds from one checkpoint to the next.
        sync_norms: Whether batch norms see the images of all processes.
    """

    title: str
    out: Path
    folder: Path
    recipe: Recipe
    how: Preprocessing
    seed: int
    workers: int
    device: torch.device
    forms: ExecutionConfig
    provenance: dict[str, Any]
    identity: dict[str, Any]
    retries: int
    every: float
    sync_norms: bool


class Clock:
    """Seconds that each part of a run took. Parts do not overlap: an inner one stops the outer."""

    def __init__(self) -> None:
        parts = ("training", "waiting for images", "validating", "checkpoints")
        self.seconds: dict[str, float] = dict.fromkeys(parts, 0.0)
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add what happens inside to a part."""
        self._add()
        self._running.append(part)
        try:
            yield
        finally:
            self._add()
            self._running.pop()

    def _add(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


@dataclass
class Position:
    """Where a run is; all of it goes into every checkpoint.

    Args:
        epoch: Which one is running, from 1.
        step: Steps done in it.
        total: Sum of the losses of these steps.
        factor: On the rate, halved by every retry.
        retries: How often that happened.
        first: Mean loss of the first steps of the run, which others are compared with.
        best: Epoch, accuracy and negative log-likelihood of the model that is kept.
        history: What each epoch came to.
        seconds: What the finished epochs took, by part.
        bad: Images that could not be read while training: index and reason.
        resumes: Where the run was taken up again.
    """

    epoch: int = 1
    step: int = 0
    total: float = 0.0
    factor: float = 1.0
    retries: int = 0
    first: float | None = None
    best: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: Clock().seconds)
    bad: dict[str, str] = field(default_factory=dict)
    resumes: list[str] = field(default_factory=list)


class Trainer:
    """One training run, or one process of it."""

    def __init__(
        self,
        network: ResNeXt,
        splits: Splits,
        settings: RunSettings,
        ranks: ProcessGroup,
        report: Reporter,
        quarantine: Callable[[dict[int, str]], None],
    ) -> None:
        self.network, self.splits, self.settings = network, splits, settings
        self.ranks, self.report, self.quarantine = ranks, report, quarantine
        self.recipe, self.device = settings.recipe, settings.device
        self.at = Position()
        self.order = TrainSampler(splits.train, self.recipe, settings.seed, ranks)
        train_how = settings.how
        if self.recipe.train_size is not None:
            train_how = Preprocessing(**{**asdict(train_how), "size": self.recipe.train_size})
        views = TrainDataset(
            splits.train, train_how, self.recipe, settings.seed, fast=settings.forms.fast_jpeg
        )
        self.loader = training_loader(
            views, self.order, workers=settings.workers, device=self.device
        )
        self.augment = Augment(
            self.recipe.augmentation(),
            num_classes=len(splits.train.labels),
            mean=settings.how.mean,
            std=settings.how.std,
            device=self.device,
            colour=settings.how.colour,
        )
        self.class_weights: Tensor | None = None
        if self.recipe.balance == "weights":
            weights = class_weights(np.asarray(splits.train.targets), len(splits.train.labels))
            self.class_weights = torch.tensor(weights, dtype=torch.float32, device=self.device)
        merge_groups(network, settings.forms.merged)
        if settings.sync_norms and ranks.world > 1:
            synchronize_norms(network)
        self.average = EMA(network, self.recipe.ema) if self.recipe.ema else None
        self.optimizer = optimizer(network, self.recipe)
        self.dtype = getattr(torch, settings.forms.dtype)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.steps = self.recipe.epochs * self.order.steps
        self.chance = max(math.log(len(splits.train.labels)), 1.0)  # about the loss of guessing
        self.recent: deque[float] = deque(maxlen=_EXPLODED)
        self.pending: list[Tensor] = []
        self.stop: int | None = None  # the signal that asked for it
        self.insisted = False  # a second one came, maybe in the middle of a step
        self.clock = Clock()
        self.saved_at = time.monotonic()
        self.writer = CheckpointWriter(report.line) if ranks.first else None
        self.journal = MetricsLog(settings.folder, report.line) if ranks.first else None

    # -- the whole run ------------------------------------------------------------------------

    def all_epochs(self) -> None:
        """Train to the end, and keep the best epoch's model.

        Raises:
            KeyboardInterrupt: The run was interrupted; a checkpoint is written.
            ResNeXtError: The loss diverged, or images vanished; the last checkpoint is kept.
        """
        with self._listening():
            try:
                self._check_stop()
                while self.at.epoch <= self.recipe.epochs:
                    try:
                        self._epoch()
                    except _Diverged as error:
                        self._retry(str(error))
            except KeyboardInterrupt:
                self._interrupted()
                raise
            except DataError as error:
                self._keep(wait=True)
                raise DataError(
                    f"{error} The run is kept up to this step; repair the data and go on with "
                    f"--resume."
                ) from error
            if self.writer:
                try:
                    self.writer.flush()
                except CheckpointError as error:
                    raise CheckpointError(
                        f"{error} When it can, the same command with --resume goes on."
                    ) from error

    def close(self) -> None:
        """End what works in the background."""
        if iterator := self.loader._iterator:  # else workers wait for as long as an error holds it
            iterator._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]
        if self.writer:
            self.writer.close()
        if self.journal:
            self.journal.close()

    def _epoch(self) -> None:
        before, done = dict(self.clock.seconds), self.at.step
        self._learn()
        with self.clock.measure("validating"):
            result = self._validate(self.network)
            averaged = self._validate(self.average.network) if self.average else None
        took = {part: seconds - before[part] for part, seconds in self.clock.seconds.items()}
        images = (self.order.steps - done) * self.recipe.batch_size
        learning = took["training"] + took["waiting for images"]
        totals = self.ranks.gather(self.at.total)
        row = {
            "epoch": self.at.epoch,
            "loss": round(sum(totals) / len(totals) / max(self.order.steps, 1), 6),
            "val_accuracy": result.accuracy,
            "val_nll": round(result.nll, 6),
            "ema_accuracy": averaged.accuracy if averaged else None,
            "rate": self._rate(self.at.epoch * self.order.steps - 1),
            "images_per_second": round(images / max(learning, 1e-9), 1),
            "seconds": round(sum(took.values()), 3),
            "waiting_data": round(took["waiting for images"], 3),
            "waiting_checkpoint": round(took["checkpoints"], 3),
        }
        self._tell(row, took, best=self._keep_best(result, averaged))
        self.at.history.append(row)
        self.at.epoch, self.at.step, self.at.total = self.at.epoch + 1, 0, 0.0
        self.at.seconds = {k: self.at.seconds[k] + took[k] for k in took}
        self._keep()
        if self.journal:
            self.journal.write(self.at.history)

    def _learn(self) -> None:
        """The steps of one epoch that are still to do."""
        at, recipe = self.at, self.recipe
        self.order.epoch, self.order.start = at.epoch, at.step
        head_only = at.epoch <= recipe.head_epochs
        model = self._training_form(head_only)
        self.report.start(f"Epoch {at.epoch}/{recipe.epochs}", self.order.steps * recipe.batch_size)
        self.report.advance(at.step * recipe.batch_size)
        with self.clock.measure("training"):
            feed = iter(unwrap_worker_errors(self.loader)) if len(self.order) else iter(())
            for step in range(at.step, self.order.steps):
                number = (at.epoch - 1) * self.order.steps + step
                for group in self.optimizer.param_groups:
                    group["lr"] = self._rate(number) * group["scale"]
                value = torch.zeros((), device=self.device)
                for part in range(recipe.accumulate):
                    with self.clock.measure("waiting for images"):
                        batch = next(feed)
                    self._note_bad(batch)
                    last = part == recipe.accumulate - 1
                    value += self._backward(model, batch, number, part, last=last)
                self._update()
                if self.average:
                    self.average.update(self.network, number)
                at.step = step + 1
                self.pending.append(value)
                self.report.advance(recipe.batch_size)
                self._between_steps(number)
        self._settle()

    def _backward(
        self, model: nn.Module, batch: Batch, number: int, part: int, *, last: bool
    ) -> Tensor:
        """Gradients of one part of a batch; its share of the loss."""
        chance = np.random.SeedSequence(
            (BATCH, self.settings.seed, number, part, self.ranks.rank)
        ).generate_state(2)
        torch.manual_seed(int(chance[1]))  # for dropout and stochastic depth
        x, targets = self.augment(batch.images, batch.targets, int(chance[0]))
        lonely = nullcontext()
        if isinstance(model, DistributedDataParallel) and not last:
            lonely = model.no_sync()
        with lonely:
            with torch.autocast(
                self.device.type, self.dtype, enabled=self.dtype is not torch.float32
            ):
                logits = model(x)
            value = loss(self.recipe, logits.float(), targets, self.class_weights)
            value = value / self.recipe.accumulate
            self.scaler.scale(value).backward()
        return value.detach()

    def _update(self) -> None:
        """One step of the optimizer."""
        if self.recipe.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def _training_form(self, head_only: bool) -> nn.Module:
        """The network as this epoch trains it."""
        network = self.network.train().requires_grad_(True)
        if head_only:
            network.eval().requires_grad_(False)
            network.fc.train().requires_grad_(True)
        elif self.recipe.frozen_norms:
            freeze_norms(network)
        model: nn.Module = network
        if self.ranks.world > 1:
            model = DistributedDataParallel(network)
        if self.settings.forms.compiled:
            model = torch.compile(model)  # pyright: ignore[reportAssignmentType]
        return model

    def _rate(self, number: int) -> float:
        return (
            self.recipe.learning_rate
            * lr_schedule(self.recipe, number, self.steps)
            * self.at.factor
        )

    # -- what happens between steps -----------------------------------------------------------

    def _between_steps(self, number: int) -> None:
        """Look at the loss, the clock and the signals."""
        problem = ""
        if self.device.type == "cpu" or len(self.pending) >= 16:  # asking a GPU makes it wait
            problem = self._judge()
        due = time.monotonic() - self.saved_at > self.settings.every and self.ranks.first
        stop, diverged, due = self.ranks.any(self.stop is not None, bool(problem), due)
        if diverged:
            raise _Diverged(problem or "the loss of another process diverged")
        if stop:
            raise Terminated if self.stop == signal.SIGTERM else KeyboardInterrupt
        if due:
            self._settle()
            self._keep()

    def _settle(self) -> None:
        """Take the losses that are still on the device into account.

        Raises:
            _Diverged: One is no number.
        """
        problem = self._judge()
        if self.ranks.any(bool(problem))[0]:
            raise _Diverged(problem or "the loss of another process diverged")

    def _judge(self) -> str:
        """What is wrong with the losses of the last steps; empty if nothing is."""
        values = [float(x) for x in self.pending]
        self.pending.clear()
        for value in values:
            self.at.total += value
            self.recent.append(value)
            if not value < _TOO_LARGE * self.chance:  # also if it is no number
                return self._diagnosis(value)
        if len(self.recent) == _EXPLODED:
            mean = sum(self.recent) / _EXPLODED
            if self.at.first is None:
                self.at.first = mean
            if mean > 10 * max(self.at.first, self.chance) + 10:
                return self._diagnosis(mean)
        return ""

    def _diagnosis(self, value: float) -> str:
        """When, at which rate, after which losses, and where the first bad weight is."""
        before = ", ".join(f"{x:.3g}" for x in list(self.recent)[-4:-1])
        number = (self.at.epoch - 1) * self.order.steps + self.at.step - 1
        text = (
            f"The loss became {value:.4g} in epoch {self.at.epoch}, step {self.at.step}, "
            f"at rate {self._rate(number):.3g}"
        )
        text += f", after {before}" if before else ""
        bad = (n for n, p in self.network.named_parameters() if not p.isfinite().all())
        if name := next(bad, ""):
            text += f"; {name} holds values that are no numbers"
        return f"{text}."

    def _retry(self, problem: str) -> None:
        """Go back to the last checkpoint with half the rate, or give up.

        Raises:
            ResNeXtError: No retry is left.
        """
        problem, factor, used = self.ranks.share((problem, self.at.factor, self.at.retries))
        if self.writer:
            with self.clock.measure("checkpoints"), suppress(CheckpointError):
                self.writer.flush()  # a checkpoint that holds no numbers is not written
        if used >= self.settings.retries:
            where = ""
            if self.at.best:
                where = f" {self.settings.out} holds epoch {self.at.best['epoch']}."
            raise ResNeXtError(
                f"{problem} Lower the learning rate, now {self.recipe.learning_rate:g}, clip the "
                f"gradient (clip), or let --retries halve the rate.{where}"
            )
        self.restore(self.ranks.share(self._newest()))
        self.at.retries, self.at.factor = used + 1, factor / 2
        self.at.resumes.append(
            f"{problem} Went on from epoch {self.at.epoch}, step {self.at.step}, with "
            f"{self.at.factor:g} of the rate."
        )
        self._line(self.at.resumes[-1])
        self._keep()

    def _newest(self) -> Checkpoint | None:
        return latest_checkpoint(self.settings.folder, self._line) if self.ranks.first else None

    def _note_bad(self, batch: Batch) -> None:
        """Write down what could not be read; stop where too much of a class is gone."""
        if not batch.bad:
            return
        new = {i: why for i, why in batch.bad if str(i) not in self.at.bad}
        self.at.bad.update({str(i): why for i, why in new.items()})
        for why in new.values():
            self._line(f"Left out: {why}")
        if self.ranks.first:
            self.quarantine(new)
        train = self.splits.train
        gone = np.bincount(
            [int(train.targets[int(i)]) for i in self.at.bad], minlength=len(train.labels)
        )
        worst = too_many(gone, train.counts())
        if worst is not None:
            raise DataError(
                f"{gone[worst]} of {train.counts()[worst]} images of class "
                f"{train.labels[worst]!r} cannot be read any more, which is more than 5 %."
            )

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask to stop after the running step; a second one insists."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _: object) -> None:
            if self.stop is not None:
                self.insisted = True
                raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
            self.stop = number

        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number, handler in before.items():
                if handler is not signal.SIG_IGN:
                    signal.signal(number, ask)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _check_stop(self) -> None:
        """Stop where no step is being done.

        Raises:
            KeyboardInterrupt: Somebody asked for it.
        """
        if self.ranks.any(self.stop is not None)[0]:
            raise Terminated if self.stop == signal.SIGTERM else KeyboardInterrupt

    def _interrupted(self) -> None:
        if self.insisted:
            self._line("Interrupted at once. The same command with --resume goes on from before.")
            return
        self._judge()
        self._keep(wait=True, unmeasured=self.at.best is None)
        if self.at.best is None:
            kept = "holds the weights as they were, not measured"
        else:
            best = self.at.best
            kept = f"holds epoch {best['epoch']}, val accuracy {best['accuracy']:.2%}"
        self._line(
            f"Interrupted in epoch {self.at.epoch}. {self.settings.out} {kept}. The same command "
            f"with --resume goes on."
        )

    # -- measuring and keeping ----------------------------------------------------------------

    def _validate(self, network: ResNeXt) -> Evaluation:
        title = f"Epoch {self.at.epoch}/{self.recipe.epochs}, validating"
        network.eval()
        result = score(self.answers(network, title), self.splits.val)
        lost = len(self.splits.val) - result.count
        if lost > 0.05 * len(self.splits.val):
            raise DataError(
                f"{lost} of {len(self.splits.val)} validation images cannot be read any more, "
                f"such as {result.skipped[0]}; that is more than 5 %."
            )
        if lost:
            self._line(f"{lost} validation images cannot be read, such as {result.skipped[0]}.")
        return result

    def answers(self, network: ResNeXt, title: str) -> EvalOutputs:
        """Logits of all validation images, each computed by one process."""
        val, ranks = self.splits.val, self.ranks
        if ranks.world > 1 and not self.settings.sync_norms:
            ranks.share_tensors(list(network.buffers()))
        mine = range(ranks.rank, len(val), ranks.world)
        self.report.start(title, len(mine))
        loader = eval_loader(
            val,
            self.settings.how,
            batch_size=2 * self.recipe.batch_size // ranks.world,
            workers=self.settings.workers,
            indices=mine,
        )
        part = collect_outputs(self._classify(network), loader, self.device, self.report.advance)
        return merge_outputs(ranks.gather(part))

    def _classify(self, network: ResNeXt) -> Callable[[Tensor], Tensor]:
        def classify(x: Tensor) -> Tensor:
            if self.stop is not None and self.ranks.world == 1:
                self._check_stop()
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(
                self.device.type, self.dtype, enabled=self.dtype is not torch.float32
            ):
                return network(x)

        return classify

    def _keep_best(self, result: Evaluation, averaged: Evaluation | None) -> bool:
        """Write the model if no epoch before was better; whether it was."""
        chosen, network = result, self.network
        if averaged and self.average and _rank(averaged) >= _rank(result):
            chosen, network = averaged, self.average.network
        best = self.at.best
        if best is not None and _rank(chosen) <= (best["accuracy"], -best["nll"]):
            return False
        self.at.best = {
            "epoch": self.at.epoch,
            "accuracy": chosen.accuracy,
            "nll": chosen.nll,
            "averaged": chosen is averaged,
        }
        self._write_model(network, self.card(chosen.metrics("val"), complete=True))
        return True

    def card(self, metrics: dict[str, float], *, complete: bool) -> Card:
        """What the model file says about the weights of this epoch."""
        best = self.at.best or {"epoch": self.at.epoch, "averaged": False}
        return Card(
            labels=self.splits.train.labels,
            preprocessing=self.settings.how,
            metrics=metrics,
            provenance={
                **self.settings.provenance,
                "epoch": best["epoch"],
                "averaged_weights": best["averaged"],
                "complete_epoch": complete,
            },
        )

    def _write_model(self, network: ResNeXt, card: Card) -> None:
        if not self.writer:
            return
        with self.clock.measure("checkpoints"):
            with torch.device("meta"):
                copy = ResNeXt(network.config)
            copy.load_state_dict(snapshot(network.state_dict()), assign=True)
            copy.card = card
            self.writer.model(lambda: save(copy, self.settings.out))

    def _keep(self, *, wait: bool = False, unmeasured: bool = False) -> None:
        """Write a checkpoint in the background.

        Args:
            wait: Until it is written.
            unmeasured: Write the model file as well, with the weights as they are.
        """
        if not self.writer:
            return
        with self.clock.measure("checkpoints"):
            if unmeasured:
                self._write_model(self.network, self.card({}, complete=False))
            state, position = self.state(), self._number()
            self.writer.state(lambda: write_checkpoint(state, self.settings.folder, position))
            self.saved_at = time.monotonic()
            if wait:
                try:
                    self.writer.flush()
                except ResNeXtError as error:
                    self._line(str(error))

    def _number(self) -> int:
        """A number that grows with every checkpoint, also across retries."""
        return (self.at.epoch - 1) * self.order.steps + self.at.step + self.at.retries * self.steps

    def state(self) -> Checkpoint:
        """Everything this run could go on from."""
        remembered, about = optimizer_state(self.optimizer)
        tensors = {f"network.{k}": x for k, x in self.network.state_dict().items()}
        tensors |= {f"optimizer.{k}": x for k, x in remembered.items()}
        if self.average:
            tensors |= {f"average.{k}": x for k, x in self.average.network.state_dict().items()}
        values = {
            "position": asdict(self.at),
            "optimizer": about,
            "scaler": self.scaler.state_dict(),
            "identity": self.settings.identity,
            "forms": asdict(self.settings.forms),
        }
        return Checkpoint(snapshot(tensors), json.loads(json.dumps(values)))

    def restore(self, state: Checkpoint | None) -> None:
        """Go on from a checkpoint."""
        assert state is not None, "a run writes its first checkpoint before its first step"
        self.network.load_state_dict(state.part("network"))
        if self.average:
            self.average.network.load_state_dict(state.part("average"))
        restore_optimizer(self.optimizer, state.part("optimizer"), state.about["optimizer"])
        self.scaler.load_state_dict(state.about["scaler"])
        self.at = Position(**state.about["position"])
        self.pending.clear()
        self.recent.clear()

    def begin(self) -> None:
        """Write the first checkpoint, which a run that diverges at once goes back to."""
        self._keep()

    # -- telling ------------------------------------------------------------------------------

    def _tell(self, row: dict[str, Any], took: dict[str, float], best: bool) -> None:
        accuracy = f"val accuracy {row['val_accuracy']:.2%}"
        self.report.note(accuracy.removeprefix("val "))
        if row["ema_accuracy"] is not None:
            accuracy += f" (average {row['ema_accuracy']:.2%})"
        waits = ""
        for part, name in (("waiting for images", "images"), ("checkpoints", "checkpoints")):
            share = took[part] / max(row["seconds"], 1e-9)
            if share > 0.1:
                waits += f"  {share:.0%} waiting for {name}"
        self._line(
            f"epoch {row['epoch']:>3}/{self.recipe.epochs}  loss {row['loss']:.4f}  {accuracy}  "
            f"{row['images_per_second']:,.0f} images/s  {self._left(row)}"
            f"{'  best' if best else ''}{waits}"
        )

    def _left(self, row: dict[str, Any]) -> str:
        times = [r["seconds"] for r in self.at.history] + [row["seconds"]]
        seconds = sum(times) / len(times) * (self.recipe.epochs - self.at.epoch)
        return f"{seconds / 60:.0f} min left" if seconds > 99 else f"{seconds:.0f} s left"

    def _line(self, text: str) -> None:
        if self.ranks.first:
            self.report.line(text)


def _rank(result: Evaluation) -> tuple[float, float]:
    return result.accuracy, -result.nll
