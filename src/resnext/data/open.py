"""From a path to images and labels, split for training or chosen for evaluation.

folder/cat/1.jpg                     class folders; we split them, stratified by class
folder/train/cat/1.jpg, folder/val/… already split; test/ is optional
folder/train-000.tar, …              WebDataset shards; also shards/train-{000..009}.tar, or a URL
folder/train-images-idx3-ubyte.gz, … MNIST's format
list.csv, .tsv, .jsonl               columns path and label, optionally split
folder/data/train-00000-of-00002.parquet   a Hugging Face data set
digits                               scikit-learn's 1,797 handwritten digits
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from resnext.checks import brief, is_finite
from resnext.data.dataset import ImageSet, SplitName, Splits, held_out
from resnext.data.depth import used_range
from resnext.data.passed_over import PassedOver
from resnext.data.sources.arrays import digits, idx_files, is_idx
from resnext.data.sources.base import SPLITS, LoadedSplit, Source
from resnext.data.sources.csv_list import ENDINGS, csv_list
from resnext.data.sources.folders import class_folders, holds_classes
from resnext.data.sources.parquet import parquet, parquet_in, parquet_splits, split_folders
from resnext.data.sources.webdataset import is_pattern, is_tar_name, tars_in, webdataset
from resnext.errors import DataError

BUILT_IN: dict[str, Callable[[], Source]] = {"digits": digits}
"""Data sets from installed packages, by name."""


def open_splits(
    source: str | Path,
    *,
    seed: int = 0,
    val_fraction: float = 0.2,
    order: Sequence[str] = (),
) -> Splits:
    """Open a data set for training.

    Shards at a URL are downloaded into the cache once. Images in Parquet files are copied there.

    Args:
        source: A folder, file, pattern or URL of a kind that the module's docstring lists, or
            "digits".
        seed: Decides which images are held out if the data has no `val`.
        val_fraction: Fraction of each class that is held out then.
        order: The classes in the order in which they are numbered, if the data has just these;
            by default, numbers are ordered by value, and other names as text.

    Raises:
        DataError: The data has too few images to train on, or none.
    """
    if not (is_finite(val_fraction) and 0 < val_fraction < 1):
        raise DataError(f"val_fraction must be between 0 and 1, not {brief(val_fraction)}.")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise DataError(f"seed must be 0 or a positive integer below 2^63, not {brief(seed)}.")
    opened = find_source(source)
    if "train" not in opened.splits:
        raise DataError(
            f"{opened.name} has {', '.join(sorted(opened.splits))} inside, but no train. Add the "
            f"images to train on."
        )
    whole = opened.splits["train"](None)
    if tuple(order) != whole.images.labels and {*order} == {*whole.images.labels}:
        whole = opened.splits["train"](tuple(order))
    others = {
        name: read(whole.images.labels) for name, read in opened.splits.items() if name != "train"
    }
    if "val" in others:
        train, val, fraction = whole.images, others["val"].images, None
    else:
        train, val = held_out(whole.images, seed, val_fraction, whole.own_labels)
        fraction = val_fraction
    passed_over = PassedOver()
    for part in (opened, whole, *others.values()):
        passed_over.update(part.passed_over)
    return Splits(
        train,
        val,
        others["test"].images if "test" in others else None,
        opened.colour,
        whole.fingerprint(),
        fraction,
        tuple(problem for split in (whole, *others.values()) for problem in split.problems),
        opened.defaults,
        passed_over,
        notes=tuple({note: None for x in (whole, *others.values()) for note in x.notes}),
        value_range=used_range(train),
    )


def open_for_evaluation(
    source: str | Path,
    labels: tuple[str, ...],
    trained_on: dict[str, object],
    tell: Callable[[str], object] | None = None,
) -> ImageSet:
    """Open images the model was not trained on: `test`, else `val`, else the held-out images.

    Args:
        source: A data set, as for `open_splits`.
        labels: The model's classes; targets index into them.
        trained_on: `data`, `fingerprint`, `seed` and `val_fraction` of the training, if known. If
            the data is what the model was trained on, the same images are held out again.
        tell: Called with a line for each kind of file that is passed over, and for what else a
            reader should know about how the data was read.

    Raises:
        DataError: The data has no images, a class is not the model's, or the model was trained on
            every image.
    """
    opened = find_source(source)
    split: SplitName = next(split for split in reversed(SPLITS) if split in opened.splits)
    whole = opened.splits[split](labels)
    if tell is not None:
        passed_over = PassedOver()
        passed_over.update(opened.passed_over)
        passed_over.update(whole.passed_over)
        for line in (*passed_over.lines(), *whole.notes):
            tell(line)
    images = _with_lacking(whole)
    if split != "train":
        return images
    if whole.fingerprint() != trained_on.get("fingerprint"):
        if Path(images.name).resolve().name == trained_on.get("data"):
            raise DataError(
                f"{images.name} has changed since the model was trained on data of that name, so "
                f"which images are new is unknown. Put new images into a folder of another name."
            )
        return images
    seed, fraction = trained_on.get("seed"), trained_on.get("val_fraction")
    if not isinstance(seed, int) or not isinstance(fraction, float):
        raise DataError(
            f"The model was trained on every image in {images.name}. Evaluate it on other data."
        )
    return held_out(images, seed, fraction, whole.own_labels)[1]


def _with_lacking(split: LoadedSplit) -> ImageSet:
    """The images of a split, which names the samples that were left out of it."""
    return replace(split.images, lacking=tuple(problem.title for problem in split.problems))


def find_source(source: str | Path) -> Source:
    """The data set at a path, pattern or URL, or with a name.

    Raises:
        DataError: The data does not exist, or is not of a supported kind.
    """
    if not isinstance(source, str | Path):
        raise DataError(f"Data must be a path, a URL or 'digits', not {brief(source)}.")
    if str(source) in BUILT_IN:
        return BUILT_IN[str(source)]()
    if is_pattern(str(source)):
        return webdataset(str(source))
    root = Path(source)
    if not root.exists():
        raise DataError(f"{root} does not exist. Give a folder of class folders, or 'digits'.")
    if root.is_dir():
        if is_idx(root):
            return idx_files(root)
        if tars := tars_in(root):
            return webdataset(str(root), tars)
        if (tables := parquet_in(root)) and not holds_classes(root):
            return parquet(root, tables)
        if (splits := split_folders(root)) and not holds_classes(root):
            return parquet_splits(root, splits)
        return class_folders(root)
    if is_tar_name(root.name):
        return webdataset(str(root), [str(root)])
    if root.suffix.lower() in ENDINGS:
        return csv_list(root)
    if root.suffix.lower() == ".parquet":
        return parquet(root, [root])
    raise DataError(
        f"{root} is a file. Give a folder of class folders, tar shards, a .csv list, or 'digits'."
    )
