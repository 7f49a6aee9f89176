"""Colours over images, the sheet, the page and the command."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_readable, run_cli, tiny_network
from inference_cases import CARD, CONFIG
from PIL import Image

from resnext import explain, save
from resnext.errors import DataError
from resnext.explanation.deletion import DeletionCheck, random_maps
from resnext.explanation.explanation import Explanation
from resnext.explanation.overlay import draw_overlay
from resnext.explanation.page import explanation_page
from resnext.explanation.sheet import draw_explanations
from resnext.neighbours import Neighbour

pytestmark = pytest.mark.usefixtures("one_thread")

GREY = Image.new("RGB", (40, 20), "#808080")


def colour(image: Image.Image, x: float, y: float) -> np.ndarray:
    """Red, green and blue at a place given as fractions."""
    pixel = image.getpixel((int(x * image.width), int(y * image.height)))
    return np.array(pixel, int)


def test_colours_lie_where_the_evidence_is() -> None:
    """A map that is mirrored, turned or shifted against its image misleads."""
    values = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, -1.0]], np.float32)
    drawn = draw_overlay(GREY, values, (0.25, 0.0, 0.75, 1.0), 400)
    assert drawn.size == (400, 200)
    red, _, blue = colour(drawn, 0.3, 0.1)
    assert red > blue + 100  # orange at the top left of the crop
    red, _, blue = colour(drawn, 0.7, 0.9)
    assert blue > red + 100  # blue at its bottom right
    for x, y in ((0.1, 0.5), (0.9, 0.5), (0.72, 0.1)):
        assert np.ptp(colour(drawn, x, y)) < 20
    dashes = {drawn.getpixel((x, 100)) for x in (100, 299)}
    assert dashes <= {(255, 255, 255), (22, 24, 29)}


@pytest.mark.parametrize(
    "crop", [(-0.5, -0.2, 1.5, 1.2), (0.0, 0.0, 1.0, 1.0), (0.4, 0.4, 0.6, 0.6)]
)
@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (3, 700)])
def test_every_shape_is_drawn(
    crop: tuple[float, float, float, float], size: tuple[int, int]
) -> None:
    """Crops reach beyond small images; images may be lines."""
    values = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)
    assert max(draw_overlay(Image.new("RGB", size), values, crop, 300).size) == 300
    assert draw_overlay(GREY, np.zeros((1, 1), np.float32), crop, 300).size == (300, 150)


def test_random_maps_are_as_smooth() -> None:
    """Rougher maps would be easy to beat."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(9, 12)).cumsum(0).cumsum(1).astype(np.float32)
    for one in random_maps(values, 5):
        assert one.shape == values.shape
        np.testing.assert_allclose(
            np.abs(np.fft.fft2(one))[1:4, 1:4], np.abs(np.fft.fft2(values))[1:4, 1:4], rtol=1e-3
        )
        assert abs(np.corrcoef(one.ravel(), values.ravel())[0, 1]) < 0.95


def explanation(**options: object) -> Explanation:
    """An explanation of noise."""
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    one = explain(tiny_network(CONFIG, CARD), picture, **options)  # pyright: ignore
    return replace(
        one, name="<b>&photo.png", label="<i>cat", check=DeletionCheck(3, (1,) * 6, (2,) * 6)
    )


class Page(HTMLParser):
    """Tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.words += data


def test_page() -> None:
    """Names come from files of others, and nothing may be loaded from elsewhere."""
    page = Page(explanation_page([explanation(), explanation(how="ig")], "<u>model"))
    assert {"b", "i", "u", "script", "link"} & {tag for tag, a in page.tags if not a} <= {"b"}
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 4
    assert all(str(a["src"]).startswith("data:image/jpeg;base64,") for a in pictures)
    assert all(a["alt"] for a in pictures)
    assert "<b>&photo.png" in page.words
    assert "not reliable here: better than 3 of 20 random maps" in page.words
    assert "Integrated gradients." in page.words


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_everybody_can_read_the_page(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    """With a check that failed, a curve, and similar images."""
    content = io.BytesIO()
    GREY.save(content, "JPEG")
    like = tuple(Neighbour("<b>.jpg", x, 0.1, 0, content.getvalue()) for x in ("a", "a", "W" * 60))
    path = tmp_path / "page.html"
    path.write_text(explanation_page([replace(explanation(), like=like)], "W" * 60))
    assert_readable(browser, path, scheme, width)


def test_sheet() -> None:
    """One cell for each, and none is refused."""
    assert draw_explanations([explanation()] * 3).size == (2 * 508 + 20, 2 * 278 + 20)
    with pytest.raises(DataError):
        draw_explanations([])


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table, picture, page and JSON; the class by name; against with and without a class."""
    monkeypatch.chdir(tmp_path)
    save(tiny_network(CONFIG, CARD), "pets.safetensors")
    for i in range(2):
        values = np.random.default_rng(i).integers(0, 256, (20, 17, 3), dtype=np.uint8)
        Image.fromarray(values).save(f"{i}.png")
    given = ("explain", "pets.safetensors", "0.png", "1.png")
    code, out, _ = run_cli(capsys, monkeypatch, *given, "--class", "cat", "--json", "n.json")
    assert code == 0
    assert "explanation.png: 2 images with maps" in out
    with Image.open("explanation.png") as picture:
        assert picture.width == 2 * 508 + 20
    content = json.loads(Path("n.json").read_text())["explanations"]
    assert [(one["name"], one["label"]) for one in content] == [("0.png", "cat"), ("1.png", "cat")]
    for one in content:
        total = np.sum(one["map"]) + one["bias"]
        assert total == pytest.approx(one["score"], abs=1e-4)
        assert one["check"]["of"] == 20
    more = ("--no-check", "--json", "n.json", "--html", "--against")
    assert run_cli(capsys, monkeypatch, *given, *more)[0] == 0
    content = json.loads(Path("n.json").read_text())["explanations"]
    assert all(one["against"] and one["check"] is None for one in content)
    assert Path("explanation.html").read_text().startswith("<!doctype html>")
    given = ("explain", "pets.safetensors", "--against", "dog", "0.png", "--no-check")
    more = ("--json", "n.json", "--out", "x.png", "--sanity")
    code, out, _ = run_cli(capsys, monkeypatch, *given, *more)
    assert (code, "with random layers" in out) == (0, True)
    assert json.loads(Path("n.json").read_text())["explanations"][0]["against"] == "dog"
    for wrong in (
        ("--against", "cow"),
        ("--limit", "0"),
        ("--stage", "4"),
        ("--out", "0.png/x.png"),
        ("--out", "x.foo"),
        ("--html", "x.html"),  # a switch, so this would be an image
    ):
        code, _, err = run_cli(capsys, monkeypatch, *given, *wrong)
        assert (code, err.count("\n")) == (2, 1), wrong


def test_a_name_that_is_no_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of files are bytes; page and numbers were lost at the end."""
    monkeypatch.chdir(tmp_path)
    save(tiny_network(CONFIG, CARD), "pets.safetensors")
    name = os.fsdecode(b"caf\xe9.png")
    GREY.save(name)
    given = ("explain", "pets.safetensors", name, "--no-check", "--html", "--json", "n.json")
    assert run_cli(capsys, monkeypatch, *given)[0] == 0
    assert json.loads(Path("n.json").read_text())["explanations"][0]["name"] == name
    assert r"caf\udce9.png" in Path("explanation.html").read_text()
