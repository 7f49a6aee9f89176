"""The command line: one function for each command. Heavy imports wait until they are needed."""

from __future__ import annotations

import math
import os
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter

from resnext.errors import CheckpointError, ResNeXtError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cyclopts import Token
    from rich.table import Column

    from resnext.evaluation.classification import Evaluation
    from resnext.prediction.images import Picture

app = App(
    name="resnext",
    help="Train, evaluate, run and inspect ResNeXt networks.",
    version=version("resnext"),
    version_flags=["--version"],
    help_format="rich",  # `resnext --help` has no Markdown, whose parser takes a fifth of its time
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # SIGTERM has an exit code of its own
)
app.meta.group_parameters = Group("Everywhere", sort_key=9)
_command = partial(app.command, help_format="markdown")


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Run a command.

    Args:
        tokens: The command and its arguments.
        debug: Show the whole traceback of an error.
    """
    if debug:
        app(tokens, exit_on_error=False, print_error=False)
        return
    try:
        app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(f"{error} See resnext --help.")
    except (ResNeXtError, OSError) as error:
        _fail(str(error))
    except MemoryError:
        _fail("The memory is full. Lower --batch-size or --size.")
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        _fail("The memory is full. Lower --batch-size or --size.")
    except KeyboardInterrupt as error:
        sys.exit(143 if type(error).__name__ == "Terminated" else 130)  # 128 + the signal


def main() -> None:
    """Entry point of the `resnext` command."""
    try:
        app.meta(sys.argv[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(f"{error} See resnext --help.")


@_command
def info(
    name: str | None = None,
    /,
    *,
    size: Annotated[int | None, Parameter(name=["--size", "-s"])] = None,
) -> None:
    """Show what a network costs, stage by stage. Without a name, list the variants.

    Args:
        name: A variant (`resnext50_32x4d`, as torchvision, timm, Lucid or mmcls spell it) or a
            model file of any library.
        size: Side of the images, pixels. By default 224, or 32 for small-image networks.
    """
    from rich.console import Console
    from rich.table import Table

    from resnext.architectures import variant, variants
    from resnext.summary import summarize

    console = Console()
    if name is None:
        table = Table("Name", *_right("Size", "Parameters", "GMACs"), box=None, header_style="bold")
        for known in variants():
            cost = summarize(variant(known), size)
            table.add_row(
                known, str(cost.size[0]), f"{cost.parameters:,}", f"{cost.macs / 1e9:.2f}"
            )
        console.print(table)
        return
    from resnext.weights.catalog import exact, is_path

    classifier = True
    if row := exact(name):
        config, size = row.config, size or row.size
    elif is_path(name) or Path(name).exists():
        from resnext.weights.header import read_header

        try:
            config, card = read_header(name)  # all that is needed of our own files
        except CheckpointError:
            from resnext.weights.resolve import resolve

            found = resolve(name, progress=True)
            config, card, classifier = found.config, found.card, found.classifier
        size = size or card.preprocessing.size
    else:
        config = variant(name)
    cost = summarize(config, size)
    columns = ("Output", "Blocks", "Width", "Groups", "Parameters", "GMACs", "Field")
    table = Table("Stage", *_right(*columns), box=None, header_style="bold")
    for row in cost.rows if classifier else cost.rows[:-1]:
        h, w = row.size
        table.add_row(
            row.name,
            f"{row.channels:,} × {h}×{w}",
            str(row.blocks or ""),
            str(row.width or ""),
            str(row.groups if row.blocks else ""),
            f"{row.parameters:,}",
            f"{row.macs / 1e9:.3f}",
            str(row.receptive_field or "all"),
        )
    table.add_section()
    parameters = cost.parameters - (0 if classifier else cost.rows[-1].parameters)
    total = f"{parameters:,}", f"{cost.macs / 1e9:.2f}", str(cost.receptive_field)
    table.add_row("total", "", "", "", "", *total, style="bold")
    console.print(f"[bold]{_plain(name)}[/] for images of {cost.size[0]}×{cost.size[1]} pixels")
    console.print(f"{config!r}\n", highlight=False)
    console.print(table)


@_command
def train(
    data: str,
    /,
    *,
    model: Annotated[str | None, Parameter(name=["--model", "-m"])] = None,
    weights: Annotated[str | None, Parameter(name=["--weights", "-w"])] = None,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("model.safetensors"),
    recipe: Annotated[str | None, Parameter(name=["--recipe", "-r"])] = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: Annotated[float | None, Parameter(name=["--learning-rate", "--lr"])] = None,
    set: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    size: int | None = None,
    seed: int = 0,
    val_fraction: float = 0.2,
    workers: int | None = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    compile: bool | None = None,
    sync_norms: Annotated[bool, Parameter(negative="")] = False,
    resume: Annotated[bool, Parameter(negative="")] = False,
    retries: int = 0,
    checkpoint_minutes: float = 5.0,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train a classifier; writes one file with weights, labels and preprocessing, and a report.

    Several processes train together: torchrun --nproc-per-node 2 -m resnext train …

    Args:
        data: A folder of class folders, a folder with train and val inside, tar shards
            (`shards/train-{000..009}.tar`, also https:// and s3://), a folder of idx files, a CSV
            file with the columns path and label, a Hugging Face folder of parquet, or `digits`.
        model: Name of a variant; `resnext info` lists them. By default resnext50_32x4d.
        weights: What to start from, in place of a model: a file of any library, a name of the
            catalog, hf://owner/repo or a URL.
        out: File to write. It always holds the best epoch so far. A folder of the same name with
            the ending .run holds checkpoints, metrics and report.html.
        recipe: How to train: small, large, finetune, paper, torchvision_v2, rsb_a1, rsb_a2, rsb_a3,
            cifar, digits, or one's own as file.py:name. By default what fits the data.
        epochs: Passes over the training images, in place of the recipe's.
        batch_size: Images of a step, over all processes, in place of the recipe's; the rate
            follows.
        learning_rate: Highest rate, in place of the recipe's.
        set: Other fields of the recipe, such as `--set mixup=0.2 --set ema=0.999`.
        size: Side of the images that the network sees, pixels.
        seed: Decides everything that is left to chance.
        val_fraction: Part of each class that is held out where the data has no val folder.
        workers: Processes that decode images.
        device: auto, cpu, cuda, cuda:1, …
        precision: What to multiply in; auto takes bf16 where the hardware has it.
        compile: Compile the network; by default on GPUs.
        sync_norms: Let batch norms see the images of all processes.
        resume: Go on from the last checkpoint, bit for bit; start if there is none.
        retries: How often to go back to the last checkpoint and halve the rate if the loss
            diverges.
        checkpoint_minutes: Time between checkpoints; there is one after each epoch too.
        overwrite: Replace the file if it exists.
    """
    from resnext.training import train
    from resnext.training.recipe import parse_changes

    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    network = train(
        data,
        model,
        weights=weights,
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
        overwrite=overwrite,
        **parse_changes(
            [f"{name}={value}" for name, value in given.items() if value is not None] + [*set]
        ),
    )
    if int(os.environ.get("RANK", "0")):
        return
    card = network.card
    assert card is not None  # training always writes one
    accuracy, epoch = card.metrics["val_accuracy"], card.provenance["epoch"]
    print(f"{out}: epoch {epoch}, {accuracy:.2%} of the validation images right")
    print(f"{out.with_name(out.stem + '.run') / 'report.html'}: the report")


@_command
def evaluate(
    file: str,
    data: str,
    /,
    *,
    views: Literal[1, 2, 10] = 1,
    against: str | None = None,
    json: Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    plan: bool = True,
) -> None:
    """Measure a model on images it has not learnt from.

    Args:
        file: A model file, of any library if it names its classes, or a name of the catalog.
        data: A folder of class folders, one with val or test inside, or `digits`. Of the folder
            it was trained on, only the images held out are used.
        views: Views of each image to average over: 2 adds the mirror image, 10 takes the corners
            and the centre, each mirrored too. Do not mirror digits or text.
        against: Another model to compare with, on the same images.
        json: Write the numbers into this file too.
        batch_size: Images at a time.
        workers: Processes that decode images.
        device: auto, cpu, cuda, cuda:1, …
        plan: Compute as the plan says that `resnext optimize` left beside the file.
    """
    from resnext.evaluation.classification import Comparison, compare, evaluate

    if json is not None and (json.is_dir() or not json.parent.is_dir()):
        raise ResNeXtError(f"{json} cannot be written: give a file in a folder that exists.")
    how: dict[str, Any] = {"views": views, "batch_size": batch_size, "workers": workers}
    how |= {"device": device, "plan": plan, "progress": True}
    result = compare(file, against, data, **how) if against else evaluate(file, data, **how)
    first = result.a if isinstance(result, Comparison) else result
    _print_evaluation(first)
    if isinstance(result, Comparison):
        print(
            f"{against}: accuracy {result.b.accuracy:.2%}. Only {file} has {result.only_a:,} "
            f"images right, only the other {result.only_b:,}; chance alone divides them at least "
            f"so unevenly with probability {result.p:.2g} (McNemar's exact test)"
        )
    if json is not None:
        _write_json(json, result.to_dict())
        print(f"{json}: the same as numbers, with every class")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    from json import dumps

    from resnext.system.atomic import write_bytes_atomically

    text = dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes_atomically(path, text.encode())


@_command
def predict(
    file: str,
    /,
    *images: str,
    top: int = 1,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    embeddings: Path | None = None,
    sheet: Path | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    plan: bool = True,
    ray: Annotated[bool, Parameter(negative="")] = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Classify images; with --out any number of them, and a second call goes on where one ended.

    Args:
        file: A model file, of any library if it names its classes, or a name of the catalog.
        images: Files and folders; or `digits` for handwritten digits the model has not seen.
        top: Number of classes to show for each image.
        out: Write the answers into this file (.csv, .jsonl or .parquet) in place of a table;
            images that cannot be read are named in it.
        embeddings: With --out, write the network's features into this file too (.npy).
        sheet: Draw images and answers into this picture (.png).
        limit: Take no more images than this.
        batch_size: Images at a time; by default 64, or what the plan was made for.
        workers: With --out, threads that decode images.
        device: auto, cpu, cuda, cuda:1, …
        plan: Compute as the plan says that `resnext optimize` left beside the file.
        ray: With --out, predict on a cluster, with Ray Data.
        overwrite: With --out, start again and replace the file.
    """
    if limit is not None and limit < 1:
        raise ResNeXtError(f"--limit must be at least 1, not {limit}.")
    if out is not None:
        if sheet is not None or limit is not None or images == ("digits",):
            raise ResNeXtError("--out takes files and folders, without --sheet and --limit.")
        how: dict[str, Any] = {"top": top, "batch_size": batch_size, "overwrite": overwrite}
        if not ray:
            how |= {"embeddings": embeddings, "workers": workers, "device": device}
        elif embeddings is not None:
            raise ResNeXtError("--embeddings cannot be written with --ray.")
        _predict_files(file, images, out, plan, ray, how)
        if embeddings is not None:
            print(f"{embeddings}: their embeddings")
        return
    given = {"--embeddings": embeddings, "--workers": workers, "--ray": ray or None}
    if alone := [name for name, value in given.items() if value is not None]:
        raise ResNeXtError(f"{alone[0]} belongs to --out FILE, which writes the answers.")
    from rich.console import Console
    from rich.table import Table

    from resnext.inference.opener import open_runner
    from resnext.prediction.images import expand_images, held_out_images, predict

    batch = 64 if batch_size is None else batch_size
    pictures: Sequence[Picture] = (
        () if images == ("digits",) else [p for _, p in expand_images(images)]
    )
    count = limit or len(pictures) or 359
    model = open_runner(file, device=device, batch=min(batch, count), plan=plan, progress=True)
    pictures = pictures[:limit] if pictures else held_out_images(model, "digits", count)
    predictions = predict(model, pictures, top=top, batch_size=batch, progress=True)
    table = Table("Image", "Class", *_right("Probability"), box=None, header_style="bold")
    for prediction in predictions:
        answers = zip(prediction.labels, prediction.probabilities, strict=True)
        for i, (label, probability) in enumerate(answers):
            name = "" if i else _plain(prediction.name)
            mark = " ?" if i == 0 and not prediction.sure else ""
            table.add_row(name, _plain(label) + mark, f"{probability:.2%}")
    Console().print(table)
    if unsure := sum(not prediction.sure for prediction in predictions):
        threshold = predictions[0].threshold
        print(
            f"? marks {unsure:,} of {len(predictions):,} answers: below {threshold:.2%}, not sure"
        )
    if sheet is not None:
        from resnext.prediction.contact_sheet import draw_sheet, save_sheet

        save_sheet(draw_sheet(pictures, predictions), sheet)
        print(f"{sheet}: {len(predictions)} images and what was seen in them")


def _predict_files(
    file: str, images: tuple[str, ...], out: Path, plan: bool, ray: bool, how: dict[str, Any]
) -> None:
    """`predict --out`, here or on a cluster."""
    if ray:
        from resnext.prediction.ray import predict_files_with_ray

        done = predict_files_with_ray(file, images, out, plan=plan, progress=True, **how)
    else:
        from resnext.inference.opener import open_runner
        from resnext.prediction.files import predict_files

        batch = 64 if how["batch_size"] is None else how["batch_size"]
        device = how.pop("device")
        runner = open_runner(file, device=device, batch=batch, plan=plan, progress=True)
        done = predict_files(runner, images, out, progress=True, **how)
    before = f", {done.resumed:,} of them before" if done.resumed else ""
    bad = f"; {done.unreadable:,} could not be read" if done.unreadable else ""
    print(f"{out}: {done.count:,} images{before}, {done.images_per_second:,.1f} images/s{bad}")


@_command
def optimize(
    file: str,
    /,
    *,
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto",
    engine: Literal["auto", "torch", "compile", "tensorrt", "onnxruntime", "openvino"] = "auto",
    batch_size: Annotated[int, Parameter(name=["--batch-size", "-b"])] = 16,
    data: str | None = None,
    device: str = "auto",
    again: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Find the fastest way to run a model on this machine, and remember it beside the file.

    Args:
        file: A model file.
        precision: What to compute in; auto takes the fastest that agrees with the network.
        engine: What to compute with; auto times what is installed.
        batch_size: Images at a time to be fast with.
        data: Images with known classes that the model has not learnt from, as for evaluate: to
            agree on, and to calibrate 8 bits with.
        device: auto, cpu, cuda, cuda:1, …
        again: Measure even if it is remembered.
    """
    if not Path(file).is_file():
        raise ResNeXtError(f"{file} is no file. A plan is kept beside a model's file.")
    from resnext.inference.optimize import optimize

    found = optimize(
        file,
        precision=precision,
        engine=engine,
        batch=batch_size,
        data=data,
        device=device,
        again=again,
        progress=True,
    )
    print(found.explain())
    print(f"\n{found.save_plan(file)}: predict and evaluate use it from now on")


@_command
def bench(
    model: str = "resnext50_32x4d",
    /,
    *,
    batch_size: Annotated[tuple[int, ...], Parameter(negative="", show_default=False)] = (),
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto",
    data: str | None = None,
    compiled: Annotated[bool, Parameter(negative="")] = False,
    plot: Path | None = None,
    json: Path | None = None,
) -> None:
    """Time torchvision, timm, ONNX Runtime, OpenVINO and this library side by side.

    Args:
        model: A variant or a model file.
        batch_size: Images at a time, once for each; by default 1 and 16.
        precision: What this library computes in.
        data: Images with known classes, to calibrate 8 bits with.
        compiled: Time torch.compile too, which takes minutes.
        plot: Draw the result into this file (.png, .svg or .pdf).
        json: Write the numbers into this file.
    """
    from resnext.benchmark.timing import bench

    result = bench(
        model,
        batches=batch_size or (1, 16),
        precision=precision,
        data=data,
        compiled=compiled,
        progress=True,
    )
    print(result.table())
    if json is not None:
        _write_json(json, result.to_dict())
    if plot is not None:
        from resnext.cli.plots import plot_benchmark

        plot_benchmark(result, plot)
        print(f"{plot}: the same as a picture")


@_command
def catalog(
    *,
    licence: str | None = None,
    min_top1: float | None = None,
    max_gmacs: float | None = None,
    variant: str | None = None,
    plot: Path | None = None,
) -> None:
    """List the public checkpoints, most accurate first; ● marks what nothing cheaper beats.

    Args:
        licence: `commercial` for those that may be used commercially, or one of apache-2.0,
            bsd-3-clause, cc-by-nc-4.0.
        min_top1: Least published accuracy on ImageNet-1k, per cent.
        max_gmacs: Most multiply-accumulates for one image, billions.
        variant: Only of this architecture.
        plot: Draw accuracy against cost into this file (.png, .svg or .pdf).
    """
    from rich.console import Console
    from rich.table import Column, Table

    from resnext.weights.catalog import catalog, frontier

    rows = catalog(licence=licence, min_top1=min_top1, max_gmacs=max_gmacs, variant=variant)
    best = {row.name for row in frontier(rows)}
    columns = _right("Top-1", "Top-5", "GMACs", "Size")
    name = Column("Name", overflow="fold")
    table = Table("", name, *columns, "Licence", box=None, header_style="bold")
    for row in rows:
        accuracies = ["–" if x is None else f"{x:.2f}" for x in (row.top1, row.top5)]
        mark = "●" if row.name in best else ""
        cost = f"{row.gmacs:.1f}"
        table.add_row(mark, row.name, *accuracies, cost, str(row.size), row.licence or "not stated")
    if plot is not None:
        from resnext.cli.plots import plot_catalog

        plot_catalog(rows, plot)
    console = Console()
    console.print(table)
    console.print(f"\n{len(rows)} checkpoints. Use one: resnext predict NAME photos/")
    if plot is not None:
        print(f"{plot}: accuracy against cost")


def _target(kind: object, tokens: Sequence[Token]) -> str:
    """Check the name of a library against the table of dialects."""
    from resnext.weights.conversion import find_target

    try:
        find_target(tokens[0].value)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    return tokens[0].value


@_command
def convert(
    source: str,
    path: Path,
    /,
    *,
    to: Annotated[
        Literal["torchvision", "timm", "mmcls", "mmdet", "lucid", "resnext"],
        Parameter(converter=_target),  # takes what was added to the table of dialects too
    ] = "resnext",
    images: Annotated[tuple[Path, ...], Parameter(negative="", show_default=False)] = (),
    labels: str | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a checkpoint as a file of another library, and prove that it answers the same.

    Args:
        source: A file of any library, a name of the catalog, hf://owner/repo or a URL.
        path: File to write; its suffix chooses the format.
        to: The library it is for.
        images: Photographs to compare the answers on, beside random images.
        labels: Names of the classes, where the source has none: a text file with one in each
            line, or `imagenet-1k`.
        overwrite: Replace the file if it exists.
    """
    from resnext.weights.catalog import read_labels
    from resnext.weights.conversion import convert

    names = None if labels is None else read_labels(labels)
    done = convert(
        source, path, to=to, images=images, labels=names, overwrite=overwrite, progress=True
    )
    parity = done.parity
    print(
        f"{done.path}: {done.source} → {done.target}. Largest difference of an answer "
        f"{parity.difference:.2g} of {parity.largest:.2g}, over {parity.images} images "
        f"({parity.photographs} photographs), computed by {parity.through}"
    )


@_command
def doctor(file: Path, /) -> None:
    """Say what a file of weights is, what is wrong with it and what to do next.

    Nothing in the file is executed. The exit code is 1 if there is a problem.

    Args:
        file: A file of weights, or a folder with one.
    """
    from rich.console import Console
    from rich.table import Table

    from resnext.weights.diagnosis import diagnose

    found = diagnose(file)
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in found.facts():
        table.add_row(name, _plain(value))
    for title, lines, mark in (
        ("Notes", found.notes, "·"),
        ("Problems", found.problems, "✗"),
        ("Next", found.advice, "→"),
    ):
        for i, line in enumerate(lines):
            table.add_row("" if i else title, f"{mark} {_plain(line)}")
    if not found.problems:
        table.add_row("Health", "✓ every number is finite, every norm is alive")
    Console().print(table)
    sys.exit(1 if found.problems else 0)


@_command
def push(
    file: str,
    repo: str,
    /,
    *,
    private: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Upload a model with a generated model card to the Hugging Face Hub.

    Args:
        file: A model file.
        repo: Where to: owner/name.
        private: Make a new repository private.
    """
    from resnext.weights.hub import push
    from resnext.weights.load import load_classifier

    print(push(load_classifier(file, progress=True), repo, private=private))


def _print_evaluation(result: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    confusion = result.confusion
    columns = ("Images", "Recall", "Precision", "F1", "Often taken for")
    table = Table("Class", *_right(*columns), box=None)
    scores = [*zip(result.recall(), result.precision(), result.f1(), strict=True)]
    shown = list(range(len(scores)))
    if len(shown) > 40:
        shown = sorted((i for i in shown if confusion[i].any()), key=lambda i: scores[i][2])[:20]
    for i in shown:
        wrong = confusion[i].copy()
        wrong[i] = 0
        other = f"{_plain(result.labels[wrong.argmax()])} ({wrong.max()})" if wrong.any() else ""
        numbers = ["–" if math.isnan(x) else f"{x:.1%}" for x in scores[i]]
        table.add_row(_plain(result.labels[i]), str(confusion[i].sum()), *numbers, other)
    console.print(table)
    if len(shown) < len(scores):
        print(f"These are the {len(shown)} classes of {len(scores):,} with the lowest F1")
    if frequent := result.confusions(5):
        pairs = Table("Right", "Predicted", *_right("Times"), box=None)
        for right, predicted, times in frequent:
            pairs.add_row(_plain(right), _plain(predicted), f"{times:,}")
        console.print("\nMost frequent confusions", style="bold")
        console.print(pairs)
    low, high = result.interval()
    top5 = "" if result.top5 is None else f", top-5 {result.top5:.2%}"
    console.print(
        f"\n{_plain(result.data)}: {result.count:,} images, accuracy "
        f"[bold]{result.accuracy:.2%}[/] (95 % interval {low:.2%} to {high:.2%}){top5}, "
        f"negative log-likelihood {result.nll:.4f}, calibration error {result.ece:.2%}",
        highlight=False,
    )
    if result.skipped:
        more = f" and {len(result.skipped) - 5} more" if len(result.skipped) > 5 else ""
        names = ", ".join(_plain(name) for name in result.skipped[:5])
        console.print(f"Could not be read and left out: {names}{more}", highlight=False)


def _plain(text: str) -> str:
    """Text of others, as it may be printed: no markup, no commands for the terminal."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _right(*names: str) -> list[Column]:
    from rich.table import Column

    return [Column(name, justify="right") for name in names]


def _fail(message: str) -> None:
    line = "".join(c if c.isprintable() else " " for c in " ".join(message.splitlines()))
    print(f"resnext: {line}", file=sys.stderr)
    sys.exit(2)
