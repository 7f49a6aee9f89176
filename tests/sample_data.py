"""Small data sets of several kinds, and what is in a set of images."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from resnext.data.dataset import ImageSet, Splits


def picture(level: int, kind: str = "PNG") -> bytes:
    """A tiny image of one grey level."""
    out = io.BytesIO()
    Image.new("RGB", (3, 2), (level % 256,) * 3).save(out, kind)
    return out.getvalue()


def levels(images: ImageSet) -> list[int]:
    """The grey level of each image, decoded."""
    return [int(np.asarray(images.open(i, "L"))[0, 0]) for i in range(len(images))]


def classes(images: ImageSet) -> list[str]:
    """The class of each image, by name."""
    return [images.labels[target] for target in images.targets]


def trained_on(splits: Splits, seed: int = 0) -> dict[str, object]:
    """What training records for evaluation."""
    return {
        "data": Path(splits.train.name).resolve().name,
        "fingerprint": splits.fingerprint,
        "seed": seed,
        "val_fraction": splits.val_fraction,
    }


def tar(path: Path, members: Mapping[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar with these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def numbered(first: int, count: int, k: int = 2) -> dict[str, bytes]:
    """Samples whose grey level is their number, and whose class its remainder."""
    members: dict[str, bytes] = {}
    for i in range(first, first + count):
        members[f"{i:04}.png"] = picture(i)
        members[f"{i:04}.cls"] = str(i % k).encode()
    return members


COUNTS = {"cat": 10, "ant": 2, "dog": 25, "bee": 3}
"""Images of each class."""


def write(path: Path, level: int = 0) -> None:
    """A tiny image file; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (level % 256,) * 3).save(path)


def fill(root: Path, counts: dict[str, int]) -> Path:
    """So many images in each class folder of `root`."""
    for name, count in counts.items():
        for i in range(count):
            write(root / name / f"{i:03}.png", i)
    return root


def names(images: ImageSet, root: Path) -> list[str]:
    """Files of a set, relative to `root`."""
    files = [image for image in images.images if isinstance(image, Path)]
    assert len(files) == len(images)
    return [file.relative_to(root).as_posix() for file in files]


def by_class(images: ImageSet, root: Path) -> list[tuple[str, str]]:
    """Class by name, and class by target, of each image: they must be the same."""
    files = names(images, root)
    return [
        (file.split("/")[0], images.labels[t])
        for file, t in zip(files, images.targets, strict=True)
    ]
