"""Embeddings as points in the plane: neighbours stay neighbours."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from jaxtyping import Float

from resnext.errors import InputError

MOST = 50_000
"""Images on a map; of more, some are drawn at random."""
_COMPONENTS, _BLOCK = 50, 4096
_NEAREST = 5
_FEWEST = 10  # images below which there is nothing to arrange


def installed() -> bool:
    """Whether a library that arranges points is there."""
    return find_spec("umap") is not None or find_spec("sklearn") is not None


def arrange(
    embeddings: Float[np.ndarray, "n d"], *, landmarks: int = 2_000
) -> Float[np.ndarray, "n 2"]:
    """Points from 0 to 1 whose neighbours have similar embeddings.

    Principal components, then UMAP (arXiv:1802.03426) if `umap` is installed, else t-SNE (van der
    Maaten and Hinton, 2008) of some images; each other image is put between the five of them that
    are most like it, so the time stays within bounds.

    Args:
        embeddings: One row for each image.
        landmarks: Images that t-SNE arranges.

    Raises:
        InputError: Neither scikit-learn nor UMAP is installed.
    """
    if not len(embeddings):
        return np.zeros((0, 2))
    x = components(embeddings)
    if len(x) < _FEWEST or x.shape[1] < 2 or _same(x):
        points = np.pad(x, ((0, 0), (0, 2)))[:, :2]
    elif find_spec("umap") is not None:
        from umap import UMAP  # pyright: ignore[reportMissingImports]

        neighbours = min(15, len(x) - 1)
        options = {"n_neighbors": neighbours, "random_state": 0, "n_jobs": 1}  # else it warns
        points = np.asarray(UMAP(**options).fit_transform(x))
    else:
        points = _tsne(x, landmarks)
    low, high = points.min(0), points.max(0)
    return (points - low) / np.maximum(high - low, 1e-12).max()


def components(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
    """The principal components of rows scaled to length one, as the cosine compares them.

    In double precision, of a block of rows at a time, as there may be 50,000 rows of 2,048 values.
    """
    blocks = np.array_split(x, -(-len(x) // _BLOCK))

    def scaled(block: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        block = np.asarray(block, np.float64)
        return block / np.linalg.norm(block, axis=1, keepdims=True).clip(1e-12)

    mean = sum(scaled(block).sum(0) for block in blocks) / len(x)
    centred = (scaled(block) - mean for block in blocks)
    _, vectors = np.linalg.eigh(sum(rows.T @ rows for rows in centred))
    count = min(_COMPONENTS, *x.shape)
    return np.concatenate([(scaled(b) - mean) @ vectors[:, ::-1][:, :count] for b in blocks])


def _same(x: Float[np.ndarray, "n c"]) -> bool:
    """Whether all rows are equal, but for rounding."""
    return float(np.ptp(x, 0).max()) < 1e-9


def _tsne(x: Float[np.ndarray, "n c"], count: int) -> Float[np.ndarray, "n 2"]:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise InputError(
            'A map needs scikit-learn, or UMAP for a better one: pip install "resnext[map]".'
        ) from error
    chosen = np.sort(np.random.default_rng(0).permutation(len(x))[:count])
    landmarks = x[chosen]
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    init = "random" if _same(landmarks) else "pca"  # which divides by their spread
    options = {"init": init, "random_state": 0, "max_iter": 500, "n_jobs": 1}
    arranged = TSNE(perplexity=perplexity, **options).fit_transform(landmarks)
    points = np.empty((len(x), 2))
    for start in range(0, len(x), _BLOCK):
        rows = x[start : start + _BLOCK]
        distance = (rows**2).sum(1)[:, None] + (landmarks**2).sum(1) - 2 * rows @ landmarks.T
        nearest = np.argpartition(distance, min(_NEAREST, len(chosen)) - 1)[:, :_NEAREST]
        weight = 1 / (np.take_along_axis(distance, nearest, 1).clip(0) + 1e-9)
        weight /= weight.sum(1, keepdims=True)
        points[start : start + _BLOCK] = (arranged[nearest] * weight[..., None]).sum(1)
    points[chosen] = arranged
    return points
