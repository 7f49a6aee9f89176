"""`resnext review`: decide about doubtful labels, by keyboard, in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from resnext.cli.options import Flag, Whole
from resnext.errors import InputError

if TYPE_CHECKING:
    from resnext.review.cases import Collection
    from resnext.review.decisions import LabelList


def review(
    data: str,
    /,
    *,
    model: Annotated[str | None, Parameter(name=["--model", "-m"])] = None,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("labels.csv"),
    doubts: Path | None = None,
    apply: Flag = False,
    undo: Flag = False,
    map: Flag = False,
    port: Whole = 0,
    browser: bool = True,
    device: str = "auto",
    plan: bool = True,
) -> None:
    """Look at doubtful labels, near-duplicates, unknown and unsure images; decide by keyboard.

    A page opens in the browser. With an index beside the model, it also shows images that are like
    none of the classes, and training images that are like the one to decide about. Every decision
    is written to labels.csv at once, which `train` takes as its data. No image is changed or moved,
    except with --apply.

    Args:
        data: A folder with one folder of images per class, or a CSV list.
        model: A model file from any library that contains the class names, or a catalog name.
        out: List of all images with their labels to write. An existing one is continued.
        doubts: List of doubtful labels. Default: label_doubts.csv in the run folder beside the
            model; without it, the model's predictions decide.
        apply: Move images to the folders of their classes as labels.csv says, and those that are
            left out to the hidden folder .left-out in the data. A journal beside labels.csv
            records each move.
        undo: Move all images back where --apply found them.
        map: Also show a map of the data: similar images near each other, with a lasso to label
            many at once. Needs scikit-learn or UMAP.
        port: Port on this machine. Default: any free one.
        browser: Open the page in the browser.
        device: auto, cpu, cuda, cuda:1, …
        plan: Use the plan that `resnext optimize` saved next to the model file.
    """
    if apply and undo:
        raise InputError("Give --apply or --undo, not both.")
    if apply or undo:
        _move(data, out, undo=undo)
        return
    if model is None:
        raise InputError("Give the model that judges the images: --model photos.safetensors.")
    import webbrowser

    from resnext.card import card_of
    from resnext.data.labels import refuse_unknown
    from resnext.inference.opener import open_runner
    from resnext.neighbours.index import find_index
    from resnext.review.cases import (
        ask,
        find_cases,
        map_of,
        open_collection,
        similar_images,
        unlike_all,
    )
    from resnext.review.server import ReviewServer
    from resnext.review.session import Session
    from resnext.system.progress import reporter
    from resnext.system.text import counted

    runner = open_runner(model, device=device, plan=plan, progress=True)
    card = card_of(runner)
    collection = open_collection(data, card.labels)
    labels = _labels(out, collection)
    now = {path: labels[path].label for path in collection.paths}
    refuse_unknown(str(out), {*now.values()}, card.labels)
    beside = Path(model).parent / f"{Path(model).stem}.run" / "label_doubts.csv"
    if doubts is None and beside.is_file():
        doubts = beside
    shown = reporter(True)
    try:
        answers = ask(runner, collection.paths, shown)
        index = find_index(model, runner, shown.line)
        score = None if index is None else index.unknown_score(card)
        cases = find_cases(
            collection,
            answers,
            now,
            threshold=card.threshold,
            doubts=doubts,
            progress=shown,
            unknown=unlike_all(collection, answers, score),
            values=card.preprocessing.value_range,
        )
        if map:
            shown.start("Arranging the map", 0)
        points = map_of(collection, answers, labels) if map else None
    finally:
        shown.stop()
    similar = None if index is None else similar_images(collection, answers, now, index)
    session = Session(data, cases, labels, card.labels, points, similar)
    if not (session.cases or map):
        print(
            "There is nothing to look at: no doubts, no near-duplicates, nothing unknown or unsure"
        )
        return
    server = ReviewServer(session, port, card.preprocessing.value_range)
    print(f"{counted(len(session.cases), 'case')} to look at: {server.url}")
    print(f"Decisions are in {out} at once. Ctrl-C ends", flush=True)
    if browser:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(f"\n{out}: {session.decided} of {counted(len(session.cases), 'case')} decided")
        raise
    finally:
        server.server_close()


def _labels(out: Path, collection: Collection | None = None) -> LabelList:
    """The list of labels of some images, continued if it exists."""
    from resnext.review.decisions import Entry, LabelList
    from resnext.review.moves import journal_of, read_moves

    found = () if collection is None else collection.classes()
    images = (Entry(path, label, split) for path, split, label in found)
    moved = {move["from"]: move["to"] for move in read_moves(journal_of(out))}
    return LabelList(out, images, moved, () if collection is None else collection.labels)


def _move(data: str, out: Path, *, undo: bool) -> None:
    """Move the files of class folders, or move them back."""
    from resnext.data.dataset import Files
    from resnext.review.cases import open_collection
    from resnext.review.moves import Moves, journal_of
    from resnext.system.text import counted

    if not Path(data).is_dir():
        raise InputError(f"{data} has no class folders to move files between. Train on {out}.")
    if not out.exists():
        raise InputError(f"{out} does not exist. Decide first: resnext review {data} --model …")
    if undo:  # whatever is left of the data
        moves = Moves(_labels(out), Path(data), {})
        print(f"{counted(moves.undo(), 'image')} moved back; the decisions stay in {out}")
        return
    collection = open_collection(data, None)
    classes = {path: label for path, _, label in collection.classes()}
    images = [part.images for part in collection.parts.values()]
    parts = [files.folder for files in images if isinstance(files, Files)]
    count = Moves(_labels(out, collection), Path(data), classes, parts).apply()
    print(f"{counted(count, 'image')} moved; {journal_of(out)} records where from (--undo)")
