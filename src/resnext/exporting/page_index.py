"""What a page takes of an index: embeddings, classes, and small pictures, in bounded space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from resnext.card import Card
from resnext.errors import CheckpointError, InputError
from resnext.neighbours.index import Index, open_index
from resnext.neighbours.model_files import index_path
from resnext.neighbours.unknown import bank_rows
from resnext.network import ResNeXt

THUMBNAIL_BYTES = 4_000_000
"""Bytes of the pictures that a page shows as similar. Of more, as many are taken as fit."""


def index_of_page(
    model: ResNeXt | str | Path,
    network: ResNeXt,
    card: Card,
    index: str | Path | Literal["auto"] | None,
) -> tuple[bytes, str]:
    """The index of a page, empty without one, and what the user must know about it.

    Args:
        model: What is exported; an index must have been made with its weights if it is a file.
        network: The network of it.
        card: Its card.
        index: The file; "auto" for the one next to a model file, if it can be used.

    Raises:
        CheckpointError: The index is damaged, or of another model.
        InputError: It has other classes or other embeddings.
        MissingFileError: It does not exist.
    """
    file = None if isinstance(model, ResNeXt) or not Path(model).is_file() else Path(model)
    if index is None or (index == "auto" and (file is None or not index_path(file).is_file())):
        return b"", ""
    if index != "auto":
        return _packed(open_index(network if file is None else file, index), network, card), ""
    try:
        content = _packed(open_index(file or network), network, card)
    except CheckpointError as error:
        return b"", f"The index is not used. {error}"
    return content, (
        "The page holds small copies of the images of the index next to the model. To leave them "
        "out: --no-index, or index=None."
    )


def _packed(index: Index, network: ResNeXt, card: Card) -> bytes:
    """A JSON header with its length before it, half-precision embeddings, and JPEG files.

    The embeddings are those that `unknown_score` compares with.
    """
    file, width = index.file, network.config.stages[-1].out_channels
    if file.width != width or file.targets.max() >= len(card.labels):
        raise InputError(
            f"{file.path} is the index of another model: it has {len(index.labels)} classes and "
            f"embeddings of length {file.width}, not {len(card.labels)} and {width}. Make one "
            f"with resnext index PHOTOS --model FILE."
        )
    if network.card is not None:
        index.check(network.card.preprocessing)
    score = index.unknown_score(card)
    rows = bank_rows(len(file), width)
    pictures = [file.thumbnail(row) for row in rows]
    step = -(-sum(map(len, pictures)) // THUMBNAIL_BYTES)
    pictures = [picture if i % step == 0 else b"" for i, picture in enumerate(pictures)]
    header = {
        "width": width,
        "threshold": None if score is None else score.threshold,
        "weight": None if score is None else score.weight,
        "rank": None if score is None else score.rank(network.config.num_classes),
        "images": len(file),
        "targets": file.targets[rows].tolist(),
        "ends": np.cumsum([len(picture) for picture in pictures]).tolist(),
    }
    text = json.dumps(header).encode()
    vectors = file.some_vectors(rows).astype("<f2").tobytes()
    return len(text).to_bytes(4, "little") + text + vectors + b"".join(pictures)
