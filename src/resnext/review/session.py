"""One review: its cases, decided one by one, and taken back."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from resnext.errors import InputError
from resnext.neighbours.index import Neighbour
from resnext.review.cases import Case
from resnext.review.decisions import Entry, LabelList, decided
from resnext.review.map import Points


class Session:
    """The cases of a review. Safe to call from several threads.

    Args:
        data: The data, as the command line named it.
        cases: What to look at. Cases that were decided in an earlier review are left out.
        labels: The list that holds the decisions.
        classes: All classes.
        points: The map, whose names are paths in the list; None without one.
        similar: Finds training images that are like the image of a case; None without an index.
    """

    def __init__(
        self,
        data: str,
        cases: Sequence[Case],
        labels: LabelList,
        classes: Sequence[str],
        points: Points | None = None,
        similar: Callable[[Case], list[Neighbour]] | None = None,
    ) -> None:
        self.data, self.labels, self.classes = data, labels, tuple(classes)
        self.points, self._similar = points, similar
        open_cases = (c for c in cases if not all(labels[p].decision for p in c.paths))
        self.cases = [*open_cases]
        self._before: list[tuple[int | None, list[Entry]]] = []  # None: on the map
        self._lock, self._searching = threading.Lock(), threading.Lock()

    @property
    def decided(self) -> int:
        """Number of cases that were decided."""
        with self._lock:
            return len({case for case, _ in self._before if case is not None})

    def state(self) -> dict[str, Any]:
        """All cases, for the page."""
        cases = [
            {
                **asdict(case),
                "names": [Path(path).name for path in case.paths],
                "labels": [self.labels[path].label for path in case.paths],
            }
            for case in self.cases
        ]
        out = str(self.labels.file)
        named = [] if out == "labels.csv" else ["--out", out]
        apply = shlex.join(["resnext", "review", self.data, *named, "--apply"])
        train = shlex.join(["resnext", "train", out])
        texts = {"title": self.data, "file": out, "train": train, "apply": apply}
        parts = {"map": self.points is not None, "similar": self._similar is not None}
        return {**texts, "classes": self.classes, "cases": cases, **parts}

    def similar(self, case: int) -> list[Neighbour]:
        """Training images that are like the image of a case; none without an index.

        Raises:
            InputError: There is no such case.
            CheckpointError: The index is damaged.
        """
        self.path(case, 0)
        if self._similar is None:
            return []
        with self._searching:
            return self._similar(self.cases[case])

    def path(self, case: int, image: int) -> Path:
        """The file of an image of a case.

        Raises:
            InputError: There is no such image.
        """
        if not (0 <= case < len(self.cases) and 0 <= image < len(self.cases[case].paths)):
            raise InputError(f"There is no image {image} in case {case}.")
        return Path(self.cases[case].paths[image])

    def mapped(self, image: int) -> Path:
        """The file of an image on the map.

        Raises:
            InputError: There is no such image.
        """
        if self.points is None or not 0 <= image < len(self.points.names):
            raise InputError(f"There is no image {image} on the map.")
        return Path(self.points.names[image])

    def label(self, images: Sequence[int], label: str | None) -> None:
        """Give images on the map a class, or None to leave them out; written at once.

        Raises:
            InputError: There is no such image or class.
            CheckpointError: The list cannot be written; nothing has changed.
        """
        paths = [str(self.mapped(image)) for image in images]
        if label not in (None, *self.classes):
            raise InputError(f"{label!r} is not one of the classes.")
        with self._lock:
            self.labels.refresh()
            before = [self.labels[path] for path in paths]
            self.labels.update(*(decided(entry, label) for entry in before))
            self._before.append((None, before))

    def decide(self, case: int, labels: Sequence[str | None]) -> None:
        """Give each image of a case a class, or None to leave it out; written at once.

        Raises:
            InputError: There is no such case or class.
            CheckpointError: The list cannot be written; nothing has changed.
        """
        self.path(case, 0)
        paths = self.cases[case].paths
        if len(labels) != len(paths) or any(x not in (None, *self.classes) for x in labels):
            raise InputError(f"Wanted {len(paths)} of the classes, not {labels}.")
        with self._lock:
            self.labels.refresh()
            before = [self.labels[path] for path in paths]
            self.labels.update(*map(decided, before, labels))
            self._before.append((case, before))

    def undo(self) -> int | None:
        """Take the last decision back and return its case; None if it was on the map, or none is.

        Raises:
            CheckpointError: The list cannot be written; nothing has changed.
        """
        with self._lock:
            if not self._before:
                return None
            case, before = self._before[-1]
            self.labels.update(*before)
            self._before.pop()
            return case
