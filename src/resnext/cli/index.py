"""`resnext index`: the embeddings of many images, to find those like another one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from resnext.cli.options import check_outputs
from resnext.cli.unreadable import not_read
from resnext.errors import ResNeXtError


def index(
    photos: str,
    /,
    *,
    model: Annotated[Path, Parameter(name=["--model", "-m"])],
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    device: str = "auto",
    plan: bool = True,
) -> None:
    """Index images, so that predict and explain can show those that a model sees as similar.

    The index holds the embedding, a thumbnail, the class and the path of each image. Of the data
    that the model was trained on, only the training images are indexed. An interrupted run
    continues when the same command is run again.

    Args:
        photos: A folder of images, searched at any depth; or labelled images in any form that
            train accepts, with the classes of the model.
        model: The model file.
        out: File to write. Default: next to the model file, with the ending .index, where predict
            and explain find it.
        device: auto, cpu, cuda, cuda:1, …
        plan: Use the plan that `resnext optimize` saved next to the model file.
    """
    from resnext.card import card_of
    from resnext.data.passed_over import PassedOver
    from resnext.inference.opener import open_runner
    from resnext.neighbours.build import build_index
    from resnext.neighbours.file import IndexFile, unfinished_path
    from resnext.neighbours.model_files import index_path, model_digest
    from resnext.neighbours.photos import open_photos
    from resnext.system.progress import reporter
    from resnext.system.text import counted

    if not model.is_file():
        raise ResNeXtError(f"{model} is not a file. An index is saved next to a model file.")
    digest = model_digest(model)
    out = index_path(model) if out is None else out
    check_outputs(out)
    runner = open_runner(model, device=device, plan=plan, progress=True)
    passed_over = PassedOver()
    images, val = open_photos(photos, card_of(runner), passed_over)
    shown = reporter(True)
    for line in passed_over.lines():
        shown.line(line)
    try:
        score = build_index(runner, images, out, model=digest, progress=shown, val=val)
    except KeyboardInterrupt:
        if unfinished_path(out).exists():
            print("Interrupted. Run the same command again to continue.", file=sys.stderr)
        raise
    finally:
        shown.stop()
    count = len(IndexFile(out))
    unreadable = not_read(len(images) - count)
    print(f"{out}: {counted(count, 'image')}, {out.stat().st_size / 1e6:,.1f} MB{unreadable}")
    if score is not None:
        print(f"{out}: predict now also says which images are like none of the classes")
