"""`resnext train` and `resnext distill`: train a classifier, on labels or by a teacher."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from resnext.cli.options import Flag, OptionalWhole, Several, Whole, options_of
from resnext.errors import ConfigError

_Unparsed = Annotated[Any, Parameter(parse=False)]
"""An argument that only another command gives."""


def train(
    data: str,
    /,
    *,
    model: Annotated[str | None, Parameter(name=["--model", "-m"])] = None,
    config: Path | None = None,
    weights: Annotated[str | None, Parameter(name=["--weights", "-w"])] = None,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("model.safetensors"),
    recipe: Annotated[str | None, Parameter(name=["--recipe", "-r"])] = None,
    epochs: OptionalWhole = None,
    batch_size: OptionalWhole = None,
    learning_rate: Annotated[float | None, Parameter(name=["--learning-rate", "--lr"])] = None,
    set: Annotated[tuple[str, ...], Several] = (),
    size: OptionalWhole = None,
    seed: Whole = 0,
    val_fraction: float = 0.2,
    workers: OptionalWhole = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    compile: bool | None = None,
    sync_norms: Flag = False,
    resume: Flag = False,
    retries: Whole = 0,
    checkpoint_minutes: float = 5.0,
    minutes: float | None = None,
    dry_run: Flag = False,
    overwrite: Flag = False,
    index: bool = True,
    teacher: _Unparsed = None,
    unlabelled: _Unparsed = None,
) -> None:
    """Train a classifier, and write a model file and a report.

    The model file holds weights, labels and preprocessing. To train on several GPUs:
    `torchrun --nproc-per-node 2 -m resnext train …`

    Args:
        data: A folder with one folder of images per class, or with train and val folders of that
            kind; tar shards (`shards/train-{000..009}.tar`, also https:// and s3://); a folder of
            idx files; a CSV file with the columns path and label; a folder of Parquet files from
            Hugging Face; or `digits`.
        model: Variant to train from scratch; `resnext info` lists them. Default: chosen from the
            images and the device, and with --minutes from the measured speed.
        config: Config file of the network to train from scratch, instead of a variant: JSON as
            ResNeXtConfig.to_json writes it, OpenMMLab's .py or .json, or a model file, whose
            architecture is used but not its weights.
        weights: Checkpoint to fine-tune, instead of a variant: a file from any library, a catalog
            name, hf://owner/repo or a URL.
        out: Model file to write; it always holds the best epoch so far. The run folder, with the
            same name but the suffix .run, holds checkpoints, metrics and report.html.
        recipe: Training recipe: small, quick, large, finetune, paper, torchvision_v2, rsb_a1,
            rsb_a2, rsb_a3, cifar, digits, distill, or your own as file.py:name. probe: with
            --weights, train only a classifier on their embeddings, without epochs. Default: digits
            for `digits`, finetune with --weights, quick with --minutes and for the small networks
            (resnext_tiny and its kind), else small, or large from 20,000 images on.
        epochs: Number of epochs. Default: the recipe's; with --minutes, those that fit.
        batch_size: Images per step, summed over all processes; the learning rate scales with it.
            Default: the recipe's.
        learning_rate: Peak learning rate. Default: the recipe's.
        set: Change any other field of the recipe: `--set mixup=0.2 --set ema=0.999`.
        size: Image size in pixels. Default: that of the weights; with --model or --config 224, or
            32 for small-image networks; else, and with --minutes, it follows from the images.
        seed: Random seed for initialization, data order and augmentation.
        val_fraction: Fraction of each class to hold out for validation if the data has no val
            folder.
        workers: Number of processes that decode images. Default: depends on the number of cores.
        device: auto, cpu, cuda, cuda:1, …
        precision: Compute precision; auto uses bf16 where the hardware supports it, else fp16 on a
            GPU and fp32 on a CPU.
        compile: Compile the network with torch.compile. Default: on GPUs, for runs of 5 epochs and
            more.
        sync_norms: Compute batch norm statistics over all processes.
        resume: Continue from the last checkpoint, bit for bit, with the same arguments; start a new
            run if none exists.
        retries: If the loss diverges, how many times to return to the last checkpoint and halve the
            learning rate.
        checkpoint_minutes: Minutes between checkpoints; one is also written after every epoch.
        minutes: Time for the whole run, with its report. Network and size, if they are not given,
            and the number of epochs are chosen from the images and the measured speed of this
            machine.
        dry_run: Stop after the forecast, before the first epoch; no model is written.
        overwrite: Replace the model file if it exists.
        index: Index the training images at the end, if that is quick, so that predict and explain
            show what an image is like, and predict which images are like none of the classes.
        teacher: Only from `distill`.
        unlabelled: Only from `distill`.
    """
    choices = {"--model": model, "--config": config, "--weights": weights}
    given = [option for option, value in choices.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"Give {' or '.join(given)}, not both: each defines the network.")
    from resnext.evaluation.label_doubts import read_doubts
    from resnext.neighbours.model_files import index_path
    from resnext.system.text import counted
    from resnext.training import train
    from resnext.training.recipe import parse_changes
    from resnext.training.teacher import comparison
    from resnext.weights.config_source import read_architecture

    fields = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    changes = [f"{name}={value}" for name, value in fields.items() if value is not None]
    network = train(
        data,
        model if config is None else read_architecture(config),
        weights=weights,
        teacher=teacher,
        unlabelled=unlabelled,
        out=out,
        recipe=recipe,
        size=size,
        seed=seed,
        val_fraction=val_fraction,
        workers=workers,
        device=device,
        precision=precision,
        compile=compile,
        sync_norms=sync_norms,
        resume=resume,
        retries=retries,
        checkpoint_minutes=checkpoint_minutes,
        minutes=minutes,
        dry_run=dry_run,
        overwrite=overwrite,
        index=index,
        **parse_changes([*changes, *set]),
    )
    if dry_run or int(os.environ.get("RANK", "0")):
        return
    card = network.card
    assert card is not None  # training always writes one
    accuracy, epoch = card.metrics["val_accuracy"], card.provenance["epoch"]
    kept = f"epoch {epoch}, " if epoch else ""  # the recipe probe has no epochs
    print(f"{out}: {kept}validation accuracy {accuracy:.2%}")
    if teacher is not None:
        print(f"{out}: {comparison(card, network.config)}")
    if index and index_path(out).exists():
        print(f"{index_path(out)}: index of the training images")
    folder = out.with_name(out.stem + ".run")
    print(f"{folder / 'report.html'}: training report")
    doubts = read_doubts(folder / "label_doubts.csv")
    if doubts and Path(doubts[0][0]).is_file():  # else there is nothing to review
        command = shlex.join(["resnext", "review", data, "--model", str(out)])
        print(f"{folder / 'label_doubts.csv'}: {counted(len(doubts), 'doubtful label')}; {command}")


@options_of(train)
def distill(teacher: str, /, *, data: str, unlabelled: Path | None = None, **options: Any) -> None:
    """Train a small classifier to give the answers of a larger one.

    Both see exactly the same views of the images, strongly augmented, for many epochs
    (arXiv:2106.05237). The teacher's probabilities replace the labels, which only choose the best
    epoch.

    Args:
        teacher: The trained classifier: a model file from any library, a catalog name,
            hf://owner/repo or a URL. It must have the classes of the data, in any order.
        data: Labelled images, as for train: a folder with one folder of images per class, or with
            train and val folders of that kind; tar shards; a CSV file; Parquet files; or `digits`.
        unlabelled: Folder of further images without classes, searched at any depth. They are
            trained on, never validated on.
        weights: Checkpoint that the student starts from, instead of a variant: a file from any
            library, a catalog name, hf://owner/repo or a URL.
        recipe: Training recipe, as for train. Default: distill.
        size: Image size in pixels, for student and teacher. Default: the teacher's.
        options: Options of `train`.
    """
    train(data, **options, teacher=teacher, unlabelled=unlabelled)
