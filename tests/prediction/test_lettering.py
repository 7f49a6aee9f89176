"""Text in pictures: names in any script can be told apart, whatever fonts there are."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from resnext.errors import ResNeXtWarning
from resnext.explanation import Explanation
from resnext.explanation.classes import Target
from resnext.explanation.sheet import draw_explanations
from resnext.neighbours.index import Neighbour
from resnext.prediction import lettering
from resnext.prediction.contact_sheet import draw_flips, draw_neighbours, draw_sheet
from resnext.prediction.images import Prediction
from resnext.prediction.lettering import Lettering

GREY = Image.new("RGB", (9, 9), "#808080")


@pytest.fixture
def fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of fonts; empty."""
    monkeypatch.setattr(lettering, "_folders", lambda: [tmp_path / "fonts"])
    return tmp_path / "fonts"


def write_font(path: Path, letters: str) -> None:
    """A font whose letters are bars, as high as their place in `letters`."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000)
    pen = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen
    names = [".notdef", *(f"u{ord(c):X}" for c in letters)]
    glyphs = {}
    for i, name in enumerate(names):
        bar = pen(None)
        height = 100 * i or 700
        bar.moveTo((0, 0))
        for corner in ((0, height), (800, height), (800, 0)):
            bar.lineTo(corner)
        bar.closePath()
        glyphs[name] = bar.glyph()
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):X}" for c in letters})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)


def drawn(text: str, *others: str, width: float = 400) -> np.ndarray:
    """Which pixels a text of 20 pixels takes."""
    picture = Image.new("L", (400, 60))
    letters = Lettering([text, *others])
    letters.write(ImageDraw.Draw(picture), (0, 10), text, width, 20, "#ffffff")
    return np.asarray(picture)


def heights(text: str, *others: str) -> list[int]:
    """Of letters of `write_font`: how high each is, in tenths of its size."""
    picture = drawn(text, *others) > 128
    return [int(picture[:, 20 * i + 8].sum()) // 2 for i in range(len(text))]


def test_the_font_that_has_the_letters_is_found(fonts: Path) -> None:
    """Usual faces first; one font for a whole text, so that letters that join can do so."""
    write_font(fonts / "a-Bold.ttf", "猫ö狗")
    write_font(fonts / "other" / "b.otf", "狗ö猫e")
    write_font(fonts / "c.ttf", "猫")
    (fonts / "broken.ttf").write_bytes(b"no font")
    assert heights("狗ö") == [1, 2]
    assert heights("猫") == [3]  # of b.otf, which is the first by name
    assert heights("猫", "狗ö") == [3]
    assert heights("狗猫e") == [1, 3, 4]


def test_names_without_special_letters_are_drawn_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most names need no font of the system, and no time to look for one."""
    monkeypatch.setattr(lettering, "_folders", lambda: pytest.fail("looked for fonts"))
    wanted = Image.new("L", (400, 60))
    own = lettering.ImageFont.load_default(20)
    ImageDraw.Draw(wanted).text((0, 10), "a cat, gypsy", "#ffffff", own)
    assert np.array_equal(drawn("a cat, gypsy"), np.asarray(wanted))
    assert drawn("").sum() == 0
    assert np.nonzero(drawn("W" * 80, width=100).any(0))[0].max() < 100


@pytest.mark.parametrize(
    ("text", "ascii"),
    [
        ("Löwe", "Lowe"),
        ("Lo\u0308we", "Lowe"),
        ("cat – dog", "cat - dog"),
        ("Łódź", "[l]odz"),
        ("🐈\ufe0f cat", "[cat] cat"),
        ("кот", "[ka o te]"),
        ("猫狗", "[U+732B U+72D7]"),
        ("한 글", "[han] [geul]"),
        ("ab\u200dc", "abc"),
    ],
)
@pytest.mark.parametrize("font", ["", "猫"])  # which cannot spell, so it is no help
@pytest.mark.filterwarnings("ignore::resnext.errors.ResNeXtWarning")
def test_letters_that_no_font_has_are_spelled_out(
    fonts: Path, font: str, text: str, ascii: str
) -> None:
    """Boxes say nothing, and look alike for all classes."""
    write_font(fonts / "a.ttf", font)
    assert np.array_equal(drawn(text), drawn(ascii))


def test_what_is_missing_is_said(fonts: Path) -> None:
    """A user who knows which letters are missing can install a font."""
    with pytest.warns(ResNeXtWarning, match="No font of this computer has 狗 猫, so .*Install"):
        Lettering(["cat", "猫", "狗猫"])
    Lettering(["Löwe"])  # a warning is an error here; "Lowe" needs none
    write_font(fonts / "a.ttf", "猫狗")
    Lettering(["cat", "猫", "狗猫"])


def sheet(label: str) -> Image.Image:
    """A sheet of predictions."""
    return draw_sheet([GREY], [Prediction("a", (label,), (0.5,))])


def flips(label: str) -> Image.Image:
    """A sheet of two models."""
    one = [Prediction("a", ("b",), (0.5,))]
    return draw_flips([GREY], [label], one, one)


def answers(label: str) -> Image.Image:
    """A sheet of two models whose answers have the name."""
    one = [Prediction("a", (label,), (0.5,))]
    return draw_flips([GREY], ["b"], one, one)


def neighbours(label: str) -> Image.Image:
    """A sheet of similar images."""
    return draw_neighbours(GREY, [neighbour(label)])


def neighbour(label: str) -> Neighbour:
    """A similar image."""
    content = io.BytesIO()
    GREY.save(content, "jpeg")
    return Neighbour("a.png", label, 0.5, 0, content.getvalue())


def explanation(label: str, of_similar: str) -> Explanation:
    """An explanation, with a similar image."""
    values = np.ones((2, 2), np.float32)
    numbers = (0.5, 4.0, 4.0, values, 0.0, 0.0, "map", 4)
    where = (Target(0, None, 0.0), GREY, (0.0, 0.0, 1.0, 1.0), None)
    return Explanation("a", label, None, label, *numbers, *where, (neighbour(of_similar),))


def explained(label: str) -> Image.Image:
    """An explanation of a class."""
    return draw_explanations([explanation(label, "cat")])


def similar(label: str) -> Image.Image:
    """An explanation with similar images of a class."""
    return draw_explanations([explanation("cat", label)])


@pytest.mark.parametrize("draw", [sheet, flips, answers, neighbours, explained, similar])
@pytest.mark.filterwarnings("ignore::resnext.errors.ResNeXtWarning")
def test_every_picture_tells_names_apart(fonts: Path, draw: Callable[[str], Image.Image]) -> None:
    """Cat and dog in Chinese were the same box."""
    cat, dog = (np.asarray(draw(label)) for label in "猫狗")
    assert not np.array_equal(cat, dog)
