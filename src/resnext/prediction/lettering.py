"""Text in pictures: letters that Pillow's own font lacks are drawn with fonts of the system.

Pillow's font has little more than ASCII. A text is drawn with one font, so that letters that join
and words from right to left come out as they should.
"""

from __future__ import annotations

import os
import re
import string
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from PIL import ImageDraw, ImageFont

from resnext.errors import ResNeXtWarning

_ENDINGS = (".ttf", ".otf", ".ttc", ".otc")
_UNUSUAL = re.compile("bold|italic|oblique|light|thin|black|condensed|mono|serif|math", re.I)
_PROBE = 20  # pixels
_NO_CHARACTER = "\uffff"  # drawn as what a font shows for letters that it lacks
_ASCII = {"Pd": "-", "Pi": "'", "Pf": "'", "Cf": "", "Mn": ""}
"""Categories: dashes, quotation marks, joiners, and marks on other letters."""

_SPELLING = frozenset(f"{string.ascii_letters}{string.digits}[]+-'")
"""What other letters are spelled with."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
"""Pillow's type of its own font."""


class Lettering:
    """Draws texts, each with Pillow's own font if that has all letters, else with the best other.

    Letters that no font has lose their accents, or are spelled out: "[cat face]".

    Args:
        texts: Everything that will be drawn.

    Warns:
        ResNeXtWarning: Letters have to be spelled out.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        letters = {text: {*text} for text in map(_normal, texts)}
        own = _lacking(ImageFont.load_default(_PROBE), set[str]().union(*letters.values()))
        best: dict[str, tuple[Set[str], Path | None]]
        best = {text: (some & own, None) for text, some in letters.items()}
        open_texts = {text: some for text, some in letters.items() if some & own}
        for path, lacking in _covering(set[str]().union(*open_texts.values())):
            for text, some in open_texts.items():
                left = some & lacking
                spells = not left or not lacking & _SPELLING
                if spells and len(left) < len(best[text][0]):
                    best[text] = left, path
            if not any(left for left, _ in best.values()):
                break
        self._best = best
        nowhere = sorted({c for left, _ in best.values() for c in left if "[" in _spelled(c)})
        if nowhere:
            warnings.warn(
                f"No font of this computer has {' '.join(nowhere[:5])}, so the picture has letters "
                f"spelled out. Install a font for them, such as Noto Sans.",
                ResNeXtWarning,
                stacklevel=3,
            )

    def write(
        self,
        draw: ImageDraw.ImageDraw,
        corner: tuple[float, float],
        text: str,
        width: float,
        size: int,
        colour: str,
    ) -> None:
        """Draw a text on one line, shortened to fit.

        Args:
            draw: Where to draw.
            corner: Its upper left corner, pixels.
            text: One of the texts given before.
            width: Pixels that it may take.
            size: Size of the letters, pixels.
            colour: Its colour.
        """
        lacking, path = self._best[_normal(text)]
        own = ImageFont.load_default(size)
        assert isinstance(own, ImageFont.FreeTypeFont), "as it has a size"
        font = own if path is None else ImageFont.truetype(str(path), size)
        shown = "".join(_spelled(c) if c in lacking else c for c in _normal(text))
        if lacking:
            shown = shown.replace("][", " ")  # "[ka o te]"
        place = corner[0], corner[1] + own.getmetrics()[0]  # on the line that others stand on
        draw.text(place, _fitted(draw, shown, width, font), colour, font, anchor="ls")


def _normal(text: str) -> str:
    """A text on one line, with accents in their letters as far as there are such."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _fitted(draw: ImageDraw.ImageDraw, text: str, width: float, font: Font) -> str:
    """A text, shortened with an ellipsis to fit a width in pixels."""
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text[:-2] + "…"
    return text


def _spelled(letter: str) -> str:
    """What stands for a letter that cannot be drawn, in ASCII; empty for one that is not seen."""
    kind = unicodedata.category(letter)
    if kind in _ASCII:
        return _ASCII[kind]
    if plain := unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode():
        return plain
    name = unicodedata.name(letter, "")
    if not name or name.startswith("CJK"):
        return f"[U+{ord(letter):04X}]"
    return f"[{re.sub(r'^.*(LETTER|SYLLABLE|CHARACTER|SIGN) | WITH .*$', '', name).lower()}]"


def _covering(letters: Set[str]) -> Iterator[tuple[Path, Set[str]]]:
    """Fonts of the system, usual ones first, and which letters each lacks, also of `_SPELLING`."""
    if not letters:
        return
    found = {
        Path(folder, name)
        for root in _folders()
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(_ENDINGS) and name != "LastResort.otf"  # which draws boxes
    }
    for path in sorted(found, key=lambda x: (bool(_UNUSUAL.search(x.stem)), x.name, x)):
        try:
            font = ImageFont.truetype(str(path), _PROBE, layout_engine=ImageFont.Layout.BASIC)
            lacking = _lacking(font, letters | _SPELLING)
        except (OSError, ValueError):  # damaged, pictures of another size, a name in no encoding
            continue
        yield path, lacking


def _folders() -> list[Path]:
    """Where the system keeps its fonts."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - a user may have none
    if sys.platform == "win32":
        own = os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")
        windows = os.environ.get("WINDIR", r"C:\Windows")
        return [Path(windows, "Fonts"), Path(own, "Microsoft", "Windows", "Fonts")]
    if sys.platform == "darwin":
        return [root / "Library" / "Fonts" for root in (Path("/System"), Path("/"), home)]
    own = os.environ.get("XDG_DATA_HOME") or home / ".local" / "share"
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    return [home / ".fonts", *(Path(root, "fonts") for root in (own, *shared.split(":")))]


def _lacking(font: Font, letters: Set[str]) -> set[str]:
    """The letters that a font has no picture of."""
    box, pixels = font.getbbox(_NO_CHARACTER), [*font.getmask(_NO_CHARACTER)]
    like_box = (letter for letter in letters if font.getbbox(letter) == box)
    return {letter for letter in like_box if letter != " " and [*font.getmask(letter)] == pixels}
