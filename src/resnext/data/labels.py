"""Class labels: from the texts in a data set to numbered classes."""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from resnext.data.dataset import compact
from resnext.errors import DataError


class Classes:
    """Collects the class of each image as text, and numbers the classes at the end."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._of = array("q")

    def add(self, text: str) -> None:
        """Add the class of the next image."""
        self._of.append(self._ids.setdefault(text, len(self._ids)))

    def finish(
        self, name: str, known: Sequence[str] | None, labels: tuple[str, ...] | None
    ) -> tuple[array[int], tuple[str, ...], tuple[str, ...]]:
        """Targets, the labels they index into, and the data set's own labels, spelled like those.

        Args:
            name: Name of the data, for messages.
            known: Names of the classes 0, 1, …; if None, the collected texts are the names.
            labels: Labels that the targets must index into; if None, the data set's own.

        Raises:
            DataError: A class is unknown, or there is only one.
        """
        own, index = _numbered(name, list(self._ids), known)
        if labels is None:
            if len(set(index)) < 2:
                only = own[index[0]] if index else "none"
                raise DataError(one_class(name, only))
            labels = own
        if labels != own:
            own = as_spelled(own, labels)
            for label in own:
                if own.count(label) > 1:
                    raise DataError(f"{name} calls two classes {label!r}. Rename one of them.")
            positions = {label: i for i, label in enumerate(labels)}
            refuse_unknown(name, {own[i] for i in index}, labels)
            index = [positions[own[i]] for i in index]
        return compact(np.asarray(index, dtype=np.int64)[np.asarray(self._of)]), labels, own


def class_names(texts: Sequence[str]) -> dict[str, str]:
    """The class of each text: texts that differ only in their Unicode form are one class.

    A text stays as it is unless another form of it is there too; then NFC is the name.
    """
    forms: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        forms.setdefault(unicodedata.normalize("NFC", text), []).append(text)
    return {text: form if len(same) > 1 else text for form, same in forms.items() for text in same}


def as_spelled(texts: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    """Texts in the Unicode form in which `known` has them; those that it lacks as they are."""
    exact = {*known}
    forms = {unicodedata.normalize("NFC", label): label for label in known}
    return tuple(
        text if text in exact else forms.get(unicodedata.normalize("NFC", text), text)
        for text in texts
    )


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Different class names in their order: by value if all are whole numbers, else as text."""
    different = {*names}
    if not all(name.isascii() and name.isdigit() for name in different):
        return tuple(sorted(different))

    def value(name: str) -> tuple[int, str, str]:
        digits = name.lstrip("0")
        return len(digits), digits, name

    return tuple(sorted(different, key=value))


def one_class(name: str, label: str) -> str:
    """Message for data with a single class."""
    return f"{name} has only one class, {label!r}. Training needs at least two."


def refuse_unknown(name: str, found: set[str], labels: Sequence[str]) -> None:
    """Refuse classes that are not among `labels`, in whatever Unicode form.

    Raises:
        DataError: A class is unknown.
    """
    unknown = sorted({*as_spelled(found, labels)}.difference(labels))
    if unknown:
        raise DataError(f"{name} has a class {unknown[0]!r}; known are {shortened(labels)}.")


def shortened(labels: Sequence[str]) -> str:
    """The first five labels, and how many more there are."""
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return ", ".join(labels[:5]) + more


def _numbered(
    name: str, texts: list[str], known: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int]]:
    """Names of the classes in order, and the number of each text's class.

    A text is a name as it stands: 001 is not 1. Numbers only decide the order, unless the names are
    known and every text is a number from 0 on.

    Raises:
        DataError: A class is unknown, or is the name of one class and the number of another.
    """
    if known is None:
        names = class_names(texts)
        order = in_order(names.values())
        positions = {label: i for i, label in enumerate(order)}
        return order, [positions[names[text]] for text in texts]
    texts = [*as_spelled(texts, known)]
    numbers = {str(i): i for i in range(len(known))}
    if not numbers.keys() >= {*texts}:
        names = {label: i for i, label in enumerate(known)}
        for text in texts:
            if text in numbers and names.get(text, numbers[text]) != numbers[text]:
                raise DataError(
                    f"{name} has a class {text!r}, which is the name of one class and the number "
                    f"of another ({shortened(known)}). Give all classes by number, from 0."
                )
        numbers |= names
    for text in texts:
        if text not in numbers:
            raise DataError(
                f"{name} has a class {text!r}, but its {len(known)} class names are "
                f"{shortened(known)} (numbers 0 to {len(known) - 1})."
            )
    return tuple(known), [numbers[text] for text in texts]
