"""The training loop: from the first step to the last, across interruptions."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import torch

from resnext.card import Card
from resnext.data.dataset import Problem
from resnext.data.scan import Scan, add_to_quarantine, too_many
from resnext.data.unlabelled import training_pool
from resnext.data.workers import loaded_batches, stop_workers
from resnext.errors import CheckpointError, DataError, ResNeXtError, ResourceError
from resnext.evaluation.label_doubts import Opinions
from resnext.evaluation.metrics import Evaluation
from resnext.grouped_conv import merge_groups
from resnext.network import ResNeXt
from resnext.system.progress import Reporter
from resnext.training.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    latest_checkpoint,
    optimizer_state,
    restore_optimizer,
    snapshot,
    write_checkpoint,
)
from resnext.training.dataloader import Batch, TrainSampler, run_loader
from resnext.training.distributed import ProcessGroup, synchronize_norms
from resnext.training.divergence import Diverged, LossMonitor
from resnext.training.dynamics import Dynamics
from resnext.training.forecast import MOST_EPOCHS, TimePlan, epochs_that_fit
from resnext.training.interrupts import Interrupts
from resnext.training.metrics_log import MetricsLog, epoch_line
from resnext.training.optim import EMA, lr_schedule
from resnext.training.run_state import Clock, RunSettings, TrainState
from resnext.training.step import TrainStep
from resnext.training.threads import CLEARLY, changed_threads, fastest_threads
from resnext.training.validation import Validator
from resnext.weights.save import save

_MUCH = 1.25  # times more or fewer epochs, from which on a line says so
_MEASURING = 0.02  # part of the time for measuring threads


class Trainer:
    """One training run, or one process of it.

    Args:
        network: The network, on the device of the run.
        scan: The images, and the scan's findings.
        settings: Everything else that defines the run.
        group: The processes that train together.
        progress: Shows the progress.
    """

    def __init__(
        self,
        network: ResNeXt,
        scan: Scan,
        settings: RunSettings,
        group: ProcessGroup,
        progress: Reporter,
    ) -> None:
        self.network, self.scan, self.settings = network, scan, settings
        self.splits = scan.splits
        self.group, self.progress = group, progress
        self.recipe, self.device = settings.recipe, settings.device
        self.state, self.clock, self.interrupts = TrainState(), Clock(), Interrupts()
        self.state.seconds = self.clock.seconds
        self.pool = training_pool(self.splits)
        self.losses = LossMonitor(len(self.splits.train.labels))
        self.dynamics = Dynamics(np.asarray(self.splits.train.targets), self.device)
        self.sampler = TrainSampler(self.pool, self.recipe, settings.seed, group)
        self.steps = self.recipe.epochs * self.sampler.steps
        self.loader = run_loader(self.pool, settings, self.sampler)
        merge_groups(network, settings.execution.merged)
        if settings.sync_norms and group.world > 1:
            synchronize_norms(network)
        self.average = EMA(network, self.recipe.ema) if self.recipe.ema else None
        self.train_step = TrainStep(network, self.pool, settings, group)
        if self.train_step.maps:
            self.sampler.kept = self.train_step.maps.known
        self.validator = Validator(self.splits.val, settings, group, progress, self._check_stop)
        self.saved_at, self.threads_due = time.monotonic(), 0.0
        self.writer = CheckpointWriter(progress.line) if group.first else None
        self.metrics_log = MetricsLog(settings.folder, progress.line) if group.first else None

    # -- the run ------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end and keep the best epoch's model.

        Raises:
            KeyboardInterrupt: The run was interrupted; a checkpoint is written.
            ResNeXtError: The loss diverged, images vanished, or the model cannot be written; the
                last checkpoint is kept.
        """
        with self.interrupts.listen():
            try:
                self._check_stop()
                self._compute_maps_again()
                while self.state.epoch <= self.epochs:
                    try:
                        self._epoch()
                    except Diverged as error:
                        self._retry(str(error))
            except KeyboardInterrupt:
                self._interrupted()
                raise
            except (DataError, ResourceError) as error:
                self._save_checkpoint(wait=True)
                repair = "repair the data and " if isinstance(error, DataError) else ""
                raise type(error)(
                    f"{error} The run is saved up to this step; {repair}continue with --resume."
                ) from error
            if self.writer:
                try:
                    self.writer.flush()
                except CheckpointError as error:
                    raise CheckpointError(
                        f"{error} Once it can be written, run the same command with --resume to "
                        f"continue."
                    ) from error

    @property
    def epochs(self) -> int:
        """Epochs of the run, as it is planned now, with a shorter last one."""
        return math.ceil(self.state.epochs(self.recipe.epochs))

    def close(self) -> None:
        """Stop worker processes and background writes."""
        stop_workers(self.loader)
        if self.writer:
            self.writer.close()
        if self.metrics_log:
            self.metrics_log.close()

    def _epoch(self) -> None:
        before, done = dict(self.clock.seconds), self.state.step
        self._train_epoch()
        with self.clock.measure("validating"):
            result = self._validate(self.network)
            averaged = self._validate(self.average.network) if self.average else None
        took = {part: seconds - before[part] for part, seconds in self.clock.seconds.items()}
        steps = self.sampler.stop - done
        learning = took["training"] + took["waiting for images"]
        totals = self.group.gather(self.state.total)
        row = {
            "epoch": self.state.epoch,
            "loss": round(sum(totals) / len(totals) / max(self.sampler.stop, 1), 6),
            "val_accuracy": result.accuracy,
            "val_nll": round(result.nll, 6),
            "ema_accuracy": averaged.accuracy if averaged else None,
            "rate": self._rate((self.state.epoch - 1) * self.sampler.steps + self.sampler.stop - 1),
            "images_per_second": round(steps * self.recipe.batch_size / max(learning, 1e-9), 1),
            "size": self.sampler.side,
            "threads": torch.get_num_threads(),
            "steps": steps,
            "seconds": round(sum(took.values()), 3),
            "validating": round(took["validating"], 3),
            "waiting_data": round(took["waiting for images"], 3),
            "waiting_checkpoint": round(took["checkpoints"], 3),
        }
        self._log_epoch(row, took, best=self._keep_best(result, averaged))
        self.state.history.append(row)
        self.state.epoch, self.state.step, self.state.total = self.state.epoch + 1, 0, 0.0
        self._replan()
        self.dynamics.merge(self.group)
        self._save_checkpoint()
        if self.metrics_log:
            self.metrics_log.write(self.state.history)

    def _train_epoch(self) -> None:
        """Train the remaining steps of the running epoch."""
        state, recipe, steps = self.state, self.recipe, self.sampler.steps
        self.sampler.epoch, self.sampler.start = state.epoch, state.step
        self.sampler.side = self.settings.side(
            self._position((state.epoch - 1) * steps) / self.steps
        )
        total = round(state.epochs(recipe.epochs) * steps)
        self.sampler.stop = min(steps, total - (state.epoch - 1) * steps)
        order = self.sampler.whole(state.epoch)
        self.dynamics.start_epoch(order)
        model = self.train_step.model(state.epoch)
        self.progress.start(
            f"Epoch {state.epoch}/{self.epochs}", self.sampler.stop * recipe.batch_size
        )
        self.progress.advance(state.step * recipe.batch_size)
        with self.clock.measure("training"):
            batches = loaded_batches(self.loader) if len(self.sampler) else iter(())
            for step in range(state.step, self.sampler.stop):
                number = (state.epoch - 1) * steps + step
                self.train_step.set_rate(self._rate(number))
                with self.clock.measure(
                    "waiting for images"
                ):  # all, so that no step ends half done
                    parts = self._next_parts(batches)
                value = torch.zeros((), device=self.device)
                for part, batch in enumerate(parts):
                    places = self.sampler.places(step, part)
                    images = order[[*places]]
                    outputs = self.train_step.backward(model, batch, number, part, images)
                    value += outputs.loss
                    bad = (index for index, _ in batch.bad)
                    self.dynamics.record(places, bad, outputs)
                self.train_step.update()
                if self.average:
                    self.average.update(self.network, number)
                state.step = step + 1
                self.losses.pending.append(value)
                self.progress.advance(recipe.batch_size)
                self._after_step()
        self._sync_losses()

    def _compute_maps_again(self) -> None:
        """After a resume: the maps that the run had kept, each in the batch of its epoch."""
        maps, state, sampler = self.train_step.maps, self.state, self.sampler
        begun = (state.epoch, state.step) > (1, 0)
        if maps is None or not begun or state.epoch > self.epochs:
            return
        epochs = range(1, min(state.epoch, maps.views) + 1)
        self.progress.start("Computing the frozen stages again", len(epochs))
        for epoch in epochs:
            sampler.epoch, sampler.start, sampler.side = epoch, 0, self.settings.side()
            sampler.stop = state.step if epoch == state.epoch else sampler.steps
            self.train_step.model(epoch)
            order, batches = sampler.whole(epoch), loaded_batches(self.loader)
            for step, part in product(range(sampler.stop), range(self.recipe.accumulate)):
                self._check_stop()
                images = order[[*sampler.places(step, part)]]
                self.train_step.known_or_new(maps, next(batches), images)
            self.progress.advance(1)

    def _position(self, number: int) -> float:
        """Where a step is in the run as it was planned, in steps."""
        return self.state.progress(number, self.sampler.steps, self.recipe.epochs)

    def _rate(self, number: int) -> float:
        factor = lr_schedule(self.recipe, self._position(number), self.steps)
        return self.recipe.learning_rate * factor * self.state.factor

    def _replan(self) -> None:
        """Change the number of epochs if the planned ones would end clearly before or after time.

        Clearly is 3 % of the time that is left, and half a percent of the budget. Small changes are
        seen in the number of epochs; large ones get a line.
        """
        state, finished = self.state, self.state.epoch - 1
        if state.budget is None or finished >= self.epochs:
            return
        early, steps = self.recipe.cached_views, self.sampler.steps
        rows = [row for row in state.history[early:] if row["steps"]]
        if not rows:  # the first epochs compute the maps that later ones take from memory
            return
        rows = _latest(rows, 0.05 * state.budget)
        validation = sum(row["validating"] for row in rows) / len(rows)
        learning = sum(row["seconds"] - row["validating"] for row in rows)
        largest = self.settings.side()
        full = learning / sum(row["steps"] * (row["size"] / largest) ** 2 for row in rows)
        with self.clock.measure("training"):
            full *= self._choose_threads()
        step = full * self.settings.area(self._position(finished * steps) / self.steps)
        seconds = state.budget - state.kept - sum(state.seconds.values())
        planned = state.epochs(self.recipe.epochs) - finished
        needed = planned * steps * step + math.ceil(planned) * validation
        fit = min(epochs_that_fit(seconds, step, validation, steps), MOST_EPOCHS - finished)
        clear = abs(needed - seconds) > max(0.03 * seconds, 0.005 * state.budget)
        fit = self.group.broadcast(fit if clear else planned)
        if fit == planned:
            return
        state.replans.append((finished, finished + fit))
        if not planned / _MUCH < fit < planned * _MUCH:
            state.resumes.append(
                f"Planned again after epoch {finished}: {finished + fit:.1f} instead of "
                f"{finished + planned:.1f} epochs, because an epoch takes "
                f"{steps * step + validation:.1f} s on this machine now."
            )
            self._line(state.resumes[-1])

    def _choose_threads(self) -> float:
        """Change the number of threads if another trains clearly faster now.

        It is measured after an epoch that was clearly slower than the fastest one, and while fewer
        threads are used than the machine has; for a small part of the time at most.

        Returns:
            Time of a step relative to that before.
        """
        if self.state.threads is None:
            return 1.0
        now, most = self.state.threads
        rates = [row["images_per_second"] * row["size"] ** 2 for row in self.state.history]
        if now == most and rates[-1] > max(rates) / CLEARLY:
            return 1.0
        if (began := time.monotonic()) < self.threads_due:
            return 1.0
        dtype = getattr(torch, self.settings.execution.dtype)
        change = fastest_threads(self.network, self.settings.side(), dtype, most)
        self.threads_due = began + (time.monotonic() - began) / _MEASURING
        if (count := torch.get_num_threads()) != now:
            self.state.threads = (count, most)
            self.state.resumes.append(changed_threads(change, now))
            self._line(self.state.resumes[-1])
        return change

    # -- what happens between steps -----------------------------------------------------------

    def _after_step(self) -> None:
        """Check the losses, the clock and the signals."""
        problem = ""
        if self.device.type == "cpu" or len(self.losses.pending) >= 16:  # reading makes a GPU wait
            problem = self._check_losses()
        due = time.monotonic() - self.saved_at > self.settings.checkpoint_seconds
        due = due and self.group.first
        requested = self.interrupts.requested is not None
        stop, diverged, due = self.group.any(requested, bool(problem), due)
        if diverged:
            raise Diverged(problem or "the loss of another process diverged")
        if stop:
            self.interrupts.stop()
        if due:
            self._sync_losses()
            self.dynamics.merge(self.group)
            self._save_checkpoint()

    def _sync_losses(self) -> None:
        """Check the losses that are still on the device, in all processes.

        Raises:
            Diverged: A loss is NaN, infinite or too high.
        """
        problem = self._check_losses()
        if self.group.any(bool(problem))[0]:
            raise Diverged(problem or "the loss of another process diverged")

    def _check_losses(self) -> str:
        """The problem with the losses of the last steps; empty if they are fine."""
        value = self.losses.check(self.state)
        if value is None:
            return ""
        number = (self.state.epoch - 1) * self.sampler.steps + self.state.step - 1
        return self.losses.describe(value, self.state, self._rate(number), self.network)

    def _retry(self, problem: str) -> None:
        """Return to the last checkpoint with half the learning rate, or give up.

        Raises:
            ResNeXtError: All retries are used.
        """
        problem, factor, used = self.group.broadcast(
            (problem, self.state.factor, self.state.retries)
        )
        spent = self.state.seconds
        if self.writer:
            with self.clock.measure("checkpoints"), suppress(CheckpointError):
                self.writer.flush()  # a checkpoint that contains NaN is not written
        if used >= self.settings.retries:
            where = ""
            if self.state.best:
                where = f" {self.settings.out} holds epoch {self.state.best['epoch']}."
            raise ResNeXtError(
                f"{problem} Lower the learning rate, now {self.recipe.learning_rate:g}, clip the "
                f"gradient (clip), or let --retries halve the rate.{where}"
            )
        self.restore(self.group.broadcast(self._newest()))
        self.state.retries, self.state.factor = used + 1, factor / 2
        self.state.seconds = self.clock.seconds = spent  # what was lost is not given back
        self.state.resumes.append(
            f"{problem} Continued from epoch {self.state.epoch}, step {self.state.step}, with "
            f"{self.state.factor:g} of the rate."
        )
        self._line(self.state.resumes[-1])
        self._save_checkpoint()

    def _newest(self) -> Checkpoint | None:
        return latest_checkpoint(self.settings.folder, self._line) if self.group.first else None

    def _next_parts(self, batches: Iterator[Batch]) -> list[Batch]:
        """The parts of the next batch; what one process cannot read, all know before the step.

        Raises:
            DataError: Too many images cannot be read, in all processes.
            ResourceError: A worker process of any process was killed, or lacks memory.
        """
        parts: list[Batch] = []
        problem: ResNeXtError | None = None
        try:
            parts.extend(next(batches) for _ in range(self.recipe.accumulate))
        except (DataError, ResourceError) as error:
            problem = error
        bad = [each for batch in parts for each in batch.bad]
        if self.group.any(bool(bad or problem))[0]:
            self.dynamics.merge(self.group)  # what a checkpoint holds, if the run ends here
            problems, found = zip(*self.group.gather((problem, bad)), strict=True)
            self._record_unreadable(dict(each for bad in found for each in bad))
            if any(problems):
                raise next(filter(None, problems))
        return parts

    def _record_unreadable(self, found: dict[int, str]) -> None:
        """Log images that could not be read, and add them to quarantine.csv.

        Args:
            found: Why each image could not be read, by its index.

        Raises:
            DataError: More than 5 % of a class cannot be read.
        """
        train, bad = self.pool, self.state.bad
        new = {index: reason for index, reason in found.items() if str(index) not in bad}
        bad.update({str(index): reason for index, reason in new.items()})
        problems: list[Problem] = []
        for index, reason in new.items():
            self._line(f"Left out: {reason}")
            title, label = train.title(index), train.labels[train.targets[index]]
            problems.append(Problem("train", title, label, reason.removeprefix(f"{title}: ")))
        if problems and self.group.first:
            add_to_quarantine(self.settings.folder / "quarantine.csv", problems)
        lost = np.bincount([int(train.targets[int(i)]) for i in bad], minlength=len(train.labels))
        worst = too_many(lost, train.counts())
        if worst is not None:
            raise DataError(
                f"{lost[worst]} of {train.counts()[worst]} images of class "
                f"{train.labels[worst]!r} cannot be read any more, which is more than 5 %."
            )

    def _check_stop(self) -> None:
        """Stop between steps if a signal asked for it, in any process.

        Raises:
            KeyboardInterrupt: A process got a signal.
        """
        if self.group.any(self.interrupts.requested is not None)[0]:
            self.interrupts.stop()

    def _interrupted(self) -> None:
        """Write a checkpoint, and the model file if it does not exist yet."""
        if self.interrupts.forced:
            self._line(
                "Stopped immediately. Run the same command with --resume to continue from the last "
                "checkpoint."
            )
            return
        self._check_losses()
        self.dynamics.merge(self.group)
        best = self.state.best
        self._save_checkpoint(wait=True, unvalidated=best is None)
        if best is None:
            kept = "holds the current weights, which have not been validated"
        else:
            kept = f"holds epoch {best['epoch']}, val accuracy {best['accuracy']:.2%}"
        self._line(
            f"Interrupted in epoch {self.state.epoch}. {self.settings.out} {kept}. Run the same "
            f"command with --resume to continue."
        )

    # -- validating and saving ----------------------------------------------------------------

    def _validate(self, network: ResNeXt) -> Evaluation:
        title = f"Epoch {self.state.epoch}/{self.epochs}, validating"
        return self.validator.evaluate(network, title)

    def _keep_best(self, result: Evaluation, averaged: Evaluation | None) -> bool:
        """Write the model if this epoch is the best so far, and return whether it is."""
        chosen, network = result, self.network
        if averaged and self.average and _rank(averaged) >= _rank(result):
            chosen, network = averaged, self.average.network
        best = self.state.best
        if best is not None and _rank(chosen) <= (best["accuracy"], -best["nll"]):
            return False
        self._record_best(self.state.epoch, chosen, network, averaged=chosen is averaged)
        return True

    def _record_best(
        self, epoch: int, result: Evaluation, network: ResNeXt, *, averaged: bool
    ) -> None:
        """Write a model as the best one so far."""
        self.state.best = {
            "epoch": epoch,
            "accuracy": result.accuracy,
            "nll": result.nll,
            "averaged": averaged,
        }
        self._write_model(network, self.card(result.metrics("val"), complete=True))

    def card(self, metrics: dict[str, float], *, complete: bool) -> Card:
        """The card of the model file."""
        best = self.state.best or {"epoch": self.state.epoch, "averaged": False}
        return Card(
            labels=self.splits.train.labels,
            preprocessing=self.settings.preprocessing,
            metrics=metrics,
            provenance={
                **self.settings.provenance,
                "epoch": best["epoch"],
                "averaged_weights": best["averaged"],
                "complete_epoch": complete,
                **({"minutes": self.state.choice} if self.state.choice else {}),
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

    def _save_checkpoint(self, *, wait: bool = False, unvalidated: bool = False) -> None:
        """Write a checkpoint in the background.

        Args:
            wait: Return only when it is written.
            unvalidated: Also write the model file, with the current weights.
        """
        if not self.writer:
            return
        with self.clock.measure("checkpoints"):
            if unvalidated:
                self._write_model(self.network, self.card({}, complete=False))
            state, position = self.checkpoint(), self._checkpoint_id()
            self.writer.state(lambda: write_checkpoint(state, self.settings.folder, position))
            self.saved_at = time.monotonic()
            if wait:
                try:
                    self.writer.flush()
                except ResNeXtError as error:
                    self._line(str(error))

    def _checkpoint_id(self) -> int:
        """A number that grows with every checkpoint, also across retries."""
        state = self.state
        return (state.epoch - 1) * self.sampler.steps + state.step + state.retries * self.steps

    def checkpoint(self) -> Checkpoint:
        """Everything this run needs to resume."""
        optimizer_tensors, optimizer_values = optimizer_state(self.train_step.optimizer)
        tensors = {f"network.{k}": x for k, x in self.network.state_dict().items()}
        tensors |= {f"optimizer.{k}": x for k, x in optimizer_tensors.items()}
        tensors |= {f"dynamics.{k}": x for k, x in self.dynamics.tensors.items()}
        if self.average:
            tensors |= {f"average.{k}": x for k, x in self.average.network.state_dict().items()}
        values = {
            "position": asdict(self.state),
            "optimizer": optimizer_values,
            "scaler": self.train_step.scaler.state_dict(),
            "identity": self.settings.identity,
            "forms": asdict(self.settings.execution),
        }
        return Checkpoint(snapshot(tensors), json.loads(json.dumps(values)))

    def restore(self, state: Checkpoint | None) -> None:
        """Continue from a checkpoint."""
        assert state is not None, "a run writes its first checkpoint before its first step"
        self.network.load_state_dict(state.part("network"))
        if self.average:
            self.average.network.load_state_dict(state.part("average"))
        restore_optimizer(
            self.train_step.optimizer, state.part("optimizer"), state.about["optimizer"]
        )
        self.train_step.scaler.load_state_dict(state.about["scaler"])
        self.dynamics.restore(state.part("dynamics"))
        self.state = TrainState(**state.about["position"])
        self.clock.seconds = self.state.seconds
        if self.state.threads:
            torch.set_num_threads(self.state.threads[0])
        self.losses.reset()

    def begin(
        self,
        head: tuple[Evaluation, Opinions] | None = None,
        time_plan: TimePlan | None = None,
    ) -> None:
        """Write the first checkpoint, to which a run returns if it diverges in its first epoch.

        Args:
            head: Result of a network whose classifier was fitted before the first step; it is the
                best model until an epoch is better. Also what cross-validation says about labels.
            time_plan: Limit for the epochs, and what was chosen for it.
        """
        if time_plan is not None:
            self.state.budget = time_plan.end - time.monotonic()
            self.state.kept, self.state.choice = time_plan.kept, time_plan.choice
            self.state.threads = time_plan.threads
            seconds, steps = self.state.budget - self.state.kept, self.sampler.steps
            fit = time_plan.speed.epochs(self.recipe, seconds, steps)
            self.state.replans.append((0, self.group.broadcast(max(fit, 1 / steps))))
        if head is not None:
            result, opinions = head
            self.dynamics.hold_out(opinions)
            self._record_best(0, result, self.network, averaged=False)
            self._line(f"epoch   0  val accuracy {result.accuracy:.2%}, by the classifier alone")
        self._save_checkpoint()

    def _log_epoch(self, metrics: dict[str, Any], took: dict[str, float], best: bool) -> None:
        self.progress.note(f"accuracy {metrics['val_accuracy']:.2%}")
        times = [row["seconds"] for row in (*self.state.history, metrics)]
        left = sum(times) / len(times) * (self.state.epochs(self.recipe.epochs) - self.state.epoch)
        self._line(epoch_line(metrics, took, epochs=self.epochs, left=left, best=best))

    def _line(self, text: str) -> None:
        if self.group.first:
            self.progress.line(text)


def _latest(rows: Sequence[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """The last three epochs, or more until they took a time; only those with the same threads."""
    chosen: list[dict[str, Any]] = []
    for row in reversed(rows):
        enough = len(chosen) >= 3 and sum(x["seconds"] for x in chosen) > seconds
        if enough or row["threads"] != rows[-1]["threads"]:
            break
        chosen.append(row)
    return chosen


def _rank(result: Evaluation) -> tuple[float, float]:
    return result.accuracy, -result.nll
