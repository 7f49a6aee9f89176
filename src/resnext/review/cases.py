"""What to look at in a data set: doubtful labels, near-duplicates, unsure and unknown images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from resnext.card import card_of
from resnext.data.dataset import ImageSet
from resnext.data.decoding import ValueRange, open_image
from resnext.data.duplicates import ImageIndex
from resnext.data.open import find_source
from resnext.data.scan import read_records
from resnext.errors import DataError
from resnext.evaluation.label_doubts import Doubts, Opinions, find_doubts, read_doubts
from resnext.inference.runner import Runner, check_finite, embedding_width, probabilities
from resnext.neighbours.index import Index, Neighbour
from resnext.neighbours.unknown import UnknownScore
from resnext.prediction.images import to_pixels
from resnext.review.copies import find_copies, in_groups
from resnext.review.decisions import LabelList
from resnext.review.layout import MOST, arrange
from resnext.review.map import Points
from resnext.system.cpu import available_cores
from resnext.system.progress import Reporter
from resnext.system.text import counted

_TOP = 9  # classes with a number key
_LIKE = 3  # similar images of each of two classes
_SMALLEST = 48  # shorter side, pixels, below which only equal files count as copies
_SCORED = 512  # images that are compared with the training images at once


@dataclass(frozen=True)
class Case:
    """One image, or two that look alike, to decide about.

    Args:
        kind: "doubt", "duplicate", "unsure" or "unknown".
        paths: The images.
        note: Why it is shown, as a sentence.
        suggestion: The class that is probably right; None if there is no better one.
        classes: The likely classes of the first image with their probabilities.
        sizes: Pixels and bytes of each image, if there are two.
    """

    kind: str
    paths: tuple[str, ...]
    note: str
    suggestion: str | None = None
    classes: tuple[tuple[str, float], ...] = ()
    sizes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Collection:
    """All images of a data set.

    Args:
        parts: Its splits.
        labels: The classes.
    """

    parts: Mapping[str, ImageSet]
    labels: tuple[str, ...]
    paths: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """List all images."""
        whole = [os.path.abspath(str(image)) for x in self.parts.values() for image in x.images]  # noqa: PTH100
        object.__setattr__(self, "paths", whole)

    def classes(self) -> Iterator[tuple[str, str, str]]:
        """Path, split and class of each image; the split is empty if there is only one."""
        paths = iter(self.paths)
        for name, images in self.parts.items():
            for target in images.targets:
                yield next(paths), name if len(self.parts) > 1 else "", images.labels[target]


def open_collection(data: str | Path, labels: tuple[str, ...] | None) -> Collection:
    """All splits of a data set of image files.

    Args:
        data: A folder of class folders, or a list.
        labels: Classes of the model; None for those of the data.

    Raises:
        DataError: The data does not exist, has no image files, or has classes the model lacks.
    """
    source = find_source(data)
    parts: dict[str, ImageSet] = {}
    for name, read in source.splits.items():
        parts[name] = read(labels).images
        labels = parts[name].labels
    if not all(isinstance(images.images[0], Path) for images in parts.values() if len(images)):
        raise DataError(
            f"{data} holds its images inside larger files, which a list of labels cannot name. "
            f"Give a folder of class folders, or a CSV list."
        )
    return Collection(parts, next(iter(parts.values())).labels)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says about images; rows of unreadable images are NaN.

    Args:
        logits: Logits of each class.
        probabilities: Calibrated probability of each class.
        embeddings: What the classifier sees.
    """

    logits: Float[np.ndarray, "n k"]
    probabilities: Float[np.ndarray, "n k"]
    embeddings: Float[np.ndarray, "n d"]


def ask(model: Runner, paths: Sequence[str], progress: Reporter) -> Answers:
    """Run a model over image files.

    Raises:
        DataError: No image can be read.
        ResNeXtError: An output is NaN or infinite.
    """
    card = card_of(model)

    def decode(path: str) -> np.ndarray | DataError:
        try:
            return to_pixels(path, Path(path), card.preprocessing)
        except DataError as error:
            return error

    logits = np.full((len(paths), len(card.labels)), np.nan, np.float32)
    embeddings = np.full((len(paths), embedding_width(model)), np.nan, np.float32)
    failed: list[DataError] = []
    progress.start("Looking at the images", len(paths))
    with ThreadPoolExecutor(min(available_cores(), 8)) as pool:
        for start in range(0, len(paths), 64):
            batch = paths[start : start + 64]
            decoded = [*pool.map(decode, batch)]
            failed += [x for x in decoded if isinstance(x, DataError)]
            good = {start + i: x for i, x in enumerate(decoded) if not isinstance(x, DataError)}
            if good:
                rows = [*good]
                some, found = model.pixels(np.stack([*good.values()]))
                check_finite(some, lambda i, rows=rows: paths[rows[i]])
                logits[rows], embeddings[rows] = some, found
            progress.advance(len(batch))
    if len(failed) == len(paths):
        raise DataError(f"None of {len(paths):,} images could be read. {failed[0]}")
    if failed:
        progress.line(f"{counted(len(failed), 'image')} could not be read, such as {failed[0]}")
    return Answers(logits, probabilities(logits, card.temperature), embeddings)


def find_cases(
    collection: Collection,
    answers: Answers,
    labels: Mapping[str, str],
    *,
    threshold: float | None,
    doubts: Path | None,
    progress: Reporter,
    unknown: Mapping[str, float] | None = None,
    values: ValueRange = None,
) -> list[Case]:
    """What to look at: doubts first, then near-duplicates, unknown and unsure images.

    Args:
        collection: The images.
        answers: What the model says about them.
        labels: Class of each image, as it is known now.
        threshold: Lowest probability that counts as sure; None for 0.5.
        doubts: The list that training wrote; None to judge by `answers`.
        progress: Shows the progress of the search for duplicates.
        unknown: Images that may be of no class, with a score.
        values: What becomes 0 and 255 in 16-bit images, as in a card's `value_range`.

    Raises:
        DataError: The list of doubts cannot be read, or is about other images.
    """
    rows = {path: i for i, path in enumerate(collection.paths)}

    def classes(path: str) -> tuple[tuple[str, float], ...]:
        p = answers.probabilities[rows[path]]
        if np.isnan(p).any():
            return ()
        return tuple((collection.labels[i], float(p[i])) for i in np.argsort(-p)[:_TOP])

    found = [] if doubts is None else _listed(doubts, labels, collection)
    if not found:
        judged = _judged(collection, answers, labels)
        if doubts is None:
            found = [(d.path, d.suggestion, d.score) for d in judged.found]
        if judged.why_none:
            progress.line(f"No label is shown as doubtful. {judged.why_none}")
    cases = [Case("doubt", (p,), f"score {score:.2f}", new, classes(p)) for p, new, score in found]
    seen = {case.paths[0] for case in cases}
    for pair, sizes, exact in _alike(collection, answers, progress, values):
        same = labels[pair[0]] == labels[pair[1]]
        note = "Equal files" if exact else "Nearly the same picture"
        note += "" if same else " in two classes"
        cases.append(Case("duplicate", pair, note, None, classes(pair[0]), sizes))
    scores = sorted((unknown or {}).items(), key=lambda item: -item[1])
    cases += [Case("unknown", (p,), "Unlike every class", None, classes(p)) for p, _ in scores]
    seen |= {path for path, _ in scores}
    best = np.nan_to_num(answers.probabilities.max(1), nan=1.0)
    unsure = np.flatnonzero(best < (0.5 if threshold is None else threshold))
    for i in unsure[np.argsort(best[unsure], kind="stable")].tolist():
        if (path := collection.paths[i]) not in seen:
            top = classes(path)
            suggestion = top[0][0] if top[0][0] != labels[path] else None
            cases.append(Case("unsure", (path,), f"At most {best[i]:.0%} sure", suggestion, top))
    return cases


def unlike_all(
    collection: Collection, answers: Answers, score: UnknownScore | None
) -> dict[str, float]:
    """The images that are like none of the classes, with their scores.

    Args:
        collection: The images.
        answers: What the model says about them.
        score: Tells unknown images; None if the model has no threshold for them.
    """
    if score is None:
        return {}
    rows = np.flatnonzero(np.isfinite(answers.embeddings).all(1))
    parts = np.array_split(rows, max(len(rows) // _SCORED, 1))
    some = ((answers.logits[part], answers.embeddings[part]) for part in parts)
    values = np.concatenate([score(*each) for each in some])
    above = np.flatnonzero(values > score.threshold)
    return {collection.paths[rows[i]]: float(values[i]) for i in above}


def similar_images(
    collection: Collection, answers: Answers, labels: Mapping[str, str], index: Index
) -> Callable[[Case], list[Neighbour]]:
    """Finds the images of an index that are nearest to the image of a case, except itself.

    They are of two classes: the suggestion, and the label; without a suggestion, the label and the
    most likely other class.

    Args:
        collection: The images.
        answers: What the model says about them.
        labels: Class of each image.
        index: Where to search.
    """
    rows = {path: i for i, path in enumerate(collection.paths)}

    def search(case: Case) -> list[Neighbour]:
        path = case.paths[0]
        embedding = answers.embeddings[rows[path]]
        if len(case.paths) > 1 or not np.isfinite(embedding).all():
            return []
        likely = [case.suggestion] if case.suggestion else []
        two = dict.fromkeys([*likely, labels[path], *(label for label, _ in case.classes)])
        return index.of_classes(embedding, [*two][:2], _LIKE, but=path)

    return search


def map_of(collection: Collection, answers: Answers, labels: LabelList) -> Points:
    """The map of all readable images; of more than 50,000, some are drawn at random.

    Raises:
        InputError: Neither scikit-learn nor UMAP is installed.
    """
    rows = np.flatnonzero(np.isfinite(answers.embeddings).all(1))
    if len(rows) > MOST:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:MOST])
    names = [collection.paths[i] for i in rows]
    split = np.repeat(np.arange(len(collection.parts)), [*map(len, collection.parts.values())])
    p = answers.probabilities[rows]
    return Points(
        places=arrange(answers.embeddings[rows]),
        names=names,
        classes=collection.labels,
        labels=np.array([collection.labels.index(labels[name].label) for name in names]),
        predicted=p.argmax(1),
        confidence=p.max(1),
        splits=[*collection.parts],
        split=split[rows],
    )


def _judged(collection: Collection, answers: Answers, labels: Mapping[str, str]) -> Doubts:
    """Doubts by a model that may have been trained on the images."""
    targets = np.array([collection.labels.index(labels[path]) for path in collection.paths])
    files = [Path(path) for path in collection.paths]
    whole = ImageSet(files, targets, collection.labels, "")  # pyright: ignore[reportArgumentType]
    return find_doubts("", whole, Opinions.of(answers.probabilities, targets))


def _listed(
    doubts: Path, labels: Mapping[str, str], collection: Collection
) -> list[tuple[str, str, float]]:
    """Path, suggestion and score of each doubt in a list whose label is as it was."""
    rows = read_doubts(doubts)
    listed = [(os.path.abspath(path), old, new, score) for path, old, new, score in rows]  # noqa: PTH100
    if listed and not any(path in labels for path, *_ in listed):
        raise DataError(
            f"{doubts} is about other images, such as {listed[0][0]}. Start in the folder in which "
            f"the training was started, or give the list of these images with --doubts."
        )
    classes = {*collection.labels}
    return [
        (path, new, score)
        for path, old, new, score in listed
        if labels.get(path) == old and new in classes
    ]


def _alike(
    collection: Collection, answers: Answers, progress: Reporter, values: ValueRange
) -> Iterator[tuple[tuple[str, str], tuple[str, ...], bool]]:
    """Pairs of images that are equal or show the same picture, sizes, and whether they are equal.

    Of many that are alike, each is paired with the one of most pixels, if it is like that one.
    """
    parts, paths = collection.parts.items(), collection.paths
    read = {name: read_records(images, "RGB", progress, values) for name, images in parts}
    index = ImageIndex(
        collection.parts,
        {name: records for name, (records, _) in read.items()},
        {name: np.setdiff1d(np.arange(len(r)), [*bad]) for name, (r, bad) in read.items()},
    )
    ends = np.cumsum([*map(len, collection.parts.values())])
    starts = {n: int(e) - len(x) for (n, x), e in zip(collection.parts.items(), ends, strict=True)}
    pairs = [(starts[a.a[0]] + a.a[1], starts[a.b[0]] + a.b[1]) for a in index.alike()]
    records = np.concatenate([r for r, _ in read.values()])
    shorter = np.minimum(records["width"], records["height"])
    rows = np.flatnonzero((shorter >= _SMALLEST) & np.isfinite(answers.embeddings).all(1))
    progress.start("Comparing similar images", len(rows))
    found = find_copies(
        answers.embeddings[rows],
        records["look"][rows],
        lambda i: open_image(Path(paths[rows[i]]), "L", values),
        progress,
    )
    pairs += [(int(rows[a]), int(rows[b])) for a, b in found]
    pixels = records["width"].astype(np.int64) * records["height"]
    for pair in in_groups(pairs, pixels):
        a, b = (paths[i] for i in pair)
        sizes = (
            f"{records['width'][i]}×{records['height'][i]}, {_kilobytes(paths[i])}" for i in pair
        )
        yield (a, b), tuple(sizes), len({*records["content"][[*pair]].tolist()}) == 1


def _kilobytes(path: str) -> str:
    """Size of a file."""
    return f"{max(Path(path).stat().st_size // 1000, 1):,} kB"
