"""The recipe `probe`: a classifier by logistic regression on the embeddings of given weights.

The network computes each image once, without gradients, and not at all if its embedding is in the
cache. The result is an ordinary model file, with the same card and report as any other.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from resnext.card import Card
from resnext.data.dataset import ImageSet, Splits
from resnext.data.scan import Scan
from resnext.errors import ConfigError, DataError, InputError
from resnext.evaluation.label_doubts import Opinions
from resnext.evaluation.metrics import EvalOutputs, score
from resnext.network import ResNeXt
from resnext.training.checkpoint import Checkpoint, write_checkpoint
from resnext.training.embeddings import Embedder
from resnext.training.finalize import Finished, calibrate_and_report
from resnext.training.identity import check_identity, run_identity
from resnext.training.interrupts import Interrupts
from resnext.training.logistic import Head, fit_head
from resnext.training.preparation import (
    chosen_preprocessing,
    loaded_network,
    network_title,
    prepare_folder,
    provenance_of,
    wanted_workers,
)
from resnext.training.recipe import Probe
from resnext.training.request import Context, ProbePlan, Request, RunPlan
from resnext.training.run_state import TrainState
from resnext.training.validation import FirstResult


def probe_plan(request: Request, splits: Splits, context: Context) -> ProbePlan:
    """Check the arguments and load the weights; nothing is written.

    Raises:
        ConfigError: There are no weights, or an argument has no meaning for this recipe.
        InputError: There are several processes.
        CheckpointError: The weights cannot be loaded.
    """
    recipe = Probe().changed(**request.changes)
    if request.weights is None:
        raise ConfigError(
            "The recipe probe needs weights (--weights) to compute embeddings with. To train from "
            "scratch, use the recipe small."
        )
    if request.model is not None:
        raise ConfigError("Give a model or weights, not both: weights define their network.")
    given = {
        "compile (--compile)": request.compile is not None,
        "sync_norms (--sync-norms)": request.sync_norms,
        "retries (--retries)": request.retries > 0,
        "minutes (--minutes)": request.minutes is not None,
        "dry_run (--dry-run)": request.dry_run,
    }
    for name in (name for name, value in given.items() if value):
        raise ConfigError(f"The recipe probe has no epochs, so leave out {name}.")
    if request.teacher is not None:
        raise ConfigError(
            "The recipe probe learns from labels, not from a teacher. Choose the recipe distill."
        )
    if context.group.world > 1:
        raise InputError("The recipe probe runs in one process. Start it without torchrun.")
    network = loaded_network(request.weights, splits, progress=context.shows_progress)
    preprocessing = chosen_preprocessing(network, splits, request.size)
    return ProbePlan(splits, recipe, network, preprocessing)


def run_probe(
    request: Request,
    context: Context,
    plan: ProbePlan,
    scanned: Scan,
    checkpoint: Checkpoint | None,
    *,
    command: str,
) -> None:
    """Compute the embeddings, fit the classifier, and write model and report.

    A resumed run repeats this with the embeddings of the cache, which gives the same file.

    Args:
        request: The arguments of `train`.
        context: Device and progress display.
        plan: Network and preprocessing.
        scanned: The images.
        checkpoint: The checkpoint of the run if it is resumed.
        command: The command that started the run, for the report.

    Raises:
        CheckpointError: The checkpoint is of another run, or a file cannot be written.
        DataError: A class has no training image, or an image cannot be read any more.
        ResNeXtError: An embedding is not finite.
        KeyboardInterrupt: The run was interrupted.
    """
    splits = scanned.splits
    plan = replace(plan, splits=splits)
    _refuse_missing_classes(splits.train)
    identity = {"recipe": "probe", **run_identity(request, plan)}
    if checkpoint is not None:
        check_identity(checkpoint.about["identity"], identity)
    prepare_folder(request.folder, scanned.unreadable, empty=checkpoint is None)
    if checkpoint is None:
        write_checkpoint(Checkpoint({}, {"identity": identity}), request.folder, 0)
    network = plan.network
    fitted = fit_classifier(request, context, plan)
    recipe = {"name": "probe", **asdict(plan.recipe), "strength": fitted.head.strength}
    network.card = Card(
        labels=splits.train.labels,
        preprocessing=plan.preprocessing,
        provenance={**provenance_of(request, plan), "recipe": recipe, "epoch": 0},
    )
    finished = Finished(
        title=network_title(request, plan),
        out=request.out,
        folder=request.folder,
        recipe=recipe,
        preprocessing=plan.preprocessing,
        scan=scanned,
        state=TrainState(epoch=0, seconds=fitted.seconds),
        device=context.device,
        precision=fitted.precision,
        processes=1,
        command=command,
        strengths=fitted.head.tried,
        opinions=[fitted.opinions(splits.train)],
    )
    indexing = context.progress if request.index else None
    calibrate_and_report(network, fitted.outputs, finished, indexing)


def starting_classifier(
    request: Request, context: Context, plan: RunPlan, end: float | None
) -> FirstResult | None:
    """Start fine-tuning from the classifier that `probe` fits (arXiv:2202.10054).

    Args:
        request: The arguments of `train`.
        context: Device and progress display.
        plan: The network, whose classifier is replaced, and the images.
        end: Time at which the run must be done, by `time.monotonic`; None for no limit.

    Returns:
        Its result on the validation images, and what its folds say about the training images.
        None if the recipe or the weights do not ask for it: if there are no weights, if they have
        the same classes, so that their classifier was kept, or if a class has no training image.
    """
    train, wanted = plan.splits.train, plan.recipe.probe and request.weights is not None
    if not wanted or keeps_classifier(plan) or not train.counts().all():
        return None
    fitted = fit_classifier(request, context, plan, end) if context.group.first else None
    fitted = context.group.broadcast(fitted)
    install(fitted.head, plan.network)
    return FirstResult(score(fitted.outputs, plan.splits.val), fitted.opinions(train))


def keeps_classifier(plan: RunPlan) -> bool:
    """Whether the first weights have a classifier of these classes, from which training starts."""
    card = plan.network.card
    return card is not None and card.labels == plan.splits.train.labels


@dataclass(frozen=True, eq=False)
class Fitted:
    """A classifier that was fitted to embeddings.

    Args:
        head: The classifier.
        outputs: Its logits of the validation images.
        precision: Precision of the embeddings.
        seconds: Duration of each step.
    """

    head: Head
    outputs: EvalOutputs
    precision: str
    seconds: dict[str, float]

    def opinions(self, train: ImageSet) -> Opinions:
        """What classifiers that were not fitted to a training image say about it."""
        return Opinions.of(self.head.unseen, np.asarray(train.targets))


def fit_classifier(
    request: Request, context: Context, plan: RunPlan | ProbePlan, end: float | None = None
) -> Fitted:
    """Compute the embeddings, fit a classifier to them, and put it into the network of the plan.

    Cross-validation, which takes long with hundreds of classes, ends after a tenth of the time to
    `end`, by `time.monotonic`, if that is given.

    Raises:
        DataError: An image cannot be read any more.
        ResNeXtError: An embedding is not finite.
        KeyboardInterrupt: The run was interrupted; the embeddings so far are kept.
    """
    assert request.weights is not None
    train, progress = plan.splits.train, context.progress
    began = time.perf_counter()
    embedder = Embedder(
        network=plan.network,
        weights=request.weights,
        preprocessing=plan.preprocessing,
        device=context.device,
        requested_precision=request.precision,
        workers=wanted_workers(request, train, context.device),
        progress=progress,
        interrupts=Interrupts(),
    )
    try:
        train_rows, val_rows = embedder.embed(train, plan.splits.val)
        embedded = time.perf_counter()
        progress.start("Fitting the classifier", 0)
        head = fit_head(
            train_rows,
            np.asarray(train.targets),
            len(train.labels),
            balanced=plan.recipe.balance != "none",
            seed=request.seed,
            until=None if end is None else 0.9 * time.monotonic() + 0.1 * end,
        )
    except KeyboardInterrupt:
        progress.line(
            "Interrupted. The embeddings so far are kept. Run the same command with --resume to "
            "continue."
        )
        raise
    progress.line(f"Fitted the classifier with strength {head.strength:.3g}.")
    install(head, plan.network)
    seconds = {
        "computing embeddings": embedded - began,
        "fitting the classifier": time.perf_counter() - embedded,
    }
    outputs = outputs_of(plan.network, val_rows, plan.splits.val)
    return Fitted(head, outputs, embedder.precision, seconds)


def install(head: Head, network: ResNeXt) -> None:
    """Make a head the classifier of a network."""
    network.fc.load_state_dict({"weight": head.weight, "bias": head.bias})


def outputs_of(network: ResNeXt, embeddings: np.ndarray, images: ImageSet) -> EvalOutputs:
    """The outputs of a network's classifier for the embeddings `(n, d)` of a set."""
    weight, bias = (x.detach().cpu().float() for x in (network.fc.weight, network.fc.bias))
    logits = torch.from_numpy(embeddings) @ weight.T + bias
    targets = torch.tensor(np.asarray(images.targets), dtype=torch.int64)
    return EvalOutputs(logits, targets, torch.arange(len(images)))


def _refuse_missing_classes(train: ImageSet) -> None:
    """Refuse a class that no image can teach.

    Raises:
        DataError: A class has no training image.
    """
    for label, count in zip(train.labels, train.counts().tolist(), strict=True):
        if not count:
            raise DataError(
                f"Class {label!r} of {train.name} has no training image. Add some, or remove the "
                f"class."
            )
