"""Label doubts: which labels are in doubt, in which order, and the list of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resnext.data.dataset import ImageSet
from resnext.errors import DataError
from resnext.evaluation.label_doubts import (
    Doubt,
    Opinions,
    find_doubts,
    read_doubts,
    write_doubts,
)

LABELS = ("cat", "dog", "fox")


def images(targets: list[int]) -> ImageSet:
    """As many images as targets, with files that need not exist."""
    files = [Path(f"{i}.png") for i in range(len(targets))]
    return ImageSet(files, targets, LABELS, "photos")


def doubts(rows: list[tuple[int, list[float]]]) -> list[tuple[int, str, float]]:
    """Index, suggestion and score of each doubt about rows of target and probabilities."""
    targets = [target for target, _ in rows]
    opinions = Opinions.of(np.array([p for _, p in rows]), np.array(targets))
    found = find_doubts("train", images(targets), opinions)
    return [(d.index, d.suggestion, round(d.score, 6)) for d in found]


def test_wrong_labels_come_first_with_their_class() -> None:
    """The more certain the network is of another class, the earlier one should look."""
    rows = [(0, [0.9, 0.1, 0.0])] * 5 + [(1, [0.1, 0.9, 0.0])] * 5
    rows += [(0, [0.05, 0.9, 0.05]), (1, [1.0, 0.0, 0.0])]
    assert doubts(rows) == [(11, "cat", 0.999002), (10, "dog", 0.946429)]


def test_what_is_common_for_a_class_is_no_doubt() -> None:
    """A network that is overconfident about dogs would put every unclear cat on the list."""
    rows = [(1, [0.0, 1.0, 0.0])] * 9 + [(0, [0.2, 0.8, 0.0])] * 4
    assert doubts(rows) == []
    assert doubts([*rows, (0, [0.0, 1.0, 0.0])]) == [(13, "dog", 0.999002)]


def test_images_and_classes_that_are_unknown_raise_no_doubt() -> None:
    """An image that was never trained on has no opinion; a class without images no usual value."""
    nan = float("nan")
    assert doubts([(0, [nan] * 3), (1, [0.2, 0.8, 0.0]), (1, [0.0, 0.1, 0.9])]) == []


def test_opinions_about_some_images_name_these() -> None:
    """Unreadable images are left out of an evaluation, so positions move."""
    opinions = Opinions(np.array([0.9, 0.9, 0.0]), np.array([0.1, 0.1, 1.0]), np.array([1, 0, 1]))
    (doubt,) = find_doubts("val", images([0, 0, 0, 1, 0]), opinions, np.array([0, 3, 4]))
    assert (doubt.index, doubt.path, doubt.label, doubt.suggestion) == (4, "4.png", "cat", "dog")


def test_the_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Commas, quotes and names that are not text must survive."""
    names = ['a, "b".png', "ü\n.png", "\udcff.png"]
    file = tmp_path / "label_doubts.csv"
    write_doubts(file, [Doubt("train", 0, name, "a,b", "c", 0.123456) for name in names])
    assert file.read_bytes().startswith(b"path,label,suggestion,score\r\n")
    assert read_doubts(file) == [(name, "a,b", "c", 0.1235) for name in names]


@pytest.mark.parametrize("content", [b"path,label\na,b\n", b"path,label,suggestion,score\na,b\n"])
def test_another_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    """A traceback of the csv module says nothing about what to do."""
    file = tmp_path / "label_doubts.csv"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"not a list of doubts .*Wanted the columns path, label"):
        read_doubts(file)
