"""`open_index`: the images of an index that are nearest to an image or an embedding."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int64
from PIL import Image, ImageOps

from resnext.card import Card, Preprocessing, card_of
from resnext.checks import at_least, brief
from resnext.data.decoding import convert, open_image, pixels, resize_and_crop
from resnext.errors import CheckpointError, InputError
from resnext.inference.opener import evaluation_mode, open_runner
from resnext.inference.runner import Runner
from resnext.neighbours.build import unit
from resnext.neighbours.file import IndexFile
from resnext.neighbours.model_files import index_path, model_digest
from resnext.neighbours.unknown import UnknownScore, bank_rows
from resnext.system.limits import available_memory
from resnext.weights.header import read_header

if TYPE_CHECKING:
    from resnext.network import ResNeXt

    Query = str | os.PathLike[str] | Image.Image | np.ndarray
    """An image file, a Pillow image, an array `(h, w)` or `(h, w, 3)` of 8-bit values, or an
    embedding: floats `(d,)`."""

_SAMPLE = 20_000  # vectors that the whitening is computed from
_FLAT = 1e-6  # share of the largest variance below which a direction holds only rounding errors


@dataclass(frozen=True)
class Neighbour:
    """An image of an index.

    Args:
        name: Its file, or its name in the data.
        label: Its class; None without one.
        distance: 1 minus the cosine of the angle between the embeddings: 0 for equal directions.
        row: Its position in the index.
        jpeg: Its thumbnail, as a file.
    """

    name: str
    label: str | None
    distance: float
    row: int
    jpeg: bytes = field(repr=False)

    @property
    def thumbnail(self) -> Image.Image:
        """The image, at most 96 pixels.

        Raises:
            CheckpointError: The index is damaged.
        """
        try:
            image = Image.open(io.BytesIO(self.jpeg))
            image.load()
        except OSError as error:
            raise CheckpointError(
                f"The thumbnail of {self.name} is damaged. Make the index again with resnext index."
            ) from error
        return image

    def to_dict(self) -> dict[str, Any]:
        """Name, class and distance as JSON values."""
        return {"name": self.name, "label": self.label, "distance": self.distance}


def open_index(
    model: ResNeXt | Runner | str | Path,
    path: str | Path | None = None,
    *,
    runner: Runner | None = None,
    whitened: int | None = None,
    device: str = "auto",
    plan: bool = True,
) -> Index:
    """The index of a model.

    Args:
        model: A model file; the index must have been made with its weights. Or a network or a
            runner, of which only the length of the embeddings is compared.
        path: The index; None for the one next to the model file.
        runner: Computes embeddings of images; None to open `model` when one is needed.
        whitened: Compare this many whitened principal components instead of the embeddings:
            less memory and time, and other neighbours. None for the embeddings themselves.
        device: "auto", or a torch device.
        plan: Whether to use the plan that `resnext optimize` saved next to a model file.

    Raises:
        MissingFileError: The index or the model file does not exist.
        CheckpointError: The index is damaged, of another model or version, or of images of another
            size than the runner's.
        InputError: `whitened` is not positive, or there is no path.
    """
    if whitened is not None:
        at_least("whitened", whitened, 1, error=InputError)
    file = Path(model) if isinstance(model, str | Path) else None
    if path is None and file is None:
        raise InputError("A network in memory has no index next to it. Give the index's path.")
    found = IndexFile(index_path(file) if path is None and file else Path(path or ""))
    labels = found.description.get("labels", ())
    if file is not None and found.description.get("model") != model_digest(file):
        raise CheckpointError(
            f"{found.path} was made with other weights than those of {file}. Make it again with "
            f"resnext index PHOTOS --model {file}."
        )
    crop = found.crop
    if file is not None:
        with suppress(CheckpointError):  # a file of another library
            card = read_header(file)[1]
            labels, crop = card.labels, crop or (card.preprocessing.size, card.preprocessing.resize)
    index = Index(found, labels, runner or model, whitened, device=device, plan=plan, crop=crop)
    if runner is not None:
        index.check(card_of(runner).preprocessing)
    return index


def find_index(model: object, runner: Runner, report: Callable[[str], object]) -> Index | None:
    """The index next to a model file, if there is one that can be used.

    Args:
        model: What was opened; only files have an index next to them.
        runner: Computes embeddings.
        report: Takes a line about an index that cannot be used.
    """
    if not isinstance(model, str | Path) or not index_path(Path(model)).is_file():
        return None
    try:
        return open_index(model, runner=runner)
    except CheckpointError as error:
        report(f"The index is not used. {error}")
        return None


class Index:
    """Images with their embeddings, which can be searched. `open_index` opens one.

    Args:
        file: The file.
        labels: Names of its classes.
        model: Computes embeddings of images.
        whitened: Number of whitened components to compare; None for the embeddings.
        device: Where to open the model.
        plan: Whether to use the model's plan.
        crop: Image size, and size before cropping, of its images; None if unknown.
    """

    def __init__(
        self,
        file: IndexFile,
        labels: Sequence[str],
        model: ResNeXt | Runner | str | Path,
        whitened: int | None = None,
        *,
        device: str = "auto",
        plan: bool = True,
        crop: tuple[int, int] | None = None,
    ) -> None:
        self.file, self.model, self.whitened, self.crop = file, model, whitened, crop
        self.labels = tuple(labels)
        self._options: dict[str, Any] = {"device": device, "plan": plan}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.file)

    def check(self, preprocessing: Preprocessing) -> None:
        """Refuse to compare with images of another size: all would seem to be far away.

        Raises:
            CheckpointError: The size is another one.
        """
        now = preprocessing.size, preprocessing.resize
        if self.crop is None or self.crop == now:
            return
        then, now = (f"{size} pixels, resized to {resize}" for size, resize in (self.crop, now))
        raise CheckpointError(
            f"{self.file.path} was made with images of {then}, not {now}, as the plan of resnext "
            f"optimize has them. Make it again with resnext index, or give --no-plan."
        )

    def search(self, query: Query, k: int = 5, *, label: str | None = None) -> list[Neighbour]:
        """The nearest images, nearest first: an exact search by cosine distance.

        Args:
            query: An image or an embedding.
            k: Number of images; fewer are returned if the index has fewer.
            label: Only search images of this class.

        Raises:
            DataError: The image cannot be read.
            InputError: The query is neither, the embedding has another length, or the class is
                unknown.
        """
        embedding = query if _is_embedding(query) else self.embed(query)
        return self.nearest(np.asarray(embedding, np.float32)[None], k, label=label)[0]

    def nearest(
        self, embeddings: Float32[np.ndarray, "m d"], k: int = 5, *, label: str | None = None
    ) -> list[list[Neighbour]]:
        """What `search` returns, for several embeddings at once."""
        at_least("k", k, 1, error=InputError)
        rows = self._rows(label)
        return [self._best(values, rows, k) for values in self.similarities(embeddings)]

    def of_classes(
        self,
        embedding: Float32[np.ndarray, " d"],
        labels: Sequence[str],
        k: int,
        *,
        but: str | None = None,
    ) -> list[Neighbour]:
        """The nearest images of some classes, class by class; of all images if none has a class.

        Args:
            embedding: What is searched for.
            labels: The classes.
            k: Number of images of each class.
            but: File or name of an image that is not returned: the one that is searched for.
        """
        similarity = self.similarities(embedding[None])[0]
        classes = [None] if (self.file.targets < 0).all() else labels
        found: list[Neighbour] = []
        for label in classes:
            best = self._best(similarity, self._rows(label), k + (but is not None))
            others = [one for one in best if but is None or not _same_file(one.name, but)]
            found += others[:k]
        return found

    def similarities(self, embeddings: Float32[np.ndarray, "m d"]) -> Float32[np.ndarray, "m n"]:
        """Cosines of the angles between embeddings and those of all images of the index.

        Raises:
            InputError: The embeddings have another length, or are not finite.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.file.width:
            raise InputError(
                f"The index has embeddings of length {self.file.width}, not "
                f"{embeddings.shape[-1]}. Use the model that it was made with."
            )
        if not np.isfinite(embeddings).all():
            raise InputError("The embedding contains NaN or infinity. Check it, and the weights.")
        queries = self._projected(unit(embeddings)).T
        blocks = [self._vectors] if self._fits else self._blocks()
        return np.concatenate([block @ queries for block in blocks]).T

    def embed(self, image: Query) -> Float32[np.ndarray, " d"]:
        """The embedding of an image.

        Raises:
            DataError: The image cannot be read.
            InputError: It is of another type.
        """
        with evaluation_mode(self.model):
            runner = self._runner
            preprocessing = card_of(runner).preprocessing
            whole = _opened(image, preprocessing.colour, preprocessing.value_range)
            x = pixels(resize_and_crop(whole, preprocessing), preprocessing)
            return runner.pixels(x[None])[1][0]

    def unknown_score(self, card: Card) -> UnknownScore | None:
        """Scores how unlike the images of the index an image is; None if no threshold was fitted.

        Args:
            card: The model's card, whose threshold comes first.
        """
        threshold, weight = card.unknown_threshold, card.unknown_weight
        if threshold is None:
            threshold, weight = self.file.unknown_threshold, self.file.unknown_weight
        if threshold is None:
            return None
        rows = bank_rows(len(self), self.file.width)
        return UnknownScore(self.file.some_vectors(rows), threshold, weight)

    @cached_property
    def _runner(self) -> Runner:
        runner = open_runner(self.model, batch=1, **self._options)
        self.check(card_of(runner).preprocessing)
        return runner

    @cached_property
    def _vectors(self) -> Float32[np.ndarray, "n d"]:
        """All vectors in single precision, for queries after the first."""
        blocks = self._blocks()
        first = next(blocks)
        vectors = np.empty((len(self), first.shape[1]), np.float32)
        start = 0
        for block in chain([first], blocks):
            vectors[start : start + len(block)] = block
            start += len(block)
        return vectors

    @cached_property
    def _fits(self) -> bool:
        """Whether all vectors can be kept in memory; else each query reads the file."""
        free = available_memory()
        numbers = len(self) * min(self.whitened or self.file.width, self.file.width)
        return free is None or 4 * numbers < free / 2

    def _blocks(self) -> Iterator[Float32[np.ndarray, "n d"]]:
        return map(self._projected, self.file.vectors())

    def _projected(self, vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n c"]:
        """Vectors of length 1 as they are compared."""
        if self.whitened is None:
            return vectors
        mean, matrix = self._whitening
        return unit((vectors - mean) @ matrix)

    @cached_property
    def _whitening(self) -> tuple[Float32[np.ndarray, " d"], Float32[np.ndarray, "d c"]]:
        """Mean and whitening matrix of vectors spread over the index."""
        step = -(-len(self) // _SAMPLE)
        first = np.arange(0, len(self), step)
        starts, parts = 0, list[np.ndarray]()
        for block in self.file.vectors():
            parts.append(block[first[(first >= starts) & (first < starts + len(block))] - starts])
            starts += len(block)
        sample = np.concatenate(parts)
        mean = sample.mean(0)
        variances, directions = np.linalg.eigh(np.cov(sample - mean, rowvar=False, ddof=0))
        count = min(self.whitened or 0, int((variances > _FLAT * variances[-1]).sum()))
        kept = slice(len(variances) - count, None)
        matrix = directions[:, kept] / np.sqrt(variances[kept])
        return mean, matrix.astype(np.float32)

    def _rows(self, label: str | None) -> Int64[np.ndarray, " n"]:
        if label is None:
            return np.arange(len(self))
        if label not in self.labels:
            raise InputError(f"{brief(label)} is not a class of {self.file.path}.")
        return np.flatnonzero(self.file.targets == self.labels.index(label))

    def _best(
        self, similarity: Float32[np.ndarray, " n"], rows: Int64[np.ndarray, " r"], k: int
    ) -> list[Neighbour]:
        """The most similar of some rows, in the order of their similarity."""
        values, k = similarity[rows], min(k, len(rows))
        best = np.argpartition(-values, k - 1)[:k] if k else np.zeros(0, np.int64)
        best = best[np.lexsort((best, -values[best]))]
        return [self._neighbour(int(rows[i]), float(values[i])) for i in best]

    def _neighbour(self, row: int, similarity: float) -> Neighbour:
        target = int(self.file.targets[row])
        label = self.labels[target] if target >= 0 else None
        distance, jpeg = max(1 - similarity, 0.0), self.file.thumbnail(row)
        return Neighbour(self.file.name(row), label, distance, row, jpeg)


def _same_file(a: str, b: str) -> bool:
    return os.path.abspath(a) == os.path.abspath(b)  # noqa: PTH100 - a link is another file


def _is_embedding(query: Any) -> bool:
    return isinstance(query, np.ndarray) and query.ndim == 1 and query.dtype.kind == "f"


def _opened(image: Query, colour: str, values: tuple[int, int] | None) -> Image.Image:
    """An image, not resized."""
    if isinstance(image, Image.Image):
        return convert(ImageOps.exif_transpose(image), colour, values)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        return convert(Image.fromarray(image), colour)
    if isinstance(image, str | os.PathLike):
        return open_image(Path(image), colour, values)
    raise InputError(
        f"A query must be an image file, a Pillow image, an array of 8-bit values or an embedding "
        f"of floats, not {type(image).__name__}."
    )
