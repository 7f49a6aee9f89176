"""The images of an index: all of a folder, or those that the model was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from resnext.card import Card
from resnext.data.dataset import Files, ImageSet, compact, held_out
from resnext.data.labels import as_spelled
from resnext.data.open import BUILT_IN, find_source
from resnext.data.passed_over import PassedOver
from resnext.data.sources.base import SPLITS, split_of, visible
from resnext.data.sources.folders import image_names, walk_images


def open_photos(
    source: str | Path, card: Card, passed_over: PassedOver
) -> tuple[ImageSet, ImageSet | None]:
    """The images of an index, and others like them that the model was not trained on.

    Of data with splits, the images of the index are those of `train`, and the others those of
    `val`. Of the data that the model was trained on, they are what it was trained on, and what was
    held out then. Of all other data, the index has every image, and there are no others.

    Args:
        source: A folder of images; or a data set of any kind, whose classes must be the model's.
        card: Labels and provenance of the model.
        passed_over: Counts the files and folders that are not read.

    Returns:
        Images whose targets index into the labels of the card, -1 for none.

    Raises:
        DataError: There are no images, or a class is not the model's.
    """
    root = Path(source)
    if str(source) not in BUILT_IN and root.is_dir() and not _is_data_set(root, card.labels):
        files = Files(root, image_names(root, passed_over))
        return ImageSet(files, compact(np.full(len(files), -1)), card.labels, str(root)), None
    opened = find_source(source)
    first, read = next((x, opened.splits[x]) for x in SPLITS if x in opened.splits)
    whole = read(card.labels)
    for part in (opened, whole):
        passed_over.update(part.passed_over)
    if first == "train" and "val" in opened.splits:
        return whole.images, opened.splits["val"](card.labels).images
    seed, fraction = (card.provenance.get(name) for name in ("seed", "val_fraction"))
    known = whole.fingerprint() == card.provenance.get("fingerprint")
    if known and isinstance(seed, int) and isinstance(fraction, float):
        return held_out(whole.images, seed, fraction, whole.own_labels)
    return whole.images, None


def _is_data_set(root: Path, labels: tuple[str, ...]) -> bool:
    """Whether a folder has classes or splits, or files with many images; else it has images."""
    inside = visible(root)
    folders = [path.name for path in inside if path.is_dir()]
    if {*as_spelled(folders, labels)} & {*labels} or {*map(split_of, folders)} - {None}:
        return True
    return not folders and bool(inside) and next(walk_images(root), None) is None
