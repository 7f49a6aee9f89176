"""Label doubts: which labels are in doubt, in which order, and the list of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resnext.data.dataset import ImageSet
from resnext.errors import DataError
from resnext.evaluation.label_doubts import (
    Doubt,
    Doubts,
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
    found = find_doubts("train", images(targets), opinions).found
    return [(d.index, d.suggestion, round(d.score, 6)) for d in found]


def reason(clear: int, unclear: int, wrong: int) -> str:
    """Why there is no list, with this many images of each kind, half of them of each class."""
    kinds = [(clear, 0.9), (unclear, 0.5), (wrong, 0.02)]
    given = np.concatenate([np.full(2 * count, p) for count, p in kinds])
    targets = np.tile([0, 1], clear + unclear + wrong)
    opinions = Opinions(given, 1 - given, 1 - targets)
    doubts = find_doubts("train", images(targets.tolist()), opinions)
    assert len(doubts.found) == (0 if doubts.why_none else 2 * wrong)
    return doubts.why_none


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
    given, rival = np.array([0.9, 0.9, 0.9, 0.9, 0.0]), np.array([1, 0, 1, 0, 1])
    opinions, indices = Opinions(given, 1 - given, rival), np.array([0, 3, 1, 5, 4])
    (doubt,) = find_doubts("val", images([0, 0, 0, 1, 0, 1]), opinions, indices).found
    assert (doubt.index, doubt.path, doubt.label, doubt.suggestion) == (4, "4.png", "cat", "dog")


@pytest.mark.parametrize(
    ("clear", "unclear", "wrong", "none"),
    [(40, 50, 10, False), (39, 51, 10, True), (25, 74, 1, False), (24, 75, 1, True)],
)
def test_a_network_that_has_not_learned_doubts_nothing(
    clear: int, unclear: int, wrong: int, none: bool
) -> None:
    """After one epoch, hundreds of labels were in doubt, and nearly all of them were right."""
    why = reason(clear, unclear, wrong)
    assert bool(why) == none
    if none:
        assert why.startswith(
            f"The network is clear about {clear}% of the labels and contradicts {wrong}%. "
        )


def test_without_opinions_nothing_is_said() -> None:
    """Of a run of an older version, nothing was recorded."""
    unknown = Opinions(np.full(3, np.nan), np.full(3, np.nan), np.zeros(3, int))
    assert find_doubts("train", images([0, 1, 2]), unknown) == Doubts([])


def test_the_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Commas, quotes and names that are not text must survive."""
    names = ['a, "b".png', "ü\n.png", "\udcff.png"]
    file = tmp_path / "label_doubts.csv"
    write_doubts(file, [Doubt("train", 0, name, "a,b", "c", 0.123456) for name in names])
    assert file.read_bytes().startswith(b"path,label,suggestion,score\r\n")
    assert read_doubts(file) == [(name, "a,b", "c", 0.1235) for name in names]
    saved = "\ufeff" + "path;label;suggestion;score\r\n1.png;a,b;c;0,1235\r\n"  # by a spreadsheet
    for encoding in ("utf-8", "utf-16"):
        file.write_text(saved, encoding=encoding, newline="")
        assert read_doubts(file) == [("1.png", "a,b", "c", 0.1235)]


@pytest.mark.parametrize("content", [b"path,label\na,b\n", b"path,label,suggestion,score\na,b\n"])
def test_another_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    """A traceback of the csv module says nothing about what to do."""
    file = tmp_path / "label_doubts.csv"
    with pytest.raises(DataError, match=r"label_doubts\.csv does not exist"):
        read_doubts(file)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"not a list of doubts .*Wanted the columns path, label"):
        read_doubts(file)
