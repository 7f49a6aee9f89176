"""The command line: one function for each command. Heavy imports wait until they are needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Group, Parameter

from resnext import __version__
from resnext.errors import ResNeXtError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Column

    from resnext.evaluation import Evaluation
    from resnext.prediction import Picture

app = App(
    name="resnext",
    help="Train, evaluate, run and inspect ResNeXt networks.",
    version=__version__,
    version_flags=["--version"],
    result_action="return_value",
)
app.meta.group_parameters = Group("Everywhere", sort_key=9)


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
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    """Entry point of the `resnext` command."""
    try:
        app.meta(sys.argv[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(f"{error} See resnext --help.")


@app.command
def info(
    name: str | None = None,
    /,
    *,
    size: Annotated[int | None, Parameter(name=["--size", "-s"])] = None,
) -> None:
    """Show what a network costs, stage by stage. Without a name, list the variants.

    Args:
        name: A variant (`resnext50_32x4d`, as torchvision, timm, Lucid or mmcls spell it) or a
            model file.
        size: Side of the images, pixels. By default 224, or 32 for small-image networks.
    """
    from rich.console import Console
    from rich.table import Table

    from resnext.summary import summarize
    from resnext.zoo import variant, variants

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
    path = Path(name)
    if path.exists() or path.suffix == ".safetensors" or "/" in name:
        from resnext.header import read_header

        config, card = read_header(path)
        if size is None:
            size = card.preprocessing.size
    else:
        config = variant(name)
    cost = summarize(config, size)
    columns = ("Output", "Blocks", "Width", "Groups", "Parameters", "GMACs", "Field")
    table = Table("Stage", *_right(*columns), box=None, header_style="bold")
    for row in cost.rows:
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
    total = f"{cost.parameters:,}", f"{cost.macs / 1e9:.2f}", str(cost.receptive_field)
    table.add_row("total", "", "", "", "", *total, style="bold")
    console.print(f"[bold]{name}[/] for images of {cost.size[0]}×{cost.size[1]} pixels")
    console.print(f"{config!r}\n", highlight=False)
    console.print(table)


@app.command
def train(
    data: str,
    /,
    *,
    model: Annotated[str, Parameter(name=["--model", "-m"])] = "resnext50_32x4d",
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("model.safetensors"),
    recipe: Literal["small", "digits"] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: Annotated[float | None, Parameter(name=["--learning-rate", "--lr"])] = None,
    size: int | None = None,
    seed: int = 0,
    val_fraction: float = 0.2,
    workers: int | None = None,
    device: str = "auto",
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train a classifier from scratch; writes one file with weights, labels and preprocessing.

    Args:
        data: A folder of class folders, a folder with train and val inside, or `digits`.
        model: Name of a variant; `resnext info` lists them.
        out: File to write. It always holds the best epoch so far.
        recipe: How to train; by default `digits` for the digits and `small` for folders.
        epochs: Passes over the training images, in place of the recipe's.
        batch_size: Images of a step, in place of the recipe's.
        learning_rate: Highest rate, in place of the recipe's.
        size: Side of the images that the network sees, pixels.
        seed: Decides everything that is left to chance.
        val_fraction: Part of each class that is held out where the data has no val folder.
        workers: Processes that decode images.
        device: auto, cpu, cuda, cuda:1, …
        overwrite: Replace the file if it exists.
    """
    from resnext.training import train

    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    network = train(
        data,
        model,
        out=out,
        recipe=recipe,
        size=size,
        seed=seed,
        val_fraction=val_fraction,
        workers=workers,
        device=device,
        overwrite=overwrite,
        **{name: value for name, value in given.items() if value is not None},
    )
    card = network.card
    assert card is not None  # training always writes one
    accuracy, epoch = card.metrics["val_accuracy"], card.provenance["epoch"]
    print(f"{out}: epoch {epoch}, {accuracy:.2%} of the validation images right")


@app.command
def evaluate(
    file: Path,
    data: str,
    /,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
) -> None:
    """Measure a model on images it has not learnt from.

    Args:
        file: A model file that training wrote.
        data: A folder of class folders, one with val or test inside, or `digits`. Of the folder
            it was trained on, only the images held out are used.
        batch_size: Images at a time.
        workers: Processes that decode images.
        device: auto, cpu, cuda, cuda:1, …
    """
    from resnext.evaluation import evaluate

    result = evaluate(
        file, data, batch_size=batch_size, workers=workers, device=device, progress=True
    )
    _print_evaluation(result)


@app.command
def predict(
    file: Path,
    /,
    *images: str,
    top: int = 1,
    sheet: Path | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> None:
    """Classify images.

    Args:
        file: A model file that training wrote.
        images: Files and folders; or `digits` for handwritten digits the model has not seen.
        top: Number of classes to show for each image.
        sheet: Draw images and answers into this picture (.png).
        limit: Take no more images than this.
        batch_size: Images at a time.
        device: auto, cpu, cuda, cuda:1, …
    """
    from rich.console import Console
    from rich.table import Table

    from resnext.prediction import named, predict, unseen
    from resnext.weights import load

    if limit is not None and limit < 1:
        raise ResNeXtError(f"--limit must be at least 1, not {limit}.")
    model = load(file)
    pictures: Sequence[Picture]
    if images == ("digits",):
        pictures = unseen(model, "digits", limit or 359)
    else:
        pictures = [picture for _, picture in named(images)][:limit]
    predictions = predict(
        model, pictures, top=top, batch_size=batch_size, device=device, progress=True
    )
    table = Table("Image", "Class", *_right("Probability"), box=None, header_style="bold")
    for prediction in predictions:
        answers = zip(prediction.labels, prediction.probabilities, strict=True)
        for i, (label, probability) in enumerate(answers):
            table.add_row("" if i else prediction.name, label, f"{probability:.2%}")
    Console().print(table)
    if sheet is not None:
        from resnext.sheet import draw_sheet, save_sheet

        save_sheet(draw_sheet(pictures, predictions), sheet)
        print(f"{sheet}: {len(predictions)} images and what was seen in them")


def _print_evaluation(result: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("Class", *_right("Images", "Right", "Often taken for"), box=None)
    confusion = result.confusion
    for i, (label, recall) in enumerate(zip(result.labels, result.recall(), strict=True)):
        wrong = confusion[i].copy()
        wrong[i] = 0
        other = f"{result.labels[wrong.argmax()]} ({wrong.max()})" if wrong.any() else ""
        right = f"{recall:.1%}" if confusion[i].any() else "–"
        table.add_row(label, str(confusion[i].sum()), right, other)
    console.print(table)
    top5 = "" if result.top5 is None else f", top-5 {result.top5:.2%}"
    console.print(
        f"\n{result.data}: {result.count} images, accuracy [bold]{result.accuracy:.2%}[/]{top5}, "
        f"negative log-likelihood {result.nll:.4f}",
        highlight=False,
    )


def _right(*names: str) -> list[Column]:
    from rich.table import Column

    return [Column(name, justify="right") for name in names]


def _fail(message: str) -> None:
    print(f"resnext: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(2)
