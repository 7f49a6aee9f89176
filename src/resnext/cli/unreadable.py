"""Images that a command cannot read: it names them, and continues with the others."""

from __future__ import annotations

import sys

from resnext.cli.options import one_line
from resnext.errors import DataError


class Unreadable:
    """Prints a line for each image that cannot be read. If it is the only image, that is an error.

    Args:
        total: Number of all images.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.names: list[str] = []

    def __call__(self, name: str, error: DataError) -> None:
        """Name an image and say why."""
        if self.total == 1:
            raise error
        self.names.append(name)
        print(one_line(str(error)), file=sys.stderr)

    def ending(self) -> str:
        """The end of a command's last line.

        Raises:
            DataError: No image could be read.
        """
        if len(self.names) == self.total:
            raise DataError(f"None of {self.total:,} images could be read.")
        return not_read(len(self.names))


def not_read(count: int) -> str:
    """The end of a line that counts images: how many could not be read, if any."""
    return f"; {count:,} could not be read" if count else ""
