"""`resnext catalog`, `convert`, `doctor` and `push`: find, convert, check and publish weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from resnext.cli.options import Flag, Several, check_outputs
from resnext.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cyclopts import Token


def catalog(
    *,
    licence: str | None = None,
    min_top1: float | None = None,
    max_gmacs: float | None = None,
    variant: str | None = None,
    plot: Path | None = None,
) -> None:
    """List public checkpoints, most accurate first; ● marks each that no cheaper one beats.

    Args:
        licence: `commercial` for any licence that allows commercial use, or one of apache-2.0,
            bsd-3-clause, cc-by-nc-4.0.
        min_top1: Minimum published ImageNet-1k accuracy in percent.
        max_gmacs: Maximum cost per image, in billions of multiply-accumulates.
        variant: Only checkpoints of this variant.
        plot: Draw a chart of accuracy against cost (.png, .svg or .pdf).
    """
    from resnext.cli.tables import catalog_table
    from resnext.system.terminal import new_console
    from resnext.weights.catalog import catalog

    check_outputs(plot)
    rows = catalog(licence=licence, min_top1=min_top1, max_gmacs=max_gmacs, variant=variant)
    if plot is not None:
        from resnext.cli.plots import plot_catalog

        plot_catalog(rows, plot)
    console = new_console()
    console.print(catalog_table(rows, console.width))
    console.print(f"\n{len(rows)} checkpoints. To use one: resnext predict NAME photos/")
    if plot is not None:
        print(f"{plot}: accuracy against cost")


def _target(_: object, tokens: Sequence[Token]) -> str:
    """Check the name of a library against the table of dialects."""
    from resnext.weights.conversion import find_target

    try:
        find_target(tokens[0].value)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    return tokens[0].value


def convert(
    source: str,
    path: Path,
    /,
    *,
    to: Annotated[
        Literal["torchvision", "timm", "mmcls", "mmdet", "lucid", "resnext"],
        Parameter(converter=_target),  # also accepts rows added to the table of dialects
    ] = "resnext",
    images: Annotated[tuple[Path, ...], Several] = (),
    labels: str | None = None,
    overwrite: Flag = False,
) -> None:
    """Convert a checkpoint to the format of another library, and verify that outputs are equal.

    Args:
        source: A file from any library, a catalog name, hf://owner/repo or a URL.
        path: File to write; its suffix chooses the format.
        to: Library to convert for.
        images: Photos to compare outputs on, in addition to random images.
        labels: Class names that replace those of the source: `imagenet-1k`, or a text file with
            one name per line.
        overwrite: Replace the file if it exists.
    """
    from resnext.weights.catalog import read_labels
    from resnext.weights.conversion import convert

    names = None if labels is None else read_labels(labels)
    done = convert(
        source, path, to=to, images=images, labels=names, overwrite=overwrite, progress=True
    )
    parity = done.parity
    photos = f", {parity.photographs} of them photos" if parity.photographs else ""
    print(
        f"{done.path}: {done.source} → {done.target}. Logits differ by at most "
        f"{parity.difference:.2g} (largest logit {parity.largest:.2g}) on {parity.images} images"
        f"{photos}, as computed by {parity.through}"
    )


def doctor(file: Path, /) -> None:
    """Describe a checkpoint file: its contents, its problems and the next step.

    No code in the file is executed. The exit code is 1 if a problem is found.

    Args:
        file: A checkpoint file from any library, or a folder that contains one.
    """
    from resnext.cli.tables import diagnosis_table
    from resnext.exporting.examine import examine
    from resnext.inference.exported import Exported, is_exported
    from resnext.system.terminal import print_table
    from resnext.weights.diagnosis import diagnose

    diagnosis = examine(Exported(file)) if is_exported(file) else diagnose(file)
    print_table(diagnosis_table(diagnosis))
    sys.exit(1 if diagnosis.problems else 0)


def push(
    file: str,
    repo: str,
    /,
    *,
    private: Flag = False,
) -> None:
    """Upload a model to the Hugging Face Hub, with a generated model card.

    Args:
        file: A model file.
        repo: Repository to upload to: owner/name.
        private: Make a newly created repository private.
    """
    from resnext.weights.hub import push
    from resnext.weights.load import load_classifier

    print(push(load_classifier(file, progress=True), repo, private=private))
