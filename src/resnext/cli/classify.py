"""`resnext evaluate` and `resnext predict`: run a classifier over images."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from resnext.cli.options import (
    STANDARD_INPUT,
    Flag,
    OptionalWhole,
    Whole,
    check_outputs,
    with_given,
    write_json,
)
from resnext.cli.unreadable import Unreadable, not_read
from resnext.errors import ResNeXtError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resnext.neighbours.index import Neighbour
    from resnext.prediction.inputs import Picture


def evaluate(
    file: str,
    data: str,
    /,
    *,
    views: Literal[1, 2, 10] = 1,
    against: str | None = None,
    json: Path | None = None,
    batch_size: OptionalWhole = None,
    workers: Whole = 0,
    device: str = "auto",
    plan: bool = True,
    labels: str | None = None,
    size: OptionalWhole = None,
    mean: str | None = None,
    std: str | None = None,
) -> None:
    """Measure accuracy and calibration on labelled images the model was not trained on.

    Args:
        file: A model file from any library that contains the class names, or a catalog name.
        data: A folder with one folder of images per class, or with val or test folders of that
            kind; any other data that train accepts; or `digits`. From the data the model was
            trained on, only the held-out images are used.
        views: Test-time augmentation, the number of views averaged per image: 2 adds the mirror
            image; 10 takes the corners and the centre, each also mirrored. Do not mirror digits or
            text.
        against: A second model to compare with on the same images.
        json: Also write the results to this JSON file.
        batch_size: Images per batch. Default: the batch size of the plan; without a plan 16 on a
            CPU, 64 on a GPU.
        workers: Number of processes that decode images.
        device: auto, cpu, cuda, cuda:1, …
        plan: Use the plan that `resnext optimize` saved next to the model file.
        labels: For an ONNX or OpenVINO file from another program: its class names, as a text file
            with one name a line, or imagenet-1k. For this and the next three, the default is what
            its metadata say.
        size: Its image size, pixels.
        mean: Its means of each channel, for values from 0 to 1: 0.485,0.456,0.406.
        std: Its standard deviations of each channel.
    """
    from resnext.cli.tables import print_evaluation
    from resnext.evaluation.classification import compare, evaluate
    from resnext.evaluation.comparison import Comparison

    check_outputs(json)
    options: dict[str, Any] = {"views": views, "batch_size": batch_size, "workers": workers}
    options |= {"device": device, "plan": plan, "progress": True}
    model = with_given(file, labels, size, mean, std, plan)
    result = (
        compare(model, against, data, **options) if against else evaluate(model, data, **options)
    )
    print_evaluation(result.a if isinstance(result, Comparison) else result)
    if isinstance(result, Comparison):
        print(
            f"\n{against}: accuracy {result.b.accuracy:.2%}\n"
            f"Only {file} is right on {result.only_a:,} images, only {against} on "
            f"{result.only_b:,}; p = {result.p:.2g} (McNemar's exact test)"
        )
    if json is not None:
        write_json(json, result.to_dict())
        print(f"{json}: all results, with every class")


def predict(
    file: str,
    /,
    *images: str,
    top: Whole = 1,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    embeddings: Path | None = None,
    sheet: Path | None = None,
    limit: OptionalWhole = None,
    batch_size: OptionalWhole = None,
    workers: OptionalWhole = None,
    device: str = "auto",
    plan: bool = True,
    like: OptionalWhole = None,
    similar: Path | None = None,
    index: Path | None = None,
    ray: Flag = False,
    overwrite: Flag = False,
    labels: str | None = None,
    size: OptionalWhole = None,
    mean: str | None = None,
    std: str | None = None,
) -> None:
    """Classify images, and print a table or write the predictions to a file.

    With --out, the number of images is unlimited, and an interrupted run continues when the same
    command is run again.

    Args:
        file: A model file from any library that contains the class names, or a catalog name.
        images: Image files and folders, searched at any depth; `-` for an image on standard input;
            or `digits` for handwritten digits that the model was not trained on.
        top: Number of classes to show for each image.
        out: Write the predictions to this file (.csv, .jsonl or .parquet) instead of printing a
            table. An image that cannot be read gets a row with the error.
        embeddings: With --out, also write the embeddings to this file (.npy).
        sheet: Draw the images with their predictions as one picture (.png).
        limit: Classify at most this many images.
        batch_size: Images per batch. Default: the batch size of the plan; without a plan 16 on a
            CPU, 64 on a GPU.
        workers: With --out, number of threads that decode images. Default: one per core, at most
            16.
        device: auto, cpu, cuda, cuda:1, …
        plan: Use the plan that `resnext optimize` saved next to the model file.
        like: Also show this many similar images of each of the two most likely classes, which
            `resnext index` or train has indexed.
        similar: Classify nothing; show the images of the index that are most like this one, as many
            as --like says. Default: 10.
        index: Index to search. Default: the one next to the model file.
        ray: With --out, run on a cluster with Ray Data.
        overwrite: With --out, replace the file if it exists.
        labels: For an ONNX or OpenVINO file from another program: its class names, as a text file
            with one name a line, or imagenet-1k. For this and the next three, the default is what
            its metadata say.
        size: Its image size, pixels.
        mean: Its means of each channel, for values from 0 to 1: 0.485,0.456,0.406.
        std: Its standard deviations of each channel.
    """
    if limit is not None and limit < 1:
        raise ResNeXtError(f"--limit must be at least 1, not {limit}.")
    if similar is not None:
        if images or out is not None:
            raise ResNeXtError("--similar takes one image; leave out other images and --out.")
        if like is not None and like < 1:
            raise ResNeXtError(f"--like must be at least 1, not {like}.")
        _print_similar(file, similar, 10 if like is None else like, index, sheet, device, plan)
        return
    from resnext.data.open import BUILT_IN

    options: dict[str, Any]
    built_in = images[0] if len(images) == 1 and images[0] in BUILT_IN else None
    if out is not None:
        if STANDARD_INPUT in images:
            raise ResNeXtError("--out takes files and folders, not - for standard input.")
        if built_in or any(x is not None for x in (sheet, limit, like)):
            raise ResNeXtError("--out takes files and folders, without --sheet, --limit, --like.")
        options = {"top": top, "batch_size": batch_size, "overwrite": overwrite}
        if not ray:
            options |= {"embeddings": embeddings, "workers": workers, "device": device}
        elif embeddings is not None:
            raise ResNeXtError("--embeddings cannot be written with --ray.")
        elif index is not None:
            raise ResNeXtError("--index cannot be used with --ray.")
        check_outputs(out, embeddings)
        if ray and labels is not None:
            raise ResNeXtError("--labels cannot be used with --ray.")
        options["model"] = with_given(file, labels, size, mean, std, plan)
        _predict_files(file, images, out, index, plan, ray, options)
        if embeddings is not None:
            print(f"{embeddings}: embeddings")
        return
    only_with_out = {"--embeddings": embeddings, "--workers": workers, "--ray": ray or None}
    if given := [name for name, value in only_with_out.items() if value is not None]:
        raise ResNeXtError(f"{given[0]} needs --out FILE, the file to write the predictions to.")
    from resnext.card import card_of
    from resnext.cli.tables import predictions_table
    from resnext.data.passed_over import PassedOver
    from resnext.inference.opener import open_runner
    from resnext.neighbours.index import find_index, open_index
    from resnext.prediction.contact_sheet import check_sheet, draw_sheet, save_sheet
    from resnext.prediction.images import held_out_images, predict
    from resnext.prediction.inputs import expand_images
    from resnext.system.terminal import print_table
    from resnext.system.text import counted

    if sheet is not None:
        check_sheet(sheet)
    pictures: Sequence[Picture] = []
    passed_over = PassedOver()
    if not built_in:
        given = [sys.stdin.buffer.read() if image == STANDARD_INPUT else image for image in images]
        pictures = [picture for _, picture in expand_images(given, passed_over)][:limit]
    for line in passed_over.lines():
        print(line, file=sys.stderr)
    most = batch_size or 64
    expected = min(most, len(pictures) or limit or most)  # the batch size a plan is chosen for
    source = with_given(file, labels, size, mean, std, plan)
    model = open_runner(source, device=device, batch=expected, plan=plan, progress=True)
    if built_in:
        pictures = held_out_images(model, built_in, limit)
    unreadable = Unreadable(len(pictures))
    options = {"top": top, "batch_size": batch_size, "progress": True, "unreadable": unreadable}
    if like or index is not None:
        options |= {"like": like or 0, "index": open_index(file, index, runner=model)}
    else:
        options["index"] = find_index(file, model, partial(print, file=sys.stderr))
    found = predict(model, pictures, **options)
    ending = unreadable.ending()
    if ending:
        by_name = dict(expand_images(pictures))
        pictures = [by_name[one.name] for one in found]
    predictions = [
        one._replace(name="-") if isinstance(picture, bytes) else one
        for picture, one in zip(pictures, found, strict=True)
    ]
    print_table(predictions_table(predictions))
    _print_moved([one for prediction in predictions for one in prediction.like])
    if unsure := sum(not prediction.sure for prediction in predictions):
        print(
            f"? marks {unsure:,} of {len(predictions):,} predictions below the model's confidence "
            f"threshold of {predictions[0].threshold:.2%}"
        )
    if strange := sum(bool(prediction.unknown) for prediction in predictions):
        print(
            f"unknown marks {strange:,} of {len(predictions):,} images that are like none of the "
            f"classes; of images of the classes, about 5% are"
        )
    if sheet is not None:
        values = card_of(model).preprocessing.value_range
        save_sheet(draw_sheet(pictures, predictions, values=values), sheet)
        print(f"{sheet}: {counted(len(predictions), 'image')} with predictions{ending}")
    elif ending:
        print(f"{counted(len(predictions), 'image')} with predictions{ending}")


def _print_similar(
    file: str,
    image: Path,
    count: int,
    index: Path | None,
    sheet: Path | None,
    device: str,
    plan: bool,
) -> None:
    """Run `predict --similar`."""
    from resnext.card import card_of
    from resnext.cli.tables import neighbours_table
    from resnext.data.decoding import open_image
    from resnext.inference.opener import open_runner
    from resnext.neighbours.index import open_index
    from resnext.prediction.contact_sheet import check_sheet, draw_neighbours, save_sheet
    from resnext.system.terminal import print_table
    from resnext.system.text import counted

    if sheet is not None:
        check_sheet(sheet)
    runner = open_runner(file, device=device, batch=1, plan=plan)
    found = open_index(file, index, runner=runner).search(image, count)
    print_table(neighbours_table(found))
    _print_moved(found)
    if sheet is not None:
        values = card_of(runner).preprocessing.value_range
        save_sheet(draw_neighbours(open_image(image, "RGB", values), found), sheet)
        print(f"{sheet}: {counted(len(found), 'similar image')}")


def _print_moved(neighbours: Sequence[Neighbour]) -> None:
    """Say which images are not where they were indexed; images inside larger files have no path."""
    from resnext.data.dataset import EXTENSIONS

    paths = [Path(one.name) for one in neighbours if not _inside_file(one.name)]
    moved = [path for path in paths if path.suffix.lower() in EXTENSIONS and not path.exists()]
    if moved:
        print(
            f"{len(moved):,} of {len(neighbours):,} similar images are not where they were, such "
            f"as {moved[0]}. Run resnext index again, from the folder where its paths begin",
            file=sys.stderr,
        )


def _inside_file(name: str) -> bool:
    """Whether an image is in a larger file, such as photos.tar:12.jpg; times have colons, too."""
    return ".tar:" in name or ".parquet:" in name


def _predict_files(
    file: str,
    images: tuple[str, ...],
    out: Path,
    index: Path | None,
    plan: bool,
    ray: bool,
    options: dict[str, Any],
) -> None:
    """Run `predict --out` on this machine or on a cluster, and print a summary."""
    from resnext.prediction.output import Journal

    model = options.pop("model")
    try:
        if ray:
            from resnext.prediction.ray import predict_files_with_ray

            done = predict_files_with_ray(file, images, out, plan=plan, progress=True, **options)
        else:
            from resnext.inference.opener import open_runner
            from resnext.neighbours.index import find_index, open_index
            from resnext.prediction.files import predict_files

            batch = 64 if options["batch_size"] is None else options["batch_size"]
            device = options.pop("device")
            runner = open_runner(model, device=device, batch=batch, plan=plan, progress=True)
            if index is None:
                found = find_index(file, runner, partial(print, file=sys.stderr))
            else:
                found = open_index(file, index, runner=runner)
            done = predict_files(runner, images, out, index=found, progress=True, **options)
    except KeyboardInterrupt:
        if Journal.begun(out):
            print("Interrupted. Run the same command again to continue.", file=sys.stderr)
        raise
    earlier = f" ({done.resumed:,} from an earlier run)" if done.resumed else ""
    speed = f"{done.images_per_second:,.1f} images/s"
    print(f"{out}: {done.count:,} images{earlier}, {speed}{not_read(done.unreadable)}")
