"""`resnext explain`: why a classifier gave images their classes."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from resnext.cli.options import Flag, OptionalWhole, check_outputs, write_json
from resnext.cli.unreadable import Unreadable
from resnext.errors import DataError, ResNeXtError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resnext.explanation import Explanation
    from resnext.explanation.sanity import SanityCheck

_MOST = 200  # explanations in one picture or page


def explain(
    file: str,
    /,
    *images: str,
    label: Annotated[str | None, Parameter(name="--class")] = None,
    against: str | None = None,
    how: Literal["map", "occlusion", "layercam", "ig"] | None = None,
    stage: OptionalWhole = None,
    fine: Flag = False,
    check: bool = True,
    sanity: Flag = False,
    html: Flag = False,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    json: Path | None = None,
    limit: OptionalWhole = None,
    like: OptionalWhole = None,
    device: str = "auto",
    plan: bool = True,
) -> None:
    """Show which places of images spoke for a class, and which against it.

    Orange places raised the logit of the class, blue ones lowered it; together with the bias they
    add up to the logit. Each map is checked: hiding what it points at must lower the logit more
    than hiding places at random.

    Args:
        file: A model file from any library that contains the class names, or a catalog name.
        images: Image files and folders, searched at any depth; or `digits` for handwritten digits
            that the model was not trained on.
        label: The class to explain, by name or number. Default: the most likely one.
        against: Explain why it is not this class; without a value, the most likely other class.
            Default: that class if the model is not sure.
        how: map (exact), occlusion (slow), layercam, or ig (integrated gradients).
        stage: Show the feature map of this stage; earlier stages are finer, and shown by layercam.
        fine: Give the network the image at twice the size, for a finer map.
        check: Check each map by hiding what it points at, which takes 106 predictions.
        sanity: Also randomize the layers of the network from the top: the map must get lost.
        html: Write a page instead of a picture.
        out: File to write (.png or .html). Default: explanation.png, or explanation.html.
        json: Also write all numbers to this JSON file.
        limit: Explain at most this many images.
        like: Show this many similar images of each of the two most likely classes. Default: 3 if
            there is an index next to the model file, which train and `resnext index` write.
        device: auto, cpu, cuda, cuda:1, …
        plan: Use the plan that `resnext optimize` saved next to the model file.
    """
    for name in images:
        if html and name.endswith((".html", ".htm")):
            raise ResNeXtError(f"{name} is not an image. To write the page there: --out {name}")
    if limit is not None and limit < 1:
        raise ResNeXtError(f"--limit must be at least 1, not {limit}.")
    check_outputs(json)
    out = out or Path("explanation.html" if html else "explanation.png")
    as_page = html or out.suffix == ".html"
    check_outputs(out)
    from resnext.cli.tables import explanations_table
    from resnext.data.open import BUILT_IN
    from resnext.data.passed_over import PassedOver
    from resnext.explanation.images import check_sanity, explain
    from resnext.explanation.page import explanation_page
    from resnext.explanation.sheet import draw_explanations
    from resnext.inference.opener import open_runner
    from resnext.neighbours.index import find_index, open_index
    from resnext.prediction.contact_sheet import check_sheet, save_sheet
    from resnext.prediction.images import held_out_images
    from resnext.prediction.inputs import expand_images
    from resnext.system.atomic import write_bytes_atomically
    from resnext.system.progress import reporter
    from resnext.system.terminal import print_table
    from resnext.system.text import counted

    if not as_page:
        check_sheet(out)
    built_in = len(images) == 1 and images[0] in BUILT_IN
    passed_over = PassedOver()
    named = [] if built_in else [*islice(expand_images(images, passed_over), limit)]
    for line in passed_over.lines():
        print(line, file=sys.stderr)
    in_torch = fine or sanity or how in ("layercam", "ig") or stage is not None
    model = open_runner(file, device=device, batch=1, plan=plan and not in_torch, progress=True)
    if built_in:
        pictures = held_out_images(model, images[0], limit or 10)
        named = [(str(i), picture) for i, picture in enumerate(pictures)]
    if len(named) > _MOST:
        raise ResNeXtError(f"{len(named):,} images are more than {_MOST}. Give --limit or fewer.")
    options: dict[str, Any] = {"label": label, "against": True if against == "" else against}
    options |= {"how": how, "stage": stage, "fine": fine, "check": check, "device": device}
    if like != 0:
        found = open_index(file, runner=model) if like else find_index(file, model, print)
        options |= {"like": 0 if found is None else like or 3, "index": found}
    done: list[Explanation] = []
    checks: list[SanityCheck] = []
    unreadable = Unreadable(len(named))
    shown = reporter(True)
    shown.start("Explaining", len(named))
    try:
        for name, picture in named:
            try:
                done.append(replace(explain(model, picture, **options), name=name))
            except DataError as error:
                unreadable(name, error)
            else:
                if sanity:
                    checks.append(check_sanity(model, picture, done[-1], fine=fine, device=device))
            shown.advance(1)
    finally:
        shown.stop()
    ending = unreadable.ending()
    print_table(explanations_table(done))
    _print_checks(done, checks)
    if as_page:
        page = explanation_page(done, Path(file).name)
        write_bytes_atomically(out, page.encode("utf-8", "backslashreplace"))  # names of files
    else:
        save_sheet(draw_explanations(done), out)
    print(f"{out}: {counted(len(done), 'image')} with maps{ending}")
    if json is not None:
        explanations = [one.to_dict() for one in done]
        write_json(json, {"explanations": explanations, "skipped": unreadable.names})
        print(f"{json}: all numbers")


def _print_checks(done: Sequence[Explanation], checks: Sequence[SanityCheck]) -> None:
    """Print what the self-checks found."""
    from resnext.cli.tables import plain
    from resnext.system.text import counted

    if doubtful := sum(one.reliable is False for one in done):
        print(
            f"Not reliable here: {doubtful:,} of {counted(len(done), 'map')}. Hiding what they "
            f"point at lowers the logit no more than hiding random places"
        )
    for one, check in zip(done, checks, strict=False):
        steps = ", ".join(
            f"{name} {x:.2f}" for name, x in zip(check.layers, check.similarity, strict=True)
        )
        print(
            f"{plain(one.name)}: with random layers from the top, {check.verdict}. "
            f"Similarity after {steps}"
        )
