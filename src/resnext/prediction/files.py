"""Prediction over folders of any size: in bounded memory, and able to go on where it stopped.

Threads decode the next batches while the engine computes. What is answered goes at once into
`OUT.part`: a line of settings, then one line of JSON for each image. At the end that becomes
`OUT`. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from threading import Condition
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from resnext.card import Card, Described, Preprocessing, card_of
from resnext.data.decoding import convert, decoding_error, open_lazily, pixels, resize_and_crop
from resnext.data.sources.folders import walk_images
from resnext.errors import CheckpointError, DataError, InputError
from resnext.inference.runner import Runner, top_classes
from resnext.prediction.output import KINDS, Journal, finish, needs
from resnext.system.cpu import core_count
from resnext.system.progress import reporter

AHEAD = 2  # batches that are decoded while one is answered
_ROOM = 48_000_000  # pixels decoded at a time, at about 12 bytes
_BLOCK = 2**26  # bytes Pillow asks for at a time; what is above 2**25, malloc gives back at once


@dataclass(frozen=True)
class PredictionSummary:
    """What came out."""

    out: Path
    """The file of predictions."""
    count: int
    """Images, so rows."""
    unreadable: int
    """Rows with an error in place of an answer."""
    resumed: int
    """Rows that an earlier call had answered."""
    seconds: float
    images_per_second: float
    """Of what this call answered."""


class AnsweredBatch(NamedTuple):
    """A batch that is done, in the order of the images."""

    rows: list[str]
    """JSON of each image."""
    problems: list[str | None]
    """Why there is no answer."""
    embeddings: Float32[np.ndarray, "n d"] | None = None
    """NaN where there is no answer."""


def predict_files(
    runner: Runner,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    top: int = 1,
    embeddings: str | Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> PredictionSummary:
    r"""Classify image files and write a table of the answers, one row for each, in order.

    The columns are path, error, label and probability, for more classes label_2, probability_2 …,
    and sure if the model's card has a threshold. JSON Lines hold lists: path, labels,
    probabilities and maybe sure, or path and error. Bytes of a name that are not UTF-8 are
    written as `\xff`. A call that was interrupted is continued by the next one of the same
    arguments.

    Args:
        runner: The model.
        images: Files, and folders that are searched at any depth.
        out: A file that ends in .csv, .jsonl or .parquet.
        top: Number of classes to report for each image.
        embeddings: A .npy file for the embeddings, float32 `(images, d)`; NaN where there is no
            answer.
        batch_size: Images at a time; None for what the model is fastest with.
        workers: Threads that decode; None for one a core.
        overwrite: Whether `out` may be there already. What was begun with the same arguments is
            continued even then.
        progress: Whether to show how far it is, on standard error.

    Raises:
        CheckpointError: A file cannot be written. Call again to continue.
        DataError: There is no image, or none that can be read.
        InputError: The model has no card with labels, an argument makes no sense, or `out` is
            there already or was begun with other arguments.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"{name} must be at least 1, not {value!r}.")
    batch = batch_size or runner.batch

    def answer(names: Iterator[str]) -> Generator[AnsweredBatch]:
        return answers(runner, names, top, batch, workers)

    return run(
        runner,
        images,
        Path(out),
        answer,
        top=top,
        step=batch,
        embeddings=None if embeddings is None else Path(embeddings),
        overwrite=overwrite,
        progress=progress,
    )


def run(
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
) -> PredictionSummary:
    """What `predict_files` says, whoever answers.

    Args:
        model: Its card and architecture, and maybe `fingerprint`, a string.
        images: As above.
        out: As above.
        answer: From names of files to answers, batch by batch, in order.
        top: As above.
        step: Images of a batch. One that is continued starts at a multiple, so that each batch,
            and with it every digit, is the same as without interruption.
        embeddings: As above.
        overwrite: As above.
        progress: As above.
    """
    card = card_of(model)
    _check(card, out, top, embeddings, overwrite)
    began = time.monotonic()
    with _listed(images, out.parent) as (names, count, digest):
        settings = {
            "model": _fingerprint(model, card),
            "top": top,
            "images": digest,
            "count": count,
            "embeddings": embeddings and str(embeddings.absolute()),
        }
        width = model.config.stages[-1].out_channels
        journal = Journal(out, settings, embeddings, width, step, overwrite)
        report, resumed, working = reporter(progress), journal.done, time.monotonic()
        try:
            report.start("Predicting", count - resumed)
            if resumed < count:
                with closing(answer(islice(names, resumed, None))) as answered:
                    for part in answered:
                        journal.add(part.rows, part.problems, part.embeddings)
                        report.advance(len(part.rows))
            worked = time.monotonic() - working
            finish(journal, out, top, card.threshold is not None)
        finally:
            report.stop()
            journal.close()
    if journal.unreadable == count:
        raise DataError(f"None of {count:,} images could be read; {out} says why. {journal.first}")
    rate = (count - resumed) / worked if count > resumed else 0.0
    seconds = time.monotonic() - began
    return PredictionSummary(out, count, journal.unreadable, resumed, seconds, rate)


def _check(card: Card, out: Path, top: int, embeddings: Path | None, overwrite: bool) -> None:
    """Refuse at once what would fail in the end."""
    if type(top) is not int or not 1 <= top <= len(card.labels):
        raise InputError(f"top must be from 1 to the {len(card.labels)} classes, not {top}.")
    if out.suffix not in KINDS:
        raise InputError(f"{out} must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}.")
    needs(out.suffix)
    if embeddings is not None and embeddings.suffix != ".npy":
        raise InputError(f"{embeddings} must end in .npy: embeddings are a NumPy array.")
    begun = Journal.begun(out)
    for path in (out, embeddings) if embeddings else (out,):
        if not path.parent.is_dir():
            raise InputError(f"{path.parent} is no folder. Make it, or write somewhere else.")
        if path.is_dir():
            raise InputError(f"{path} is a folder. Give the name of a file.")
        if path.exists() and not overwrite and not begun:
            raise InputError(f"{path} exists; --overwrite replaces it.")


def _fingerprint(model: Described, card: Card) -> str:
    """What tells models apart."""
    described = [card.to_dict(), model.config.to_dict(), getattr(model, "fingerprint", "")]
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


# -- from names to answers --------------------------------------------------------------------


@contextmanager
def _listed(
    images: str | Path | Iterable[str | Path], folder: Path
) -> Iterator[tuple[Iterator[str], int, str]]:
    """Names of all files, their number and a hash: held on disk, since they may be millions."""
    digest, count = hashlib.sha256(), 0
    try:
        file = TemporaryFile("w+", encoding="utf-8", dir=folder)  # noqa: SIM115
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}.") from error
    with file:
        for name in _names([images] if isinstance(images, str | Path) else images):
            try:
                file.write(json.dumps(name) + "\n")
            except OSError as error:
                raise CheckpointError(f"{folder} cannot be written: {error.strerror}.") from error
            digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
            count += 1
        if not count:
            raise DataError("There are no images to classify.")
        file.seek(0)
        yield map(json.loads, file), count, digest.hexdigest()


def _names(images: Iterable[str | Path]) -> Iterator[str]:
    for path in map(Path, images):
        if not path.is_dir():
            if not path.exists():
                raise DataError(f"{path}: no such file.")
            yield str(path)
            continue
        above, name = str(path / "_")[:-1], None
        for name in walk_images(path):
            yield above + name
        if name is None:
            raise DataError(f"{path} holds no image. Images have endings such as .jpg or .png.")


def answers(
    runner: Runner, names: Iterator[str], top: int, batch: int, workers: int | None = None
) -> Generator[AnsweredBatch]:
    """Answers for files, batch by batch.

    At most `AHEAD + 2` batches are decoded, or being decoded, and unanswered at any time; a few
    more if a batch is smaller than the number of threads.
    """
    card, width = card_of(runner), runner.config.stages[-1].out_channels
    engine = ThreadPoolExecutor(1, "resnext-engine")
    asked: deque[tuple[list[str], list[str | None], Future | None]] = deque()

    def oldest() -> AnsweredBatch:
        part, problems, future = asked.popleft()
        return _answered(card, top, part, problems, future and future.result(), width)

    try:
        with closing(_decoded(names, card.preprocessing, batch, workers or _threads())) as decoded:
            for part, problems, x in decoded:
                good = [i for i, reason in enumerate(problems) if reason is None]
                x = x if len(good) == len(part) else x[good]
                asked.append((part, problems, engine.submit(runner.pixels, x) if good else None))
                if len(asked) > 1:
                    yield oldest()
            while asked:
                yield oldest()
    finally:
        engine.shutdown(cancel_futures=True)


def _threads() -> int:
    return min(core_count(), 16)


def _decoded(
    names: Iterator[str], how: Preprocessing, batch: int, workers: int
) -> Generator[tuple[list[str], list[str | None], UInt8[np.ndarray, "n h w c"]]]:
    """Batches of pixels, and what could not be read; its pixels are undefined."""
    shape = (how.size, how.size, 1 if how.colour == "L" else 3)
    ahead, room = max(AHEAD, -(-2 * workers // batch)), _Room(_ROOM)
    pool = ThreadPoolExecutor(workers, "resnext-decode")
    before = Image.core.get_block_size()
    Image.core.set_block_size(_BLOCK)
    waiting: deque[tuple[list[str], list[Future[str | None]], np.ndarray]] = deque()
    try:
        more = True
        while more or waiting:
            while more and len(waiting) <= ahead:
                if more := list(islice(names, batch)):
                    x = np.empty((len(more), *shape), np.uint8)
                    slots = zip(more, x, strict=True)
                    jobs = [pool.submit(_decode, name, slot, how, room) for name, slot in slots]
                    waiting.append((more, jobs, x))
            if waiting:
                part, jobs, x = waiting.popleft()
                yield part, [job.result() for job in jobs], x
    finally:
        pool.shutdown(cancel_futures=True)
        Image.core.set_block_size(before)


def _decode(name: str, slot: np.ndarray, how: Preprocessing, room: _Room) -> str | None:
    """Fill `slot` with a file's pixels, as `pictures` makes them, or say why not, in one line."""
    try:
        with open_lazily(Path(name), name) as image:
            resized = how.resize**2 * max(image.size) // max(min(image.size), 1)
            with room.taken(image.width * image.height + resized), closing(image):
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                plain = image.mode == "RGB" and how.colour != "L" and min(image.size) > 0
                slot[...] = pixels(
                    resize_and_crop(image if plain else convert(image, how.colour), how), how
                )
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        return " ".join(str(decoding_error(name, error)).removeprefix(f"{name}: ").split())
    return None


class _Room:
    """Lets as many pixels be decoded at a time as memory has room for; a larger image, alone."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = Condition()

    @contextmanager
    def taken(self, wanted: int) -> Iterator[None]:
        wanted = min(wanted, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


def _answered(
    card: Card,
    top: int,
    names: list[str],
    problems: list[str | None],
    found: tuple[np.ndarray, np.ndarray] | None,
    width: int,
) -> AnsweredBatch:
    """Rows of a batch; `found` has logits and embeddings of what could be read."""
    problems, rows = list(problems), list[str]()
    embeddings = np.full((len(names), width), np.nan, np.float32)
    likely = iter(())
    if found is not None:
        good = np.array([reason is None for reason in problems])
        finite = np.isfinite(found[0]).all(1)
        for i in np.flatnonzero(good)[~finite]:
            problems[i] = "the model's answer is no number"
            good[i] = False
        embeddings[good] = found[1][finite]
        classes, chances = top_classes(found[0][finite], card.temperature, top)
        likely = zip(classes.tolist(), chances.tolist(), strict=True)
    for name, reason in zip(names, problems, strict=True):
        row: dict[str, object] = {"path": _shown(name)}
        if reason is None:
            classes, chances = next(likely)
            row["labels"] = [card.labels[i] for i in classes]
            row["probabilities"] = [float(f"{p:.6g}") for p in chances]
            if card.threshold is not None:
                row["sure"] = bool(chances[0] >= card.threshold)
        else:
            row["error"] = _shown(reason)
        rows.append(json.dumps(row, ensure_ascii=False))
    return AnsweredBatch(rows, problems, embeddings)


def _shown(name: str) -> str:
    r"""A name as text; bytes that are not UTF-8 become `\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
