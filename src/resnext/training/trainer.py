"""The training loop: from the first step to the last, across interruptions."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from resnext.data.scan import Scan, record_unreadable
from resnext.data.unlabelled import training_pool
from resnext.data.workers import loaded_batches, stop_workers
from resnext.errors import CheckpointError, DataError, ResNeXtError, ResourceError
from resnext.evaluation.metrics import Evaluation
from resnext.grouped_conv import merge_groups
from resnext.network import ResNeXt
from resnext.system.progress import Reporter
from resnext.training.best_model import BestModel
from resnext.training.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    latest_checkpoint,
    snapshot,
    write_checkpoint,
)
from resnext.training.dataloader import Batch, TrainSampler, run_loader
from resnext.training.distributed import ProcessGroup, synchronize_norms
from resnext.training.divergence import Diverged, LossMonitor
from resnext.training.dynamics import Dynamics
from resnext.training.forecast import TimePlan
from resnext.training.interrupts import Interrupts
from resnext.training.metrics_log import MetricsLog, epoch_line
from resnext.training.optim import lr_schedule
from resnext.training.replanning import Replanner
from resnext.training.run_state import Clock, RunSettings, TrainState
from resnext.training.step import TrainStep
from resnext.training.validation import FirstResult, Validator


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
        self.train_step = TrainStep(network, self.pool, settings, group)
        if self.train_step.maps:
            self.sampler.kept = self.train_step.maps.known
        self.validator = Validator(self.splits.val, settings, group, progress, self._check_stop)
        self.saved_at = time.monotonic()
        self.writer = CheckpointWriter(progress.line) if group.first else None
        self.best = BestModel(settings, self.splits.train.labels, self.writer, self.clock)
        self.replanner = Replanner(network, settings, self.sampler.steps, group, self._line)
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
                if self.state.epoch <= self.epochs:
                    self.train_step.compute_maps_again(
                        self.state, self.sampler, self.loader, self._check_stop, self.progress
                    )
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

    @property
    def stop(self) -> int:
        """Steps of the running epoch, as it is planned now: fewer in a shorter last one."""
        steps = self.sampler.steps
        total = round(self.state.epochs(self.recipe.epochs) * steps)
        return min(steps, total - (self.state.epoch - 1) * steps)

    def close(self) -> None:
        """Stop worker processes and background writes."""
        stop_workers(self.loader)
        if self.writer:
            self.writer.close()
        if self.metrics_log:
            self.metrics_log.close()

    def _epoch(self) -> None:
        before, done = dict(self.clock.seconds), self.state.step
        average = self.train_step.average
        self._train_epoch()
        with self.clock.measure("validating"):
            result = self._validate(self.network)
            averaged = self._validate(average.network) if average else None
        took = {part: seconds - before[part] for part, seconds in self.clock.seconds.items()}
        steps = self.state.step - done
        learning = took["training"] + took["waiting for images"]
        totals = self.group.gather(self.state.total)
        row = {
            "epoch": self.state.epoch,
            "loss": round(sum(totals) / len(totals) / max(self.state.step, 1), 6),
            "val_accuracy": result.accuracy,
            "val_nll": round(result.nll, 6),
            "ema_accuracy": averaged.accuracy if averaged else None,
            "rate": self._rate((self.state.epoch - 1) * self.sampler.steps + self.state.step - 1),
            "images_per_second": round(steps * self.recipe.batch_size / max(learning, 1e-9), 1),
            "size": self.sampler.side,
            "threads": torch.get_num_threads(),
            "steps": steps,
            "seconds": round(sum(took.values()), 3),
            "validating": round(took["validating"], 3),
            "waiting_data": round(took["waiting for images"], 3),
            "waiting_checkpoint": round(took["checkpoints"], 3),
        }
        candidates = [(result, self.network)]
        if average and averaged:
            candidates.append((averaged, average.network))
        self._log_epoch(row, took, best=self.best.offer(self.state, candidates))
        self.state.history.append(row)
        self.state.epoch, self.state.step, self.state.total = self.state.epoch + 1, 0, 0.0
        self.replanner.replan(self.state, self.clock)
        self.dynamics.merge(self.group)
        self._save_checkpoint()
        if self.metrics_log:
            with self.clock.measure("checkpoints"):
                self.metrics_log.write(self.state.history)

    def _train_epoch(self) -> None:
        """Train the remaining steps of the running epoch."""
        state, recipe, steps = self.state, self.recipe, self.sampler.steps
        self.sampler.epoch, self.sampler.start = state.epoch, state.step
        self.sampler.side = self.settings.side(
            self._position((state.epoch - 1) * steps) / self.steps
        )
        self.sampler.stop = steps  # a shorter last epoch leaves the rest
        order = self.sampler.whole(state.epoch)
        self.dynamics.start_epoch(order)
        model = self.train_step.model(state.epoch)
        self.progress.start(f"Epoch {state.epoch}/{self.epochs}", self.stop * recipe.batch_size)
        self.progress.advance(state.step * recipe.batch_size)
        self.replanner.start_epoch(state, self.sampler.side)
        with self.clock.measure("training"):
            batches = loaded_batches(self.loader) if len(self.sampler) else iter(())
            while (step := state.step) < self.stop:
                number = (state.epoch - 1) * steps + step
                self.train_step.set_rate(self._rate(number))
                with self.clock.measure("waiting for images"):
                    parts = self._next_parts(batches)  # all, so that no step ends half done
                value = torch.zeros((), device=self.device)
                for part, batch in enumerate(parts):
                    places = self.sampler.places(step, part)
                    images = order[[*places]]
                    outputs = self.train_step.backward(model, batch, number, part, images)
                    value += outputs.loss
                    bad = (index for index, _ in batch.bad)
                    self.dynamics.record(places, bad, outputs)
                self.train_step.update(number)
                state.step = step + 1
                self.losses.pending.append(value)
                self.progress.advance(recipe.batch_size)
                self._after_step()
        self._sync_losses()

    def _position(self, number: int) -> float:
        """Where a step is in the run as it was planned, in steps."""
        return self.state.progress(number, self.sampler.steps, self.recipe.epochs)

    def _rate(self, number: int) -> float:
        factor = lr_schedule(self.recipe, self._position(number), self.steps)
        return self.recipe.learning_rate * factor * self.state.factor

    # -- what happens between steps -----------------------------------------------------------

    def _after_step(self) -> None:
        """Check the losses, the clock and the signals."""
        problem = ""
        if self.device.type == "cpu" or len(self.losses.pending) >= 16:  # reading makes a GPU wait
            problem = self._check_losses()
        due = time.monotonic() - self.saved_at > self.settings.checkpoint_seconds
        due = due and self.group.first
        requested = self.interrupts.requested is not None
        measured = self.group.first and self.replanner.measure(self.state, self.clock)
        stop, diverged, due, measured = self.group.any(requested, bool(problem), due, measured)
        if diverged:
            raise Diverged(problem or "the loss of another process diverged")
        if stop:
            self.interrupts.stop()
        if measured:
            self.replanner.replan_within(self.state)
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
            record_unreadable(
                self.pool,
                self.state.bad,
                dict(each for bad in found for each in bad),
                self.settings.folder / "quarantine.csv" if self.group.first else None,
                self._line,
            )
            if any(problems):
                raise next(filter(None, problems))
        return parts

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
                self.best.write(self.state, self.network)
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
        tensors, values = self.train_step.state()
        tensors |= {f"dynamics.{k}": x for k, x in self.dynamics.tensors.items()}
        values |= {
            "position": asdict(self.state),
            "identity": self.settings.identity,
            "forms": asdict(self.settings.execution),
        }
        return Checkpoint(snapshot(tensors), json.loads(json.dumps(values)))

    def restore(self, state: Checkpoint | None) -> None:
        """Continue from a checkpoint."""
        assert state is not None, "a run writes its first checkpoint before its first step"
        self.train_step.restore(state)
        self.dynamics.restore(state.part("dynamics"))
        self.state = TrainState(**state.about["position"])
        self.clock.seconds = self.state.seconds
        if self.state.threads:
            torch.set_num_threads(self.state.threads[0])
        self.losses.reset()

    def begin(self, first: FirstResult | None, time_plan: TimePlan | None) -> None:
        """Write the first checkpoint, to which a run returns if it diverges in its first epoch.

        Args:
            first: Result of the network as it is; None if its classifier is random.
            time_plan: Limit for the epochs, and what was chosen for it.
        """
        if time_plan is not None:
            self.replanner.plan(self.state, time_plan)
        if first is not None:
            result, opinions = first
            if opinions is not None:
                self.dynamics.hold_out(opinions)
            self.best.record(self.state, 0, result, self.network)
            by = "weights as they are" if opinions is None else "classifier alone"
            self._line(f"epoch   0  val accuracy {result.accuracy:.2%}, by the {by}")
        self._save_checkpoint()

    def _log_epoch(self, metrics: dict[str, Any], took: dict[str, float], best: bool) -> None:
        self.progress.note(f"accuracy {metrics['val_accuracy']:.2%}")
        times = [row["seconds"] for row in (*self.state.history, metrics)]
        left = sum(times) / len(times) * (self.state.epochs(self.recipe.epochs) - self.state.epoch)
        self._line(epoch_line(metrics, took, epochs=self.epochs, left=left, best=best))

    def _line(self, text: str) -> None:
        if self.group.first:
            self.progress.line(text)
