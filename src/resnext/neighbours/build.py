"""`build_index`: from images to an index, in bounded memory, continued after an interruption."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from resnext.card import Preprocessing, card_of
from resnext.data.dataset import ImageSet
from resnext.data.decoding import pixels, resize_and_crop
from resnext.errors import DataError, InputError
from resnext.inference.runner import Runner, check_finite, embedding_width
from resnext.neighbours.file import Record, UnfinishedIndex
from resnext.neighbours.unknown import UnknownScore, bank_rows
from resnext.system.atomic import check_writable, make_folder
from resnext.system.cpu import available_cores
from resnext.system.progress import Reporter

THUMBNAIL = 96  # pixels of the longer side
_MOST_VAL = 5000  # images that the threshold is fitted to
_AHEAD = 2  # batches that are decoded while one is computed
_MOST_WORKERS = 16

Decoded = tuple[UInt8[np.ndarray, "h w c"], bytes]


def build_index(
    runner: Runner,
    images: ImageSet,
    out: Path,
    *,
    model: str,
    progress: Reporter,
    val: ImageSet | None = None,
    check_stop: Callable[[], object] = lambda: None,
) -> UnknownScore | None:
    """Write the index of some images, completely or not at all.

    An interrupted call leaves `OUT.part`, from which the next call with the same arguments
    continues. Images that cannot be read are left out.

    Args:
        runner: The model.
        images: The images; a target of -1 means no class.
        out: The index.
        model: What `model_digest` returns for the model's file.
        progress: Shows the progress.
        val: Images of the same classes that the model was not trained on, to fit the threshold of
            unknown images to; None if there are none.
        check_stop: Called before each batch; raises to interrupt.

    Returns:
        The score of unknown images, which the index holds; None without enough images to fit it
        to.

    Raises:
        CheckpointError: The index cannot be written.
        DataError: No image can be read.
        InputError: The model returns no embeddings.
        ResNeXtError: An output is NaN or infinite.
    """
    check_writable(out)
    make_folder(out)
    card, batch = card_of(runner), max(runner.batch, 1)
    names = [images.title(i) for i in range(len(images))]
    if not (width := embedding_width(runner)):
        raise InputError("The model's file returns no embeddings, so images cannot be indexed.")
    crop = [card.preprocessing.size, card.preprocessing.resize]  # a plan's may be smaller
    settings = {"model": model, "images": _digest(images, names), "width": width, "crop": crop}
    unfinished = UnfinishedIndex(out, settings, width, batch)
    try:
        start = len(unfinished.sizes)
        progress.start("Indexing", len(images) - start)
        with closing(decoded(images, card.preprocessing, start, batch)) as batches:
            for done in batches:
                check_stop()
                unfinished.add(_records(runner, done, names[len(unfinished.sizes) :]))
                progress.advance(len(done))
        if not any(unfinished.sizes):
            raise DataError(f"None of {len(images):,} images of {images.name} could be read.")
        score = None
        if val is not None:
            readable = sum(size > 0 for size in unfinished.sizes)
            bank = unfinished.vectors(bank_rows(readable, width))
            score = _fitted(runner, UnknownScore(bank), val, progress, check_stop)
        written = {"model": model, "labels": list(images.labels), "data": images.name, "crop": crop}
        if score is not None:
            written |= {"unknown_threshold": score.threshold, "unknown_weight": score.weight}
        unfinished.finish(names, images.targets, written)
        return score
    finally:
        unfinished.close()


def _fitted(
    runner: Runner,
    score: UnknownScore,
    val: ImageSet,
    progress: Reporter,
    check_stop: Callable[[], object],
) -> UnknownScore | None:
    """The score, fitted to at most `_MOST_VAL` images."""
    count = min(len(val), _MOST_VAL)
    some = val.select([i * len(val) // count for i in range(count)], val.name)
    preprocessing, batch = card_of(runner).preprocessing, max(runner.batch, 1)
    outputs: list[tuple[np.ndarray, np.ndarray]] = []
    progress.start("Fitting the unknown score", count)
    with closing(decoded(some, preprocessing, 0, batch)) as batches:
        for done in batches:
            check_stop()
            if good := [one[0] for one in done if one is not None]:
                outputs.append(runner.pixels(np.stack(good)))
                check_finite(outputs[-1][0], lambda i: f"an image of {val.name}")
            progress.advance(len(done))
    return score.fitted(*map(np.concatenate, zip(*outputs, strict=True))) if outputs else None


def unit(embeddings: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Embeddings divided by their lengths; zero stays zero."""
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-30)


def _records(runner: Runner, done: list[Decoded | None], names: list[str]) -> list[Record | None]:
    """The records of a batch."""
    good = [(i, *one) for i, one in enumerate(done) if one is not None]
    records: list[Record | None] = [None] * len(done)
    if good:
        logits, embeddings = runner.pixels(np.stack([x for _, x, _ in good]))
        check_finite(logits, lambda row: names[good[row][0]])
        for (i, _, thumbnail), vector in zip(good, unit(embeddings), strict=True):
            records[i] = Record(vector.astype(np.float16), thumbnail)
    return records


def decoded(
    images: ImageSet, preprocessing: Preprocessing, start: int, batch: int
) -> Generator[list[Decoded | None]]:
    """Pixels and thumbnails, batch by batch; None for an image that cannot be read.

    Args:
        images: The images.
        preprocessing: Size, crop and colours of the pixels.
        start: The first image.
        batch: Images per batch.
    """
    pool = ThreadPoolExecutor(min(available_cores(), _MOST_WORKERS), "resnext-decode")
    waiting: deque[list[Future[Decoded | None]]] = deque()
    starts = iter(range(start, len(images), batch))
    try:
        while True:
            for first in islice(starts, _AHEAD + 1 - len(waiting)):
                some = range(first, min(first + batch, len(images)))
                waiting.append([pool.submit(_decode, images, i, preprocessing) for i in some])
            if not waiting:
                return
            yield [job.result() for job in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(images: ImageSet, index: int, preprocessing: Preprocessing) -> Decoded | None:
    try:
        image = images.open(index, preprocessing.colour, preprocessing.value_range)
        values = pixels(resize_and_crop(image, preprocessing), preprocessing)
    except DataError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    image.save(content, "jpeg", quality=85)
    return values, content.getvalue()


def _digest(images: ImageSet, names: list[str]) -> str:
    """A hash that differs if images or their classes changed: of names, classes and sizes."""
    digest = hashlib.sha256()
    for image, name, target in zip(images.images, names, images.targets, strict=True):
        size = image.stat().st_size if isinstance(image, Path) and image.exists() else 0
        digest.update(f"{name}\0{target}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
