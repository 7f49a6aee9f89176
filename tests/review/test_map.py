"""The map of a data set: similar images near each other, and a page that holds together."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnext.errors import InputError
from resnext.review import layout
from resnext.review.layout import arrange
from resnext.review.map import Points, map_fragment, thumbnail

pytestmark = pytest.mark.usefixtures("one_thread")


def clusters(count: int, each: int, d: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Groups of similar embeddings, and the group of each."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(count), each)
    return 8 * rng.normal(size=(count, d))[groups] + rng.normal(size=(count * each, d)), groups


def purity(points: np.ndarray, groups: np.ndarray) -> float:
    """Fraction of points whose nearest other point is of the same group."""
    distance = ((points[:, None] - points) ** 2).sum(2)
    np.fill_diagonal(distance, np.inf)
    return float((groups[distance.argmin(1)] == groups).mean())


@pytest.mark.parametrize("landmarks", [2000, 80])
def test_similar_images_are_near_each_other(landmarks: int) -> None:
    """Also where most images only join the ones that were arranged."""
    pytest.importorskip("sklearn")
    embeddings, groups = clusters(4, 60)
    points = arrange(embeddings, landmarks=landmarks)
    assert points.shape == (240, 2)
    assert (points.min(), points.max()) == (0, 1)
    assert purity(points, groups) > 0.95
    assert np.array_equal(points, arrange(embeddings, landmarks=landmarks))


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_few_images_have_a_map_too(count: int) -> None:
    """There is nothing to arrange, but the page must open."""
    points = arrange(np.random.default_rng(0).normal(size=(count, 1 if count == 1 else 8)))
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named."""
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(InputError, match=r'A map needs scikit-learn.*"resnext\[map\]"'):
        arrange(clusters(2, 10)[0])


def test_components_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many images are taken block by block; the places must be those of all at once."""
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    left, scale, _ = np.linalg.svd((unit - unit.mean(0)).astype(np.float64), full_matrices=False)
    for block in (7, 50, 99):
        monkeypatch.setattr(layout, "_BLOCK", block)
        assert np.abs(layout.components(x)) == pytest.approx(np.abs(left * scale), abs=1e-5)


def points(n: int = 5, **changes: Any) -> Points:
    """A small map."""
    values: dict[str, Any] = {
        "places": np.linspace(0, 1, 2 * n).reshape(n, 2),
        "names": [f"</script>{i}.png" for i in range(n)],
        "classes": ("<b>", "dog"),
        "labels": np.arange(n) % 2,
        "predicted": np.array([-1] + [1] * (n - 1)),
        "confidence": np.array([np.nan] + [0.5] * (n - 1)),
        "splits": ("train", "val"),
        "split": np.zeros(n, int),
    }
    return Points(**values | changes)


def data(page: str) -> dict[str, Any]:
    """What the script reads."""
    found = re.search(r'<script type="application/json" id="map-data">(.*?)</script>', page)
    assert found
    return json.loads(found[1])


def test_the_page_holds_what_the_script_reads() -> None:
    """A name that ends the script would run as code."""
    page = map_fragment(points(), "abc")
    assert page.count(' nonce="abc"') == 2
    assert "{{ " not in page
    values = data(page)
    assert values["names"][0] == "</script>0.png"
    assert (values["x"][0], values["y"][-1], values["confidence"]) == (0, 9999, [0, 50, 50, 50, 50])
    assert values["sprite"] == ""


def test_thumbnails_are_in_one_picture() -> None:
    """A report has no server to ask."""
    pictures = [thumbnail(Image.new("L", (90, 30), 50 * i)) for i in range(5)]
    values = data(map_fragment(points(thumbnails=pictures)))
    assert values["columns"] == 3
    assert values["sprite"].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (9, 4), (11, 1), (12, 4)], ids=str)
def test_few_or_equal_images_have_places(shape: tuple[int, int]) -> None:
    """A set of two images, a network of one feature, or images that are all the same."""
    for x in (np.ones(shape), np.zeros(shape), np.random.default_rng(0).normal(size=shape)):
        places = arrange(x)
        assert places.shape == (shape[0], 2)
        assert ((places >= 0) & (places <= 1)).all()
