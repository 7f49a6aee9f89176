"""The page in Chromium: decisions by keyboard, one key per image, nothing for axe-core to find.

Needs the command `chromium` and `pip install playwright axe-playwright-python`.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnext.neighbours import Neighbour
from resnext.review.cases import Case
from resnext.review.decisions import Entry, LabelList
from resnext.review.map import Points
from resnext.review.server import ReviewServer
from resnext.review.session import Session

CLASSES = ("cat", "dog", "fox", "<b>bold</b>")

pytestmark = pytest.mark.slow


def similar(case: Case) -> list[Neighbour]:
    """Six training images: three of the suggestion, three of a class with an awkward name."""
    rng, found = np.random.default_rng(len(case.paths[0])), list[Neighbour]()
    for i, label in enumerate([case.suggestion or "cat"] * 3 + [CLASSES[3]] * 3):
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (72, 96, 3)).astype(np.uint8)).save(content, "JPEG")
        found.append(Neighbour(f"train/{i} <b>.jpg", label, 0.01 * i, i, content.getvalue()))
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReviewServer]:
    """A review of forty photographs alone and one pair in two classes."""
    entries: list[Entry] = []
    for i in range(42):
        path = tmp_path / f"{i:02}.jpg"
        values = np.random.default_rng(i).integers(0, 255, (60, 80, 3)).astype(np.uint8)
        Image.fromarray(values).resize((1600, 1200)).save(path)
        entries.append(Entry(str(path), ("cat", "dog")[i % 2]))
    top = tuple((label, 0.4 - 0.1 * i) for i, label in enumerate(CLASSES))
    cases = [Case("doubt", (e.path,), "score 0.98", "fox", top) for e in entries[:30]]
    cases += [Case("duplicate", (entries[30].path, entries[31].path), "Equal files in two classes")]
    cases += [Case("unsure", (e.path,), "At most 40 % sure", None, top) for e in entries[32:41]]
    cases += [Case("unknown", (entries[41].path,), "Unlike every class", None, top)]
    labels = LabelList(tmp_path / "labels.csv", entries)
    server = ReviewServer(Session("photos", cases, labels, CLASSES, similar=similar))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def opened(browser: Any, url: str, **options: Any) -> Any:
    """The page with its first picture; any error in it fails the test."""
    page = browser.new_context(**options).new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text))
    page.goto(url)
    page.wait_for_selector(".frame img")
    return page


def press(page: Any, key: str) -> None:
    """Press a key, and wait until the page has moved on and shows the next picture."""
    before = page.inner_text("#count")
    page.keyboard.press(key)
    page.wait_for_function(
        "before => document.getElementById('count').textContent !== before && "
        "[...document.querySelectorAll('.frame img')].every((x) => x.complete && x.naturalWidth)",
        arg=before,
    )


def test_keys_decide(browser: Any, server: ReviewServer) -> None:
    """Each key does what the button beside it says; the file has it at once."""
    page, labels = opened(browser, server.url), server.session.labels

    def last(number: int) -> tuple[str, str]:
        labels_now = LabelList(labels.file, [])
        entry = labels_now.entries[number]
        return entry.label, entry.decision

    for number, (key, wanted) in enumerate(
        {
            "Enter": ("fox", "changed"),
            "k": ("dog", "kept"),
            "x": ("cat", "left out"),
            "4": ("<b>bold</b>", "changed"),
        }.items()
    ):
        press(page, key)
        assert last(number) == wanted
    press(page, "z")
    assert last(3) == ("dog", "")
    page.keyboard.press("/")
    page.keyboard.type("do")
    press(page, "Enter")
    assert last(3) == ("dog", "kept")
    page.click("nav button[value=duplicate]")
    press(page, "2")
    assert (last(30), last(31)) == (("dog", "changed"), ("dog", "kept"))
    assert page.is_visible("#end")
    page.click("nav button[value=unsure]")
    page.keyboard.press("ArrowRight")
    press(page, "Enter")
    assert last(33) == ("dog", "kept")
    assert page.errors == []


def test_similar_images_belong_to_the_picture(browser: Any, server: ReviewServer) -> None:
    """Those of the case that is shown, class by class, with their distances."""
    page = opened(browser, server.url)
    page.wait_for_selector(".like img")
    assert page.inner_text("#like").split() == [
        *("Like", "it", "in", "fox", "0.000", "0.010", "0.020"),
        *("Like", "it", "in", "<b>bold</b>", "0.030", "0.040", "0.050"),
    ]
    assert page.get_attribute(".like img", "alt") == "train/0 <b>.jpg"
    page.click("nav button[value=duplicate]")
    assert not page.is_visible("#like")
    page.click("nav button[value=unknown]")
    page.wait_for_selector(".like section:has-text('cat')")
    assert "Unlike every class" in page.inner_text("#why")
    assert page.errors == []


def test_an_image_needs_one_key_and_one_request(browser: Any, server: ReviewServer) -> None:
    """So the time for an image is that of its reader; no list and no picture comes again."""
    page = opened(browser, server.url)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(server.url)))
    for _ in range(41):
        press(page, "k")
    assert page.is_visible("#end")
    assert asked.count("decide") == 41
    pictures = [url for url in asked if url.startswith("image/")]
    assert len(pictures) == len(set(pictures)) <= 41
    others = [url for url in asked if not url.startswith(("image/", "similar/", "data:"))]
    assert set(others) == {"decide"}


def test_a_closed_terminal_is_noticed(browser: Any, server: ReviewServer) -> None:
    """The page must not go on as if decisions were saved."""
    page = opened(browser, server.url)
    press(page, "k")
    server.shutdown()
    server.server_close()
    page.context.set_offline(True)
    page.keyboard.press("k")
    page.wait_for_selector("#status.bad")
    assert "Not saved: the command has ended" in page.inner_text("#status")
    assert page.inner_text("#count") == "1 of 41 decided"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_everybody_can_use_it(browser: Any, server: ReviewServer, scheme: str, width: int) -> None:
    """axe-core finds nothing, and no page is wider than the window."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    size = {"width": width, "height": 800}
    options: dict[str, Any] = {"viewport": size, "color_scheme": scheme, "bypass_csp": True}
    page = opened(browser, server.url, **options)
    for kind in ("doubt", "duplicate", "unsure", "unknown"):
        page.click(f"nav button[value={kind}]")
        if kind != "duplicate":
            page.wait_for_selector(".like img")
        assert axe.run(page).response["violations"] == [], kind
        assert page.evaluate("document.documentElement.scrollWidth") <= width, kind
    press(page, "Enter")


def test_the_lasso_labels_what_is_inside(browser: Any, server: ReviewServer) -> None:
    """And only that; the file has it at once, and axe-core finds nothing on the map."""
    session = server.session
    names = [entry.path for entry in session.labels.entries]
    n, labels = len(names), np.arange(len(names)) % 2
    places = np.stack([np.where(np.arange(n) < 10, 0.1, 0.9), np.linspace(0, 1, n)], 1)
    predicted, split = labels.copy(), np.zeros(n, int)
    session.points = Points(
        places, names, CLASSES, labels, predicted, np.ones(n), ("train",), split
    )
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_context(bypass_csp=True).new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{server.url}map")
    page.wait_for_selector("#map li")
    assert axe.run(page).response["violations"] == []
    box = page.locator("#map canvas").bounding_box()
    corners = ((0.05, 0.0), (0.5, 0.0), (0.5, 1.0), (0.05, 1.0))
    for dx, dy in corners:
        x, y = box["x"] + dx * box["width"], box["y"] + 1 + dy * (box["height"] - 2)
        page.mouse.move(x, y, steps=4)
        if (dx, dy) == corners[0]:
            page.mouse.down()
    page.mouse.up()
    assert page.inner_text("#map [role=status]").startswith("10 selected: 5 cat, 5 dog")
    page.select_option("#map select", "fox")
    page.click("#map .set")
    page.wait_for_function(
        "document.querySelector('#map [role=status]').textContent === '10 set to fox'"
    )
    written = LabelList(session.labels.file, []).entries
    assert [entry.label for entry in written[:10]] == ["fox"] * 10
    assert {entry.decision for entry in written[10:]} == {""}
    page.click("#map li:has-text('dog') button")
    page.click("#map .out")
    page.wait_for_function(
        "document.querySelector('#map [role=status]').textContent.endsWith('left out')"
    )
    written = LabelList(session.labels.file, []).entries
    assert [entry.decision for entry in written[10:]] == ["", "left out"] * 16
    assert errors == []
