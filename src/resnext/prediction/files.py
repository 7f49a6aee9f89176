"""Predictions for folders of any size, in bounded memory, resumable after an interruption.

Threads decode the next batches while the engine computes. Finished predictions go to `OUT.part`
at once: a line of settings, then one line of JSON for each image. At the end it becomes `OUT`.
Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from resnext.card import Card, Described, Preprocessing, card_of
from resnext.checks import at_least
from resnext.data.passed_over import PassedOver
from resnext.errors import CheckpointError, DataError, InputError
from resnext.inference.runner import Outputs, Runner, embedding_width
from resnext.neighbours.index import Index
from resnext.neighbours.unknown import UnknownScore
from resnext.prediction.images import check_top, rank, read_pixels, with_scores
from resnext.prediction.inputs import image_names
from resnext.prediction.output import KINDS, Journal, finish, needs
from resnext.system.atomic import check_writable, existing_folder, make_folder
from resnext.system.cpu import check_worker_count, core_count
from resnext.system.limits import DecodingRoom
from resnext.system.main_guard import refuse_in_new_process
from resnext.system.progress import reporter

AHEAD = 2  # batches that are decoded while one is computed
_BLOCK = 2**26  # bytes Pillow allocates at a time; malloc returns what is above 2**25 at once


@dataclass(frozen=True)
class PredictionSummary:
    """The result of predicting folders."""

    out: Path
    """The table of predictions."""
    count: int
    """Images, one row each."""
    unreadable: int
    """Rows with an error instead of a prediction."""
    resumed: int
    """Rows that an earlier call had finished."""
    seconds: float
    images_per_second: float
    """Speed over the images of this call."""


class AnsweredBatch(NamedTuple):
    """A finished batch, in the order of its images."""

    rows: list[str]
    """One JSON object per image."""
    problems: list[str | None]
    """Why an image has no prediction; None if it has one."""
    embeddings: Float32[np.ndarray, "n d"] | None = None
    """NaN for images without a prediction."""


def predict_files(
    runner: Runner,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    top: int = 1,
    embeddings: str | Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    index: Index | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> PredictionSummary:
    r"""Classify image files and write a table with one row for each, in order.

    The columns are path, error, label, probability, then label_2, probability_2 … for more
    classes, sure if the model's card has a threshold, and unknown if the index has one. JSON Lines
    hold lists instead: path, labels, probabilities, sure and unknown, or path and error. Bytes of a
    file name that are not UTF-8 are written as `\xff`. An interrupted call is continued by the next
    call with the same arguments.

    Args:
        runner: The model.
        images: Files, and folders that are searched at any depth.
        out: A file ending in .csv, .jsonl or .parquet.
        top: Number of classes to report for each image.
        embeddings: A .npy file for the embeddings, float32 `(images, d)`; NaN for images without
            a prediction.
        batch_size: Images per batch; None for the runner's own.
        workers: Threads that decode images; None for one per core, at most 16.
        index: The model's index, to find images that are like none of the classes.
        overwrite: Whether `out` may exist. An interrupted call is continued even then.
        progress: Whether to show progress on standard error.

    Raises:
        CheckpointError: A file cannot be written. Call again to continue.
        DataError: No images are given, or none can be read.
        InputError: The model has no card with labels, an argument is out of range, or `out` exists
            or was started with other arguments.
    """
    refuse_in_new_process("predict_files")
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value is not None:
            at_least(name, value, 1, error=InputError)
    check_worker_count(workers or 1, "thread")
    batch = batch_size or runner.batch
    unknown = None if index is None else index.unknown_score(card_of(runner))

    def answer(names: Iterator[str]) -> Generator[AnsweredBatch]:
        return answers(runner, names, top, batch, workers, unknown)

    return predict_table(
        runner,
        images,
        Path(out),
        answer,
        top=top,
        step=batch,
        embeddings=None if embeddings is None else Path(embeddings),
        unknown=unknown,
        overwrite=overwrite,
        progress=progress,
    )


def predict_table(
    model: Described,
    images: str | Path | Sequence[str | Path],
    out: Path,
    answer: Callable[[Iterator[str]], Generator[AnsweredBatch]],
    *,
    top: int,
    step: int,
    embeddings: Path | None,
    overwrite: bool,
    progress: bool,
    unknown: UnknownScore | None = None,
) -> PredictionSummary:
    """Write a table of predictions, wherever they are computed.

    Args:
        model: Its card and config, and optionally a string `fingerprint`.
        images: Files, and folders that are searched at any depth.
        out: A file ending in .csv, .jsonl or .parquet.
        answer: Turns file names into predictions, batch by batch and in order.
        top: Number of classes to report for each image.
        step: Images per batch. A continued call starts at a multiple of it, so that each batch, and
            with it every digit, is the same as without the interruption.
        embeddings: A .npy file for the embeddings, or None.
        overwrite: Whether `out` may exist.
        progress: Whether to show progress on standard error.
        unknown: What `answer` finds images of none of the classes by; None if it does not.

    Raises:
        CheckpointError: A file cannot be written. Call again to continue.
        DataError: No images are given, or none can be read.
        InputError: The model has no card with labels, an argument is out of range, or `out` exists
            or was started with other arguments.
    """
    card = card_of(model)
    check_top(top, card)
    _check_outputs(out, embeddings, overwrite)
    began = time.monotonic()
    passed_over = PassedOver()
    with _listed(images, out, passed_over) as (names, count, digest):
        for path in (out, embeddings) if embeddings else (out,):
            make_folder(path)
        settings = {
            "model": _fingerprint(model, card),
            "top": top,
            "images": digest,
            "count": count,
            "embeddings": embeddings and str(embeddings.absolute()),
        }
        if unknown is not None:
            settings["unknown"] = [unknown.threshold, unknown.weight]
        width = embedding_width(model)
        if embeddings is not None and width == 0:
            raise InputError("The model's file returns no embeddings. Leave out --embeddings.")
        journal = Journal(out, settings, embeddings, width, step, overwrite)
        shown, resumed, working = reporter(progress), journal.done, time.monotonic()
        try:
            for line in passed_over.lines():
                shown.line(line)
            shown.start("Predicting", count - resumed)
            if resumed < count:
                with closing(answer(islice(names, resumed, None))) as batches:
                    for batch in batches:
                        journal.add(batch.rows, batch.problems, batch.embeddings)
                        shown.advance(len(batch.rows))
            worked = time.monotonic() - working
            marks = {"sure": card.threshold is not None, "unknown": unknown is not None}
            finish(journal, out, top, [name for name, given in marks.items() if given])
        finally:
            shown.stop()
            journal.close()
    if journal.unreadable == count:
        raise DataError(
            f"None of {count:,} images could be read; {out} has the reasons. {journal.first}"
        )
    rate = (count - resumed) / worked if count > resumed else 0.0
    seconds = time.monotonic() - began
    return PredictionSummary(out, count, journal.unreadable, resumed, seconds, rate)


def _check_outputs(out: Path, embeddings: Path | None, overwrite: bool) -> None:
    """Refuse files that could not be written at the end."""
    if out.suffix not in KINDS:
        raise InputError(f"{out} must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}.")
    needs(out.suffix)
    if embeddings is not None and embeddings.suffix != ".npy":
        raise InputError(f"{embeddings} must end in .npy: embeddings are a NumPy array.")
    begun = Journal.begun(out)
    for path in (out, embeddings) if embeddings else (out,):
        check_writable(path, InputError)
        if path.exists() and not overwrite and not begun:
            raise InputError(f"{path} exists; --overwrite replaces it.")


def _fingerprint(model: Described, card: Card) -> str:
    """A hash that differs for models that may predict differently."""
    described = [card.to_dict(), model.config.to_dict(), getattr(model, "fingerprint", "")]
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _listed(
    images: str | Path | Sequence[str | Path], out: Path, passed_over: PassedOver
) -> Iterator[tuple[Iterator[str], int, str]]:
    """Names of all files, their number and a hash; kept on disk, since they may be millions."""
    digest, count = hashlib.sha256(), 0
    given = [images] if isinstance(images, str | Path) else images
    with ExitStack() as stack:
        with _beside(out):
            file = TemporaryFile("w+", encoding="utf-8", dir=existing_folder(out))  # noqa: SIM115
        stack.callback(_close, file)
        for name in image_names(given, passed_over):
            with _beside(out):
                file.write(json.dumps(name) + "\n")
            digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
            count += 1
        with _beside(out):
            file.seek(0)  # and write what is buffered
        if not count:
            raise DataError("No images were given to classify.")
        yield map(json.loads, file), count, digest.hexdigest()


@contextmanager
def _beside(out: Path) -> Iterator[None]:
    """Name the table if a temporary file next to it cannot be written."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{out} cannot be written: {error.strerror}. Make room, or write somewhere else."
        ) from error


def _close(file: IO[str]) -> None:
    """Close a temporary file; what a full disk did not take is not needed any more."""
    with suppress(OSError):
        file.close()


# -- from names to predictions ----------------------------------------------------------------


def answers(
    runner: Runner,
    names: Iterator[str],
    top: int,
    batch: int,
    workers: int | None = None,
    unknown: UnknownScore | None = None,
) -> Generator[AnsweredBatch]:
    """Predictions for files, batch by batch.

    At most `AHEAD + 2` batches are decoded, or being decoded, and not yet computed at any time; a
    few more if a batch is smaller than the number of threads.
    """
    card, width = card_of(runner), embedding_width(runner)
    engine = ThreadPoolExecutor(1, "resnext-engine")
    computing: deque[tuple[list[str], list[str | None], Future[Outputs] | None]] = deque()

    def oldest() -> AnsweredBatch:
        batch_names, problems, future = computing.popleft()
        outputs = future and future.result()
        return _answered(card, top, batch_names, problems, outputs, width, unknown)

    try:
        threads = workers or min(core_count(), 16)
        with closing(_decoded(names, card.preprocessing, batch, threads)) as decoded:
            for batch_names, problems, x in decoded:
                good = [i for i, problem in enumerate(problems) if problem is None]
                x = x if len(good) == len(batch_names) else x[good]
                future = engine.submit(runner.pixels, x) if good else None
                computing.append((batch_names, problems, future))
                if len(computing) > 1:
                    yield oldest()
            while computing:
                yield oldest()
    finally:
        engine.shutdown(cancel_futures=True)


def _decoded(
    names: Iterator[str], preprocessing: Preprocessing, batch: int, workers: int
) -> Generator[tuple[list[str], list[str | None], UInt8[np.ndarray, "n h w c"]]]:
    """Names, problems and pixels of each batch; pixels of unreadable images are undefined."""
    side, channels = preprocessing.size, 1 if preprocessing.colour == "L" else 3
    ahead, room = max(AHEAD, -(-2 * workers // batch)), DecodingRoom()
    pool = ThreadPoolExecutor(workers, "resnext-decode")
    before = Image.core.get_block_size()
    Image.core.set_block_size(_BLOCK)
    waiting: deque[tuple[list[str], list[Future[str | None]], np.ndarray]] = deque()
    try:
        more = True
        while more or waiting:
            while more and len(waiting) <= ahead:
                if more := list(islice(names, batch)):
                    x = np.empty((len(more), side, side, channels), np.uint8)
                    slots = zip(more, x, strict=True)
                    jobs = [pool.submit(_decode, *slot, preprocessing, room) for slot in slots]
                    waiting.append((more, jobs, x))
            if waiting:
                batch_names, jobs, x = waiting.popleft()
                yield batch_names, [job.result() for job in jobs], x
    finally:
        pool.shutdown(cancel_futures=True)
        Image.core.set_block_size(before)


def _decode(
    name: str, slot: UInt8[np.ndarray, "h w c"], preprocessing: Preprocessing, room: DecodingRoom
) -> str | None:
    """Fill `slot` with the pixels of a file; returns the problem in one line if that fails."""
    try:
        slot[...] = read_pixels(name, preprocessing, room.reserve)
    except DataError as error:
        return " ".join(str(error).removeprefix(f"{name}: ").split())
    return None


def _answered(
    card: Card,
    top: int,
    names: list[str],
    problems: list[str | None],
    outputs: Outputs | None,
    width: int,
    unknown: UnknownScore | None,
) -> AnsweredBatch:
    """Rows of a batch; `outputs` are of the images that could be read."""
    problems, rows = list(problems), list[str]()
    embeddings = np.full((len(names), width), np.nan, np.float32)
    predictions = iter(())
    if outputs is not None:
        good = np.array([problem is None for problem in problems])
        finite = np.isfinite(outputs[0]).all(1)
        for i in np.flatnonzero(good)[~finite]:
            problems[i] = "the model's output contains NaN or infinity"
            good[i] = False
        embeddings[good] = outputs[1][finite]
        readable = [names[i] for i in np.flatnonzero(good)]
        ranked = rank(readable, outputs[0][finite], card, top)
        if unknown is not None:
            ranked = with_scores(ranked, outputs[0][finite], outputs[1][finite], unknown)
        predictions = iter(ranked)
    for name, problem in zip(names, problems, strict=True):
        row: dict[str, Any] = {"path": _escaped(name)}
        if problem is None:
            prediction = next(predictions)
            row["labels"] = prediction.labels
            row["probabilities"] = [float(f"{p:.6g}") for p in prediction.probabilities]
            if prediction.threshold is not None:
                row["sure"] = prediction.sure
            if prediction.unknown is not None:
                row["unknown"] = prediction.unknown
        else:
            row["error"] = _escaped(problem)
        rows.append(json.dumps(row, ensure_ascii=False))
    return AnsweredBatch(rows, problems, embeddings)


def _escaped(name: str) -> str:
    r"""A file name as text; bytes that are not UTF-8 become `\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
