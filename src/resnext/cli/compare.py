"""`resnext compare`: what changed from one model to another, and whether it got worse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resnext.cli.options import OptionalWhole, Whole, check_outputs, write_json

if TYPE_CHECKING:
    from resnext.evaluation.comparison import Comparison

_ON_SHEET = 200  # flipped images on a sheet


def compare(
    a: str,
    b: str,
    data: str,
    /,
    *,
    max_loss: float | None = None,
    sheet: Path | None = None,
    views: Literal[1, 2, 10] = 1,
    json: Path | None = None,
    batch_size: OptionalWhole = None,
    workers: Whole = 0,
    device: str = "auto",
    plan: bool = True,
) -> None:
    """Compare two models on the same labelled images; exit code 1 if B is worse than A.

    B is worse if it loses more than --max-loss; without that option, if it loses accuracy and the
    loss is significant (p below 0.05 in McNemar's exact test).

    Args:
        a: The model in use: a model file from any library, or a catalog name.
        b: The model that would replace it; its classes may be in another order.
        data: Labelled images, as for evaluate. Images that either model was trained on are left
            out, as far as its file says.
        max_loss: Largest accepted loss of accuracy, in percentage points.
        sheet: Draw the images that got different classes, with both answers, as one picture (.png).
        views: Test-time augmentation, as for evaluate.
        json: Also write the results, with every flipped image, to this JSON file.
        batch_size: Images per batch. Default: the batch size of the plan; without a plan 16 on a
            CPU, 64 on a GPU.
        workers: Number of processes that decode images.
        device: auto, cpu, cuda, cuda:1, …
        plan: Use the plans that `resnext optimize` saved next to the model files.
    """
    check_outputs(json, sheet)
    from resnext.cli.tables import print_comparison
    from resnext.evaluation.classification import compare

    if sheet is not None:
        from resnext.prediction.contact_sheet import check_sheet

        check_sheet(sheet)
    result = compare(
        a,
        b,
        data,
        batch_size=batch_size,
        workers=workers,
        device=device,
        views=views,
        max_loss=max_loss,
        speed=True,
        plan=plan,
        progress=True,
    )
    print_comparison(result, [_megabytes(model) for model in (a, b)])
    if sheet is not None:
        _draw(result, sheet)
    if json is not None:
        write_json(json, result.report())
        print(f"{json}: all results, with every flipped image")
    print(result.verdict)
    if result.worse:
        sys.exit(1)


def _megabytes(model: str) -> float | None:
    """Size of a model's file; None for a name or a folder."""
    file = Path(model)
    return file.stat().st_size / 1e6 if file.is_file() else None


def _draw(result: Comparison, path: Path) -> None:
    """Draw the flipped images."""
    from resnext.prediction.contact_sheet import draw_flips, save_sheet
    from resnext.prediction.images import Prediction
    from resnext.system.text import counted

    every = result.flips()
    flips = every[:_ON_SHEET]
    if not flips or result.images is None:
        print(f"{path} was not written: both models gave every image the same class")
        return
    before = [Prediction(x.name, (x.label_a,), (x.confidence_a,)) for x in flips]
    after = [Prediction(x.name, (x.label_b,), (x.confidence_b,)) for x in flips]
    pictures = [result.images.open(flip.index, "RGB", result.value_range) for flip in flips]
    save_sheet(draw_flips(pictures, [flip.actual for flip in flips], before, after), path)
    first = f" (the first of {len(every):,})" if len(flips) < len(every) else ""
    print(f"{path}: {counted(len(flips), 'image')} that got different classes{first}")
