"""What the tests of pages share: pictures, and a page in Chromium."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import resnext.exporting

CHROMIUM, NODE = shutil.which("chromium"), shutil.which("node")
FOLDER = Path(resnext.exporting.__path__[0])
WORKER = FOLDER / "page_worker.js"
SIZES = ((200, 400), (290, 370), (380, 340), (470, 310), (560, 280), (40, 30))
LABELS = ("a cat", "Löwe, der", "</script><b>&amp;", "d")

needs_node = pytest.mark.skipif(NODE is None, reason="needs Node.js")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or NODE is None or shutil.which("npm") is None,
    reason="needs Chromium, Node.js and npm",
)


def wave(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with soft and hard edges and noise."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    rng = np.random.default_rng(seed)
    shades = [128 + 90 * np.sin(x / (3 + c) + y / (11 - c) + seed) for c in range(3)]
    values = np.stack(shades, 2) + 25 * rng.standard_normal((height, width, 3))
    values[height // 3 : height // 2, width // 4 : width // 2] = (255, 0, 20 * seed)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def opened(browser: Any, address: Path | str, **options: Any) -> Any:
    """The page, ready; what it requests and complains about is kept."""
    page = started(browser, address, **options)
    until(page, "document.getElementById('status').textContent === 'Ready'")
    return page


def started(browser: Any, address: Path | str, **options: Any) -> Any:
    """The page, while it loads its network."""
    page = browser.new_context(**options).new_page()
    page.errors, page.requests = [], []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(address.as_uri() if isinstance(address, Path) else address)
    return page


def until(page: Any, condition: str) -> None:
    """Wait for a condition; Playwright's own way needs `eval`, which the page forbids."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{condition} did not come true; {page.inner_text('#status')}")


def give(page: Any, *paths: Path) -> None:
    """Choose files, and wait for the answer to all of them."""
    page.set_input_files("#files", [str(path) for path in paths])
    until(page, f"pictures.length >= {len(paths)}")
    until(page, "queue.then(() => true)")


def saved(folder: Path, suffix: str = ".jpg") -> list[Path]:
    """Files of several sizes."""
    paths = [folder / f"{i}{suffix}" for i in range(len(SIZES))]
    for i, path in enumerate(paths):
        wave(*SIZES[i], i).save(path, quality=92)
    return paths


def check_usable(page: Any, state: str) -> None:
    """axe-core finds nothing, and nothing is wider than the window."""
    from axe_playwright_python.sync_playwright import Axe

    assert Axe().run(page).response["violations"] == [], state
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), state
