"""Where images come from, and how they are split into what is learnt and what is measured.

folder/cat/1.jpg                     class folders, split by us, stratified
folder/train/cat/1.jpg, folder/val/… split by you, optionally with test/
folder/train-000.tar, …              WebDataset shards; also shards/train-{000..009}.tar, or a URL
folder/train-images-idx3-ubyte.gz, … MNIST's format
list.csv                             columns path, label and maybe split
folder/data/train-00000-of-00002.parquet   a Hugging Face data set
digits                               scikit-learn's 1,797 handwritten digits
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from resnext.data.dataset import (
    ImageSet,
    Source,
    Splits,
    held_out,
)
from resnext.data.sources.arrays import digits, idx_files, is_idx
from resnext.data.sources.folders import class_folders, manifest
from resnext.data.sources.packed import (
    is_pattern,
    is_tar_name,
    parquet_files,
    parquet_in,
    shards,
    tars_in,
)
from resnext.errors import DataError

BUILT_IN: dict[str, Callable[[], Source]] = {"digits": digits}
"""Data sets that come with a package, by name."""


def open_splits(source: str | Path, *, seed: int = 0, val_fraction: float = 0.2) -> Splits:
    """Open a data set for training.

    Shards at a URL are downloaded once, into the cache. Images in Parquet files are copied there.

    Args:
        source: A folder, file, pattern or URL as above, or "digits".
        seed: Decides which images are held out where the data has no `val`.
        val_fraction: Part of each class that is then held out.

    Raises:
        DataError: There is nothing to train on, or too little.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction must be between 0 and 1, not {val_fraction}.")
    if type(seed) is not int or seed < 0:
        raise DataError(f"seed must be 0 or a positive whole number, not {seed!r}.")
    found = find(source)
    if "train" not in found.parts:
        raise DataError(
            f"{found.name} has {', '.join(sorted(found.parts))} inside, but no train. Add what "
            f"is to be learnt from."
        )
    whole = found.parts["train"](None)
    rest = {
        name: read(whole.images.labels) for name, read in found.parts.items() if name != "train"
    }
    test = rest["test"].images if "test" in rest else None
    if "val" in rest:
        train, val, fraction = whole.images, rest["val"].images, None
    else:
        train, val = held_out(whole.images, seed, val_fraction)
        fraction = val_fraction
    problems = [problem for part in (whole, *rest.values()) for problem in part.problems]
    return Splits(
        train,
        val,
        test,
        found.colour,
        whole.fingerprint(),
        fraction,
        tuple(problems),
        found.defaults,
    )


def open_for_evaluation(
    source: str | Path, labels: tuple[str, ...], trained_on: dict[str, object]
) -> ImageSet:
    """Open what a model has not learnt from: `test`, else `val`, else what training held out.

    Args:
        source: As for `open_splits`.
        labels: The model's classes; targets index into them.
        trained_on: `data`, `fingerprint`, `seed` and `val_fraction` of the training, if known. If
            the data is what it was trained on, the same images are held out again.

    Raises:
        DataError: There is nothing to evaluate, a class the model does not know, or nothing that
            it has not learnt from.
    """
    found = find(source)
    for part in ("test", "val"):
        if part in found.parts:
            return found.parts[part](labels).images
    read = found.parts["train"](labels)
    whole = read.images
    if read.fingerprint() != trained_on.get("fingerprint"):
        if Path(whole.name).resolve().name == trained_on.get("data"):
            raise DataError(
                f"{whole.name} has other files than when the model learnt from data of that name, "
                f"so nobody knows which are new. Put new images into a folder of another name."
            )
        return whole
    seed, fraction = trained_on.get("seed"), trained_on.get("val_fraction")
    if not isinstance(seed, int) or not isinstance(fraction, float):
        raise DataError(f"The model has learnt from every image of {whole.name}. Give it others.")
    return held_out(whole, seed, fraction, read.own)[1]


def find(source: str | Path) -> Source:
    """The data set of a name, by its kind.

    Raises:
        DataError: There is none, or nobody knows its kind.
    """
    if str(source) in BUILT_IN:
        return BUILT_IN[str(source)]()
    if is_pattern(str(source)):
        return shards(str(source))
    root = Path(source)
    if not root.exists():
        raise DataError(f"{root} does not exist. Give a folder of class folders, or 'digits'.")
    if root.is_dir():
        if is_idx(root):
            return idx_files(root)
        if tars := tars_in(root):
            return shards(str(root), tars)
        if tables := parquet_in(root):
            return parquet_files(root, tables)
        return class_folders(root)
    if is_tar_name(root.name):
        return shards(str(root), [str(root)])
    if root.suffix.lower() == ".csv":
        return manifest(root)
    if root.suffix.lower() == ".parquet":
        return parquet_files(root, [root])
    raise DataError(
        f"{root} is a file. Give a folder of class folders, tar shards, a .csv list, or 'digits'."
    )
