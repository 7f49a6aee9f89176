"""Neighbours in `index`, `predict` and `explain`: from a folder to table, sheet and page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import photo_folder, run_cli, tiny_network
from PIL import Image

import resnext
from resnext import Card, Preprocessing, ResNeXt, save
from resnext.errors import CheckpointError
from resnext.explanation.page import explanation_page
from resnext.explanation.sheet import draw_explanations
from resnext.inference.search import Search
from resnext.neighbours import open_index
from resnext.prediction.contact_sheet import draw_neighbours, draw_sheet

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command: exit code, output and errors."""
    return lambda *arguments: run_cli(capsys, monkeypatch, *arguments)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> Path:
    """The current folder: photos of two classes, and a model with its index."""
    monkeypatch.chdir(tmp_path)
    photo_folder(Path("photos"))
    save(tiny_network(card=Card(("cat", "dog"), Preprocessing(16, 16))), tmp_path / "m.safetensors")
    code, out, _ = run("index", "photos", "--model", "m.safetensors")
    assert (code, out.split(",")[0]) == (0, "m.index: 24 images")
    return tmp_path


def test_predictions_come_with_neighbours_of_both_classes(folder: Path) -> None:
    """The second class is what an unsure user compares with; the index is that of the file."""
    photo = folder / "photos" / "cat" / "003.jpg"
    (one,) = resnext.predict(folder / "m.safetensors", photo, like=3)
    index = open_index(folder / "m.safetensors")
    other = "dog" if one.label == "cat" else "cat"
    wanted = [*index.search(photo, 3, label=one.label), *index.search(photo, 3, label=other)]
    assert [(x.name, x.label) for x in one.like] == [(x.name, x.label) for x in wanted]
    assert one.like[0 if one.label == "cat" else 3].name == str(Path("photos", "cat", "003.jpg"))
    assert resnext.predict(folder / "m.safetensors", photo)[0].like == ()
    why = resnext.explain(folder / "m.safetensors", photo, like=3)
    assert [x.name for x in why.like] == [x.name for x in wanted]
    assert [x["distance"] for x in why.to_dict()["like"]] == [x.distance for x in why.like]


def test_sheets_and_pages_show_neighbours(folder: Path) -> None:
    """With thumbnails and distances, and unchanged where there are none."""
    photo = folder / "photos" / "cat" / "003.jpg"
    why = resnext.explain(folder / "m.safetensors", photo, like=3)
    page = explanation_page([why], "m")
    assert page.count("<figure>") == 6
    assert all(f"<figcaption>{x.distance:.3f}</figcaption>" in page for x in why.like)
    plain = resnext.explain(folder / "m.safetensors", photo)
    assert "<figure>" not in explanation_page([plain], "m")
    assert draw_explanations([why]).height > draw_explanations([plain]).height
    found = resnext.predict(folder / "m.safetensors", photo, like=3)
    tall, low = draw_sheet([photo], found), draw_sheet([photo], [found[0]._replace(like=())])
    assert tall.height > low.height
    added = np.asarray(tall)[low.height - 20 :]
    assert (added != 255).any(2).mean() > 0.2  # pictures, not paper
    similar = draw_neighbours(Image.open(photo).convert("RGB"), found[0].like)
    assert similar.size == draw_sheet([photo] * 7, [found[0]._replace(like=())] * 7).size


def test_commands_print_neighbours(folder: Path, run: Run) -> None:
    """Each on a line with class and distance."""
    photo = str(Path("photos", "cat", "003.jpg"))
    code, out, _ = run("predict", "m.safetensors", photo, "--like", "2", "--sheet", "s.png")
    assert (code, out.count("away")) == (0, 4)
    code, out, _ = run("predict", "m.safetensors", "--similar", photo, "--like", "4")
    assert (code, len(out.splitlines())) == (0, 5)
    assert out.splitlines()[1].split() == [photo, "cat", "0.000"]
    code, out, _ = run("explain", "m.safetensors", photo, "--no-check", "--json", "why.json")
    assert (code, out.count("away")) == (0, 6)
    (why,) = json.loads(Path("why.json").read_text())["explanations"]
    assert len(why["like"]) == 6
    code, out, _ = run("explain", "m.safetensors", photo, "--no-check", "--like", "0")
    assert (code, out.count("away")) == (0, 0)


def test_a_sheet_of_similar_images_shows_deep_ones(folder: Path, run: Run) -> None:
    """An image of 12 bits in 16 is black, if it is not shown with the range of the card."""
    deep = Preprocessing(16, 16, value_range=(0, 4095))
    save(tiny_network(card=Card(("cat", "dog"), deep)), folder / "deep.safetensors")
    assert run("index", "photos", "--model", "deep.safetensors")[0] == 0
    Image.fromarray(np.full((20, 20), 4000, np.uint16)).save("query.png")
    given = ("predict", "deep.safetensors", "--similar", "query.png", "--like", "1")
    assert run(*given, "--sheet", "s.png")[0] == 0
    with Image.open("s.png") as sheet:
        shown = np.asarray(sheet.convert("L"))[40:160, 40:160]
    assert abs(shown.astype(int) - round(4000 / 4095 * 255)).max() <= 1


def test_photos_that_were_moved_are_named(folder: Path, run: Run) -> None:
    """Their thumbnails are still shown; the paths lead nowhere."""
    photo = shutil.copy(Path("photos", "cat", "003.jpg"), "query.jpg")
    Path("photos").rename("elsewhere")
    code, _, err = run("predict", "m.safetensors", "--similar", photo)
    assert code == 0
    assert "10 of 10 similar images are not where they were, such as photos" in err
    Path("days").mkdir()
    for name in ("2026-01-01 12:30:00.jpg", "2.jpg"):  # a time does not name a larger file
        shutil.copy(photo, Path("days", name))
    assert run("index", "days", "--model", "m.safetensors")[0] == 0
    shutil.rmtree("days")
    _, _, err = run("predict", "m.safetensors", "--similar", photo)
    assert "2 of 2 similar images are not where they were, such as days" in err


def test_a_plan_for_smaller_images_needs_its_own_index(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with larger images, nearly all were unlike all classes."""
    photo, model = str(Path("photos", "cat", "003.jpg")), folder / "m.safetensors"
    network = resnext.load(model)
    assert isinstance(network, ResNeXt)
    assert network.card is not None
    network.card = replace(network.card, unknown_threshold=0.5, unknown_weight=0.1)
    save(network, model)
    monkeypatch.setattr(Search, "seconds", lambda self, run: self.builder.size / 100)
    monkeypatch.setattr("resnext.inference.search._SECONDS", 0.0)
    options: dict[str, Any] = {"engine": "torch", "precision": "fp32", "batch": 4}
    quick = resnext.optimize(model, data=folder / "photos", max_loss=99, **options)
    assert quick.card is not None
    assert quick.card.preprocessing.size == 8
    assert quick.card.unknown_threshold is None  # it was fitted to larger images
    index = open_index(model)
    quick.save_plan(model)
    refusal = "m.index was made with images of 16 pixels, resized to 16, not 8 pixels"

    code, _, err = run("predict", "m.safetensors", photo)
    assert (code, "The index is not used" in err, refusal in err) == (0, True, True)
    for asked in (photo, "--like", "2"), ("--similar", photo):
        code, _, err = run("predict", "m.safetensors", *asked)
        assert (code, refusal in err) == (2, True)
    with pytest.raises(CheckpointError, match=refusal):
        resnext.predict(model, photo, index=index)
    with pytest.raises(CheckpointError, match=refusal):
        resnext.explain(model, photo, like=1, index=index)
    with pytest.raises(CheckpointError, match=refusal):
        open_index(model).search(photo)
    assert open_index(model, plan=False).search(photo, 1)[0].name == photo
    code, _, err = run("predict", "m.safetensors", photo, "--no-plan", "--like", "2")
    assert (code, "not used" in err) == (0, False)

    assert run("index", "photos", "--model", "m.safetensors")[0] == 0
    assert open_index(model).search(photo, 1)[0].name == photo
    code, _, err = run("predict", "m.safetensors", photo, "--no-plan")
    assert (code, "made with images of 8 pixels, resized to" in err) == (0, True)


def test_an_index_that_does_not_fit_is_refused_only_if_asked_for(folder: Path, run: Run) -> None:
    """`explain` works without neighbours, and says why; `--like` cannot."""
    photo = str(Path("photos", "cat", "003.jpg"))
    save(tiny_network(card=Card(("cat", "dog"), Preprocessing(16, 20))), folder / "m.safetensors")
    code, out, _ = run("explain", "m.safetensors", photo, "--no-check")
    assert code == 0
    assert "The index is not used. m.index was made with other weights" in out
    for command in ("predict", "explain"):
        code, _, err = run(command, "m.safetensors", photo, "--like", "2")
        assert (code, err.count("\n")) == (2, 1)
        assert "Make it again with resnext index PHOTOS --model m.safetensors" in err
    code, _, err = run("predict", "m.safetensors", photo, "--similar", photo)
    assert (code, err.count("\n")) == (2, 1)
